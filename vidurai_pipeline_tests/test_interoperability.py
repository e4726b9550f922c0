"""Vidurai's own analyst, dreamer and database read what this project writes."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.reference import run_reference
from vidurai_pipeline_tests.support.tiers import hot_rows

pytestmark = pytest.mark.slow

ANALYST = """
import json, sys
from pathlib import Path
from vidurai.core.analytics import RepoAnalyst
analyst = RepoAnalyst(archive_base=Path(sys.argv[1]))
print(json.dumps({
    "rows": analyst.query_archive("SELECT id, verbatim, gist, tags, outcome, created_at FROM history ORDER BY id"),
    "training": analyst.get_training_data(limit=10_000),
}))
"""

DREAMER = """
import json
from vidurai.core.rl.dreamer import DreamCycle
print(json.dumps(DreamCycle().run()))
"""

TABLE = """
import json, sys
from pathlib import Path
from vidurai.core.rl_agent_v2 import Action, QLearningPolicy
data = json.loads(Path(sys.argv[1]).read_text())
policy = QLearningPolicy(storage_dir=sys.argv[2])
for state, actions in data["q_table"].items():
    policy.q_table[state] = {Action(name): float(value) for name, value in actions.items()}
policy.episodes, policy.total_reward = data["episodes"], data["total_reward"]
policy.save_q_table()
print((Path(sys.argv[2]) / "q_table.json").read_text().replace("\\n", " "))
"""

RECALL = """
import json, sys
from pathlib import Path
from vidurai.storage.database import MemoryDatabase, SalienceLevel
db = MemoryDatabase(Path(sys.argv[1]))
connection = db.get_connection_for_reading()
paths = [row["path"] for row in connection.execute("SELECT path FROM projects")]
found = [db.recall_memories(path, min_salience=SalienceLevel.NOISE, limit=10_000) for path in paths]
print(json.dumps(sorted(memory["id"] for part in found for memory in part)))
"""


@pytest.fixture
def flushed(sample_store: Callable[[str], Path]) -> Path:
    home = sample_store("guardian").parent
    MemoryArchiver(home / "vidurai.db", home / "archive").flush_archived_memories()
    return home


def test_its_analyst_reads_our_archive(sample_store: Callable[[str], Path]) -> None:
    home = sample_store("guardian").parent
    waiting = hot_rows(home / "vidurai.db", "status = 'ARCHIVED'")
    MemoryArchiver(home / "vidurai.db", home / "archive").flush_archived_memories()
    answer = run_reference(ANALYST, home / "archive", home=home)
    expected = [{name: dict(row)[name] for name in answer["rows"][0]} for _, row in sorted(waiting.items())]
    assert answer["rows"] == expected
    assert len(answer["training"]) == 439


def test_its_dreamer_learns_from_our_archive(flushed: Path) -> None:
    (flushed / ".vidurai").mkdir()
    (flushed / "archive").rename(flushed / ".vidurai" / "archive")
    stats = run_reference(DREAMER, home=flushed)
    assert (stats["success"], stats["episodes"], stats["error"]) == (True, 439, None)


def test_its_policy_holds_our_table(flushed: Path) -> None:
    assert DreamCycle(flushed / "archive", flushed / "q_table.json").run()["success"]
    ours = json.loads((flushed / "q_table.json").read_text())
    (flushed / "reference").mkdir()
    theirs = run_reference(TABLE, flushed / "q_table.json", flushed / "reference", home=flushed)
    assert theirs == {name: ours[name] for name in theirs}
    assert theirs["q_table"]


def test_its_database_recalls_what_stayed_hot(flushed: Path) -> None:
    con = sqlite3.connect(flushed / "vidurai.db")
    ids = {id_ for (id_,) in con.execute("SELECT id FROM memories")}
    con.close()
    recalled = set(run_reference(RECALL, flushed / "vidurai.db", home=flushed))
    assert recalled
    assert recalled <= ids
