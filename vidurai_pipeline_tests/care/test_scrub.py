"""Archived files are read again and held against what was written."""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.errors import ArchiveError, LockedError
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.archives import flip, memory, write_file
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.dagster_runs import holding
from vidurai_pipeline_tests.support.stores import change

COUNT = "SELECT count(*) AS n FROM history"


@pytest.fixture
def archive(home: Path) -> Archive:
    """A flushed archive of several files, which the environment names."""
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    MemoryArchiver(rows_per_file=400).flush()
    return Archive(home / "archive")


def first(archive: Archive) -> Path:
    return archive.root / list_files(archive.root)[0].relative


def test_an_untouched_archive_is_intact(archive: Archive) -> None:
    report = scrub(archive)
    assert report.sound
    assert report.intact == report.files == len(list_files(archive.root)) > 1
    assert report.oldest_proof is not None
    assert (report.adopted, report.unknown) == ([], [])


@pytest.mark.fast
@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_found_even_if_the_time_says_nothing(archive: Archive, at: float) -> None:
    path = first(archive)
    rows = archive.manifests.of(str(path.parent.relative_to(archive.root))).entries[path.name].rows
    flip(path, keep_time=True, at=at)
    report = scrub(archive)
    assert [(flaw.file, flaw.memories) for flaw in report.damaged] == [(str(path.relative_to(archive.root)), rows)]
    assert report.intact == report.files - 1


@pytest.mark.parametrize("obstacle", ["another run", "unwritable"])
def test_damage_is_named_also_where_nothing_can_be_recorded(archive: Archive, obstacle: str) -> None:
    with contextlib.ExitStack() as stack:
        if obstacle == "another run":
            stack.enter_context(holding(archive.root))
        else:
            (archive.root / ".lock").unlink()
            (archive.root / ".lock").mkdir()
        with pytest.raises(LockedError if obstacle == "another run" else ArchiveError, match="archive"):
            scrub(archive)
        path = first(archive)
        flip(path, keep_time=True)
        report = scrub(archive)
    assert [flaw.file for flaw in report.damaged] == [str(path.relative_to(archive.root))]
    assert report.intact == report.files - 1


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_no_answer_comes_from_a_file_that_was_altered(archive: Archive, at: float) -> None:
    flip(first(archive), keep_time=False, at=at)
    with RepoAnalyst(archive.root) as analyst, pytest.raises(ArchiveError, match="not what was written"):
        analyst.query_archive(COUNT)
    assert not DreamCycle(archive.root, archive.root.parent / "q_table.json").run()["success"]


def test_a_living_analyst_notices(archive: Archive) -> None:
    with RepoAnalyst(archive.root) as analyst:
        before = analyst.query_archive(COUNT)
        path = first(archive)
        path.touch()
        assert analyst.query_archive(COUNT) == before
        flip(path, keep_time=False)
        with pytest.raises(ArchiveError, match=path.name):
            analyst.query_archive(COUNT)


def test_a_file_that_is_gone_is_named_until_it_is_forgotten(archive: Archive) -> None:
    path = first(archive)
    path.rename(archive.root.parent / "elsewhere")
    with RepoAnalyst(archive.root) as analyst, pytest.raises(ArchiveError, match="is gone"):
        analyst.query_archive(COUNT)
    assert [flaw.file for flaw in scrub(archive).missing] == [str(path.relative_to(archive.root))]
    assert scrub(archive, forget_missing=True).forgotten == [str(path.relative_to(archive.root))]
    assert scrub(archive).sound
    with RepoAnalyst(archive.root) as analyst:
        analyst.query_archive(COUNT)


def test_a_folder_that_is_gone_is_named(archive: Archive) -> None:
    first(archive).parent.rename(archive.root.parent / "elsewhere")
    assert [flaw.reason for flaw in scrub(archive).missing] == ["the folder, or its manifest, is gone"]
    assert scrub(archive, forget_missing=True).sound


def test_files_of_other_programs_are_adopted_once(archive: Archive) -> None:
    path = write_file(archive.root, [memory(10**6)])
    name = str(path.relative_to(archive.root))
    assert scrub(archive).adopted == [name]
    assert scrub(archive).adopted == []
    entry = archive.manifests.entry(name)
    assert entry is not None
    assert (entry.origin, entry.rows, entry.first_id) == ("adopted", 1, 10**6)
    flip(path, keep_time=True)
    assert [flaw.file for flaw in scrub(archive).damaged] == [name]


def test_what_is_no_archive_file_is_not_adopted(archive: Archive) -> None:
    path = first(archive).with_name("memories_20200101_000000.parquet")
    path.write_bytes(b"PAR1 and then nothing")
    (flaw,) = scrub(archive).damaged
    assert (flaw.file, flaw.reason) == (str(path.relative_to(archive.root)), "it can't be read as Parquet")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "files": {}, "folders": [], "sha256": ""}'])
