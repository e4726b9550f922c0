"""What keeps the archive over the years works on encrypted files too, and needs their keys."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from vidurai_pipeline.care.rekey import rekey
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.keys import KeyRing, add_key
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.cold import rewriting_driver
from vidurai_pipeline_tests.support.archives import flip, memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.dagster_runs import execute
from vidurai_pipeline_tests.support.encrypted import CANARY, hold_canary, open_file
from vidurai_pipeline_tests.support.stores import insert
from vidurai_pipeline_tests.support.tiers import hot_rows, parquet_files

OLD_MONTH = range(900_001, 900_005)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(home: Path, mirror_folder: Path, key_file: Path, cache: Path) -> Path:
    """An archive with a mirror: a closed month of four small files, and tonight's; all are encrypted."""
    insert(home / "vidurai.db", verbatim=f"said {CANARY}", gist=CANARY, tags=f'["{CANARY}"]', file_path=CANARY)
    for id_ in OLD_MONTH:
        row = memory(id_, salience="NOISE", gist=CANARY, audience_gists=[])
        write_file(home / "archive", [row], f"memories_2024120{id_ % 10}_020000.parquet")
    loads(cli("rekey", "--format", "json"))
    assert cli("flush").returncode == 0
    assert {file.key for file in list_files(home / "archive")} == {KeyRing(key_file).newest}
    return home / "archive"


def assert_no_text_but_in_the_store(folder: Path) -> None:
    assert [path for path in hold_canary(folder) if not path.name.startswith("vidurai.db")] == []


def assert_sound(archive: Path, mirror: Path) -> None:
    """Both sides hold the same files, encrypted and proved."""
    assert all(file.key for file in list_files(archive))
    assert parquet_files(mirror) == parquet_files(archive)
    report = loads(cli("scrub", "--all", "--format", "json"))
    assert report["intact"] == report["mirror"]["intact"] == len(parquet_files(archive))


def test_restored_memories_leave_encrypted_files(home: Path, archive: Path, mirror_folder: Path) -> None:
    before = rewriting_driver.rows(archive)
    report = loads(cli("restore", "--where", "salience = 'CRITICAL'", "--yes", "--format", "json"))
    assert report["restored"] > 0
    assert report["refused"] == []
    assert sum(rewriting_driver.rows(archive).values()) == sum(before.values()) - report["restored"]
    restored = hot_rows(home / "vidurai.db", "status = 'ACTIVE'")
    assert len(restored) == report["restored"]
    assert_sound(archive, mirror_folder)


def test_a_new_store_is_made_of_encrypted_files(archive: Path, tmp_path: Path) -> None:
    files = parquet_files(archive)
    report = loads(cli("restore", "--into", str(tmp_path / "new.db"), "--where", "true", "--format", "json"))
    assert report["restored"] == sum(rewriting_driver.rows(archive).values())
    assert len(hot_rows(tmp_path / "new.db")) == report["restored"]
    assert parquet_files(archive) == files


def test_each_side_heals_the_encrypted_files_of_the_other(archive: Path, mirror_folder: Path) -> None:
    files = parquet_files(archive)
    first, second, *_ = files
    flip(archive / first)
    flip(mirror_folder / second)
    (archive / sorted(files)[-1]).unlink()
    report = loads(cli("scrub", "--all", "--repair", "--format", "json"))
    assert len(report["healed"]) == 3
    assert parquet_files(archive) == parquet_files(mirror_folder) == files


