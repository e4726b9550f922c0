"""Both tiers as one table, while others write and move memories."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.hot.view import HotSnapshot, HotView
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.stores import changing, small_store

pytestmark = pytest.mark.slow

Store = Callable[[str], Path]


def test_nothing_is_missed_while_a_run_moves_everything(tmp_path: Path):
    """Whatever moment a query meets, each memory is there, once."""
    db = tmp_path / "vidurai.db"
    make_store(db, 3_000, archived_share=0.9)
    analyst = RepoAnalyst(tmp_path / "archive")
    archiver = MemoryArchiver(db, tmp_path / "archive", rows_per_file=500)
    mover = threading.Thread(target=archiver.flush_archived_memories)
    counted = []
    mover.start()
    while mover.is_alive():
        counted += analyst.query_archive("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM memories")
    mover.join()
    counted += analyst.query_archive("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM memories")
    assert {(row["n"], row["ids"]) for row in counted} == {(3_000, 3_000)}


def test_what_the_run_moves_between_the_two_reads_is_still_there(sample_store: Store, monkeypatch: pytest.MonkeyPatch):
    """The run comes at the worst moment: after the hot store's snapshot, before the archive is listed."""
    db = sample_store("schema_v7")
    snapshot = HotView.snapshot

    @contextlib.contextmanager
    def moved_after(view: HotView, scratch: Path):
        with snapshot(view, scratch) as taken:
            moved.append(MemoryArchiver(db, db.parent / "archive").flush_archived_memories())
            yield taken

    moved = []
    monkeypatch.setattr(HotView, "snapshot", moved_after)
    analyst = RepoAnalyst(db.parent / "archive")
    rows = analyst.query_archive("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM memories")
    assert rows == [{"n": 120, "ids": 120}]
    assert moved[0] > 0


def test_one_query_sees_one_snapshot(tmp_path: Path):
    """The daemon writes while the rows are read: all of them are of one moment."""
    db = tmp_path / "vidurai.db"
    small_store(db, *({"id": i, "access_count": 0, "verbatim": "x" * 400} for i in range(30_000)))
    with changing(db) as con:
        con.execute("PRAGMA journal_mode = wal")
    stop = threading.Event()
    commits = []

    def daemon() -> None:
        with contextlib.closing(sqlite3.connect(db, timeout=0.5)) as con:
            while not stop.is_set():
                with con:
                    con.execute("UPDATE memories SET access_count = access_count + 1")
                commits.append(time.monotonic())

    thread = threading.Thread(target=daemon)
    thread.start()
    try:
        analyst = RepoAnalyst(tmp_path / "archive")
        for _ in range(4):
            began = len(commits)
            rows = analyst.query_archive("SELECT DISTINCT access_count AS n, count(*) OVER () AS all FROM memories")
            assert len(rows) == 1
            while len(commits) <= began:
                assert thread.is_alive()
                time.sleep(0.01)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("column", ["verbatim", "access_count"])
def test_a_writer_need_not_wait_for_the_reader(tmp_path: Path, mode: str, column: str, monkeypatch: pytest.MonkeyPatch):
    db = small_store(tmp_path / "vidurai.db", *({"id": i, "verbatim": "x"} for i in range(20_000)))
    with changing(db) as con:
        con.execute(f"PRAGMA journal_mode = {mode}")
    written = []

    def while_reading(read):
        def batches(snapshot: HotSnapshot, names):
            for batch in read(snapshot, names):
                with contextlib.closing(sqlite3.connect(db, timeout=0)) as con, con:
                    con.execute("UPDATE memories SET access_count = 7")
                written.append(batch.num_rows)
                yield batch

        return batches

    for method in ("batches", "short_columns"):
        monkeypatch.setattr(HotSnapshot, method, while_reading(getattr(HotSnapshot, method)))
    analyst = RepoAnalyst(tmp_path / "archive")
    sql = f"SELECT count(*) AS n, count(access_count) AS updated, count({column}) AS x FROM memories"
    (row,) = analyst.query_archive(sql)
    assert (row["n"], row["updated"], sum(written)) == (20_000, 0, 20_000)
    assert analyst.query_archive("SELECT count(access_count) AS updated FROM memories") == [{"updated": 20_000}]


def test_a_busy_store_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VIDURAI_BUSY_TIMEOUT", "0.1")
    db = small_store(tmp_path / "vidurai.db", {"id": 1})
    write_file(tmp_path / "archive", [memory(2)])
    analyst = RepoAnalyst(tmp_path / "archive")
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as con:
        con.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HotStoreError, match=r"busy for more than 0\.1 s") as caught:
            analyst.query_archive("FROM memories")
        assert len(str(caught.value).splitlines()) == 1
        assert analyst.query_archive("SELECT id FROM history") == [{"id": 2}]
    assert len(analyst.query_archive("FROM memories")) == 2
