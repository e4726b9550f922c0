"""A second copy of the archive: it holds each file before the hot store lets go, and loses only what was replaced."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.mirror import Mirror, open_archive
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.errors import ArchiveError, ConfigError, VerificationError
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.archives import flip, memory, write_file
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows, parquet_files


def opened() -> tuple[Archive, Mirror]:
    archive = open_archive(load_settings())
    assert archive.mirror is not None
    return archive, archive.mirror


def compact(archive: Archive, *, leave_out: Callable | None = None) -> str:
    """Make one file of a month's; returns the month's folder."""
    files = list_files(archive.root)
    folder = files[0].relative.rpartition("/")[0]
    with archive.lock("test"):
        rewrite_folder(archive, folder, files, rows_per_file=10**6, bytes_per_file=1 << 30, leave_out=leave_out)
    return folder


@pytest.mark.fast
def test_a_flush_leaves_two_equal_copies(home: Path, mirror_folder: Path) -> None:
    before = hot_rows(home / "vidurai.db")
    MemoryArchiver().flush()
    assert_one_tier(before, home / "vidurai.db", home / "archive")
    assert len(parquet_files(mirror_folder)) > 1
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")
    archive, mirror = opened()
    assert mirror.lacking() == 0
    assert mirror.manifests.flaws(list_files(mirror_folder)) == []
    for file in list_files(archive.root):
        entry, copy = archive.manifests.entry(file.relative), mirror.manifests.entry(file.relative)
        assert entry is not None
        assert copy is not None
        assert (entry.sha256, entry.modified) == (copy.sha256, copy.modified)


def test_nothing_is_purged_before_its_copy_is_there(
    home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, purge = [], Run.purger.func

    def watched(run: Run) -> object:
        seen.append(parquet_files(mirror_folder))
        return purge(run)

    monkeypatch.setattr(Run.purger, "func", watched)
    MemoryArchiver(rows_per_file=10**6).flush()
    assert seen == [parquet_files(home / "archive")]


@pytest.fixture(params=["a file", "not mounted", "a link that leads nowhere", "another archive's", "other files"])
def broken(request: pytest.FixtureRequest, home: Path, mirror_folder: Path, tmp_path: Path) -> Callable[[], None]:
    """Makes the mirror unusable; what it returns puts that right."""
    match request.param:
        case "a file":
            mirror_folder.write_text("in the way")
            return mirror_folder.unlink
        case "not mounted":
            change(home / "vidurai.db", "UPDATE memories SET status = 'ACTIVE' WHERE id > 100")
            MemoryArchiver().flush()
            change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
            mirror_folder.rename(tmp_path / "elsewhere")
            return lambda: (tmp_path / "elsewhere").rename(mirror_folder) and None
        case "a link that leads nowhere":
            mirror_folder.symlink_to(tmp_path / "nowhere")
            return mirror_folder.unlink
        case "another archive's":
            write_file(mirror_folder, [memory(1)])
            return lambda: shutil.rmtree(mirror_folder)
        case _:
            mirror_folder.mkdir()
            (mirror_folder / "letter.txt").write_text("Dear")
            return lambda: shutil.rmtree(mirror_folder)


def test_a_mirror_that_cannot_be_used_stops_the_purge(
    home: Path, mirror_folder: Path, broken: Callable[[], None]
) -> None:
    before, theirs = hot_rows(home / "vidurai.db"), contents(mirror_folder)
    done = cli("flush")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "irror" in done.stderr or "MIRROR" in done.stderr
    assert hot_rows(home / "vidurai.db") == before
    assert contents(mirror_folder) == theirs
    assert "failed  mirror" in cli("doctor").stdout
    broken()
    assert cli("flush").returncode == 0
    assert hot_rows(home / "vidurai.db") == {}
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")


def contents(folder: Path) -> dict[Path, bytes]:
    files = [folder] if folder.is_file() else folder.rglob("*")
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("size", ["4k", "64k", "180k"])
def test_a_full_mirror(home: Path, mirror_folder: Path, size: str) -> None:
    before = hot_rows(home / "vidurai.db")
    disk = mirror_folder.parent
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=False).returncode:
        pytest.skip("this sandbox may not mount")
    try:
        with pytest.raises(ArchiveError, match=r"mirror .* can't be used: No space left on device: .*free some space"):
            MemoryArchiver().flush()
        assert not list(mirror_folder.rglob("*.part"))
        readable = {**hot_rows(home / "vidurai.db")}
        assert len(readable) + sum(1 for _ in parquet_files(mirror_folder)) * 400 >= len(before)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        MemoryArchiver().flush()
        assert_one_tier(before, home / "vidurai.db", home / "archive")
        assert parquet_files(mirror_folder) == parquet_files(home / "archive")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_copy_that_does_not_read_back_equal_is_not_relied_on(
    home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, utime = hot_rows(home / "vidurai.db"), os.utime

    def damaging(path: Path, times: None = None, *, ns: tuple[int, int] | None = None) -> None:
        if ns is None:
            utime(path, times)
        else:
            flip(path)
            utime(path, ns=ns)

    with monkeypatch.context() as faulty:
        faulty.setattr(os, "utime", damaging)
        with pytest.raises(VerificationError, match="did not read back equal"):
            MemoryArchiver().flush()
    assert hot_rows(home / "vidurai.db") == before
    assert parquet_files(mirror_folder) == {}
    MemoryArchiver().flush()
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")


@pytest.mark.parametrize("where", ["id < 100", "TRUE"])
def test_copies_that_are_withdrawn_leave_the_mirror_too(home: Path, mirror_folder: Path, where: str) -> None:
    before = hot_rows(home / "vidurai.db")
    archiver = MemoryArchiver()
    with archiver.run("test"):
        archiver.publish()
        change(home / "vidurai.db", f"UPDATE memories SET gist = 'another' WHERE {where}")
        after = hot_rows(home / "vidurai.db")
        archiver.purge()
    assert after != before
    assert_one_tier(after, home / "vidurai.db", home / "archive")
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")
    archive, mirror = opened()
    assert mirror.manifests.missing(list_files(mirror_folder)) == []
    assert not archive.damaged_files() + mirror.damaged_files()


@pytest.mark.parametrize(("last", "purging"), [((Archive, "copy_to_mirror"), False), ((Purger, "finish"), True)])
def test_a_pending_file_is_healed_from_the_mirror(
    home: Path, mirror_folder: Path, last: tuple[type, str], purging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, call = hot_rows(home / "vidurai.db"), getattr(*last)

    def dying(*arguments: Any) -> None:
        call(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as death:
        death.setattr(*last, dying)
        with pytest.raises(KeyboardInterrupt):
            MemoryArchiver(rows_per_file=10**6).flush()
    archive, _ = opened()
    (mark,) = archive.pending.all()
    assert mark.purging == purging
    flip(archive.root / mark.file)
    report = MemoryArchiver().flush()
    assert "replaced by its copy in the mirror" in report.notes[0]
    assert report.problems == []
    assert_one_tier(before, home / "vidurai.db", home / "archive")
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")
    assert len(archive.damaged_files()) == 1


def test_an_archive_that_is_older_than_its_mirror(
    home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delenv("VIDURAI_MIRROR")
        MemoryArchiver().flush()
    archive, mirror = opened()
    files = parquet_files(archive.root)
    assert mirror.lacking() == len(files)
    assert f"warning mirror: {len(files)} of {len(files)} files" in cli("doctor").stdout
    told: list[tuple] = []
    mirror.catch_up(1.0, lambda *how_far: told.append(how_far))
    assert told[-1][1:] == (len(files), len(files))
    assert parquet_files(mirror_folder) == files
    assert mirror.lacking() == 0


def test_memories_of_a_backup_are_purged_only_when_both_sides_hold_them(
    home: Path, mirror_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(home / "vidurai.db", tmp_path / "backup.db")
    with monkeypatch.context() as without:
        without.delenv("VIDURAI_MIRROR")
        MemoryArchiver().flush()
    shutil.copy(tmp_path / "backup.db", home / "vidurai.db")
    MemoryArchiver().flush()
    assert hot_rows(home / "vidurai.db") == {}
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")


def test_files_that_were_replaced_leave_the_mirror(home: Path, mirror_folder: Path) -> None:
    MemoryArchiver().flush()
    archive, _ = opened()
    compact(archive)
    assert len(parquet_files(mirror_folder)) == 1
    assert parquet_files(mirror_folder) == parquet_files(home / "archive")


def test_a_death_between_the_rewriting_and_the_mirror(home: Path, mirror_folder: Path) -> None:
    MemoryArchiver().flush()
    compact(Archive(home / "archive"))
    archive, mirror = opened()
    assert len(parquet_files(mirror_folder)) > 1
    mirror.catch_up(1.0)
    assert parquet_files(mirror_folder) == parquet_files(archive.root)
    assert mirror.manifests.flaws(list_files(mirror_folder)) == []


def test_rows_that_left_the_archive_leave_the_mirror(home: Path, mirror_folder: Path) -> None:
    MemoryArchiver().flush()
    archive, mirror = opened()
    compact(archive, leave_out=lambda table: pc.greater(table["id"], 0))  # pyright: ignore[reportAttributeAccessIssue]
    assert parquet_files(mirror_folder) == parquet_files(home / "archive") == {}
    assert mirror.lacking() == 0


@pytest.mark.parametrize("loss", ["a file", "all files", "the month", "a manifest", "a damaged manifest", "everything"])
def test_an_archive_that_lost_something_does_not_empty_its_mirror(home: Path, mirror_folder: Path, loss: str) -> None:
    MemoryArchiver().flush()
    archive, mirror = opened()
    files = parquet_files(mirror_folder)
    month = archive.root / next(iter(files)).rpartition("/")[0]
    match loss:
        case "a file":
            (archive.root / next(iter(files))).unlink()
        case "all files":
            for path in month.glob("*.parquet"):
                path.unlink()
        case "the month":
            shutil.rmtree(month)
        case "a manifest":
            (month / MANIFEST).unlink()
        case "a damaged manifest":
            flip(month / MANIFEST)
        case _:
            shutil.rmtree(archive.root)
            archive.root.mkdir()
    for forget in (False, True):
        if loss != "everything":
            mirror.catch_up(1.0)
        elif not forget:
            with pytest.raises(ArchiveError, match="not the mirror of"):
                mirror.sync("")
        assert parquet_files(mirror_folder) == files
        cli("scrub", "--forget")


def test_a_damaged_file_is_never_copied_over_a_good_one(home: Path, mirror_folder: Path) -> None:
    MemoryArchiver().flush()
    archive, mirror = opened()
    files = parquet_files(mirror_folder)
    flip(archive.root / next(iter(files)))
    (mirror_folder / next(iter(files))).unlink()
    mirror.catch_up(1.0)
    assert parquet_files(mirror_folder).keys() == files.keys() - {next(iter(files))}


def test_a_replaced_file_stays_while_what_took_its_place_cannot_be_copied(home: Path, mirror_folder: Path) -> None:
    MemoryArchiver().flush()
    archive = Archive(home / "archive")
    compact(archive)
    before = parquet_files(mirror_folder)
    flip(archive.root / list_files(archive.root)[0].relative)
    opened()[1].catch_up(1.0)
    assert parquet_files(mirror_folder) == before


@pytest.mark.parametrize("address", ["file:///x", "ftp://bucket/x", "s3:///x", "s3://key:password@bucket/x"])
def test_an_address_that_is_no_bucket_is_refused(
    mirror_folder: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("VIDURAI_MIRROR", address)
    with pytest.raises(ConfigError, match=r"VIDURAI_MIRROR=.*an address") as error:
        load_settings()
    assert "password" not in str(error.value)


@pytest.mark.parametrize("place", ["archive", "archive/year=2026", ".", "mirror", "vidurai.db", "..", "q_table.json"])
def test_a_mirror_in_the_place_of_what_it_copies_is_refused(
    home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("VIDURAI_MIRROR", str(home / place))
    done = cli("flush")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "VIDURAI_MIRROR=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_moved_archive_keeps_its_mirror_and_a_stranger_gets_none(
    home: Path, mirror_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryArchiver().flush()
    (home / "archive").rename(tmp_path / "moved")
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "moved"))
    opened()[1].require()
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "stranger"))
    with pytest.raises(ArchiveError, match="not the mirror of"):
        opened()[1].require()


def test_another_disk_gets_a_mirror_of_its_own(
    home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryArchiver().flush()
    monkeypatch.setenv("VIDURAI_MIRROR", str(mirror_folder.with_name("second")))
    opened()[1].catch_up(1.0)
    assert parquet_files(mirror_folder.with_name("second")) == parquet_files(mirror_folder)


def test_a_flush_in_two_processes_is_mirrored(home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "rows_worth_a_process", 0)
    MemoryArchiver().flush()
    assert parquet_files(mirror_folder) == parquet_files(home / "archive") != {}


def test_the_mirror_is_an_archive(home: Path, mirror_folder: Path, tmp_path: Path) -> None:
    MemoryArchiver().flush()
    there = cli("query", "SELECT count(*) AS n FROM history", "--format", "json", VIDURAI_MIRROR="")
    copy = cli(
        "query",
        "SELECT count(*) AS n FROM history",
        "--format",
        "json",
        VIDURAI_ARCHIVE=str(mirror_folder),
        VIDURAI_MIRROR="",
    )
    assert json.loads(copy.stdout) == json.loads(there.stdout) != [{"n": 0}]


def test_tombstones_are_on_both_sides(home: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryArchiver().flush()
    folders = home / "archive/.tombstones", mirror_folder / ".tombstones"
    for rule in ("NOISE=1d", "LOW=1d"):  # the second adds to the month's file
        monkeypatch.setenv("VIDURAI_RETENTION", rule)
        assert cli("expire").returncode == 0
        assert names(folders[0]) == names(folders[1]) != []
        assert len(names(folders[0])) == 1
    (path,) = folders[0].iterdir()
    sound = path.read_bytes()
    flip(path)
    assert cli("scrub").returncode == 1
    healed = cli("scrub", "--repair")
    assert (healed.returncode, path.read_bytes()) == (0, sound)
    assert f"healed: {path}" in healed.stdout
    shutil.rmtree(folders[0])
    assert cli("scrub", "--repair").returncode == 0
    assert names(folders[0]) == names(folders[1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