def test_what_is_saved_of_an_encrypted_file_is_encrypted(archive: Path) -> None:
    path = max(archive.rglob("*.parquet"), key=lambda path: path.stat().st_size)
    with open_file(path) as file:
        rows = file.metadata.num_rows
    flip(path, at=0.8)
    done = cli("salvage", str(path), "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["rows"] == rows
    assert f"ends in .{path.name.split('.')[-2]}.parquet" in done.stderr
    assert 0 < report["saved"] < rows or report["incomplete"]
    assert hold_canary(archive) == []
    saved = Path(report["to"])
    with open_file(saved) as file:
        assert file.metadata.num_rows == report["saved"]


def test_what_is_saved_is_written_under_no_name_without_a_key(archive: Path, tmp_path: Path) -> None:
    path = max(archive.rglob("*.parquet"))
    done = cli("salvage", str(path), "--to", str(tmp_path / "saved.parquet"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert path.name.split(".")[-2] in done.stderr
    assert not (tmp_path / "saved.parquet").exists()


def test_encrypted_files_are_put_together(archive: Path, mirror_folder: Path) -> None:
    before = rewriting_driver.rows(archive)
    report = loads(cli("compact", "--format", "json"))
    assert (report["files_before"], report["files_after"]) == (4, 1)
    assert rewriting_driver.rows(archive) == before
    assert_sound(archive, mirror_folder)


def test_files_of_two_keys_and_none_become_one(archive: Path, mirror_folder: Path, key_file: Path) -> None:
    newest = add_key(key_file)
    write_file(archive, [memory(950_000, audience_gists=[])], "memories_20241209_020000.parquet")
    before = rewriting_driver.rows(archive)
    loads(cli("compact", "--format", "json"))
    assert [file.key for file in list_files(archive) if "month=12" in file.relative] == [newest]
    assert rewriting_driver.rows(archive) == before
    assert_sound(archive, mirror_folder)


def test_memories_expire_from_encrypted_files(
    home: Path, archive: Path, mirror_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=90d")
    before = rewriting_driver.rows(archive)
    report = loads(cli("expire", "--format", "json"))
    assert report["expired"] >= len(OLD_MONTH)
    left = before - rewriting_driver.rows(archive)
    assert sum(left.values()) == report["expired"]
    assert all("'salience': 'NOISE'" in row for row in left)
    assert list((archive / ".tombstones").iterdir())
    assert_no_text_but_in_the_store(home)
    assert_sound(archive, mirror_folder)


@pytest.mark.slow
def test_dagsters_jobs_leave_no_text_anywhere(
    *,
    home: Path,
    archive: Path,
    mirror_folder: Path,
    cache: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VIDURAI_RETENTION", "LOW=1d, NOISE=90d")
    insert(home / "vidurai.db", verbatim=f"again {CANARY}", gist=CANARY, outcome=1, file_path=CANARY)
    before = rewriting_driver.rows(archive)
    settings = load_settings()
    for job in ("maintenance", "care"):
        result = execute(settings, instance, job)
        assert result.success
        assert all(check.passed for check in result.get_asset_check_evaluations())
    for command in (
        ("query", f"SELECT * FROM history WHERE gist = '{CANARY}'"),
        ("search", CANARY),
        ("query", f"SELECT id FROM memories WHERE verbatim LIKE '%{CANARY}%'"),
        ("stats",),
        ("doctor",),
        ("policy",),
        ("scrub", "--all"),
    ):
        cli(*command)
    assert before - rewriting_driver.rows(archive)
    for folder in (home, mirror_folder, cache, Path(instance.root_directory)):
        assert_no_text_but_in_the_store(folder)
    assert_sound(archive, mirror_folder)


def months_of_plain_files(root: Path) -> dict[str, list[Path]]:
    return {
        month: [
            write_file(root, [memory(number)], f"memories_2024{month[-2:]}{number:02d}_020000.parquet", month=month)
            for number in range(1, 10)
        ]
        for month in ("2024-10", "2024-11", "2024-12")
    }


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_rekeying_leaves_out_damaged_files_and_goes_on(tmp_path: Path, key_file: Path, at: int) -> None:
    root = tmp_path / "archive"
    files = months_of_plain_files(root)
    archive = open_archive(load_settings().model_copy(update={"archive": root}))
    scrub(archive)
    damaged = [files["2024-10"][at], files["2024-11"][at]]
    for path in damaged:
        flip(path, keep_time=True)
    before = [path.read_bytes() for path in damaged]
    for done in (25, 0):
        report = rekey(archive)
        assert report.files == done
        assert sorted(report.left) == [str(path.relative_to(root)) for path in damaged]
        assert all("is damaged" in reason for reason in report.left.values())
    assert [file.relative for file in list_files(root) if file.key is None] == [
        str(path.relative_to(root)) for path in damaged
    ]
    assert [path.read_bytes() for path in damaged] == before


def test_a_rekeying_leaves_out_a_month_that_lies_elsewhere(tmp_path: Path, key_file: Path) -> None:
    root = tmp_path / "archive"
    months_of_plain_files(root)
    moved = (root / "year=2024" / "month=11").rename(tmp_path / "elsewhere")
    (root / "year=2024" / "month=11").symlink_to(moved)
    before = rewriting_driver.rows(moved)
    report = rekey(open_archive(load_settings().model_copy(update={"archive": root})))
    assert len(report.left) == 9
    assert all("a link" in reason for reason in report.left.values())
    assert sum(file.key is not None for file in list_files(root)) == 18
    assert rewriting_driver.rows(moved) == before


def test_a_rekeying_stops_where_no_file_would_fare_better(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tries = tmp_path / "archive", []
    months_of_plain_files(root)
    files = parquet_files(root)

    def full(path: Path) -> None:
        tries.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("vidurai_pipeline.cold.archive.sync_file", full)
    with pytest.raises(ArchiveError, match="No space left"):
        rekey(open_archive(load_settings().model_copy(update={"archive": root})))
    assert len(tries) == 1
    assert parquet_files(root) == files


def other_key(path: Path) -> None:
    path.unlink()
    add_key(path)


DEFECTS: dict[str, Callable[[Path], object]] = {
    "not set": lambda _: os.environ.pop("VIDURAI_ARCHIVE_KEY_FILE"),
    "another key": other_key,
}
CHANGING = (
    ("restore", "--where", "id < 50", "--yes"),
    ("restore", "--into", "new.db", "--where", "true"),
    ("compact",),
    ("expire",),
    ("rekey",),
    ("salvage", "FILE"),
)


@pytest.mark.parametrize("command", CHANGING, ids=" ".join)
@pytest.mark.parametrize("defect", DEFECTS)
def test_without_the_key_one_line_says_so_and_nothing_changes(
    *,
    home: Path,
    archive: Path,
    mirror_folder: Path,
    key_file: Path,
    defect: str,
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=90d")
    monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(key_file))  # to be put back at the end
    DEFECTS[defect](key_file)
    before = hot_rows(home / "vidurai.db"), parquet_files(archive), parquet_files(mirror_folder)
    done = cli(*(str(max(archive.rglob("*.parquet"))) if part == "FILE" else part for part in command))
    assert done.returncode in {1, 2}, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "VIDURAI_ARCHIVE_KEY_FILE" in done.stderr
    assert (hot_rows(home / "vidurai.db"), parquet_files(archive), parquet_files(mirror_folder)) == before
    left = [path for path in archive.rglob("*") if path.name.endswith((".damaged", ".part", ".salvaged"))]
    assert left == []
    assert list((archive / ".tombstones").glob("*")) == list((archive / ".intents").glob("*")) == []
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("defect", DEFECTS)
def test_files_are_proved_without_the_key(
    archive: Path, mirror_folder: Path, key_file: Path, defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(key_file))
    DEFECTS[defect](key_file)
    assert_sound(archive, mirror_folder)
    files = parquet_files(archive)
    for path in (*archive.rglob(".manifest.json"), *mirror_folder.rglob(".manifest.json")):
        path.unlink()
    done = cli("scrub", "--all", "--repair", "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert all("VIDURAI_ARCHIVE_KEY_FILE" in flaw["reason"] for flaw in report["damaged"])
    assert {flaw["file"] for flaw in report["damaged"]} >= set(files)
    assert parquet_files(archive) == files
