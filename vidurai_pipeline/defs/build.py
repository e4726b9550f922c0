"""Everything that Dagster shows and runs, put together by the settings."""

import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.defs.alerts import alert_sensor, channels
from vidurai_pipeline.defs.assets import (
    archived_rows,
    parquet_archive,
    purged_rows,
    q_table,
    vidurai_agent,
    vidurai_store,
)
from vidurai_pipeline.defs.automation import (
    dream_after_failure,
    dream_job,
    health_job,
    maintenance,
)
from vidurai_pipeline.defs.care import archive_is_proved, care
from vidurai_pipeline.defs.checks import HEALTH_CHECKS, archive_equals_hot_store
from vidurai_pipeline.defs.choices import erase_job, restore_job
from vidurai_pipeline.defs.compaction import compact_archive, compacted_months
from vidurai_pipeline.defs.early_run import early_run_sensor
from vidurai_pipeline.defs.expiry import expired_rows
from vidurai_pipeline.defs.fleet import fleet_job, fleet_q_table
from vidurai_pipeline.defs.partitions import STORES
from vidurai_pipeline.defs.resources import build_resources
from vidurai_pipeline.defs.run_retention import prune_history
from vidurai_pipeline.defs.runs import dead_run_sensor
from vidurai_pipeline.defs.schedules import build_schedules, missed_night_sensor
from vidurai_pipeline.defs.search import search_index
from vidurai_pipeline.defs.stores import check_of_stores, store_sensor
from vidurai_pipeline.settings import Settings


def _linked_to_code(*assets: dg.AssetsDefinition) -> Sequence[Any]:
    with warnings.catch_warnings():
        # Who runs the pipeline can do nothing about Dagster's calling this beta.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.with_source_code_references(assets)


def build_definitions(settings: Settings, progress: Progress = no_progress) -> dg.Definitions:
    """Everything that Dagster shows and runs, for one hot store and its archive.

    Args:
        settings: where the tiers are, and how they are treated.
        progress: told how far a run in this process is.
    """
    fresh = dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=settings.stale_hours), warn_window=timedelta(hours=settings.stale_hours / 2)
    )
    several = settings.stores is not None
    lifecycle = [
        asset.map_asset_specs(lambda spec: dg.apply_freshness_policy(spec, fresh))
        for asset in (archived_rows, parquet_archive, purged_rows, q_table)
    ]
    others = [search_index, expired_rows, compact_archive]
    if several:
        lifecycle, others = (
            [one.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=STORES)) for one in assets]
            for assets in (lifecycle, others)
        )
    return dg.Definitions(
        assets=[
            vidurai_store,
            *_linked_to_code(*lifecycle),
            vidurai_agent,
            *_linked_to_code(*others, *([] if several else [compacted_months])),
            *(_linked_to_code(fleet_q_table) if settings.fleet_q_table else ()),
        ],
        asset_checks=[
            *(archive_equals_hot_store, archive_is_proved, *HEALTH_CHECKS),
            *([check_of_stores(settings)] if several else []),
        ],
        jobs=[
            *(maintenance, dream_job, care, health_job, prune_history, restore_job, erase_job),
            *([fleet_job] if settings.fleet_q_table else []),
        ],
        schedules=build_schedules(settings),
        sensors=[
            dream_after_failure,
            dead_run_sensor(settings),
            missed_night_sensor(settings),
            *([store_sensor(settings)] if several else []),
            *([early_run_sensor(settings)] if settings.early_run else []),
            *(alert_sensor(channel, settings) for channel in channels(settings)),
        ],
        resources=build_resources(settings, progress),
        # "Materialize all" gets its executor from here; the steps are sequential, a process for each only costs time.
        executor=dg.in_process_executor,
    )
