"""Expiry: once a month by the job `care`, or at any time from the UI."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from vidurai_pipeline.care.retention import expire
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import purged_rows
from vidurai_pipeline.defs.care import PATIENCE_SECONDS, STEP_OF_CARE
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.resources import Tiers, readable_failures
from vidurai_pipeline.errors import plural

#: Dagster's tag of a run that a schedule started.
_SCHEDULE_TAG = "dagster/schedule_name"


@dg.asset(deps=[purged_rows], kinds={"parquet", "pyarrow"}, **STEP_OF_CARE, output_required=False)
def expired_rows(context: dg.AssetExecutionContext, tiers: dg.ResourceParam[Tiers]) -> Iterator[dg.MaterializeResult]:
    """The memories that are **gone** from the archive too, because they are older than `VIDURAI_RETENTION` allows.

    The first nightly run of `care` in a month removes them; a run that a person starts always does. Pinned memories
    never expire, and the Q-table keeps what they taught. A restored backup of the store does not bring them back.

    **Next:** nothing. Without rules, everything is kept. `vidurai-pipeline expire --dry-run` counts what would go. If
    it failed, the error names the month and the reason, and the other months are done. Correct that, then materialize
    it again.
    """
    last = next(iter(metadata.materializations(context.instance, context.asset_key, 1, store_of(context.run))), None)
    if last is not None and _SCHEDULE_TAG in context.run.tags:
        done = datetime.fromtimestamp(last.timestamp, UTC)
        if (done.year, done.month) == (datetime.now(UTC).year, datetime.now(UTC).month):
            context.log.info(f"Expired this month already, on {done:%Y-%m-%d}")
            return
    with readable_failures():
        report = expire(
            tiers.cold,
            tiers.settings.retention,
            rows_per_file=tiers.settings.rows_per_file,
            lock_timeout=PATIENCE_SECONDS,
        )
    context.log.info(f"{plural(report.expired, 'memory')} expired, in {plural(len(report.months), 'month')}")
    if report.problems:
        raise dg.Failure(
            description="; ".join(report.problems), metadata=metadata.of_expiry(report), allow_retries=False
        )
    yield dg.MaterializeResult(metadata=metadata.of_expiry(report))
