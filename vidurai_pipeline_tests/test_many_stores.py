"""Many stores under Dagster: a partition and a nightly run for each; what is wrong with one never touches another."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from vidurai_pipeline import RepoAnalyst
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.assets import POOL
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.dagster_runs import holding, status_of
from vidurai_pipeline_tests.support.stores import change, small_store

NIGHT = datetime(2026, 11, 27, 2, tzinfo=UTC)


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stores of alice, bob, carol and dave, three memories each, of which two wait; carol's is no database."""
    for name in ("alice", "bob", "carol", "dave"):
        rows = [
            {
                "id": id_,
                "verbatim": f"text of {name}",
                "status": "ARCHIVED" if id_ < 3 else "ACTIVE",
                "outcome": 1,
                "salience": "HIGH",
                "created_at": "2026-01-01T00:00:00",
            }
            for id_ in (1, 2, 3)
        ]
        small_store(tmp_path / name / "vidurai.db", *rows)
    (tmp_path / "carol/vidurai.db").write_text("Dear")
    monkeypatch.setenv("VIDURAI_STORES", str(tmp_path / "*/vidurai.db"))
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "archive"))
    monkeypatch.setenv("VIDURAI_STORES_AT_ONCE", "3")
    monkeypatch.setenv("VIDURAI_TIMEZONE", "UTC")
    monkeypatch.setenv("VIDURAI_LOCK_TIMEOUT", "0.1")
    return tmp_path


@pytest.fixture
def definitions(team: Path) -> dg.Definitions:
    return build_definitions(load_settings())


def _asked(definitions: dg.Definitions, context: dg.SensorEvaluationContext, sensor: str) -> dict[str | None, Any]:
    """The runs that a sensor requests, by store; or by nothing why it requests none."""
    asked: Any = definitions.resolve_sensor_def(sensor)(context)
    return {None: asked.skip_message} if isinstance(asked, dg.SkipReason) else {one.partition_key: one for one in asked}


def _tick(definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None = None) -> SensorExecutionData:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=definitions)
    tick = definitions.resolve_sensor_def("stores").evaluate_tick(context)
    for request in tick.dynamic_partitions_requests or ():
        if isinstance(request, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions("stores", request.partition_keys)
        else:
            for key in request.partition_keys:
                instance.delete_dynamic_partition("stores", key)
    return tick


def _night(definitions: dg.Definitions, instance: dg.DagsterInstance, schedule: str, at: datetime) -> dict[str, str]:
    """The keys of the runs that a schedule requests at a moment, by store."""
    repository = definitions.get_repository_def()
    context = dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository)
    requests = definitions.resolve_schedule_def(schedule).evaluate_tick(context).run_requests or ()
    return {one.partition_key or one.tags["vidurai/store"]: str(one.run_key) for one in requests}


def _run(definitions: dg.Definitions, instance: dg.DagsterInstance, store: str) -> dg.ExecuteInProcessResult:
    job = definitions.resolve_job_def("maintenance")
    return job.execute_in_process(instance=instance, partition_key=store, raise_on_error=False)


def test_a_sensor_registers_and_retires_stores(team: Path, definitions: dg.Definitions, instance: dg.DagsterInstance):
    tick = _tick(definitions, instance)
    assert instance.get_dynamic_partitions("stores") == ["alice", "bob", "dave"]
    assert tick.skip_message == (
        f"3 stores, 3 new, 0 gone; the store carol: {team}/carol/vidurai.db is not an SQLite database: name Vidurai's "
        "own file, or restore it from a backup"
    )
    assert {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}[POOL] == 3
    (team / "bob/vidurai.db").unlink()
    (team / "dave/vidurai.db").write_text("damaged")  # which is no reason to forget it
    tick = _tick(definitions, instance)
    assert instance.get_dynamic_partitions("stores") == ["alice", "dave"]
    for name in ("alice", "carol", "dave"):
        (team / name / "vidurai.db").unlink()
    tick = _tick(definitions, instance)  # as where a disk is not mounted
    assert "matches no file" in (tick.skip_message or "")
    assert instance.get_dynamic_partitions("stores") == ["alice", "dave"]


def test_each_night_requests_a_run_for_each_store_at_its_own_time(
    definitions: dg.Definitions, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    moments: dict[str, datetime] = {}
    for at in (NIGHT + timedelta(minutes=minutes) for minutes in range(0, 60, 5)):
        for store, key in _night(definitions, instance, "nightly", at).items():
            assert store not in moments
            assert key == f"{at.isoformat()} {store}"
            moments[store] = at
    assert sorted(moments) == ["alice", "bob", "dave"]
    assert len({*moments.values()}) > 1
    for at in {*moments.values()}:  # each job has them in the same order
        now = {store for store, moment in moments.items() if moment == at}
        assert {*_night(definitions, instance, "nightly_care", at + timedelta(hours=1))} == now
        assert {*_night(definitions, instance, "health_check", at + timedelta(hours=2))} == now
    monkeypatch.setenv("VIDURAI_STORES_SPREAD_MINUTES", "0")
    assert len(_night(build_definitions(load_settings()), instance, "nightly", NIGHT)) == 3


def test_a_store_that_missed_its_night_is_caught_up_by_itself(
    definitions: dg.Definitions, instance: dg.DagsterInstance
):
    _tick(definitions, instance)
    job = definitions.resolve_job_def("maintenance")
    for name in ("alice", "dave"):  # bob is new: he waits for his first night
        instance.create_run_for_job(job, tags={"dagster/partition": name})
        instance.report_runless_asset_event(dg.AssetMaterialization("purged_rows", partition=name))
    records = {record.dagster_run.tags["dagster/partition"]: record for record in instance.get_run_records()}
    night = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0) + timedelta(days=2)

    context = dg.build_sensor_context(instance=instance, definitions=definitions)

    def at(minutes: int) -> dict[str | None, Any]:
        with mock.patch("time.time", return_value=(night + timedelta(minutes=minutes)).timestamp()):
            return _asked(definitions, context, "missed_night")

    assert "waited 0 of 10 minutes for the schedule" in at(60)[None]
    assert sorted(map(str, at(70))) == ["alice", "dave"]
    records["alice"] = records["alice"]._replace(create_timestamp=night + timedelta(minutes=58))
    with mock.patch.object(type(instance), "get_run_records", return_value=[*records.values()]):
        assert list(at(71)) == ["dave"]


