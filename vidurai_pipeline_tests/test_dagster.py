"""The lifecycle as Dagster runs it: jobs, checks, sensors and the schedule, in this process."""

import base64
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import PublishReport
from vidurai_pipeline.cold.lock import RunLock
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs import resources
from vidurai_pipeline.errors import VerificationError
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.archives import experience, write_file
from vidurai_pipeline_tests.support.dagster_runs import ASSETS, execute, holding, materialized
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

ROOT = Path(__file__).parent.parent


def comparison(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["no_file_needs_a_person"].passed
    return checks["archive_equals_hot_store"]


@pytest.mark.fast
def test_definitions_say_what_the_ui_shows(settings: Settings) -> None:
    definitions = build_definitions(settings)
    dg.Definitions.validate_loadable(definitions)
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert specs.keys() >= {*ASSETS, "vidurai_store", "vidurai_agent"}
    for spec in (specs[name] for name in ASSETS):
        assert spec.description
        assert "**Next:**" in spec.description
        (reference,) = spec.metadata["dagster/code_references"].code_references
        assert reference.file_path.endswith("vidurai_pipeline/defs/assets.py")
        assert spec.kinds
        assert spec.owners
        assert spec.group_name == "memory_lifecycle"
        (reference,) = spec.metadata["dagster/code_references"].code_references
        assert Path(reference.file_path).name == "assets.py"
    graph = {name: {dep.asset_key.to_user_string() for dep in spec.deps} for name, spec in specs.items()}
    assert {name: above for name, above in graph.items() if specs[name].group_name == "memory_lifecycle"} == {
        "vidurai_store": set(),
        "archived_rows": {"vidurai_store"},
        "parquet_archive": {"archived_rows"},
        "purged_rows": {"parquet_archive"},
        "q_table": {"purged_rows"},
        "search_index": {"purged_rows"},
        "vidurai_agent": {"q_table"},
    }
    checks = {
        (check.asset_key.to_user_string(), check.name)
        for check in definitions.resolve_job_def("maintenance").asset_layer.asset_graph.asset_check_keys
    }
    assert checks >= {
        ("parquet_archive", "archive_equals_hot_store"),
        ("parquet_archive", "no_file_needs_a_person"),
        ("q_table", "q_table_is_well_formed"),
        ("q_table", "q_table_is_not_worse"),
    }


@pytest.mark.fast
def test_maintenance_moves_verifies_purges_and_learns(settings: Settings, instance: dg.DagsterInstance) -> None:
    before = hot_rows(settings.db_path)
    result = execute(settings, instance)
    assert result.success
    made = materialized(result)
    assert list(made) == [*ASSETS, "search_index"]
    assert [made[name]["dagster/row_count"] for name in ASSETS[:3]] == [1_148] * 3
    assert moved(made) == (1_148, 1_148, 439)
    assert made["q_table"]["dagster/row_count"] >= made["q_table"]["states"] == len(made["q_table"]["policy"].records)
    for name, picture in (
        ("q_table", "heat map"),
        ("q_table", "learning curve"),
        ("parquet_archive", "month by month, as a plot"),
    ):
        data = made[name][picture].partition("base64,")[2].removesuffix(")")
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert len(made["q_table"]["policy"].records) == 10
    for number in ("episodes", "total reward", "states", "epsilon"):
        assert isinstance(made["q_table"][number], int | float)
    assert [column.name for column in made["q_table"]["dagster/column_schema"].columns] == ["state", "action", "value"]
    for name in ("archived_rows", "parquet_archive", "purged_rows"):
        columns = [column.name for column in made[name]["dagster/column_schema"].columns]
        assert {"id", "verbatim", "occurrence_count"} <= set(columns)
    assert made["parquet_archive"]["files"].records[0].data["file"].startswith("year=")
    (path,) = settings.archive_path.rglob("*.parquet")
    months = [record.data for record in made["parquet_archive"]["month by month"].records]
    (year, month) = (int(folder.name.partition("=")[2]) for folder in (path.parent.parent, path.parent))
    assert months == [
        {"month": f"{year}-{month:02}", "rows": 1_148, "files": 1, "MB": round(path.stat().st_size / 1e6, 3)}
    ]
    assert made["parquet_archive"]["dagster/uri"] == path.as_uri()
    for name in ASSETS[1:]:
        assert {"seconds", "rows per second"} <= set(made[name])
    purged = made["purged_rows"]
    assert (purged["archive files"], purged["dagster/row_count"]) == (1, 1_148)
    assert 0 < purged["hot store in use (MB)"] < purged["hot store and log after (MB)"]
    assert {"hot store and log before (MB)", "reclaimed (MB)", "kept"} <= set(purged)
    check = comparison(result)
    assert check.passed
    assert check.description == "1,148 rows in 1 file equal what the hot store holds"
    assert_one_tier(before, settings.db_path, settings.archive_path)
    assert settings.q_table_path.exists()

    again = materialized(execute(settings, instance))
    assert moved(again) == (0, 0, 0)
    # The count of rows is the table's, whatever the night was like.
    assert [again[name]["dagster/row_count"] for name in ASSETS[:3]] == [0, 1_148, 1_148]
    assert again["q_table"]["dagster/row_count"] == made["q_table"]["dagster/row_count"]


def moved(made: dict[str, dict[str, Any]]) -> tuple[int, int, int]:
    """How many memories a run archived, purged and learned from."""
    return (
        made["parquet_archive"]["memories archived"],
        made["purged_rows"]["memories purged"],
        made["q_table"]["experiences learned"],
    )


def test_a_failed_check_stops_the_purge_and_the_next_run_puts_it_right(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hot_rows(settings.db_path)
    publish = MemoryArchiver.publish

    def publish_and_damage(archiver: MemoryArchiver) -> PublishReport:
        batch = publish(archiver)
        for file in batch.files:
            os.truncate(file.path, file.bytes // 2)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(MemoryArchiver, "publish", publish_and_damage)
        result = execute(settings, instance)
    assert not result.success
    assert list(materialized(result)) == ASSETS[:2]
    check = comparison(result)
    assert not check.passed
    assert "can't be read as Parquet" in check.metadata["what differs"].value  # type: ignore[operator]
    assert hot_rows(settings.db_path) == before
    assert not settings.q_table_path.exists()

    healthy = execute(settings, instance)
    assert healthy.success
    assert materialized(healthy)["purged_rows"]["memories purged"] == 1_148
    assert_one_tier(before, settings.db_path, settings.archive_path)


def test_an_altered_value_fails_the_check_by_name(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = MemoryArchiver.publish

    def publish_and_alter(archiver: MemoryArchiver) -> PublishReport:
        batch = publish(archiver)
        table = pq.read_table(batch.files[0].path)
        rows = table.to_pylist()
        rows[5]["gist"] += " (a secret)"
        pq.write_table(type(table).from_pylist(rows, table.schema), batch.files[0].path)
        return batch

    monkeypatch.setattr(MemoryArchiver, "publish", publish_and_alter)
    check = comparison(execute(settings, instance))
    assert not check.passed
    differences = str(check.metadata["what differs"].value)
    assert ": gist" in differences
    assert "secret" not in differences


def test_a_busy_store_is_tried_again(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_BUSY_TIMEOUT", "0.1")
    monkeypatch.setattr(resources, "FIRST_RETRY_SECONDS", 0.1)
    con = sqlite3.connect(settings.db_path, isolation_level=None, check_same_thread=False)
    con.execute("BEGIN IMMEDIATE")
    attempts = []
    begin = MemoryArchiver.publish

    def publish(archiver: MemoryArchiver) -> PublishReport:
        attempts.append(archiver)
        if len(attempts) == 3:
            con.execute("ROLLBACK")
        return begin(archiver)

    monkeypatch.setattr(MemoryArchiver, "publish", publish)
    result = execute(load_settings(), instance)
    con.close()
    assert result.success
    assert len(attempts) == 3
    waits = [event.step_retry_data.seconds_to_wait for event in result.all_events if event.is_step_up_for_retry]
    assert waits == [0.1, 0.2]
    assert materialized(result)["purged_rows"]["memories purged"] == 1_148


def test_a_store_that_stays_busy_fails_with_what_to_do(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_BUSY_TIMEOUT", "0.1")
    monkeypatch.setattr(resources, "FIRST_RETRY_SECONDS", 0.01)
    con = sqlite3.connect(settings.db_path, isolation_level=None)
    con.execute("BEGIN IMMEDIATE")
    result = execute(load_settings(), instance)
    con.close()
    assert "raise VIDURAI_BUSY_TIMEOUT" in failure(result)
    assert len([event for event in result.all_events if event.is_step_restarted]) == 3


def test_no_other_failure_is_tried_again(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (VerificationError("not what was written"), ValueError("unforeseen")):
        with mock.patch.object(MemoryArchiver, "purge", side_effect=error) as purge:
            assert not execute(settings, instance).success
        assert purge.call_count == 1


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure or event.is_failure][:1]
    return event.step_failure_data.user_failure_data.description if event.is_step_failure else str(event.message)  # type: ignore[union-attr,return-value]


def test_a_store_of_an_old_schema_fails_with_what_is_missing(
    sample_store: Callable[[str], Path], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(sample_store("pre_guardian").parent))
    result = execute(load_settings(), instance)
    assert not result.success
    assert "no column `status`" in failure(result)


def test_a_second_run_at_the_same_time_is_turned_away(settings: Settings, instance: dg.DagsterInstance) -> None:
    settings.archive_path.mkdir()
    before = hot_rows(settings.db_path)
    with holding(settings.archive_path) as holder:
        result = execute(settings, instance)
    assert not result.success
    events = " ".join(str(event.event_specific_data) for event in result.all_events)
    assert f"process {holder.pid}" in events
    assert "test holder" in events
    assert hot_rows(settings.db_path) == before
    # The dead holder is no obstacle.
    assert execute(settings, instance).success


def test_the_lock_is_free_after_a_failed_run(settings: Settings, instance: dg.DagsterInstance) -> None:
    settings.q_table_path.write_text("not JSON")
    assert not execute(settings, instance).success
    with RunLock(settings.archive_path).hold("test", 0):
        pass


def test_dream_alone(settings: Settings, instance: dg.DagsterInstance) -> None:
    MemoryArchiver().flush_archived_memories()
    result = execute(settings, instance, "dream_job")
    assert list(materialized(result)) == ["q_table"]
    assert materialized(result)["q_table"]["experiences learned"] == 439


def said_in_the_end(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[str]:
    """The lines that a run logged after its last step had ended."""
    entries = instance.all_logs(result.run_id)
    last = max(n for n, entry in enumerate(entries) if entry.dagster_event and entry.dagster_event.is_step_event)
    return [entry.user_message for entry in entries[last + 1 :] if not entry.dagster_event]


def test_a_run_says_in_one_line_what_it_did(settings: Settings, instance: dg.DagsterInstance) -> None:
    with sqlite3.connect(settings.db_path) as con:
        con.execute(
            "UPDATE memories SET access_count = 'many' WHERE id = (SELECT max(id) FROM memories "
            "WHERE status = 'ARCHIVED')"
        )
    con.close()
    assert said_in_the_end(instance, execute(settings, instance)) == [
        "1,147 memories archived and purged, 1 rejected, 1 new file, 438 experiences learned"
    ]
    assert said_in_the_end(instance, execute(settings, instance)) == [
        "0 memories archived and purged, 1 rejected, 0 new files, 0 experiences learned"
    ]
    assert said_in_the_end(instance, execute(settings, instance, "dream_job")) == ["0 experiences learned"]


def test_a_run_that_failed_does_not_say_what_it_did(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryArchiver, "purge", mock.Mock(side_effect=VerificationError("not as written")))
    result = execute(settings, instance)
    assert not result.success
    assert not any("memories archived" in line for line in said_in_the_end(instance, result))


def test_steps_can_be_run_one_by_one(settings: Settings, instance: dg.DagsterInstance) -> None:
    before = hot_rows(settings.db_path)
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    for name in ASSETS:
        assert job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(name)]).success
    assert_one_tier(before, settings.db_path, settings.archive_path)


def q_table_checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations() if "q_table" in check.check_name}


def write_night(settings: Settings, name: str, first: int, count: int, outcome: int) -> Path:
    rows = [experience(n, outcome, archived_at=f"2020-01-01T02:00:00.{n:06d}") for n in range(first, first + count)]
    return write_file(settings.archive_path, rows, name, month="2020-01")


def test_a_table_that_is_worse_stays_a_candidate(settings: Settings, instance: dg.DagsterInstance) -> None:
    write_night(settings, "1.parquet", 0, 1000, outcome=1)
    result = execute(settings, instance, "dream_job")
    checks = q_table_checks(result)
    assert {name: check.passed for name, check in checks.items()} == {
        "q_table_is_well_formed": True,
        "q_table_is_not_worse": True,
    }
    assert "first table" in (checks["q_table_is_not_worse"].description or "")
    before = settings.q_table_path.read_bytes()
    bad = write_night(settings, "2.parquet", 1000, 50, outcome=-1)
    result = execute(settings, instance, "dream_job")
    assert result.success, "a check fails, not the step: the table in use is still good"
    checks = q_table_checks(result)
    assert {name: check.passed for name, check in checks.items()} == {
        "q_table_is_well_formed": True,
        "q_table_is_not_worse": False,
    }
    assert "worse by more than chance explains" in (checks["q_table_is_not_worse"].description or "")
    assert checks["q_table_is_not_worse"].severity == dg.AssetCheckSeverity.ERROR
    made = materialized(result)["q_table"]
    assert (made["experiences learned"], made["held back"]) == (0, 50)
    assert settings.q_table_path.read_bytes() == before
    assert settings.q_table_path.with_name("q_table.candidate.json").exists()
    bad.unlink()
    checks = q_table_checks(execute(settings, instance, "dream_job"))
    assert all(check.passed for check in checks.values())
    assert not settings.q_table_path.with_name("q_table.candidate.json").exists()


def test_a_table_that_was_spoilt_is_seen(settings: Settings, instance: dg.DagsterInstance) -> None:
    write_night(settings, "1.parquet", 0, 100, outcome=1)
    assert execute(settings, instance, "dream_job").success
    document = json.loads(settings.q_table_path.read_text())
    document["q_table"]["no state"] = {"compress_now": 1.0}
    settings.q_table_path.write_text(json.dumps(document))
    write_night(settings, "2.parquet", 100, 10, outcome=1)
    result = execute(settings, instance, "dream_job")
    check = q_table_checks(result)["q_table_is_well_formed"]
    assert check.passed, "another program may know more"
    assert check.metadata["taught by another program only"].value == 1
