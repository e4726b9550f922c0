"""Dagster starts reading here."""

import warnings

import dagster as dg

from vidurai_pipeline.assets import archived_rows, parquet_archive, purged_rows, q_table
from vidurai_pipeline.automation import dead_run_sensor, dream_after_failure, dream_job, maintenance, nightly_schedule
from vidurai_pipeline.checks import archive_equals_hot_store
from vidurai_pipeline.config import Settings, load_settings
from vidurai_pipeline.resources import build_resources
from vidurai_pipeline.retention import prune_history, prune_schedule


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything that Dagster shows and runs, for one hot store and its archive."""
    with warnings.catch_warnings():
        # Links to the code are in beta; a user can do nothing about it.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = dg.with_source_code_references([archived_rows, parquet_archive, purged_rows, q_table])
    return dg.Definitions(
        assets=assets,
        asset_checks=[archive_equals_hot_store],
        jobs=[maintenance, dream_job, prune_history],
        schedules=[nightly_schedule(settings), prune_schedule(settings)],
        sensors=[dream_after_failure, dead_run_sensor(settings)],
        resources=build_resources(settings),
        # "Materialize all" gets its executor from here; the steps are sequential, a process for each only costs time.
        executor=dg.in_process_executor,
    )


defs = build_definitions(load_settings())
