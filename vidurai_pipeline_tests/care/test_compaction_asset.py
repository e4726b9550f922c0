"""Months are compacted by the job `care`, and one by one from Dagster's UI."""

import dagster as dg
import pytest

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.compaction import MONTHS
from vidurai_pipeline.settings import Settings
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.dagster_runs import execute

MONTHLY = dg.AssetKey("compacted_months")


@pytest.fixture
def archive(settings: Settings) -> Archive:
    """Three months that are over, each with four small files."""
    for number, month in enumerate(("2024-10", "2024-11", "2024-12")):
        for night in range(4):
            write_file(settings.archive_path, [memory(number * 4 + night)], f"memories_{night}.parquet", month=month)
    return Archive(settings.archive_path)


def files_by_month(archive: Archive) -> list[int]:
    return [len(list_files(archive.root, f"year=2024/month={month}")) for month in (10, 11, 12)]


def figures(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None) -> dict[str, object]:
    wanted = key if partition is None else dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    materialization = instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert materialization is not None
    return {label: value.value for label, value in materialization.metadata.items()}


def materialize(settings: Settings, instance: dg.DagsterInstance, month: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=[MONTHLY], partition_key=month)


def test_the_job_compacts_what_is_over_and_marks_the_months(
    archive: Archive, settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert execute(settings, instance, "care").success
    assert files_by_month(archive) == [1, 1, 1]
    found = figures(instance, dg.AssetKey("compact_archive"))
    assert (found["files before"], found["files after"]) == (12, 3)
    assert instance.get_materialized_partitions(MONTHLY) == {"2024-10", "2024-11", "2024-12"}
    assert figures(instance, MONTHLY, "2024-11")["files before"] == 4
    # The next night there is nothing to do, and no month is marked again.
    assert execute(settings, instance, "care").success
    assert figures(instance, dg.AssetKey("compact_archive"))["rows written anew"] == 0
    assert len(instance.fetch_materializations(MONTHLY, limit=10).records) == 3


def test_one_month_is_compacted_from_the_ui(archive: Archive, settings: Settings, instance: dg.DagsterInstance) -> None:
    assert materialize(settings, instance, "2024-11").success
    assert files_by_month(archive) == [4, 1, 4]
    assert figures(instance, MONTHLY, "2024-11")["files after"] == 1


def test_a_month_without_files_has_nothing_to_compact(
    archive: Archive, settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert materialize(settings, instance, "2023-09").success
    assert files_by_month(archive) == [4, 4, 4]
    assert figures(instance, MONTHLY, "2023-09")["files before"] == 0


def test_a_month_that_fails_is_named_and_the_others_are_compacted(
    archive: Archive, settings: Settings, instance: dg.DagsterInstance
) -> None:
    (archive.root / "year=2024/month=11/folder").mkdir()
    result = execute(settings, instance, "care")
    (failure,) = result.get_step_failure_events()
    assert failure.step_key == "compact_archive"
    assert "2024-11" in str(failure.step_failure_data.user_failure_data)
    assert files_by_month(archive) == [1, 4, 1]


def test_every_month_that_is_over_has_a_partition() -> None:
    assert MONTHS.get_first_partition_key() == "2020-01"
    assert not MONTHS.has_partition_key(MONTHS.get_partition_key_for_timestamp(4_000_000_000))
