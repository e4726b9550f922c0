"""Dagster's own history stays small, and keeps what is still needed."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.instance import dagster_home
from vidurai_pipeline.defs.run_retention import prune_runs
from vidurai_pipeline.settings import Settings, load_settings


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_old_runs_go_with_all_that_is_theirs(
    sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(sample_store("schema_v7").parent))
    settings = load_settings()
    definitions = build_definitions(settings)
    home = dagster_home(settings)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        maintenance = definitions.resolve_job_def("maintenance")
        runs = [maintenance.execute_in_process(instance=instance).run_id for _ in range(3)]
        waiting = instance.create_run_for_job(maintenance)
        result = definitions.resolve_job_def("prune_history").execute_in_process(instance=instance)
        assert result.success
        assert len(instance.get_runs()) == 5
        size = folder_bytes(home)
        assert prune_runs(instance, datetime.now(tz=UTC) + timedelta(days=1)) == 3
        left = {run.run_id for run in instance.get_runs()}
        assert left == {runs[-1], waiting.run_id}
        assert instance.get_latest_materialization_event(dg.AssetKey("q_table"))
        assert {path.stem for path in (home / "history/runs").glob("*.db")} == {*left, "index"}
        assert not any(run_id in os.fspath(path) for run_id in runs[:-1] for path in home.rglob("*"))
        assert folder_bytes(home) < size


def test_the_weekly_schedule_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Asia/Kolkata")
    schedule = build_definitions(load_settings()).resolve_schedule_def("weekly_prune")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.execution_timezone == "Asia/Kolkata"


def test_dagster_takes_the_days_for_ticks(settings: Settings) -> None:
    with dg.DagsterInstance.from_config(str(dagster_home(settings))) as instance:
        kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
        assert kept[TickStatus.SKIPPED] == 2
        # None of them for ever.
        for kind in (InstigatorType.SENSOR, InstigatorType.SCHEDULE):
            assert min(instance.get_tick_retention_settings(kind).values()) > 0
