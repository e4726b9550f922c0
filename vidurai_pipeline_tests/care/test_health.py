"""The checks of the tiers' health: each is made to fail, and says what to do."""

import os
import shutil
import sqlite3
from collections import namedtuple
from datetime import timedelta
from pathlib import Path
from unittest import mock

import dagster as dg
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care import health
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.checks import HEALTH_CHECKS
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support import dagster_runs
from vidurai_pipeline_tests.support.archives import memory, write_file

DATA = Path(__file__).parents[1] / "data"
Usage = namedtuple("Usage", "total used free")


def execute(instance: dg.DagsterInstance, job: str = "health") -> dict[str, dg.AssetCheckEvaluation]:
    result = dagster_runs.execute(load_settings(), instance, job)
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def failing(instance: dg.DagsterInstance) -> dict[str, str]:
    """The failing checks, with what they say."""
    return {name: check.description or "" for name, check in execute(instance).items() if not check.passed}


@pytest.mark.fast
def test_all_is_well_after_a_run(home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_SECRETS_CHECK", "true")
    made = execute(instance, "maintenance")
    # The health checks keep no run waiting.
    assert set(made) == {
        "archive_equals_hot_store",
        "no_file_needs_a_person",
        "no_memory_is_rejected",
        "q_table_is_well_formed",
        "q_table_is_not_worse",
    }
    checks = execute(instance)
    assert len(checks) == len(HEALTH_CHECKS) == 9
    assert failing(instance) == {}
    assert {name: value.value for name, value in checks["archive_is_readable"].metadata.items()} == {
        "files": 1,
        "rows": 1_148,
    }


def test_before_the_first_run_too(home: Path, instance: dg.DagsterInstance) -> None:
    assert failing(instance) == {}


def test_it_works_while_a_run_holds_the_archive(home: Path, instance: dg.DagsterInstance) -> None:
    archiver = MemoryArchiver()
    with archiver.run("test"):
        archiver.publish()
        # All of the file's memories are in both tiers now, as they should be.
        assert failing(instance) == {}
        archiver.purge()
    assert failing(instance) == {}


def test_it_never_stands_between_the_archive_and_the_purge(home: Path, instance: dg.DagsterInstance) -> None:
    with mock.patch.object(health, "disk_room", return_value=health.Finding("disk", "failed", "full")):
        checks = execute(instance, "__ASSET_JOB")
    assert not checks["disk_has_room"].passed
    assert not checks["disk_has_room"].blocking
    assert sqlite3.connect(home / "vidurai.db").execute(
        "SELECT count(*) FROM memories WHERE status = 'ARCHIVED'"
    ).fetchone() == (0,)


def test_a_damaged_store(home: Path, instance: dg.DagsterInstance) -> None:
    con = sqlite3.connect(home / "vidurai.db")
    (root,) = con.execute("SELECT rootpage FROM sqlite_master WHERE name = 'idx_memories_salience'").fetchone()
    con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    con.close()
    with (home / "vidurai.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 100)
    said = failing(instance)
    assert list(said) == ["hot_store_is_sound"]
    assert ".recover" in said["hot_store_is_sound"]


def test_a_missing_store(home: Path, instance: dg.DagsterInstance) -> None:
    (home / "vidurai.db").unlink()
    assert "does not exist: start Vidurai once" in failing(instance)["hot_store_is_sound"]


def test_a_broken_file(home: Path, instance: dg.DagsterInstance) -> None:
    execute(instance, "maintenance")
    (path,) = (home / "archive").rglob("*.parquet")
    os.truncate(path, path.stat().st_size // 2)
    said = failing(instance)
    assert f"1 of 1 file can't be read: {path}. Restore" in said["archive_is_readable"]
    assert "which the other checks name" in said["no_version_twice"]


def test_a_file_that_is_gone(home: Path, instance: dg.DagsterInstance) -> None:
    execute(instance, "maintenance")
    assert failing(instance) == {}
    (path,) = (home / "archive").rglob("*.parquet")
    path.rename(home / "elsewhere")
    assert "1 file not as recorded" in failing(instance)["archive_is_readable"]
    assert "the file is gone" in failing(instance)["archive_is_readable"]
    scrub(Archive(home / "archive"), forget_missing=True)
    # It was on purpose. Memories also leave the archive when they are restored, expire or are erased.
    execute(instance, "maintenance")
    assert failing(instance) == {}


def test_memories_in_both_tiers(home: Path, instance: dg.DagsterInstance) -> None:
    saved = (home / "vidurai.db").read_bytes()
    execute(instance, "maintenance")
    (home / "vidurai.db").write_bytes(saved)
    said = failing(instance)
    assert "1,148 memories both in the hot store and in the archive" in said["memories_are_in_one_tier"]
    assert "The next run archives those" in said["memories_are_in_one_tier"]


def test_an_id_that_was_given_anew_is_another_memory(home: Path) -> None:
    MemoryArchiver().flush_archived_memories()
    (path,) = (home / "archive").rglob("*.parquet")
    id_ = pq.read_table(path, columns=["id"])["id"][0].as_py()
    con = sqlite3.connect(home / "vidurai.db")
    con.execute("UPDATE memories SET id = ?, created_at = 'later' WHERE id = (SELECT max(id) FROM memories)", (id_,))
    con.commit()
    con.close()
    assert health.one_tier(HotStore(home / "vidurai.db"), Archive(home / "archive")).status == "ok"


def test_versions(home: Path, instance: dg.DagsterInstance) -> None:
    execute(instance, "maintenance")
    (path,) = (home / "archive").rglob("*.parquet")
    table = pq.read_table(path)
    rows = table.slice(0, 3).to_pylist()
    for row in rows:
        row["access_count"] += 1
    other = path.with_name("memories_20300101_000000.parquet")
    pq.write_table(type(table).from_pylist(rows, table.schema), other)
    (finding,) = [health.no_duplicates(Archive(home / "archive"))]
    assert (finding.status, finding.detail) == ("ok", "3 memories in several versions, none of them twice")
    shutil.copy(path, path.with_name("memories_20300102_000000.parquet"))
    said = failing(instance)["no_version_twice"]
    assert "1,148 versions of 1,148 memories more than once" in said
    assert "nothing needs to be done" in said


def test_copies_that_were_archived_at_two_moments_are_duplicates(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_file(archive, [memory(1)], "1.parquet")
    write_file(archive, [memory(1, archived_at="2024-12-16T02:00:00.000001")], "2.parquet")
    assert health.no_duplicates(Archive(archive)).status == "warning"
    write_file(archive, [memory(1, gist="another version", archived_at="2024-12-17T02:00:00")], "2.parquet")
    assert health.no_duplicates(Archive(archive)).status == "ok"


def test_duplicates_that_vidurai_itself_wrote(tmp_path: Path) -> None:
    shutil.copytree(DATA / "reference_archive", tmp_path / "archive")
    assert health.no_duplicates(Archive(tmp_path / "archive")).status == "ok"
    first = next((tmp_path / "archive").rglob("*.parquet"))
    shutil.copy(first, first.with_name("memories_again.parquet"))
    assert health.no_duplicates(Archive(tmp_path / "archive")).status == "warning"


def test_a_version_archived_at_two_moments_is_a_duplicate(tmp_path: Path) -> None:
    write_file(tmp_path, [memory(1, archived_at="2024-11-01T02:00:00")], month="2024-11")
    write_file(tmp_path, [memory(1, archived_at="2024-12-01T02:00:00")])
    finding = health.no_duplicates(Archive(tmp_path))
    assert finding.detail.startswith("the archive holds 1 version of 1 memory more than once")


def test_a_full_disk(home: Path, instance: dg.DagsterInstance) -> None:
    with mock.patch("shutil.disk_usage", return_value=Usage(10**9, 10**9, 50_000_000)):
        said = failing(instance)
    assert list(said) == ["disk_has_room"]
    assert "Free some, or move the archive" in said["disk_has_room"]


def test_a_backlog_that_grows(home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    # The run looks, and gets no further.
    definitions = build_definitions(load_settings())
    job = definitions.resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("archived_rows")])
    said = failing(instance)
    assert "1,148 memories wait; 1,148 when the last run began: it does not shrink" in said["backlog_shrinks"]
    assert "run the job maintenance" in said["backlog_shrinks"]


def test_a_backlog_of_which_more_and_more_is_left(home: Path, instance: dg.DagsterInstance) -> None:
    con = sqlite3.connect(home / "vidurai.db", isolation_level=None)
    for n in (5, 10, 15):
        con.execute(f"UPDATE memories SET access_count = 'many' WHERE id % 100 < {n}")
        con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE access_count = 'many'")
        execute(instance, "maintenance")
    con.close()
    assert "correct them in SQLite" in failing(instance)["backlog_shrinks"]


def test_freshness(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_STALE_HOURS", "10")
    specs = {spec.key.to_user_string(): spec for spec in build_definitions(load_settings()).resolve_all_asset_specs()}
    with_policy = {name: spec.freshness_policy for name, spec in specs.items() if spec.freshness_policy}
    assert set(with_policy) == {"archived_rows", "parquet_archive", "purged_rows", "q_table"}
    for policy in with_policy.values():
        assert policy == dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=10), warn_window=timedelta(hours=5))


@pytest.mark.parametrize(
    ("number", "noun", "text"), [(1, "file", "1 file"), (0, "row", "0 rows"), (2_000, "memory", "2,000 memories")]
)
def test_plural(number: int, noun: str, text: str) -> None:
    assert health.plural(number, noun) == text
