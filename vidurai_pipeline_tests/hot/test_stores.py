"""Files that are not quite a hot store: correct work, or a clear error and nothing touched."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreError, SchemaError
from vidurai_pipeline_tests.support.stores import Store, flush
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows
from vidurai_pipeline_tests.support.users import error_of_an_ordinary_user, open_to_all


def no_files(db: Path) -> bool:
    return not list((db.parent / "archive").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"this is a text file, not a database, and long enough to be read as one" * 20, HotStoreError, "not a SQLite"),
        (os.urandom(8_192), HotStoreError, "not a SQLite database, or an encrypted one"),
        (b"", SchemaError, "has no table `memories`"),
    ],
    ids=["text", "encrypted", "empty"],
)
def test_not_a_store(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    db = tmp_path / "vidurai.db"
    db.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        flush(db)
    assert str(db) in str(caught.value)
    assert db.read_bytes() == content
    assert no_files(db)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(HotStoreError, match="does not exist: start Vidurai once"):
        flush(tmp_path / "vidurai.db")
    assert not (tmp_path / "vidurai.db").exists()
    (tmp_path / "vidurai.db").mkdir()
    with pytest.raises(HotStoreError, match="is not a file"):
        flush(tmp_path / "vidurai.db")


def test_a_damaged_page_in_the_middle(sample_store: Store) -> None:
    db = sample_store("guardian")
    con = sqlite3.connect(db)
    (page,) = con.execute(
        "SELECT pageno FROM dbstat WHERE name = 'memories' AND pagetype = 'leaf' LIMIT 1 OFFSET 100"
    ).fetchone()
    (size,) = con.execute("PRAGMA page_size").fetchone()
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    with db.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    content = db.read_bytes()
    with pytest.raises(HotStoreError, match=r"damaged .*recover"):
        flush(db)
    assert db.read_bytes() == content
    assert no_files(db)
    assert not list((db.parent / "archive").rglob("*.part"))


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_rollback_journal(sample_store: Store, mode: str) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    assert con.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode.lower(),)
    con.close()
    before = hot_rows(db)
    assert flush(db) == 71
    assert_one_tier(before, db, db.parent / "archive")


def test_content_that_is_only_in_the_write_ahead_log(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    con.execute("PRAGMA wal_autocheckpoint = 0")
    con.execute("UPDATE memories SET gist = 'only in the log', status = 'ARCHIVED'")
    con.commit()
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in db.parent.glob("vidurai.db*"):
        shutil.copy(path, moved)
    con.close()
    before = hot_rows(moved / "vidurai.db")
    assert flush(moved / "vidurai.db") == 120
    assert_one_tier(before, moved / "vidurai.db", moved / "archive")


def test_a_missing_log_loses_only_what_stood_in_it(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    con.execute("UPDATE memories SET status = 'ACTIVE'")
    con.commit()
    shutil.copy(db, tmp_path / "vidurai.db")
    con.close()
    assert flush(tmp_path / "vidurai.db") == 71


def test_a_journal_that_a_dead_daemon_left(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db, isolation_level=None)
    con.execute("PRAGMA journal_mode = DELETE")
    con.execute("PRAGMA cache_size = 1")
    before = hot_rows(db)
    con.execute("BEGIN")
    con.execute("UPDATE memories SET verbatim = verbatim || 'never committed'")
    for path in db.parent.glob("vidurai.db*"):
        shutil.copy(path, tmp_path)
    con.execute("ROLLBACK")
    con.close()
    copy = tmp_path / "vidurai.db"
    assert (tmp_path / "vidurai.db-journal").stat().st_size > 0
    assert MemoryArchiver(copy, tmp_path / "archive").backlog().waiting == 71
    assert flush(copy) == 71
    assert_one_tier(before, copy, tmp_path / "archive")


def test_symlink(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    link = tmp_path / "elsewhere" / "vidurai.db"
    link.parent.mkdir()
    link.symlink_to(db)
    before = hot_rows(db)
    assert flush(link) == 71
    assert link.is_symlink()
    assert_one_tier(before, db, link.parent / "archive")


@pytest.mark.parametrize("name", ["with space", "it's", 'say "hi"', "a*b", "[x]", "100%41", "q?mode=ro#f", "स्मृति 記憶"])
def test_paths_of_any_name(sample_store: Store, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    db = sample_store("schema_v7").rename(folder / f"{name}.db")
    before = hot_rows(db)
    assert flush(db) == 71
    assert_one_tier(before, db, folder / "archive")


def test_a_store_of_two_names_is_only_read(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    (tmp_path / "other.db").hardlink_to(db)
    with pytest.raises(HotStoreError, match="several names"):
        flush(db)
    assert no_files(db)
    assert MemoryArchiver(db, tmp_path / "archive").backlog().waiting == 71


def test_a_store_that_may_not_be_written(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    (db.parent / "archive").mkdir()
    open_to_all(db)
    db.chmod(0o444)
    db.parent.chmod(0o555)
    error = error_of_an_ordinary_user(db)
    db.parent.chmod(0o755)
    assert error.startswith(f"HotStoreError: the hot store {db}: ")
    assert "writable" in error
    assert no_files(db)
