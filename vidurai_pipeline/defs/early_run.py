"""The sensor that does not wait for the night when the backlog is large."""

import time
from dataclasses import dataclass, replace

import dagster as dg

from vidurai_pipeline.archival.early_run import Decision, Past, Situation, decide
from vidurai_pipeline.archival.run import left_alone
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import free_bytes
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import parquet_archive, purged_rows
from vidurai_pipeline.defs.automation import maintenance
from vidurai_pipeline.defs.partitions import registered, store_of, tags_of
from vidurai_pipeline.defs.runs import FINISHED, LIFECYCLE_JOBS, UNFINISHED
from vidurai_pipeline.errors import PipelineError, plural
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import Settings

_RECENT_RUNS = 10
#: A tick looks at stores for so long. The next one goes on with the others.
_MOST_SECONDS = 20.0
#: For so long, a store that needed no run and was not written to since is not looked at more closely.
_SERVES_SECONDS = 3_600.0


@dataclass
class _Watch:
    """A store's last count, and since when a run is wanted; after a restart of Dagster it begins anew."""

    counted: backlog.BacklogCount | None = None
    wanted_since: float | None = None
    needless: tuple[str, float, Decision] | None = None

    def decide(self, instance: dg.DagsterInstance, settings: Settings, name: str | None) -> tuple[Decision, str]:
        """Whether to start a run, and its key: whatever comes of it, the same state of affairs starts no second one."""
        store = HotStore(settings.db_path, busy_timeout=1.0)
        stamp, now, free = backlog.stamp(store.path), time.time(), free_bytes(store.path.parent)
        last, room = self.needless, free >= settings.early_run_free_disk
        if room and last and last[0] == stamp and 0 <= now - last[1] < _SERVES_SECONDS:
            return last[2], ""
        archive = Archive(settings.archive_path)
        past, latest = _past(instance, name)
        past = replace(past, left=past.left + len(left_alone(store, archive)))
        if self.counted is None or not self.counted.serves(stamp, now, past.ended):
            self.counted = backlog.count_backlog(store)
        situation = Situation(
            self.counted,
            past,
            now=now,
            written=backlog.last_write(store.path),
            wanted_since=self.wanted_since,
            store_free=free,
            archive_free=free_bytes(archive.root),
        )
        decision = decide(situation, settings)
        self.wanted_since = (self.wanted_since or now) if decision.wanted and not decision.start else None
        self.needless = None if decision.wanted else (stamp, now, decision)
        if decision.start:
            with archive.lock("looking whether a run may start", make=False):
                pass
        return decision, f"early-run-after-{latest or 'nothing'}{f' {name}' if name else ''}"


def early_run_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that starts the maintenance job early; each of its ticks says why it did or didn't."""
    watches: dict[str | None, _Watch] = {}

    @dg.sensor(
        name="early_run",
        job=maintenance,
        description=_describe(settings),
        minimum_interval_seconds=120,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def early_run(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        end = time.monotonic() + _MOST_SECONDS
        stores = registered(settings, context.instance)
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        busy = {settings.stores and store_of(run) for run in unfinished if run.job_name in LIFECYCLE_JOBS}
        requests: list[dg.RunRequest] = []
        said: dict[str | None, str] = {}
        needless: list[str] = []
        for name in sorted(stores, key=lambda name: ((name or "") <= (context.cursor or ""), name)):
            if time.monotonic() > end and (said or needless or requests):
                break
            if name:
                context.update_cursor(name)
            if name in busy:
                needless.append("a maintenance run is running or queued")
                continue
            watch = watches.setdefault(name, _Watch())
            try:
                decision, key = watch.decide(context.instance, stores[name], name)
            except PipelineError as error:
                said[name] = f"no early run: {error}"
                continue
            if decision.start:
                context.log.info(f"starts a run{f' of {name}' if name else ''}: {decision.why}")
                requests.append(dg.RunRequest(key, partition_key=name, tags={"vidurai/why": decision.why}))
            elif decision.wanted:
                said[name] = decision.why
            else:
                needless.append(decision.why)
        if settings.stores is None:
            return requests or dg.SkipReason("; ".join([*said.values(), *needless]))
        looked = f"{plural(len(needless), 'store')} without need"
        return requests or dg.SkipReason("; ".join([looked, *(f"{name}: {why}" for name, why in said.items())]))

    return early_run


def _describe(settings: Settings) -> str:
    # As plain text: the UI renders no Markdown here.
    rows, growth, free = settings.early_run_rows, settings.early_run_bytes, settings.early_run_free_disk
    conditions = [
        (rows, f"{rows:,} memories wait to be archived (VIDURAI_EARLY_RUN_ROWS)"),
        (growth, f"the hot store has grown by {growth / 1e6:,.0f} MB (VIDURAI_EARLY_RUN_BYTES)"),
        (free, f"less than {free / 1e6:,.0f} MB are free on its disk (VIDURAI_EARLY_RUN_FREE_DISK)"),
    ]
    when = ", or ".join(words for limit, words in conditions if limit) or "a limit is passed; all limits are off now"
    return (
        f"Starts maintenance before the night when {when}. It waits while Vidurai writes, and longer after each failed "
        "run. Each tick says how far the figures are from their limits. Next: nothing. To change a limit, set its "
        "variable and restart Dagster. VIDURAI_EARLY_RUN=false removes this sensor."
    )


def _past(instance: dg.DagsterInstance, store: str | None) -> tuple[Past, str | None]:
    """What the finished runs tell, and the latest one's id."""
    filters = [dg.RunsFilter(job_name=job, statuses=FINISHED, tags=tags_of(store)) for job in LIFECYCLE_JOBS]
    runs = [record for one in filters for record in instance.get_run_records(one, limit=_RECENT_RUNS)]
    runs.sort(key=lambda record: record.end_time or 0.0, reverse=True)
    failures = next(
        (n for n, r in enumerate(runs) if r.dagster_run.status == dg.DagsterRunStatus.SUCCESS),
        len(runs),
    )
    published, purged = (
        next(iter(metadata.figures(instance, key, 1, store)), {}) for key in (parquet_archive.key, purged_rows.key)
    )
    past = Past(
        left=int(published.get(metadata.REJECTED, 0) + purged.get(metadata.KEPT, 0)),
        used_bytes=round(purged[metadata.HOT_MB_USED] * 1e6) if metadata.HOT_MB_USED in purged else None,
        failures=failures,
        ended=(runs[0].end_time or 0.0) if runs else 0.0,
    )
    return past, runs[0].dagster_run.run_id if runs else None
