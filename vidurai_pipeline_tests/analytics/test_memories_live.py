"""Both tiers as one table, while others write and move memories."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.sample_store import make_store
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.stores import changing, small_store

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


def test_what_the_run_moves_between_the_two_reads_is_still_there(both: RepoAnalyst, sample_store: Store):
    """The run comes at the worst moment: after the hot store's snapshot, before the archive is listed."""
    db = sample_store("schema_v7")
    analyst = RepoAnalyst(db.parent / "archive")
    listed = analyst._database.cursor
    moments = []

    def cursor():
        moments.append(None)
        if len(moments) == 2:
            MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
        return listed()

    with mock.patch.object(analyst._database, "cursor", cursor):
        rows = analyst.query_archive("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM memories")
    assert rows == [{"n": 120, "ids": 120}]
    assert len(moments) == 2


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
def test_a_writer_need_not_wait_for_the_reader(tmp_path: Path, mode: str):
    db = small_store(tmp_path / "vidurai.db", *({"id": i, "verbatim": "x"} for i in range(20_000)))
    with changing(db) as con:
        con.execute(f"PRAGMA journal_mode = {mode}")
    analyst = RepoAnalyst(tmp_path / "archive")
    show = analyst._database.show_memories

    def write_meanwhile(connection, rows):
        def batches():
            for batch in incoming:
                with contextlib.closing(sqlite3.connect(db, timeout=0)) as con, con:
                    con.execute("UPDATE memories SET access_count = 7")
                yield batch

        incoming, rows.batches = rows.batches, batches()
        return show(connection, rows)

    with mock.patch.object(analyst._database, "show_memories", write_meanwhile):
        rows = analyst.query_archive("SELECT count(*) AS n, count(access_count) AS updated FROM memories")
    assert rows == [{"n": 20_000, "updated": 0}]
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
