"""A reader that holds the write-ahead log stops the purge before the log fills the disk, and costs nothing else."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.errors import LogHeldError
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

LIMIT = 4_000_000
ROWS = 5_400


@pytest.fixture
def db(tmp_path: Path) -> Path:
    make_store(tmp_path / "vidurai.db", 6_000, archived_share=0.9)
    return tmp_path / "vidurai.db"


def archiver(db: Path, patience: float) -> MemoryArchiver:
    return MemoryArchiver(db, db.parent / "archive", rows_per_file=2_000, wal_limit=LIMIT, busy_timeout=patience)


@contextlib.contextmanager
def reading(db: Path) -> Iterator[sqlite3.Connection]:
    """Someone who began to read, and stays there."""
    with contextlib.closing(sqlite3.connect(db, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memories").fetchone()
        yield reader


def log_bytes(db: Path) -> int:
    return Path(f"{db}-wal").stat().st_size


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_left_waits_for_the_next_run(db: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    monkeypatch.setattr(Run, "rows_worth_a_process", 0 if apart else 10**9)
    before = hot_rows(db)
    with reading(db):
        report = archiver(db, patience=0.3).flush()
        assert 0 < report.purged < ROWS
        assert log_bytes(db) < 2 * LIMIT
        (note,) = report.notes
        assert "VIDURAI_WAL_LIMIT" in note
        assert "wait in both tiers for the next run" in note
        assert not [path for path in (db.parent / "archive").rglob("*") if path.name.endswith(".part")]
        # Nothing is archived twice: the next run has to finish with what is there before it goes on.
        with pytest.raises(LogHeldError, match="another program has been reading the store since"):
            archiver(db, patience=0.3).flush()
    report = archiver(db, patience=60.0).flush()
    assert report.notes == []
    assert_one_tier(before, db, db.parent / "archive")


def test_the_steps_of_a_scheduled_run_leave_it_too(db: Path) -> None:
    before = hot_rows(db)
    tiers = archiver(db, patience=0.3)
    with reading(db), tiers.run("test"):
        assert tiers.publish().rows == ROWS
        assert tiers.verify().passed
        report = tiers.purge()
        assert 0 < report.purged < ROWS
        assert len(report.notes) == 1
        assert tiers.keep_small(report.purged).merge_steps <= 1
        assert log_bytes(db) < 2 * LIMIT
    archiver(db, patience=0.3).flush()
    assert_one_tier(before, db, db.parent / "archive")


def test_the_purge_goes_on_once_the_reader_has_gone(db: Path) -> None:
    before = hot_rows(db)
    with reading(db) as reader:

        def end_soon() -> None:
            time.sleep(1.0)
            reader.execute("ROLLBACK")

        ending = threading.Thread(target=end_soon)
        ending.start()
        report = archiver(db, patience=60.0).flush()
        ending.join()
    assert (report.purged, report.notes) == (ROWS, [])
    assert_one_tier(before, db, db.parent / "archive")
