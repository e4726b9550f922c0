"""The sensor that does not wait for the night when the backlog is large."""

import json
import time
from dataclasses import asdict, replace
from typing import Any

import dagster as dg

from vidurai_pipeline.archival.early_run import Past, Situation, Thresholds, decide
from vidurai_pipeline.archival.run import left_alone
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import free_bytes
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import parquet_archive, purged_rows
from vidurai_pipeline.defs.automation import maintenance
from vidurai_pipeline.defs.runs import FINISHED, LIFECYCLE_JOBS, UNFINISHED
from vidurai_pipeline.errors import PipelineError
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import Settings

_RECENT_RUNS = 10


def early_run_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that starts the maintenance job early; each of its ticks says why it did or didn't."""
    store = HotStore(settings.db_path, busy_timeout=1.0)
    archive = Archive(settings.archive_path)
    thresholds = Thresholds(
        settings.early_run_rows, settings.early_run_bytes, settings.early_run_free_disk, settings.early_run_quiet
    )

    @dg.sensor(
        name="early_run",
        job=maintenance,
        description=_describe(thresholds),
        minimum_interval_seconds=120,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def early_run(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        if any(r.job_name in LIFECYCLE_JOBS for r in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))):
            return dg.SkipReason("a maintenance run is running or queued")
        memo = json.loads(context.cursor or "{}")
        now = time.time()
        try:
            past, latest = _past(instance)
            past = replace(past, left=past.left + len(left_alone(store, archive)))
            counted = _count(store, memo.get("count"), now, past.ended)
            situation = Situation(
                counted,
                past,
                now=now,
                written=backlog.last_write(store.path),
                wanted_since=memo.get("wanted_since"),
                store_free=free_bytes(store.path.parent),
                archive_free=free_bytes(archive.root),
            )
            decision = decide(situation, thresholds)
            since = memo.get("wanted_since", now) if decision.wanted and not decision.start else None
            context.update_cursor(json.dumps({"count": asdict(counted)} | ({"wanted_since": since} if since else {})))
            if not decision.start:
                return dg.SkipReason(decision.why)
            with archive.lock("looking whether a run may start", make=False):
                pass
        except PipelineError as error:
            return dg.SkipReason(f"no early run: {error}")
        context.log.info(f"starts a run: {decision.why}")
        # Whatever comes of it, the same state of affairs starts no second one.
        return dg.RunRequest(run_key=f"early-run-after-{latest or 'nothing'}", tags={"vidurai/why": decision.why})

    return early_run


def _describe(thresholds: Thresholds) -> str:
    # As plain text: the UI renders no Markdown here.
    conditions = [
        (thresholds.rows, f"{thresholds.rows:,} memories wait to be archived (VIDURAI_EARLY_RUN_ROWS)"),
        (thresholds.bytes, f"the hot store has grown by {thresholds.bytes / 1e6:,.0f} MB (VIDURAI_EARLY_RUN_BYTES)"),
        (
            thresholds.free_disk,
            f"less than {thresholds.free_disk / 1e6:,.0f} MB are free on its disk (VIDURAI_EARLY_RUN_FREE_DISK)",
        ),
    ]
    when = ", or ".join(words for limit, words in conditions if limit) or "a limit is passed; all limits are off now"
    return (
        f"Starts maintenance before the night when {when}. It waits while Vidurai writes, and longer after each failed "
        "run. Each tick says how far the figures are from their limits. Next: nothing. To change a limit, set its "
        "variable and restart Dagster. VIDURAI_EARLY_RUN=false removes this sensor."
    )


def _count(store: HotStore, before: dict[str, Any] | None, now: float, last_run: float) -> backlog.BacklogCount:
    if before is not None:
        try:
            counted = backlog.BacklogCount(**before)
        except TypeError:  # another version's cursor
            return backlog.count_backlog(store)
        if counted.serves(backlog.stamp(store.path), now, last_run):
            return counted
    return backlog.count_backlog(store)


def _past(instance: dg.DagsterInstance) -> tuple[Past, str | None]:
    """What the finished runs tell, and the latest one's id."""
    runs = [
        record
        for job in LIFECYCLE_JOBS
        for record in instance.get_run_records(dg.RunsFilter(job_name=job, statuses=FINISHED), limit=_RECENT_RUNS)
    ]
    runs.sort(key=lambda record: record.end_time or 0.0, reverse=True)
    failures = next(
        (n for n, r in enumerate(runs) if r.dagster_run.status == dg.DagsterRunStatus.SUCCESS),
        len(runs),
    )
    published, purged = (
        next(iter(metadata.figures(instance, key, 1)), {}) for key in (parquet_archive.key, purged_rows.key)
    )
    past = Past(
        left=int(published.get(metadata.REJECTED, 0) + purged.get(metadata.KEPT, 0)),
        used_bytes=round(purged[metadata.HOT_MB_USED] * 1e6) if metadata.HOT_MB_USED in purged else None,
        failures=failures,
        ended=(runs[0].end_time or 0.0) if runs else 0.0,
    )
    return past, runs[0].dagster_run.run_id if runs else None
