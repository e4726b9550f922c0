"""What starts jobs and ends them: the schedule and the sensors."""

import shutil
import time
from datetime import datetime
from typing import Any
from unittest import mock

import dagster as dg
import pytest

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.automation import dream_after_failure
from vidurai_pipeline.defs.runs import GRACE_SECONDS, LONGEST_SECONDS, stuck_runs
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.dagster_runs import ASSETS, execute, holding, leave_run, materialized, status_of


def test_a_failure_before_the_dream_starts_a_dream(settings: Settings, instance: dg.DagsterInstance) -> None:
    shutil.rmtree(settings.home)
    settings.home.mkdir()
    result = execute(settings, instance)
    assert not result.success
    request = sense(settings, instance, result)
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == f"dream-after-{result.run_id}"


def test_a_failure_of_the_dream_itself_starts_no_other(settings: Settings, instance: dg.DagsterInstance) -> None:
    settings.q_table_path.write_text("not JSON")
    result = execute(settings, instance)
    assert not result.success
    assert list(materialized(result)) == [*ASSETS[:3], "search_index"]
    assert isinstance(sense(settings, instance, result), dg.SkipReason)


def sense(settings: Settings, instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> Any:
    context = dg.build_run_status_sensor_context(
        sensor_name="dream_after_failure",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    return dream_after_failure(context)


def test_a_run_that_was_turned_away_starts_no_dream(settings: Settings, instance: dg.DagsterInstance) -> None:
    settings.archive_path.mkdir()
    with holding(settings.archive_path):
        result = execute(settings, instance)
    assert isinstance(sense(settings, instance, result), dg.SkipReason)


def test_a_failed_dream_job_starts_no_other(settings: Settings, instance: dg.DagsterInstance) -> None:
    settings.q_table_path.write_text("not JSON")
    result = execute(settings, instance, "dream_job")
    assert not result.success
    assert isinstance(sense(settings, instance, result), dg.SkipReason)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize(
    ("status", "end"),
    [
        (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
    ],
    ids=lambda status: status.value,
)
def test_runs_whose_process_died_are_ended(
    settings: Settings,
    instance: dg.DagsterInstance,
    *,
    alive: bool,
    status: dg.DagsterRunStatus,
    end: dg.DagsterRunStatus,
) -> None:
    definitions = build_definitions(settings)
    run_id = leave_run(instance, definitions.resolve_job_def("maintenance"), status)
    settings.archive_path.mkdir()

    def evaluate() -> str:
        repository = definitions.get_repository_def()
        with dg.build_sensor_context(instance=instance, repository_def=repository) as context:
            return repository.get_sensor_def("end_dead_runs").evaluate_tick(context).skip_message or ""

    assert "no unfinished run is old enough" in evaluate()
    later = time.time() + GRACE_SECONDS[status] + 1
    with mock.patch("time.time", return_value=later), holding(settings.archive_path, really=alive):
        message = evaluate()
    assert ("another run is at work" in message) == alive
    assert status_of(instance, run_id) == (status if alive else end)


@pytest.mark.parametrize("status", LONGEST_SECONDS, ids=lambda status: status.value)
def test_a_run_that_stays_queued_or_unfinished_is_named(
    settings: Settings, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run_id = leave_run(instance, build_definitions(settings).resolve_job_def("maintenance"), status)
    longest = LONGEST_SECONDS[status]
    assert stuck_runs(instance, time.time() + longest - 60).status == "ok"
    found = stuck_runs(instance, time.time() + longest + 60)
    assert found.status == "warning"
    assert f"maintenance {run_id[:8]} ({status.value}, " in found.detail
    later = time.time() + longest + 60
    with mock.patch("vidurai_pipeline.defs.checks.stuck_runs", lambda instance, _now: stuck_runs(instance, later)):
        checks = execute(settings, instance, "health").get_asset_check_evaluations()
    assert [check.check_name for check in checks if not check.passed] == ["no_run_is_stuck"]


def test_schedule_is_on_and_starts_the_job(settings: Settings) -> None:
    definitions = build_definitions(settings)
    schedule = definitions.resolve_schedule_def("nightly")
    assert schedule.cron_schedule == "0 2 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.job_name == "maintenance"
    tick = schedule.evaluate_tick(
        dg.build_schedule_context(
            scheduled_execution_time=datetime(2026, 1, 1, 2), repository_def=definitions.get_repository_def()
        )
    )
    assert tick.run_requests
    assert len(tick.run_requests) == 1


def test_schedule_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_SCHEDULE", "30 4 * * 1")
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Asia/Kolkata")
    schedule = build_definitions(load_settings()).resolve_schedule_def("nightly")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 4 * * 1", "Asia/Kolkata")
