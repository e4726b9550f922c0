"""Damaged files are left out where that is asked for, and what is missing is said."""

import warnings
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import ArchiveError, ArchiveWarning
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.users import answer_to_an_ordinary_user

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def blank(path: Path) -> None:
    path.write_bytes(b"")


def overwrite_pages(path: Path) -> None:
    """The footer stays well."""
    content = bytearray(path.read_bytes())
    content[4:204] = b"\xff" * 200
    path.write_bytes(content)


def alter(path: Path) -> None:
    """Parquet readers see nothing of it."""
    content = bytearray(path.read_bytes())
    at = content.index(b"vidurai_pipeline.")
    content[at] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def archived_file(folder: Path) -> Path:
    return next(path for path in (folder / "archive").glob("year=*/month=*/*.parquet") if "year=2024" not in str(path))


@pytest.fixture
def flushed(home: Path) -> Path:
    """The sample store once archived, 1,148 memories in one file, beside another file that no record knows."""
    MemoryArchiver(home / "vidurai.db", home / "archive").flush_archived_memories()
    write_file(home / "archive", [memory(10**6, verbatim="pytest elsewhere")], month="2024-11")
    return home


@pytest.mark.parametrize("damage", [truncate, blank, overwrite_pages, alter, remove])
def test_the_rest_is_answered_and_what_is_missing_is_said(flushed: Path, damage: Damage):
    path = archived_file(flushed)
    damage(path)
    month = f"{path.parts[-3].removeprefix('year=')}-{path.parts[-2].removeprefix('month=')}"
    refused = cli("query", "SELECT count(*) AS n FROM history")
    assert refused.returncode == 1
    assert path.name in refused.stderr
    assert "`--skip-damaged`" in refused.stderr
    for sql, expected in (("history", 1), ("history_all", 1), ("memories", 853)):
        done = cli("query", f"SELECT count(*) AS n FROM {sql}", "--skip-damaged", "--format", "csv")
        assert (done.returncode, done.stdout) == (3, f"n\n{expected}\n")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"note: the answer lacks 1,148 memories of {month}: a file is damaged or missing, ")
        assert path.name in line


@pytest.mark.parametrize("damage", [truncate, remove])
def test_search_and_show_go_on_without_damaged_files(flushed: Path, damage: Damage):
    with RepoAnalyst() as analyst:
        gone = analyst.query_archive("SELECT min(id) AS id FROM history")[0]["id"]
    damage(archived_file(flushed))
    options = ("--skip-damaged", "--format", "csv", "--limit", "2000")
    found = {tier: cli("search", "pytest", "--tier", tier, *options) for tier in ("all", "cold")}
    assert {done.returncode for done in found.values()} == {3}
    assert "pytest elsewhere" in found["all"].stdout
    assert "pytest elsewhere" in found["cold"].stdout
    assert len(found["all"].stdout) > len(found["cold"].stdout)
    assert cli("show", "1000000", "--skip-damaged").returncode == 3
    missing = cli("show", str(gone), "--skip-damaged", "--format", "json")
    assert (missing.returncode, missing.stdout) == (3, "[]\n")
    assert f"no memory that can be read has the id {gone}" in missing.stderr


def test_the_hot_tier_is_searched_whatever_the_archive_is_like(flushed: Path):
    arguments = ("search", "pytest", "--tier", "hot", "--limit", "2000", "--format", "json")
    expected = loads(cli(*arguments))
    assert expected
    for path in (flushed / "archive").glob("year=*/month=*/*.parquet"):
        blank(path)
    assert loads(cli(*arguments)) == expected
    assert loads(cli(*arguments, "--skip-damaged")) == expected


def test_nothing_is_said_of_an_archive_that_is_well(flushed: Path):
    assert loads(cli("query", "SELECT count(*) AS n FROM history", "--skip-damaged", "--format", "json")) == [
        {"n": 1_149}
    ]


def test_all_files_may_be_damaged(flushed: Path):
    for path in (flushed / "archive").glob("year=*/month=*/*.parquet"):
        blank(path)
    done = cli("query", "SELECT id FROM history", "--skip-damaged", "--format", "json")
    assert (done.returncode, done.stdout) == (3, "[]\n")
    assert "an unknown number of memories of 2024-11" in done.stderr
    assert "2 files are damaged or missing" in done.stderr


def test_a_footer_that_is_well_tells_how_many_memories_are_missing(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11")
    overwrite_pages(write_file(tmp_path, [memory(2), memory(3)]))
    blank(write_file(tmp_path, [memory(4)], "other.parquet"))
    with RepoAnalyst(tmp_path, skip_damaged=True) as analyst:
        with pytest.warns(ArchiveWarning, match="lacks at least 2 memories of 2024-12: 2 files"):
            assert analyst.query_archive("SELECT id FROM history") == [{"id": 1}]
        assert sorted(flaw.memories or 0 for flaw in analyst.left_out) == [0, 2]


def test_a_file_that_this_user_may_not_read_is_left_out(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11").chmod(0o644)
    write_file(tmp_path, [memory(2)]).chmod(0)
    said = answer_to_an_ordinary_user(tmp_path)
    assert said.startswith("[{'id': 1}] the answer lacks")
    assert "not readable for this user" in said


@pytest.mark.parametrize("given", [False, True])
def test_an_analyst_notices_damage_and_its_repair(tmp_path: Path, given: bool):
    write_file(tmp_path, [memory(1)], month="2024-11")
    path = write_file(tmp_path, [memory(2)])
    content = path.read_bytes()
    connection = duckdb.connect() if given else None
    with RepoAnalyst(tmp_path, connection=connection, skip_damaged=True) as analyst:
        ask = "SELECT id FROM history ORDER BY id"
        with warnings.catch_warnings(action="error"):
            assert analyst.query_archive(ask) == [{"id": 1}, {"id": 2}]
        truncate(path)
        with pytest.warns(ArchiveWarning, match="of 2024-12"):
            assert analyst.query_archive(ask) == [{"id": 1}]
        path.write_bytes(content)
        with warnings.catch_warnings(action="error"):
            assert analyst.query_archive(ask) == [{"id": 1}, {"id": 2}]
        assert analyst.left_out == []


def test_by_default_a_damaged_file_is_an_error_in_python_too(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11")
    truncate(write_file(tmp_path, [memory(2)]))
    with RepoAnalyst(tmp_path) as analyst, pytest.raises(ArchiveError, match="--skip-damaged"):
        analyst.query_archive("SELECT id FROM history")
