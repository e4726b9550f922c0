"""The job `care` proves the archive's files, and keeps nobody waiting."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs import expiry
from vidurai_pipeline.defs.care import POOL
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.dagster_runs import execute, materialized


def proof(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (check,) = result.get_asset_check_evaluations()
    assert check.check_name == "archive_is_proved"
    return check


@pytest.fixture
def archived(settings: Settings) -> Path:
    """A file whose memories have left the hot store."""
    MemoryArchiver().flush()
    (path,) = settings.archive_path.rglob("*.parquet")
    return path


def test_untouched_files_are_proved(archived: Path, settings: Settings, instance: dg.DagsterInstance) -> None:
    check = proof(execute(settings, instance, "care"))
    assert check.passed
    assert "1 file read, and nothing is damaged or missing" in (check.description or "")
    assert check.metadata["intact"].value == check.metadata["files"].value == 1


def test_how_old_the_oldest_proof_is_can_be_plotted(
    archived: Path, settings: Settings, instance: dg.DagsterInstance
) -> None:
    execute(settings, instance, "care")
    (record,) = instance.fetch_observations(dg.AssetKey("parquet_archive"), limit=1).records
    observed = record.asset_observation
    assert observed
    assert isinstance(observed.metadata["oldest proof (days)"].value, float)
    assert observed.metadata["damaged"].value == 0


def test_damage_fails_the_check_and_says_what_to_do(
    archived: Path, settings: Settings, instance: dg.DagsterInstance
) -> None:
    status = archived.stat()
    content = bytearray(archived.read_bytes())
    content[len(content) // 2] ^= 1
    archived.write_bytes(content)
    os.utime(archived, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = execute(settings, instance, "care")
    check = proof(result)
    assert result.success
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert archived.name in (check.description or "")
    assert "backup" in (check.description or "")


def test_a_missing_file_fails_the_check(archived: Path, settings: Settings, instance: dg.DagsterInstance) -> None:
    archived.unlink()
    check = proof(execute(settings, instance, "care"))
    assert not check.passed
    assert "the file is gone" in (check.description or "")


def test_before_the_first_run_there_is_nothing_to_prove(settings: Settings, instance: dg.DagsterInstance) -> None:
    check = proof(execute(settings, instance, "care"))
    assert check.passed
    assert "oldest proof (days)" not in check.metadata


def test_it_shares_no_pool_with_the_nightly_job(settings: Settings) -> None:
    definitions = build_definitions(settings)
    pools = {
        name: {node.definition.pool for node in definitions.resolve_job_def(name).graph.nodes}  # pyright: ignore
        for name in ("care", "maintenance")
    }
    assert pools["care"] == {POOL}
    assert not pools["care"] & pools["maintenance"]


def test_the_nightly_job_never_finds_the_archive_locked_by_reading(
    archived: Path, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = []

    def read(*_: object, **__: object) -> tuple[str, int, int]:
        with Archive(settings.archive_path).lock("a flush", 0):
            free.append(True)
        return "", 0, 0

    monkeypatch.setattr(Archive, "digest", read)
    execute(settings, instance, "care")
    assert free == [True]


def test_memories_expire_once_a_month(
    archived: Path, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=1d, event_type:nothing=1d")
    job = build_definitions(load_settings()).resolve_job_def("care")

    def night(**tags: str) -> list[dict[str, Any]]:
        result = job.execute_in_process(instance=instance, tags=tags)
        assert result.success
        return [made for name, made in materialized(result).items() if name == "expired_rows"]

    by_schedule = {"dagster/schedule_name": "nightly_care"}
    (first,) = night(**by_schedule)
    assert first["memories expired"] == first["expired by NOISE=1d"] > 0
    assert first["expired by event_type:nothing=1d"] == 0
    assert night(**by_schedule) == []
    (again,) = night()
    assert again["memories expired"] == 0

    class NextMonth(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=31)

    monkeypatch.setattr(expiry, "datetime", NextMonth)
    assert len(night(**by_schedule)) == 1
