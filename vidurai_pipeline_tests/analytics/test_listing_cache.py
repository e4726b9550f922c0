"""The cache of what opening found out: always right, never needed."""

import contextlib
import json
import os
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from vidurai_pipeline.analytics import schema_cache
from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline_tests.support.archives import BASE, OWN, memory, write_file

FILES = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(schema_cache, "SETTLED_SECONDS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    base = tmp_path / "archive"
    for n in range(FILES):
        write_file(base, [memory(n, verbatim=f"the secret {n}")], month="2024-11", name=f"memories_{n:04d}.parquet")
    write_file(base, [memory(1, gist="newer", archived_at="2025-02-01")], month="2025-02")
    return base


def ask(base: Path) -> list[dict]:
    with RepoAnalyst(base) as analyst:
        return analyst.query_archive("SELECT * FROM history ORDER BY id")


def files_read(base: Path) -> int:
    """How many files' footers an analyst that is opened now reads."""
    with (
        mock.patch.object(KeyRing, "open", autospec=True, side_effect=KeyRing.open) as opened,
        contextlib.closing(ArchiveDatabase(base, None, "1GB", 1, KeyRing())) as database,
    ):
        database.cursor().close()
        return opened.call_count


def cached(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_what_did_not_change_is_not_read_again(archive: Path, cache: Path):
    assert files_read(archive) == FILES + 1
    assert files_read(archive) == 0
    rows = ask(archive)
    assert [row["id"] for row in rows] == list(range(FILES))
    assert rows[1]["gist"] == "newer"
    (path,) = cached(cache)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in path.read_text()


@pytest.mark.parametrize(("fewest_bytes", "remembered"), [(1_000, True), (10_000_000, False)])
def test_few_files_are_remembered_if_they_are_large(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fewest_bytes: int, remembered: bool
):
    monkeypatch.setattr(schema_cache, "FEWEST_BYTES", fewest_bytes)
    write_file(tmp_path / "archive", [memory(n) for n in range(100)])
    assert files_read(tmp_path / "archive") == 1
    assert files_read(tmp_path / "archive") == (0 if remembered else 1)
    assert bool(cached(cache)) == remembered


def test_files_that_a_manifest_knows_are_not_read(archive: Path):
    cold = Archive(archive)
    found = {file.relative: cold.contents(archive / file.relative).entry() for file in list_files(archive)}
    cold.manifests.update(dict(found))
    assert files_read(archive) == 0
    write_file(archive, [memory(900)], month="2025-03", schema=OWN.append(pa.field("mood", pa.string())))
    assert files_read(archive) == 1
    assert ask(archive)[-1]["id"] == 900
    assert "mood" in ask(archive)[0]


def test_a_copy_that_comes_later_is_superseded_too(archive: Path):
    ask(archive)
    write_file(archive, [memory(5, gist="later", archived_at="2025-03-01")], month="2025-03")
    for _ in range(2):
        rows = ask(archive)
        assert len(rows) == FILES
        assert rows[5]["gist"] == "later"
    (archive / "year=2025" / "month=02" / "memories_20241215_020000.parquet").unlink()
    assert ask(archive)[1]["gist"] == "gist 1"


def test_a_file_changed_in_place_with_its_times_set_back_is_read_again(archive: Path):
    path = write_file(archive, [memory(7_000)], month="2024-10", schema=BASE)
    assert ask(archive)[-1]["id"] == 7_000
    before = path.stat()
    content = path.read_bytes()
    write_file(archive, [memory(7_001)], month="2024-10", schema=BASE)
    other = path.read_bytes()
    path.write_bytes(other if len(other) == len(content) else content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert files_read(archive) > 0
    assert ask(archive)[-1]["id"] == 7_001


def test_a_file_broken_in_place_is_named(archive: Path):
    ask(archive)
    path = next(iter(sorted(archive.rglob("*.parquet"))))
    with path.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"\xff" * 20)
    with pytest.raises(ArchiveError, match=str(path)):
        ask(archive)


def test_young_files_are_not_trusted(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema_cache, "SETTLED_SECONDS", 1_000.0)
    ask(archive)
    assert files_read(archive) == FILES + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'{"format": "0"}',
        b"[" * 100_000,
        "no columns",
        "places of text",
        "other types",
    ],
)
def test_a_damaged_cache_is_passed_over(archive: Path, cache: Path, content: bytes | str):
    expected = ask(archive)
    (path,) = cached(cache)
    if isinstance(content, str):
        found = json.loads(path.read_bytes())
        if content == "no columns":
            del found["columns"]
        elif content == "places of text":
            found["superseded"] = ["x"]
        else:
            found["columns"] = 7
        content = json.dumps(found).encode()
    path.write_bytes(content)
    assert ask(archive) == expected


def test_a_cache_that_cannot_be_written_is_done_without(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    cache.write_text("a file where the folder should be")
    assert len(ask(archive)) == FILES
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert len(ask(archive)) == FILES


def test_a_small_archive_leaves_no_trace(tmp_path: Path, cache: Path):
    write_file(tmp_path / "small", [memory(1)])
    ask(tmp_path / "small")
    assert not cache.exists()


def test_nothing_is_written_into_the_archive(archive: Path):
    before = sorted(archive.rglob("*"))
    ask(archive)
    assert sorted(archive.rglob("*")) == before
