"""What is damaged on one side comes back from the other, and nothing is made worse."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.healing import prove
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.archives import flip
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.tiers import parquet_files


@pytest.fixture
def sides(mirror_folder: Path) -> tuple[Archive, Archive]:
    """An archive of several files, and its mirror."""
    MemoryArchiver().flush()
    return reopened()


def reopened() -> tuple[Archive, Archive]:
    archive = open_archive(load_settings())
    assert archive.mirror is not None
    return archive, archive.mirror


def damage(path: Path, kind: str) -> None:
    match kind:
        case "gone":
            path.unlink()
        case "footer cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case _:
            flip(path, keep_time=kind == "silent", at=random.Random(kind).random())
            path.chmod(0o600 if kind == "silent" else 0o400)


@pytest.mark.parametrize("kind", ["flipped, read-only", "silent", "gone", "footer cut", "empty"])
@pytest.mark.parametrize("hurt", [0, 1])
def test_either_side_is_healed_from_the_other(sides: tuple[Archive, Archive], hurt: int, kind: str) -> None:
    files = parquet_files(sides[0].root)
    path = sides[hurt].root / list(files)[1]
    damage(path, kind)
    bad = path.read_bytes() if path.exists() else None
    found = prove(reopened()[0])
    assert [flaw.memories for flaw in found.flaws] == [400]
    report = prove(reopened()[0], repair=True)
    assert (report.healed, report.sound) == ([str(path)], True)
    assert parquet_files(sides[0].root) == parquet_files(sides[1].root) == files
    assert [path.read_bytes() for path in sides[hurt].damaged_files()] == ([] if bad is None else [bad])
    again = prove(reopened()[0])
    assert (again.sound, again.healed, again.intact) == (True, [], len(files))
    for side in reopened():
        entry = side.manifests.entry(list(files)[1])
        assert entry is not None
        assert entry.same_file(list_files(side.root)[1])


def test_each_side_has_what_the_other_lacks(sides: tuple[Archive, Archive]) -> None:
    files = parquet_files(sides[0].root)
    for number, name in enumerate(files):
        flip(sides[number % 2].root / name, at=0.3)
    report = prove(reopened()[0], repair=True)
    assert report.sound
    assert len(report.healed) == len(files)
    assert parquet_files(sides[0].root) == parquet_files(sides[1].root) == files


def test_damage_on_both_sides_is_named_and_nothing_is_made_worse(sides: tuple[Archive, Archive]) -> None:
    name = next(iter(parquet_files(sides[0].root)))
    for side in sides:
        flip(side.root / name, at=0.4)
    before = [parquet_files(side.root) for side in sides]
    done = cli("scrub", "--all", "--repair")
    assert done.returncode == 1
    assert str(sides[0].root / name) in done.stderr
    assert "is no better" in done.stderr
    assert [parquet_files(side.root) for side in sides] == before
    assert not sides[0].damaged_files() + sides[1].damaged_files()


@pytest.mark.parametrize(
    "loss", ["the month", "a manifest", "a damaged manifest", "the manifest and a file", "the top"]
)
@pytest.mark.parametrize("hurt", [0, 1])
def test_months_and_manifests_come_back(sides: tuple[Archive, Archive], hurt: int, loss: str) -> None:
    files = parquet_files(sides[0].root)
    month = sides[hurt].root / next(iter(files)).rpartition("/")[0]
    entries = sides[0].manifests.of(str(month.relative_to(sides[hurt].root))).entries
    match loss:
        case "the month":
            shutil.rmtree(month)
        case "a manifest":
            (month / MANIFEST).unlink()
        case "a damaged manifest":
            flip(month / MANIFEST)
        case "the manifest and a file":
            (month / MANIFEST).unlink()
            flip(sides[hurt].root / next(iter(files)), at=0.4)
        case _:
            flip(sides[hurt].root / MANIFEST)
    prove(reopened()[0], repair=True)
    report = prove(reopened()[0])
    assert report.sound, report.flaws
    assert parquet_files(sides[0].root) == parquet_files(sides[1].root) == files
    for side in reopened():
        now = side.manifests.of(str(month.relative_to(sides[hurt].root))).entries
        assert {name: entry.sha256 for name, entry in now.items()} == {n: entry.sha256 for n, entry in entries.items()}
        assert {entry.origin for entry in now.values()} == {"written"}


def test_the_command_heals_and_says_so(sides: tuple[Archive, Archive]) -> None:
    path = sides[0].root / next(iter(parquet_files(sides[0].root)))
    flip(path)
    assert cli("scrub", "--all").returncode == 1
    done = loads(cli("scrub", "--all", "--repair", "--format", "json"))
    assert (done["healed"], done["damaged"], done["mirror"]["damaged"]) == ([str(path)], [], [])
    flip(path)
    assert f"healed: {path}\n" in cli("scrub", "--all", "--repair").stdout


def test_repair_needs_a_mirror(home: Path) -> None:
    done = cli("scrub", "--repair")
    assert (done.returncode, done.stdout) == (2, "")
    assert "VIDURAI_MIRROR" in done.stderr


def test_a_mirror_that_is_not_there_does_not_hide_damage_here(sides: tuple[Archive, Archive]) -> None:
    name = next(iter(parquet_files(sides[0].root)))
    flip(sides[0].root / name)
    sides[1].root.rename(sides[1].root.with_name("elsewhere"))
    done = cli("scrub", "--all", "--repair")
    assert done.returncode == 1
    assert str(sides[0].root / name) in done.stderr
    assert "mount its disk" in done.stderr


@pytest.mark.parametrize("repair", [False, True])
def test_a_mirror_that_cannot_be_read_does_not_hide_damage_here(sides: tuple[Archive, Archive], repair: bool) -> None:
    damaged, unreadable = parquet_files(sides[0].root), sides[1].root / ".tombstones"
    flip(sides[0].root / next(iter(damaged)))
    unreadable.write_text("not a folder")
    report = prove(reopened()[0], repair=repair)
    assert [flaw.file for flaw in report.damaged] == [next(iter(damaged))]
    assert report.mirror is not None
    assert [flaw.file for flaw in report.mirror.damaged] == [str(sides[1].root)]
    assert str(unreadable) in report.mirror.damaged[0].reason


def test_a_file_that_cannot_be_replaced_is_named_with_the_reason_and_the_others_are_healed(
    sides: tuple[Archive, Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = parquet_files(sides[0].root)
    for name in (first, *others):
        flip(sides[0].root / name)
    put = Archive.put

    def full(self: Archive, relative: str, *arguments: Any) -> None:
        if relative == first:
            raise ArchiveError(f"{self.root}: No space left on device")
        put(self, relative, *arguments)

    monkeypatch.setattr(Archive, "put", full)
    report = prove(reopened()[0], repair=True)
    assert [(flaw.file, "No space left" in flaw.reason) for flaw in report.flaws] == [(first, True)]
    assert report.healed == [str(sides[0].root / name) for name in others]
