"""When a run should start early, and what looking for it costs the hot store."""

import itertools
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.archival.early_run import Past, Thresholds, decide
from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.hot.backlog import BacklogCount, count_backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.sample_store import make_store

Store = Callable[[str], Path]
NOW = 1_800_000_000.0
THRESHOLDS = Thresholds(rows=20_000, bytes=256_000_000, free_disk=1_000_000_000, quiet=60.0)
PLENTY = 10**12


def counted(waiting: int, used: int = 0, total: int = 100_000) -> BacklogCount:
    return BacklogCount(waiting, total, used, "stamp", NOW, 0.1)


def decision(found: BacklogCount, thresholds: Thresholds = THRESHOLDS, past: Past | None = None, **others: Any) -> Any:
    given: dict[str, Any] = {
        "now": NOW, "written": NOW - 3_600, "wanted_since": None, "store_free": PLENTY, "archive_free": PLENTY, **others
    }  # fmt: skip
    return decide(found, thresholds, past or Past(), **given)


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
    # A later Vidurai may have an index for it.
    con.execute("CREATE INDEX i ON memories (status)")
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


@pytest.mark.parametrize(
    ("found", "others", "wanted", "why"),
    [
        (counted(19_999), {}, False, "19,999 memories wait"),
        (counted(20_000), {}, True, "20,000 memories wait (a run starts at 20,000)"),
        (counted(20_000), {"past": Past(left=1)}, False, "1 that the last run could not move"),
        (counted(999, used=300_000_000), {}, False, "no need"),
        (counted(1_000, used=300_000_000), {}, True, "grown by 300 MB"),
        (counted(1_000, used=300_000_000), {"past": Past(used_bytes=100_000_000)}, False, "grown by 200 MB"),
        (counted(1_000), {"store_free": 999_999_999}, True, "only 1,000 MB are free"),
        (counted(999), {"store_free": 0}, False, "no need"),
        (counted(10**6), {"thresholds": Thresholds(0, 0, 0, 60)}, False, "no need"),
    ],
)
def test_thresholds(found: BacklogCount, others: dict[str, Any], wanted: bool, why: str) -> None:
    made = decision(found, **others)
    assert (made.start, made.wanted) == (wanted, wanted)
    assert why in made.why


def test_no_room_for_the_archive() -> None:
    made = decision(counted(50_000, used=1_000_000_000), archive_free=200_000_000)
    assert not made.start
    assert "may need 250 MB: free some" in made.why
    assert decision(counted(50_000, used=1_000_000_000), archive_free=250_000_000).start


def test_failed_runs_are_tried_again_less_and_less_often() -> None:
    def waits(failures: int) -> float:
        past = Past(failures=failures, ended=NOW)
        return next(s for s in itertools.count(0, 60) if decision(counted(10**5), past=past, now=NOW + s).start)

    assert [waits(n) / 3600 for n in range(8)] == [0, 0.5, 1, 2, 4, 8, 16, 24]
    assert "last 3 runs failed" in decision(counted(10**5), past=Past(failures=3, ended=NOW)).why


def test_waits_for_a_pause_of_the_daemon_but_not_for_ever() -> None:
    assert not decision(counted(10**5), written=NOW - 59).start
    assert decision(counted(10**5), written=NOW - 60).start
    assert "written to 3 s ago" in decision(counted(10**5), written=NOW - 3).why
    assert not decision(counted(10**5), written=NOW - 3, wanted_since=NOW - 3_599).start
    assert decision(counted(10**5), written=NOW - 3, wanted_since=NOW - 3_600).start
    # A clock that was put back must not keep it waiting.
    assert decision(counted(10**5), written=NOW + 10**6).start