def test_a_large_backlog_starts_an_early_run_of_its_store_alone(
    team: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    small_store(team / "erin/vidurai.db")
    (team / "dave/vidurai.db").unlink()
    small_store(team / "dave/vidurai.db", schema="CREATE TABLE letters (text)")
    for limit, value in (("ROWS", "2"), ("FREE_DISK", "0"), ("QUIET", "0")):
        monkeypatch.setenv(f"VIDURAI_EARLY_RUN_{limit}", value)
    definitions = build_definitions(load_settings())
    _tick(definitions, instance)
    job = definitions.resolve_job_def("maintenance")
    instance.create_run_for_job(job, tags={"dagster/partition": "bob"}, status=dg.DagsterRunStatus.STARTED)
    context = dg.build_sensor_context(instance=instance, definitions=definitions)
    asked = _asked(definitions, context, "early_run")
    assert list(asked) == ["alice"]
    assert asked["alice"].run_key == "early-run-after-nothing alice"
    assert asked["alice"].tags["vidurai/why"] == "2 memories wait (a run starts at 2)"
    change(team / "alice/vidurai.db", "UPDATE memories SET status = 'ACTIVE'")
    with mock.patch("time.time", return_value=time.time() + 10**6):  # or the count would serve for a while
        said = _asked(definitions, context, "early_run")[None]
    assert said.startswith("3 stores without need; dave: no early run: ")
    assert "no such table: memories" in said


@pytest.mark.fast
def test_a_run_moves_the_memories_of_its_store_alone(
    team: Path, definitions: dg.Definitions, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    instance.add_dynamic_partitions("stores", ["carol"])  # which was well until now
    first = _tick(definitions, instance)
    assert "4 of 4 stores had no good run" in str(first.asset_events[0].description)
    with holding(_made(team / "archive/store=bob")):  # another run is at work there
        assert not _run(definitions, instance, "bob").success
        assert _run(definitions, instance, "alice").success
    assert not _run(definitions, instance, "carol").success
    with RepoAnalyst() as analyst:
        rows = analyst.query_archive("SELECT store, count(*) AS n FROM history GROUP BY ALL ORDER BY ALL")
    assert rows == [{"store": "alice", "n": 2}]
    assert (team / "alice/q_table.json").exists()
    assert not (team / "bob/q_table.json").exists()
    second = _tick(definitions, instance, first.cursor)
    assert "3 of 4 stores had no good run for too long: bob, carol, dave" in str(second.asset_events[0].description)
    assert _tick(definitions, instance, second.cursor).asset_events == []
    health = definitions.resolve_job_def("health").execute_in_process(
        instance=instance, tags={"vidurai/store": "alice"}
    )
    assert {check.check_name for check in health.get_asset_check_evaluations() if not check.passed} == set()
    care = definitions.resolve_job_def("care").execute_in_process(instance=instance, partition_key="alice")
    assert care.success


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_dead_run_of_a_store_that_is_gone_is_ended(
    team: Path, definitions: dg.Definitions, instance: dg.DagsterInstance
):
    job = definitions.resolve_job_def("maintenance")
    runs = [instance.create_run_for_job(job, tags={"dagster/partition": name}) for name in ("zoe", "bob")]
    context = dg.build_sensor_context(instance=instance, definitions=definitions)
    later = time.time() + 400
    with holding(_made(team / "archive/store=bob")), mock.patch("time.time", return_value=later):
        said = _asked(definitions, context, "end_dead_runs")[None]
    assert "ended 1 dead run" in said
    assert [status_of(instance, run.run_id).value for run in runs] == ["FAILURE", "NOT_STARTED"]


def test_a_run_for_no_store_says_so(definitions: dg.Definitions, instance: dg.DagsterInstance):
    result = definitions.resolve_job_def("health").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert any("this run is for no store" in str(event.event_specific_data) for event in result.all_events)


@pytest.mark.fast
def test_doctor_tells_of_each_store_in_one_line(team: Path):
    (team / "dave/vidurai.db").unlink()
    small_store(team / "dave/vidurai.db", schema="CREATE TABLE letters (text)")
    done = cli("doctor", "--format", "json")
    found = {
        line["check"]: (line["status"], line["detail"]) for line in json.loads(done.stdout) if "store" in line["check"]
    }
    dave = found.pop("store dave")
    assert done.returncode == 1
    assert found == {
        "stores": (
            "failed",
            f"the store carol: {team}/carol/vidurai.db is not an SQLite database: name Vidurai's own file, or restore "
            "it from a backup",
        ),
        "store alice": ("ok", f"{team}/alice/vidurai.db: 2 ARCHIVED"),
        "store bob": ("ok", f"{team}/bob/vidurai.db: 2 ARCHIVED"),
    }
    assert dave[0] == "failed"
    assert f"{team}/dave/vidurai.db has no table `memories`" in dave[1]
