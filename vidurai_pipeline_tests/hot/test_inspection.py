"""What is said of a store's space, of who has it open, and of what looks wrong in it."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot import inspection
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.hot.store import HotStore

Store = Callable[[str], Path]
OPENER = """
import sqlite3, sys
con = sqlite3.connect(sys.argv[1], isolation_level=None)
con.execute("SELECT count(*) FROM memories").fetchone()
if sys.argv[2] == "reads":
    con.execute("BEGIN")
    con.execute("SELECT count(*) FROM memories").fetchone()
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def opened(db: Path, what: str) -> Iterator[int]:
    """Another process has the store open; gives its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPENER, str(db), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    try:
        yield process.pid
    finally:
        process.communicate("")


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_what_a_vacuum_would_give_back(tmp_path: Path, journal: str) -> None:
    db = tmp_path / "vidurai.db"
    make_store(db, 5_000)
    with closing(sqlite3.connect(db)) as con:
        con.execute(f"PRAGMA journal_mode = {journal}")
    MemoryArchiver(db, tmp_path / "archive").flush_archived_memories()
    store = HotStore(db)
    with closing(store.connect()) as con:
        expected = inspection.reclaimable_bytes(store, con)
    before = db.stat().st_size
    with closing(sqlite3.connect(db)) as con:
        con.execute("VACUUM")
        con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    given = before - db.stat().st_size
    assert given > 1_000_000
    # Without a write-ahead log only the free pages are counted.
    assert expected == pytest.approx(given, rel=0.05) if journal == "wal" else 0 < expected <= given
    with closing(store.connect()) as con:
        assert inspection.reclaimable_bytes(store, con) < given / 10


def test_how_large_the_log_is(sample_store: Store) -> None:
    db = sample_store("guardian")
    store = HotStore(db)
    with closing(sqlite3.connect(db)) as writer, closing(store.connect()) as con:
        assert store.size(con).log_bytes == 0
        writer.execute("UPDATE memories SET gist = 'longer ' || gist")
        writer.commit()
        size = store.size(con)
        assert size.log_bytes == db.with_name("vidurai.db-wal").stat().st_size > 0
        assert size.bytes == db.stat().st_size + size.log_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /proc")
def test_which_processes_have_the_store_open(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("guardian")
    link = tmp_path / "link.db"
    link.symlink_to(db)
    assert inspection.holders(db) == []
    with closing(sqlite3.connect(db)) as own, opened(db, "reads") as reader, opened(db, "idles") as idler:
        own.execute("SELECT count(*) FROM memories").fetchone()
        for path in (db, link):
            found = {holder.pid: holder for holder in inspection.holders(path)}
            assert {pid: holder.reading for pid, holder in found.items()} == {reader: True, idler: False}
            assert found[reader].command == f"{Path(sys.executable).name} -c"
        assert os.getpid() not in found
    assert inspection.holders(db) == []
    assert inspection.holders(tmp_path / "none.db") == []


def test_memories_that_are_archived_although_they_should_be_kept(sample_store: Store) -> None:
    db = sample_store("guardian")
    store = HotStore(db)
    with closing(sqlite3.connect(db)) as con:
        con.execute("UPDATE memories SET pinned = 0")
        con.execute("UPDATE memories SET salience = 'LOW' WHERE upper(salience) = 'CRITICAL'")
        ids = [id_ for (id_,) in con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED' ORDER BY id LIMIT 5")]
        con.commit()
        with closing(store.connect()) as reader:
            assert inspection.archived_but_protected(store, reader) == []
        con.execute("UPDATE memories SET pinned = 1 WHERE id = ?", (ids[1],))
        con.execute("UPDATE memories SET salience = 'critical' WHERE id = ?", (ids[3],))
        con.execute("UPDATE memories SET salience = CAST(x'ff' AS TEXT) WHERE id = ?", (ids[4],))
        con.execute("UPDATE memories SET pinned = 1 WHERE status = 'ACTIVE'")
        con.commit()
    with closing(store.connect()) as reader:
        assert inspection.archived_but_protected(store, reader) == [ids[1], ids[3]]


def test_a_store_without_such_columns_protects_nothing(tmp_path: Path) -> None:
    db = tmp_path / "vidurai.db"
    with closing(sqlite3.connect(db)) as con:
        con.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, status TEXT)")
        con.execute("INSERT INTO memories VALUES (1, 'ARCHIVED')")
        con.commit()
    store = HotStore(db)
    with closing(store.connect()) as reader:
        assert inspection.archived_but_protected(store, reader) == []
        assert inspection.orphans(store, reader) == []


def test_rows_that_name_a_memory_that_is_gone(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    with closing(sqlite3.connect(db)) as con:
        con.execute("DELETE FROM event_receipts")
        (archived,) = con.execute("SELECT min(id) FROM memories WHERE status = 'ARCHIVED'").fetchone()
        (active,) = con.execute("SELECT min(id) FROM memories WHERE status = 'ACTIVE'").fetchone()
        for number, id_ in enumerate([archived, archived, active, 10**9, None, "text"]):
            con.execute(
                "INSERT INTO event_receipts (receipt_id, event_type, payload_hash, payload_json, status, memory_id, "
                "received_at) VALUES (?, 'e', 'h', '{}', 'processed', ?, 0)",
                (str(number), id_),
            )
        con.execute('CREATE TABLE "odd ""name" ("Source_Memory_ID")')
        con.execute('INSERT INTO "odd ""name" VALUES (-1), (-1)')
        con.commit()
    MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    store = HotStore(db)
    with closing(store.connect()) as reader:
        found = inspection.orphans(store, reader)
    assert found == [
        inspection.Orphans("event_receipts", "memory_id", 3, [archived, 10**9]),
        inspection.Orphans('odd "name', "Source_Memory_ID", 2, [-1]),
    ]


def test_a_store_that_is_damaged_is_named(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    with closing(sqlite3.connect(db)) as con:
        pages = con.execute("SELECT pageno, pgsize FROM dbstat WHERE name IN ('memories', 'event_receipts')").fetchall()
    with db.open("r+b") as file:
        for page, size in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
    store = HotStore(db)
    for look in (inspection.archived_but_protected, inspection.orphans):
        with closing(store.connect()) as reader, pytest.raises(HotStoreError, match=f"{db}: damaged"):
            look(store, reader)


@pytest.mark.parametrize(
    ("chosen", "other", "newer"),
    [("vidurai.db", "memory.db", True), ("memory.db", "vidurai.db", True), ("my.db", "memory.db", False)],
)
def test_the_other_store_is_named_if_it_is_the_one_written_to(
    tmp_path: Path, chosen: str, other: str, newer: bool
) -> None:
    for name, moment in ((chosen, 1_000), (other, 2_000)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (moment, moment))
    assert inspection.newer_store(tmp_path / chosen) == (tmp_path / other if newer else None)
    assert inspection.newer_store(tmp_path / other) is None
    (tmp_path / f"{chosen}-wal").write_bytes(b"x")
    assert inspection.newer_store(tmp_path / chosen) is None
    (tmp_path / other).unlink()
    assert inspection.newer_store(tmp_path / chosen) is None
