"""How much waits, and what looking for it costs the hot store."""

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.hot.backlog import count_backlog
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline_tests.support.stores import Store

NOW = 1_800_000_000.0


def test_counts_what_sqlite_counts(sample_store: Store, tmp_path: Path) -> None:
    found = count_backlog(HotStore(sample_store("guardian")))
    assert (found.waiting, found.total) == (1_148, 2_000)
    # More than one portion, with gaps between the ids.
    db = tmp_path / "large.db"
    make_store(db, 12_000, archived_share=0.5)
    con = sqlite3.connect(db)
    con.execute("DELETE FROM memories WHERE id < 40 OR id % 7 = 0 OR id BETWEEN 6000 AND 9000")
    con.execute("UPDATE memories SET id = id + 5000000000 WHERE id > 11000")
    con.commit()
    expected = con.execute("SELECT sum(status = 'ARCHIVED'), count(*) FROM memories").fetchone()
    assert (count_backlog(HotStore(db)).waiting, count_backlog(HotStore(db)).total) == expected
    con.execute("DELETE FROM memories")
    con.commit()
    con.close()
    assert (count_backlog(HotStore(db)).waiting, count_backlog(HotStore(db)).total) == (0, 0)


def test_a_count_serves_until_the_store_changes_or_a_thousand_times_its_cost(sample_store: Store) -> None:
    db = sample_store("guardian")
    found = replace(count_backlog(HotStore(db)), at=NOW, seconds=0.1)
    assert found.serves(backlog.stamp(db), NOW + 10**6)
    con = sqlite3.connect(db, isolation_level=None)
    con.execute("UPDATE memories SET status = 'ACTIVE' WHERE id = 1")
    assert found.serves(backlog.stamp(db), NOW + 99)
    assert not found.serves(backlog.stamp(db), NOW + 101)
    assert not found.serves(backlog.stamp(db), NOW - 1_000)  # the clock was put back
    assert not found.serves(backlog.stamp(db), NOW + 20, NOW + 10)  # a run has ended since
    con.close()


def test_looking_neither_writes_nor_keeps_a_writer_waiting(sample_store: Store) -> None:
    db = sample_store("guardian")
    writer = sqlite3.connect(db, isolation_level=None, timeout=0)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE memories SET pinned = 1 WHERE id = 5")
    before = backlog.stamp(db)
    assert count_backlog(HotStore(db, 0.0)).waiting == 1_148
    assert backlog.stamp(db) == before
    writer.execute("COMMIT")
    writer.close()


def test_a_store_that_cannot_be_counted_says_why(sample_store: Store, tmp_path: Path) -> None:
    with pytest.raises(HotStoreError, match="no such column: status"):
        count_backlog(HotStore(sample_store("pre_guardian")))
    with pytest.raises(HotStoreError, match="does not exist"):
        count_backlog(HotStore(tmp_path / "none.db"))


def test_last_write_sees_the_log(sample_store: Store) -> None:
    db = sample_store("guardian")
    os.utime(db, (NOW, NOW))
    assert backlog.last_write(db) == NOW
    con = sqlite3.connect(db, isolation_level=None)
    con.execute("UPDATE memories SET pinned = 1 WHERE id = 5")
    os.utime(f"{db}-wal", (NOW + 7, NOW + 7))
    assert backlog.last_write(db) == NOW + 7
    con.close()
