"""After a purge the hot store gets smaller, beside a daemon that writes."""

import shutil
import sqlite3
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot import upkeep
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.settings import Vacuum
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    make_store(tmp_path / "vidurai.db", 6_000, archived_share=0.9)
    return tmp_path / "vidurai.db"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_QUIET_SECONDS", 0.2)


@contextmanager
def daemon(db: Path) -> Iterator[list[int]]:
    """Vidurai, with a connection of its own, that writes for as long as this lasts."""
    stop, written = threading.Event(), []

    def write() -> None:
        con = sqlite3.connect(db, timeout=30, isolation_level=None)
        while not stop.is_set():
            con.execute("UPDATE projects SET last_active = ?", (len(written),))
            written.append(len(written))
            time.sleep(0.002)
        con.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


def pragma(db: Path, name: str) -> int:
    con = sqlite3.connect(db)
    try:
        return con.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        con.close()


def flush(db: Path, vacuum: Vacuum = "off", **others: float) -> list[str]:
    return MemoryArchiver(db, db.parent / "archive", vacuum=vacuum, **others).flush_archived_memories().notes  # type: ignore[arg-type]


def assert_sound(db: Path) -> None:
    con = sqlite3.connect(db)
    assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    con.execute("INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")
    ids = {id_ for (id_,) in con.execute("SELECT id FROM memories")}
    assert {int(id_) for (id_,) in con.execute("SELECT memory_id FROM memories_fts")} == ids
    con.close()


def test_the_search_index_is_merged_and_the_log_cut_off(db: Path) -> None:
    keeper = sqlite3.connect(db)  # a daemon is there, so that closing the last connection does not do it
    keeper.execute("SELECT count(*) FROM memories").fetchone()
    index = "SELECT sum(length(block)) FROM memories_fts_data"
    before = keeper.execute(index).fetchone()[0]
    keeper.commit()
    rows = hot_rows(db)
    size = db.stat().st_size
    assert flush(db) == []
    assert Path(f"{db}-wal").stat().st_size == 0
    assert keeper.execute(index).fetchone()[0] < before * 0.3
    assert keeper.execute("SELECT count(DISTINCT segid) FROM memories_fts_idx").fetchone()[0] == 1
    keeper.close()
    assert db.stat().st_size == size  # unless asked, nothing more
    assert_one_tier(rows, db, db.parent / "archive")
    assert_sound(db)


def test_full_vacuum_gives_the_space_back_then_steps_can(db: Path) -> None:
    size = db.stat().st_size
    rows = hot_rows(db)
    assert "in full once" in flush(db, "incremental")[0]
    assert db.stat().st_size == size
    assert flush(db, "full") == []
    smaller = db.stat().st_size
    assert smaller < size / 3
    assert pragma(db, "auto_vacuum") == 2
    assert_one_tier(rows, db, db.parent / "archive")
    con = sqlite3.connect(db)
    con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE id % 2")
    con.commit()
    con.close()
    assert flush(db, "incremental") == []
    assert db.stat().st_size < smaller
    assert pragma(db, "freelist_count") == 0
    assert_sound(db)


def test_a_full_vacuum_waits_for_a_share_that_is_free(db: Path) -> None:
    size = db.stat().st_size
    assert flush(db, "full", vacuum_share=0.99) == []
    assert db.stat().st_size == size


def test_no_full_vacuum_beside_a_daemon_that_writes(db: Path) -> None:
    size = db.stat().st_size
    with daemon(db) as written:
        notes = flush(db, "full")
        now = len(written)
        while len(written) == now:
            time.sleep(0.001)
    assert notes == ["no vacuum: Vidurai is writing; the next run tries again"]
    assert db.stat().st_size == size
    assert_sound(db)
    assert flush(db, "full") == []  # nothing to purge, but quiet now
    assert db.stat().st_size < size / 3


def test_no_full_vacuum_while_someone_reads_for_long(db: Path) -> None:
    reader = sqlite3.connect(db, isolation_level=None)
    reader.execute("BEGIN")
    count = reader.execute("SELECT count(*) FROM memories").fetchone()
    notes = flush(db, "full")
    assert reader.execute("SELECT count(*) FROM memories").fetchone() == count
    reader.close()
    assert_sound(db)
    assert all("next run tries again" in note for note in notes)


