"""What manifests notice: files and folders that are gone, damage to the manifests themselves, and no false alarm."""

import shutil
import threading
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import NAME, Manifest, Manifests
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.errors import ArchiveError, ArchiveWarning
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.archives import memory, write_file

MONTHS = ("2024-11", "2024-12", "2025-01", "2025-02")
COUNT = "SELECT count(*) AS n FROM history"


def folder(month: str) -> str:
    return f"year={month[:4]}/month={month[5:]}"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive of several months, each recorded in its turn."""
    archive = Archive(tmp_path / "archive")
    for number, month in enumerate(MONTHS):
        ids = range(number * 10, number * 10 + 10)
        path = write_file(archive.root, [memory(id_) for id_ in ids], month=month)
        archive.manifests.record(str(path.relative_to(archive.root)), archive.contents(path).entry())
    return archive


@pytest.mark.parametrize("month", MONTHS)
def test_a_month_that_went_together_with_the_archives_own_manifest_is_named(archive: Archive, month: str) -> None:
    shutil.rmtree(archive.root / folder(month))
    (archive.root / NAME).unlink()
    assert [flaw.file for flaw in scrub(archive).missing] == [folder(month)]
    with (
        RepoAnalyst(archive.root) as analyst,
        pytest.raises(ArchiveError, match="the folder, or its manifest, is gone"),
    ):
        analyst.query_archive(COUNT)
    assert scrub(archive, forget_missing=True).forgotten == [folder(month)]
    assert scrub(archive).sound


def test_a_manifest_that_went_with_the_archives_own_is_named(archive: Archive) -> None:
    (archive.root / folder(MONTHS[1]) / NAME).unlink()
    (archive.root / NAME).unlink()
    assert [flaw.file for flaw in scrub(archive).missing] == [folder(MONTHS[1])]


def test_the_next_file_restores_what_the_archives_own_manifest_knew(archive: Archive) -> None:
    before = Manifest.read(archive.root).folders
    (archive.root / NAME).unlink()
    path = write_file(archive.root, [memory(100)], month="2025-03")
    archive.manifests.record(str(path.relative_to(archive.root)), archive.contents(path).entry())
    assert Manifest.read(archive.root).folders == before | {folder("2025-03")}


def test_what_was_recorded_after_the_listing_is_not_gone(archive: Archive) -> None:
    listed = list_files(archive.root)
    path = write_file(archive.root, [memory(100)], month="2025-03")
    archive.manifests.record(str(path.relative_to(archive.root)), archive.contents(path).entry())
    assert archive.manifests.flaws(listed) == []


def test_what_was_rewritten_after_the_listing_is_not_gone(archive: Archive) -> None:
    listed = list_files(archive.root)
    with archive.lock("test"):
        rewrite_folder(archive, folder(MONTHS[0]), listed[:1], rows_per_file=3, bytes_per_file=1 << 30)
    assert archive.manifests.flaws(listed) == []
    assert Manifests(archive.root).flaws(listed) == []


def test_no_false_alarm_while_months_are_rewritten_again_and_again(archive: Archive) -> None:
    done = threading.Event()
    trouble: list[BaseException] = []

    def rewrite() -> None:
        try:
            for size in (3, 4) * 10:
                for month in MONTHS:
                    files = [file for file in list_files(archive.root) if file.relative.startswith(folder(month))]
                    with archive.lock("rewriting", 60):
                        rewrite_folder(archive, folder(month), files, rows_per_file=size, bytes_per_file=1 << 30)
        except BaseException as error:
            trouble.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=rewrite)
    thread.start()
    looks = 0
    while not done.is_set():
        report = scrub(Archive(archive.root), lock_timeout=60)
        assert (report.damaged, report.missing, report.unknown) == ([], [], [])
        assert Manifests(archive.root).flaws(list_files(archive.root)) == []
        looks += 1
    thread.join()
    assert trouble == []
    assert looks
    assert scrub(archive).sound


def damage_manifest(archive: Archive) -> Path:
    path = archive.root / folder(MONTHS[0]) / NAME
    path.write_bytes(path.read_bytes().replace(b'"rows": 10', b'"rows": 11', 1))
    return path


def test_nothing_is_answered_or_learned_from_what_a_damaged_manifest_records(archive: Archive) -> None:
    manifest = damage_manifest(archive)
    with RepoAnalyst(archive.root) as analyst, pytest.raises(ArchiveError, match="manifest"):
        analyst.query_archive(COUNT)
    assert not DreamCycle(archive.root, archive.root.parent / "q_table.json").run()["success"]
    with RepoAnalyst(archive.root, skip_damaged=True) as analyst, pytest.warns(ArchiveWarning, match="2024-11"):
        assert analyst.query_archive(COUNT) == [{"n": 40}]
    assert not scrub(archive).sound
    assert archive.manifests.set_aside() == [manifest.with_name(f"{NAME}.damaged")]
    assert scrub(archive).sound
    with RepoAnalyst(archive.root) as analyst:
        assert analyst.query_archive(COUNT) == [{"n": 40}]


def test_how_long_ago_files_were_proved(archive: Archive) -> None:
    write_file(archive.root, [memory(100)], month="2025-03")
    proofs = archive.manifests.proofs(list_files(archive.root))
    assert len(proofs.unknown) == 1
    assert proofs.oldest is not None
    assert proofs.newest is not None
    assert proofs.oldest <= proofs.newest
