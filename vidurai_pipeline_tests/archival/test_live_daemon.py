"""Vidurai's own database class writes at full speed while its store is flushed."""

import json
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline_tests.support.reference import reference_python

pytestmark = pytest.mark.processes

DAEMON = """
import json, sys, time, select
from pathlib import Path
from vidurai.storage.database import MemoryDatabase, SalienceLevel
db = MemoryDatabase(Path(sys.argv[1]))
archived = json.loads(sys.argv[2])
stored, bumped, waits, failures = [], [], [], []
print("ready", flush=True)
def write(work):
    began = time.monotonic()
    try:
        return work()
    except Exception as error:
        failures.append(repr(error))
    finally:
        waits.append(time.monotonic() - began)
n = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    n += 1
    text = f"daemon text {n}"
    stored.append(write(lambda: db.store_memory("/p", text, f"daemon gist {n}", SalienceLevel.LOW, "chat")))
    if archived and n % 5 == 0:
        id_ = archived.pop()
        if write(lambda: db.set_memory_pinned(id_, True)):
            bumped.append(id_)
    db.get_pin_count(1)
db.write_queue.join()
print(json.dumps({"stored": stored, "bumped": bumped, "waits": waits, "failures": failures}))
"""


def test_no_write_fails_or_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = tmp_path / "vidurai.db"
    monkeypatch.setattr(Run, "rows_worth_a_process", 0)
    made = make_store(db, 12_000, archived_share=0.9)
    con = sqlite3.connect(db)
    archived = [id_ for (id_,) in con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED' ORDER BY id")]
    con.close()
    # From both ends, so that some are written to before the purge reaches them and some after.
    touched = [*archived[-300:], *archived[:300], *archived[4_000:4_300]]
    daemon = subprocess.Popen(
        [reference_python(), "-c", DAEMON, str(db), json.dumps(touched)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert daemon.stdout is not None
    while daemon.stdout.readline() != "ready\n":
        pass
    result = MemoryArchiver(db, tmp_path / "archive", rows_per_file=1_200).flush_archived_memories()
    time.sleep(0.2)
    report = json.loads(daemon.communicate("stop\n")[0].splitlines()[-1])

    assert report["failures"] == []
    assert len(report["stored"]) > 20
    con = sqlite3.connect(db)
    texts = dict(con.execute("SELECT id, verbatim FROM memories WHERE verbatim LIKE 'daemon text %'"))
    assert texts == {id_: f"daemon text {n}" for n, id_ in enumerate(report["stored"], 1)}
    hot = dict(con.execute("SELECT id, pinned FROM memories WHERE status = 'ARCHIVED'"))
    assert (
        con.execute("SELECT count(*) FROM memories_fts").fetchone()
        == con.execute("SELECT count(*) FROM memories").fetchone()
    )
    assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    con.close()
    cold = {
        row["id"]: row["pinned"]
        for path in (tmp_path / "archive").rglob("*.parquet")
        for row in pq.read_table(path, columns=["id", "pinned"]).to_pylist()
    }
    assert set(hot) | set(cold) == set(archived)
    assert not set(hot) & set(cold)
    # A pin that Vidurai was told of is there, in whichever tier the memory is now.
    assert {id_ for id_ in report["bumped"] if not {**hot, **cold}[id_]} == set()
    assert result.kept == len(hot)
    assert result == made.by_status["ARCHIVED"] - len(hot)