def test_no_full_vacuum_without_room(db: Path) -> None:
    size = db.stat().st_size
    with mock.patch.object(shutil, "disk_usage", return_value=Usage(0, 0, 1_000_000)):
        (note,) = flush(db, "full")
    assert "no vacuum: it needs" in note
    assert db.stat().st_size == size


def test_merging_leaves_writers_room(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_MOST_PAGES", 1)  # many steps
    with daemon(db) as written:
        flush(db)
    assert len(written) > 5
    assert_sound(db)


def test_a_store_that_is_busy_then_fails_no_run(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = sqlite3.connect(db, isolation_level=None)
    keep_small = upkeep.keep_small

    def busy(*args: object, **kwargs: object) -> upkeep.Upkeep:
        holder.execute("BEGIN IMMEDIATE")
        try:
            return keep_small(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            holder.execute("ROLLBACK")

    monkeypatch.setattr("vidurai_pipeline.archival.run.keep_small", busy)
    (note,) = MemoryArchiver(db, db.parent / "archive", busy_timeout=0.1).flush_archived_memories().notes
    holder.close()
    assert note.startswith("the hot store was not made smaller: the hot store")
    assert "busy for more than 0.1 s" in note


def test_a_store_without_a_search_index_or_a_log(sample_store: Callable[[str], Path]) -> None:
    db = sample_store("guardian")
    con = sqlite3.connect(db)
    con.execute("DROP TABLE memories_fts")
    con.execute("PRAGMA journal_mode = DELETE")
    con.close()
    assert flush(db) == []
    assert pragma(db, "freelist_count") > 0


def test_a_small_purge_leaves_the_search_index_to_sqlite(tmp_path: Path) -> None:
    """Merging rewrites what stays in the index: each night that would be dear, and gain little."""
    db = tmp_path / "vidurai.db"
    make_store(db, 3_000, archived_share=0.02)
    archiver = MemoryArchiver(db, tmp_path / "archive")
    purged = archiver.flush_archived_memories(upkeep=False).purged
    assert purged == 60
    assert archiver.keep_small(purged).merge_steps == 0
    assert archiver.keep_small(600).merge_steps > 0


def test_a_store_that_fails_afterwards_hides_no_result(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archiver = MemoryArchiver(db, db.parent / "archive")
    original = Run.keep_small

    def keep_small(run: Run, purged: int) -> upkeep.Upkeep:
        with mock.patch.object(archiver.store, "schema", side_effect=HotStoreError("busy for more than 60 s")):
            return original(run, purged)

    monkeypatch.setattr(Run, "keep_small", keep_small)
    result = archiver.flush()
    assert result.purged == 5_400
    assert result.notes == ["the hot store was not made smaller: busy for more than 60 s"]


def test_a_merge_that_ran_out_of_time_goes_on_the_next_night(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hurried:
        hurried.setattr(upkeep, "MERGE_SECONDS", 0.0)
        hurried.setattr(upkeep, "MERGE_SECONDS_PER_MEMORY", 0.0)
        archiver = MemoryArchiver(db, db.parent / "archive")
        purged = archiver.flush(upkeep=False).purged
        assert archiver.keep_small(purged).merge_steps == 1
    monkeypatch.setattr(upkeep, "MERGE_SECONDS", 60.0)
    assert archiver.keep_small(1).merge_steps > 0
    assert archiver.keep_small(1).merge_steps == 0
    assert_sound(db)


def test_cutting_the_log_off_waits_for_a_reader_without_the_write_lock(db: Path) -> None:
    with (
        closing(sqlite3.connect(db)) as reader,
        closing(sqlite3.connect(db, timeout=0.5)) as writer,
        closing(sqlite3.connect(db, isolation_level=None, check_same_thread=False)) as con,
        ThreadPoolExecutor() as pool,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memories").fetchone()
        con.execute("UPDATE memories SET tags = '[]'")
        cut = pool.submit(upkeep.checkpoint, con, 1.5)
        time.sleep(0.2)
        writer.execute("UPDATE memories SET tags = '[1]'")
        writer.commit()
        assert cut.result() is False
        reader.rollback()
        assert upkeep.checkpoint(con, 1.5)
