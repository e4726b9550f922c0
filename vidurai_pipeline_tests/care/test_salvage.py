"""What can be read of a damaged file is saved; what is lost is named."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline_tests.support.archives import flip
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.stores import change


@pytest.fixture
def path(home: Path) -> Path:
    """The only file of an archive."""
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    (file,) = MemoryArchiver().flush().files
    return file


def hurt(path: Path, column: str) -> None:
    """Flip a bit in the middle of a column's data."""
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(0).column(metadata.schema.names.index(column))
    middle = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size * 2 // 3
    flip(path, at=middle / (path.stat().st_size - 1))


def test_a_column_that_is_damaged_becomes_null(path: Path) -> None:
    before = pq.read_table(path)
    hurt(path, "gist")
    content = path.read_bytes()
    done = cli("salvage", str(path), "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["saved"], report["rows"], report["lost_ids"]) == (2000, 2000, [])
    saved = pq.read_table(report["to"])
    assert report["incomplete"] == {"gist": saved["gist"].null_count}
    assert saved.drop_columns("gist").equals(before.drop_columns("gist"))
    read = 2000 - saved["gist"].null_count
    assert saved["gist"].slice(0, read).equals(before["gist"].slice(0, read))
    assert path.read_bytes() == content


def test_lost_memories_are_named(path: Path) -> None:
    before = pq.read_table(path)
    hurt(path, "verbatim")
    report = json.loads(cli("salvage", str(path), "--format", "json").stdout)
    ids = before["id"].to_pylist()
    assert report["lost_ids"] == ids[report["saved"] :] != []
    assert report["lost_range"] is None
    if report["saved"]:
        assert pq.read_table(report["to"]).equals(before.slice(0, report["saved"]))


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_file_without_its_footer(path: Path, keep: int) -> None:
    ids = pq.read_table(path)["id"].to_pylist()
    path.write_bytes(path.read_bytes()[:keep])
    done = cli("salvage", str(path), "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["to"], report["saved"], report["rows"]) == (None, 0, 2000)
    assert report["lost_range"] == [min(ids), max(ids)]


def test_a_sound_file_is_saved_whole_and_never_over_another(path: Path) -> None:
    assert cli("salvage", str(path)).returncode == 0
    new = path.with_name(f"{path.name}.salvaged")
    assert pq.read_table(new).equals(pq.read_table(path))
    content = new.read_bytes()
    done = cli("salvage", str(path))
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert new.read_bytes() == content
    assert [found.name for found in path.parent.glob("*.parquet")] == [path.name]


def test_what_was_saved_takes_the_damaged_files_place(path: Path, home: Path) -> None:
    hurt(path, "gist")
    cli("salvage", str(path))
    path.rename(home / "damaged.parquet")
    path.with_name(f"{path.name}.salvaged").rename(path.with_name("memories_saved.parquet"))
    cli("scrub", "--all", "--forget")
    done = cli("query", "SELECT count(*) AS n FROM history", "--format", "json")
    assert json.loads(done.stdout) == [{"n": 2000}]
