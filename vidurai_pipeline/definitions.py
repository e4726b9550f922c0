"""Dagster starts reading here."""

import dagster as dg

from vidurai_pipeline.assets import archived_rows, parquet_archive, purged_rows, q_table
from vidurai_pipeline.automation import dead_run_sensor, dream_after_failure, dream_job, maintenance, nightly_schedule
from vidurai_pipeline.checks import archive_equals_hot_store, q_table_is_not_worse, q_table_is_well_formed
from vidurai_pipeline.config import Settings, load_settings
from vidurai_pipeline.resources import build_resources


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything that Dagster shows and runs, for one hot store and its archive."""
    return dg.Definitions(
        assets=[archived_rows, parquet_archive, purged_rows, q_table],
        asset_checks=[archive_equals_hot_store, q_table_is_well_formed, q_table_is_not_worse],
        jobs=[maintenance, dream_job],
        schedules=[nightly_schedule(settings)],
        sensors=[dream_after_failure, dead_run_sensor(settings)],
        resources=build_resources(settings),
        # "Materialize all" gets its executor from here; the steps are sequential, a process for each only costs time.
        executor=dg.in_process_executor,
    )


defs = build_definitions(load_settings())
