"""A month's files are written anew: every row once, at every moment."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold import generation
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.errors import ArchiveError, VerificationError
from vidurai_pipeline_tests.cold import rewriting_driver
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.stores import change


@pytest.fixture
def archive(sample_store: Callable[[str], Path]) -> Archive:
    """An archive of many small files, written by the pipeline."""
    db = sample_store("guardian")
    change(db, "UPDATE memories SET status = 'ARCHIVED'")
    MemoryArchiver(db, db.parent / "archive", rows_per_file=400).flush()
    return Archive(db.parent / "archive")


def folder_of(archive: Archive) -> str:
    return list_files(archive.root)[0].relative.rpartition("/")[0]


def test_many_files_become_one(archive: Archive) -> None:
    before, files = rewriting_driver.rows(archive.root), list_files(archive.root)
    with archive.lock("test"):
        done = rewrite_folder(archive, folder_of(archive), files, rows_per_file=10**6, bytes_per_file=1 << 30)
    (file,) = list_files(archive.root)
    assert (done.files_before, done.files_after, done.left_out) == (len(files), 1, 0)
    assert rewriting_driver.rows(archive.root) == before
    entry = archive.manifests.entry(file.relative)
    assert entry is not None
    assert (entry.generation, entry.origin, entry.rows) == (2, "rewritten", done.rows)
    ids = pq.read_table(archive.root / file.relative)["id"].to_pylist()
    assert ids == sorted(ids)
    assert archive.manifests.flaws(list_files(archive.root)) == []


def test_files_of_other_columns_stay_apart(archive: Archive) -> None:
    month = folder_of(archive).split("year=")[1].replace("/month=", "-")
    write_file(archive.root, [memory(10**6)], "memories_20200101_000000.parquet", month=month)
    before = rewriting_driver.rows(archive.root)
    with archive.lock("test"):
        rewrite_folder(
            archive, folder_of(archive), list_files(archive.root), rows_per_file=10**6, bytes_per_file=1 << 30
        )
    assert len(list_files(archive.root)) == 2
    assert rewriting_driver.rows(archive.root) == before


def test_a_damaged_file_stops_it_and_nothing_changes(archive: Archive) -> None:
    files = list_files(archive.root)
    path = archive.root / files[1].relative
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = {file: (archive.root / file.relative).read_bytes() for file in list_files(archive.root)}
    with archive.lock("test"), pytest.raises(VerificationError, match="damaged"):
        rewrite_folder(archive, folder_of(archive), files, rows_per_file=10**6, bytes_per_file=1 << 30)
    assert {file: (archive.root / file.relative).read_bytes() for file in list_files(archive.root)} == before
    assert not [path for path in archive.root.parent.iterdir() if path.name.endswith(".next")]


def test_a_file_system_that_cannot_exchange_folders(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(generation, "exchange", refused)
    before = list_files(archive.root)
    with archive.lock("test"), pytest.raises(ArchiveError, match="can't exchange two folders"):
        rewrite_folder(archive, folder_of(archive), before, rows_per_file=10**6, bytes_per_file=1 << 30)
    assert [file.relative for file in list_files(archive.root)] == [file.relative for file in before]


def test_a_file_that_another_program_adds_in_the_last_moment(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exchange = folder_of(archive), generation.exchange

    def late(one: Path, other: Path) -> None:
        pq.write_table(pa.table({"id": [7]}), archive.root / folder / "late.parquet")
        exchange(one, other)

    monkeypatch.setattr(generation, "exchange", late)
    with archive.lock("test"):
        rewrite_folder(archive, folder, list_files(archive.root), rows_per_file=10**6, bytes_per_file=1 << 30)
    assert pq.read_table(archive.root / folder / "late.parquet")["id"].to_pylist() == [7]


def test_rows_leave(archive: Archive) -> None:
    before = rewriting_driver.rows(archive.root)
    id_ = pq.read_table(archive.root / list_files(archive.root)[0].relative)["id"][0].as_py()
    with archive.lock("test"):
        done = rewrite_folder(
            archive,
            folder_of(archive),
            list_files(archive.root),
            rows_per_file=10**6,
            bytes_per_file=1 << 30,
            leave_out=lambda table: pc.equal(table["id"], id_),  # pyright: ignore[reportAttributeAccessIssue]
        )
    assert done.left_out == 1
    assert before - rewriting_driver.rows(archive.root) == Counter([row for row in before if f"'id': {id_}," in row])


@pytest.mark.slow
@pytest.mark.parametrize(("leaves", "every"), [(False, 7), (True, 3)])
def test_killed_before_calls(archive: Archive, programs: Path, tmp_path: Path, leaves: bool, every: int) -> None:
    id_ = pq.read_table(archive.root / list_files(archive.root)[0].relative)["id"][0].as_py() if leaves else "-"
    assert drive(programs, "cold.rewriting_driver", archive.root, tmp_path / "work", id_, every) > 5
