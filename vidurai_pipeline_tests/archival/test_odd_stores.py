"""Files that are not quite a hot store: correct work, or a clear error and nothing touched."""

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import ArchiveError, HotStoreError, SchemaError
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.stores import flush
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows
from vidurai_pipeline_tests.support.users import error_of_an_ordinary_user, open_to_all

Store = Callable[[str], Path]


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


def test_an_archive_whose_path_is_not_utf_8_is_refused(sample_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "bad\udcff"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    db = sample_store("schema_v7").rename(folder / "vidurai.db")
    with pytest.raises(ArchiveError, match=r"^'.*bad\\udcff/archive' is not valid UTF-8"):
        flush(db)
    assert not (folder / "archive").exists()
    elsewhere = MemoryArchiver(db, tmp_path / "archive")
    assert elsewhere.flush_archived_memories() == 71


def test_a_store_of_two_names_is_only_read(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    (tmp_path / "other.db").hardlink_to(db)
    with pytest.raises(HotStoreError, match="several names"):
        flush(db)
    assert no_files(db)
    assert MemoryArchiver(db, tmp_path / "archive").backlog().waiting == 71


@pytest.mark.parametrize("link", ["archive", "."])
@pytest.mark.parametrize("target", ["../elsewhere/disk", "archive"])
def test_an_archive_behind_a_link_to_nothing_is_no_new_archive(
    sample_store: Store, tmp_path: Path, link: str, target: str
) -> None:
    """As when the disk that it lies on is not mounted."""
    db = sample_store("schema_v7")
    archive = tmp_path / "home" / "archive"
    if link == ".":
        (tmp_path / "home").symlink_to(target)
    else:
        archive.parent.mkdir()
        archive.symlink_to(target)
    here = rf"{archive.parent if link == '.' else archive} is a link to {target}, which is not there"
    archiver = MemoryArchiver(db, archive)
    analyst = RepoAnalyst(archive)
    for ask in (
        archiver.flush_archived_memories,
        archiver.list_archive_files,
        lambda: analyst.query_archive("FROM history"),
        lambda: analyst.search_archive("word"),
        analyst.is_empty,
    ):
        with pytest.raises(ArchiveError, match=here):
            ask()
    assert re.match(here, DreamCycle(archive, tmp_path / "q_table.json").run()["error"])
    assert len(hot_rows(db, "status = 'ARCHIVED'")) == 71


def test_the_folder_of_a_disk_of_its_own_is_no_part_of_the_archive(
    sample_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = sample_store("schema_v7")
    (db.parent / "archive" / "lost+found").mkdir(parents=True)
    scan = os.scandir

    def refused(path: str | Path) -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert flush(db) == 71
    with RepoAnalyst(db.parent / "archive") as analyst:
        assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 71}]


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