def test_a_damaged_manifest_is_named_kept_and_replaced(archive: Archive, content: bytes) -> None:
    manifest = first(archive).with_name(MANIFEST)
    manifest.write_bytes(content)
    report = scrub(archive)
    assert [flaw.file for flaw in report.damaged] == [str(manifest.relative_to(archive.root))]
    assert len(report.adopted) == len(list_files(archive.root))
    assert manifest.with_name(f"{MANIFEST}.damaged").read_bytes() == content
    assert scrub(archive).sound


def test_a_share_a_day_reads_all_within_the_days(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(archive.root, [memory(10**6)])
    scrub(archive)
    days = len(list_files(archive.root)) + 1
    read, proved = 0, set()
    for day in range(1, days + 1):
        monkeypatch.setattr(
            "vidurai_pipeline.cold.manifest.utc_now", lambda day=day: f"2999-01-{day:02d}T00:00:00+00:00"
        )
        report = scrub(archive, days=days)
        assert report.files < len(list_files(archive.root))
        read += report.files
        proved = {archive.manifests.entry(file.relative).proved for file in list_files(archive.root)}  # pyright: ignore
    assert read >= len(list_files(archive.root))
    assert all(moment.startswith("2999") for moment in proved)


def test_the_command(archive: Archive) -> None:
    sound = cli("scrub", "--all", "--format", "json")
    assert sound.returncode == 0
    assert set(json.loads(sound.stdout)) >= {"files", "bytes", "intact", "damaged", "missing", "unknown", "adopted"}
    path = first(archive)
    flip(path, keep_time=True)
    found = cli("scrub", "--all", "--format", "json")
    assert found.returncode == 1
    (flaw,) = json.loads(found.stdout)["damaged"]
    assert flaw["file"] == str(path.relative_to(archive.root))
    assert flaw["memories"] > 0
    said = cli("scrub", "--all")
    assert said.returncode == 1
    assert str(path) in said.stderr


def test_a_flush_may_run_while_files_are_read(archive: Archive, sample_store: Callable[[str], Path]) -> None:
    other = sample_store("schema_v7")
    change(other, "UPDATE memories SET status = 'ARCHIVED'")
    flushed = []

    def progress(*_: object) -> None:
        if not flushed:
            flushed.append(MemoryArchiver(other, archive.root).flush().archived)

    report = scrub(archive, progress=progress)
    assert flushed[0] > 0
    assert report.sound


def test_a_scrub_that_is_stopped_goes_on_from_there(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidurai_pipeline.care.scrub.RECORD_SECONDS", 0.0)
    monkeypatch.setattr("vidurai_pipeline.cold.manifest.utc_now", lambda: "2999-01-01T00:00:00+00:00")
    files = list_files(archive.root)
    seen = 0

    def progress(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == len(files):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scrub(archive, progress=progress)
    entries = [archive.manifests.entry(file.relative) for file in files]
    assert sum(entry is not None and entry.proved.startswith("2999") for entry in entries) == len(files) - 1


def test_a_flush_that_lasts_keeps_no_scrub_from_reading(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidurai_pipeline.care.scrub.RECORD_SECONDS", 0.0)
    read = 0

    def progress(*_: object) -> None:
        nonlocal read
        read += 1

    with holding(archive.root), pytest.raises(LockedError):
        scrub(archive, progress=progress)
    assert read == len(list_files(archive.root))


@pytest.mark.parametrize("target", ["file", "footer", "manifest", "the archive's own manifest"])
def test_a_bit_flipped_anywhere_is_never_a_wrong_answer(archive: Archive, target: str) -> None:
    path = first(archive)
    if target == "manifest":
        path = path.with_name(MANIFEST)
    elif target == "the archive's own manifest":
        path = archive.root / MANIFEST
    content = path.read_bytes()
    question = "SELECT count(*), sum(hash(verbatim, gist, created_at, outcome)) FROM history"
    with RepoAnalyst(archive.root) as analyst:
        right = analyst.query_archive(question)
    dice = random.Random(target)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little") if target == "footer" else 0
    noticed = 0
    for _ in range(12):
        altered = bytearray(content)
        altered[dice.randrange(footer, len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(altered)
        try:
            with RepoAnalyst(archive.root) as analyst:
                assert analyst.query_archive(question) == right
        except ArchiveError:
            noticed += 1
    # Not every bit of a manifest matters: an empty list by another name is an empty list.
    assert noticed == 12 or (path.name == MANIFEST and noticed >= 10)
    assert not scrub(archive).sound
