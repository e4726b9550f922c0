"""Folders that are not quite an archive's: a clear error, or left alone."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.stores import Store, flush
from vidurai_pipeline_tests.support.tiers import hot_rows


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
