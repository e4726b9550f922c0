"""Disks that are full, folders that may not be written: a clear error, nothing half done, and later all is well."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import ArchiveError, HotStoreError
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows
from vidurai_pipeline_tests.support.users import error_of_an_ordinary_user, open_to_all

Store = Callable[[str], Path]

LIMITED = """
import resource, sys
from pathlib import Path
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.errors import PipelineError
limit = int(sys.argv[3])
Run.rows_worth_a_process = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    MemoryArchiver(Path(sys.argv[1]), Path(sys.argv[2]), rows_per_file=300).flush_archived_memories()
except PipelineError as error:
    sys.exit(f"error: {error}")
"""


def assert_nothing_half_done(before: dict, db: Path, archive: Path) -> None:
    readable = set(hot_rows(db).values())
    hidden = [path for path in archive.rglob("*") if path.name.endswith(".part")]
    assert hidden == []
    assert MemoryArchiver(db, archive).flush_archived_memories().problems == []
    assert readable <= set(before.values())
    assert_one_tier(before, db, archive)


@pytest.mark.parametrize(
    ("limit", "processes"),
    [*((limit, 1) for limit in (0, 100, 4_096, 30_000, 60_000, 120_000)), (30_000, 2), (60_000, 2)],
)
def test_a_limit_on_the_size_of_files(sample_store: Store, programs: Path, limit: int, processes: int) -> None:
    """As when the disk is full: each write of an archive file fails at some point, or the deletion does."""
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    done = subprocess.run(
        [programs / "python", "-c", LIMITED, db, archive, str(limit), str(1_000_000 if processes == 1 else 0)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert_nothing_half_done(before, db, archive)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.filterwarnings("error")  # nothing may fail on the way out, unseen
@pytest.mark.parametrize("size", ["4k", "32k", "96k", "180k"])
def test_a_full_file_system(sample_store: Store, tmp_path: Path, size: str) -> None:
    db = sample_store("guardian")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this sandbox may not mount")
    archive = small / "archive"
    before = hot_rows(db)
    try:
        with pytest.raises(ArchiveError, match="No space left on device: free some space"):
            MemoryArchiver(db, archive, rows_per_file=900).flush_archived_memories()
        assert not list(archive.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        assert_nothing_half_done(before, db, archive)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system read-only")
def test_a_store_on_a_read_only_disk_is_refused_before_anything_is_published(
    sample_store: Store, tmp_path: Path
) -> None:
    """With the daemon's log still there, SQLite begins a transaction to write all the same."""
    db = sample_store("guardian")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "none", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this sandbox may not mount")
    try:
        con = sqlite3.connect(db)
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("UPDATE memories SET access_count = 2 WHERE id = 1")
        con.commit()
        for path in db.parent.glob("vidurai.db*"):
            shutil.copy(path, disk)
        con.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(HotStoreError, match=r"readonly database; it and its folder must be .* writable"):
            MemoryArchiver(disk / "vidurai.db", tmp_path / "archive").flush_archived_memories()
        assert not list((tmp_path / "archive").rglob("*.parquet"))
        assert not list((tmp_path / "archive" / ".pending").glob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_archive_that_is_a_file(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archive.write_text("in the way")
    before = hot_rows(db)
    with pytest.raises(ArchiveError, match="archive"):
        MemoryArchiver(db, archive).flush_archived_memories()
    assert hot_rows(db) == before
    assert archive.read_text() == "in the way"


def test_an_archive_that_may_not_be_written(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archive.mkdir()
    open_to_all(db)
    archive.chmod(0o555)
    before = hot_rows(db)
    error = error_of_an_ordinary_user(db)
    assert error.startswith(f"ArchiveError: {archive}: ")
    assert "ermi" in error
    archive.chmod(0o755)
    assert_nothing_half_done(before, db, archive)


def test_a_checkpoint_that_fails(sample_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log needs no space, the store's own file does: all is purged, and only moving the pages fails."""
    db = sample_store("guardian")
    before = hot_rows(db)

    def fail(purger: Purger) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Purger, "checkpoint", fail)
        with pytest.raises(HotStoreError, match="database or disk is full; free some space"):
            MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    assert_nothing_half_done(before, db, db.parent / "archive")
