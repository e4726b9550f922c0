"""Archival, deaths, restarts and the daemon's writes in any order: hypothesis looks for one that loses a memory."""

import functools
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline_tests.support.tiers import Row, cold_rows, hot_rows

pytestmark = pytest.mark.slow

SCHEMA = """
CREATE TABLE projects (id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT, name TEXT);
CREATE TABLE memories (
    id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL, verbatim TEXT NOT NULL, gist TEXT,
    salience TEXT, access_count INTEGER DEFAULT 0, pinned INTEGER DEFAULT 0, created_at TIMESTAMP, status TEXT,
    outcome INTEGER DEFAULT 0, expires_at TIMESTAMP, file_path TEXT, decay_reason TEXT, event_type TEXT, tags TEXT,
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE);
CREATE TABLE audience_gists (
    id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id INTEGER NOT NULL, audience TEXT, gist TEXT,
    FOREIGN KEY (memory_id) REFERENCES memories(id) ON DELETE CASCADE);
CREATE INDEX gists_memory ON audience_gists (memory_id);
CREATE VIRTUAL TABLE memories_fts USING fts5(memory_id, gist, verbatim);
INSERT INTO projects VALUES (1, 'a', 'A'), (2, 'b', 'B'), (3, 'c', 'C');
PRAGMA journal_mode = WAL;
"""

picks = st.integers(0, 1_000)


@functools.cache
def crash_server() -> subprocess.Popen[str]:
    """Dies in our stead; ends when this process does, with its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "vidurai_pipeline_tests.archival.crash_driver", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Lifecycle(RuleBasedStateMachine):
    """The model is what the daemon was told: the last content of every memory that it did not delete."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lifecycle-"))
        self.db, self.archive = self.folder / "vidurai.db", self.folder / "archive"
        self.memories: dict[int, Row] = {}
        self.deleted: set[Row] = set()
        self.stored = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(memories=st.integers(0, 30))
    def create(self, memories: int) -> None:
        con = sqlite3.connect(self.db)
        con.executescript(SCHEMA)
        con.close()
        self.store(memories)
        self.change("UPDATE memories SET status = 'ARCHIVED' WHERE id % 3 <> 0")

    # The daemon

    def change(self, sql: str, *values: object) -> None:
        con = sqlite3.connect(self.db)
        con.execute("PRAGMA foreign_keys = ON")
        before = hot_rows(self.db)
        con.execute(sql, values)
        con.commit()
        con.close()
        after = hot_rows(self.db)
        self.memories |= after
        for id_ in before.keys() - after.keys():
            self.deleted.add(self.memories.pop(id_))

    def some(self, pick: int, where: str = "TRUE") -> int | None:
        ids = sorted(hot_rows(self.db, where))
        return ids[pick % len(ids)] if ids else None

    @rule(count=st.integers(1, 10))
    def store(self, count: int) -> None:
        for _ in range(count):
            self.stored += 1
            n = self.stored
            self.change(
                "INSERT INTO memories (project_id, verbatim, gist, salience, created_at, status) "
                "VALUES (?, ?, 'gist', 'LOW', ?, 'ACTIVE')",
                n % 3 + 1,
                f"memory {n}",
                f"2026-01-01T00:00:{n:06d}",
            )
            con = sqlite3.connect(self.db)
            con.execute("INSERT INTO memories_fts SELECT id, gist, verbatim FROM memories ORDER BY id DESC LIMIT 1")
            con.commit()
            con.close()

    @rule(pick=picks)
    def decay(self, pick: int) -> None:
        self.change("UPDATE memories SET status = 'ARCHIVED' WHERE id % 4 = ?", pick % 4)

    @rule(
        pick=picks,
        what=st.sampled_from(
            [
                "access_count = access_count + 1",
                "status = 'ACTIVE', access_count = access_count + 1",
                "pinned = 1 - pinned",
                "gist = gist || '!', outcome = -1",
                "verbatim = verbatim || ' and more'",
            ]
        ),
    )
    def write_to_archived(self, pick: int, what: str) -> None:
        self.change(f"UPDATE memories SET {what} WHERE id = ?", self.some(pick, "status = 'ARCHIVED'"))

    @rule(pick=picks)
    def add_gist(self, pick: int) -> None:
        if (id_ := self.some(pick)) is not None:
            self.change("INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'ai', 'g')", id_)

    @rule(pick=picks)
    def delete_memory(self, pick: int) -> None:
        self.change("DELETE FROM memories WHERE id = ?", self.some(pick))

    @rule(project=st.integers(1, 3))
    def delete_project(self, project: int) -> None:
        self.change("DELETE FROM memories WHERE project_id = ?", project)

    # The pipeline

    def archiver(self) -> MemoryArchiver:
        return MemoryArchiver(self.db, self.archive, rows_per_file=7)

    @rule()
    def flush(self) -> None:
        result = self.archiver().flush_archived_memories()
        assert result.problems == []
        hot, cold = hot_rows(self.db), Counter(cold_rows(self.archive))
        assert not any(dict(row)["status"] == "ARCHIVED" for row in hot.values())
        archived = Counter(row for id_, row in self.memories.items() if id_ not in hot)
        assert {id_: self.memories[id_] for id_ in hot} == hot
        # What the daemon deleted while a dead run's copy of it was published may still be in the archive.
        assert archived <= cold
        assert set(cold - archived) <= self.deleted
        assert max(cold.values(), default=1) == 1
        con = sqlite3.connect(self.db)
        gists = con.execute("SELECT count(*) FROM audience_gists WHERE memory_id NOT IN (SELECT id FROM memories)")
        assert gists.fetchone() == (0,)
        con.close()

    def die(self, step: str, call: int) -> None:
        server = crash_server()
        assert server.stdin
        assert server.stdout
        print(json.dumps([str(self.db), str(self.archive), step, call]), file=server.stdin, flush=True)
        assert server.stdout.readline() == "done\n"

    @rule(call=st.integers(1, 150))
    def flush_and_die(self, call: int) -> None:
        self.die("flush_archived_memories", call)

    @rule()
    def publish(self) -> None:
        archiver = self.archiver()
        with archiver.run("test"):
            archiver.publish()

    @rule(call=st.integers(1, 75))
    def purge_and_die(self, call: int) -> None:
        self.die("purge", call)

    @rule()
    def purge(self) -> None:
        archiver = self.archiver()
        with archiver.run("test"):
            archiver.purge()

    @invariant()
    def every_memory_is_readable(self) -> None:
        if not self.db.exists():
            return
        hot = hot_rows(self.db)
        cold = set(cold_rows(self.archive))
        lost = [id_ for id_, row in self.memories.items() if hot.get(id_) != row and row not in cold]
        assert lost == []


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
