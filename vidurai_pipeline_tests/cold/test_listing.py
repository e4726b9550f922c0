"""One rule of what belongs to the archive, whoever asks."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import Listing, list_files, list_settled
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline_tests.support.archives import memory, write_file

pytestmark = pytest.mark.fast


def listed(archive: Path) -> list[str]:
    """The files, after making sure that everyone sees the same ones."""
    files = list_files(archive)
    paths = sorted(str(archive / file.relative) for file in files)
    assert sorted(map(str, Archive(archive).files())) == paths
    names = RepoAnalyst(archive).query_archive("SELECT DISTINCT filename FROM history_all ORDER BY ALL")
    assert [row["filename"] for row in names] == paths
    return [file.relative for file in files]


def hidden_file(archive: Path) -> None:
    write_file(archive, [memory(2)], name=".memories_1.parquet.part")
    write_file(archive, [memory(2)], name=".half.parquet")


def hidden_folder(archive: Path) -> None:
    write_file(archive / ".pending", [memory(2)])


def lost_and_found(archive: Path) -> None:
    write_file(archive / "lost+found", [memory(2)])


def loop(archive: Path) -> None:
    (archive / "year=2024" / "loop").symlink_to(archive, target_is_directory=True)


def folder_with_a_files_name(archive: Path) -> None:
    (archive / "year=2024" / "odd.parquet").mkdir()


def file_set_aside(archive: Path) -> None:
    write_file(archive, [memory(2)], name="memories_2.parquet.damaged")


@pytest.mark.parametrize(
    "add", [hidden_file, hidden_folder, lost_and_found, loop, folder_with_a_files_name, file_set_aside]
)
def test_what_is_no_part_of_the_archive_is_left_out(tmp_path: Path, add: Callable[[Path], None]):
    path = write_file(tmp_path, [memory(1)])
    add(tmp_path)
    assert listed(tmp_path) == [str(path.relative_to(tmp_path))]


def test_links_to_files_and_folders_are_followed(tmp_path: Path):
    archive = tmp_path / "archive"
    write_file(archive, [memory(1)])
    (archive / "year=2024" / "month=12" / "linked.parquet").symlink_to(write_file(tmp_path / "a", [memory(2)]))
    write_file(tmp_path / "disk", [memory(3)], month="2023-01")
    (archive / "year=2023").symlink_to(tmp_path / "disk" / "year=2023", target_is_directory=True)
    assert len(listed(archive)) == 3


def test_a_missing_archive_has_no_files(tmp_path: Path):
    assert listed(tmp_path / "none") == []


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, link_to_nowhere, device])
@pytest.mark.parametrize("ask", [list_files, list_settled, lambda archive: Archive(archive).files()])
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], None], ask: Callable[[Path], object]):
    write_file(tmp_path, [memory(1)])
    make(tmp_path / "year=2024" / "odd.parquet")
    with pytest.raises(ArchiveError, match=r"year=2024/odd\.parquet"):
        ask(tmp_path)


def test_a_pending_file_is_listed_but_not_settled(tmp_path: Path):
    write_file(tmp_path, [memory(1)], name="memories_1.parquet")
    write_file(tmp_path, [memory(2)], name="memories_2.parquet")
    mark = Archive(tmp_path).pending.path("memories_2.parquet")
    mark.parent.mkdir()
    mark.write_text("{}")
    assert [file.name for file in list_files(tmp_path)] == ["memories_1.parquet", "memories_2.parquet"]
    assert [file.name for file in list_settled(tmp_path)] == ["memories_1.parquet"]


@pytest.mark.parametrize("name", ["memories_[1].parquet", "a*.parquet", "what?.parquet", "line\nbreak.parquet"])
def test_a_name_that_duckdb_takes_for_a_pattern_is_refused_to_readers_alone(tmp_path: Path, name: str):
    """Archiving goes on: it reads file by file."""
    odd = write_file(tmp_path, [memory(1)], name=name)
    assert Archive(tmp_path).files() == [odd]
    with pytest.raises(ArchiveError, match="rename it"):
        Listing.readable(tmp_path, list_files(tmp_path), lambda: tmp_path)


def test_an_archive_in_a_folder_that_looks_like_a_pattern_is_read_through_a_link(tmp_path: Path):
    archive = tmp_path / "star*"
    path = write_file(archive, [memory(1)])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(2):
        listing = Listing.readable(archive, list_files(archive), lambda: scratch)
        assert listing.root == str(scratch / "archive")
        assert listing.named(f"{listing.root}/{listing.files[0].relative}") == listing.files[0]
        assert listing.path(listing.files[0]) == path
