"""Many stores: a partition for each, registered by a sensor, and what is told of all of them."""

import time
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import POOL, purged_rows, vidurai_store
from vidurai_pipeline.defs.automation import maintenance
from vidurai_pipeline.defs.care import POOL as CARE_POOL
from vidurai_pipeline.defs.heartbeat import ping
from vidurai_pipeline.defs.partitions import STORES, store_of
from vidurai_pipeline.defs.schedules import last_due
from vidurai_pipeline.errors import plural, some_of
from vidurai_pipeline.hot.stores import StoreList, find_stores
from vidurai_pipeline.settings import Settings

_PAGE = 1_000


def store_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that registers new stores, retires those that are gone, and says which ones are behind."""

    @dg.sensor(
        name="stores",
        description="Registers a partition for each store that VIDURAI_STORES names, and retires those that are gone. "
        "Each tick names the stores that can't be used, and why. The check no_store_is_behind on vidurai_store names "
        "those without a good run for VIDURAI_STALE_HOURS. Next: put right what a tick names.",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def stores(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        instance, found = context.instance, find_stores(settings)
        known = set(instance.get_dynamic_partitions(str(STORES.name)))
        new = sorted(found.stores.keys() - known)
        gone = sorted(known - found.stores.keys() - found.left_out) if found.complete else []
        _limit_runs(instance, settings.stores_at_once)
        requests = [STORES.build_add_request(new)] if new else []
        requests += [STORES.build_delete_request(gone)] if gone else []
        behind = _behind(instance, found, settings.stale_hours)
        said = "\n".join([*found.problems, *behind])
        told, _, before = (context.cursor or "").partition("\n")
        verdict = dg.AssetCheckEvaluation(vidurai_store.key, "no_store_is_behind", **_verdict(found, behind))
        note = f"{plural(len(found.stores), 'store')}, {len(new):,} new, {len(gone):,} gone"
        note += f" ({some_of(gone)})" if gone else ""
        return dg.SensorResult(
            dynamic_partitions_requests=requests,
            asset_events=[] if context.cursor and said == before else [verdict],
            cursor=f"{_tell_of_night(settings, context, found, told)}\n{said}",
            skip_reason=dg.SkipReason("; ".join([note, *found.problems])),
        )

    return stores


def check_of_stores(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that names the stores that are behind; the sensor reports it whenever that changes."""

    @dg.asset_check(asset=vidurai_store.key)
    def no_store_is_behind(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """Whether each store that `VIDURAI_STORES` names had a good run within `VIDURAI_STALE_HOURS`.

        **Next:** look at the runs of the stores that it names, by the tag `dagster/partition`.
        """
        found = find_stores(settings)
        return dg.AssetCheckResult(**_verdict(found, _behind(context.instance, found, settings.stale_hours)))

    return no_store_is_behind


def _limit_runs(instance: dg.DagsterInstance, most: int) -> None:
    """Let this number of runs touch archives at once: each store has its own."""
    storage = instance.event_log_storage
    limits = {limit.name: limit.limit for limit in storage.get_pool_limits()}
    for pool in (POOL, CARE_POOL):
        if limits.get(pool) != most:
            storage.set_concurrency_slots(pool, most)


def _tell_of_night(settings: Settings, context: dg.SensorEvaluationContext, found: StoreList, told: str) -> str:
    """Ping the heartbeat's address once all stores had a good run since the night was due.

    Returns:
        The night that it was told of last.
    """
    due = last_due(settings, datetime.now(UTC))
    if settings.heartbeat_url is None or found.problems or due is None or told == due.isoformat():
        return told
    good = dg.RunsFilter(job_name=maintenance.name, statuses=[dg.DagsterRunStatus.SUCCESS], created_after=due)
    if found.stores.keys() - {store_of(run) for run in context.instance.get_runs(good)}:
        return told
    if trouble := ping(settings.heartbeat_url.get_secret_value()):
        context.log.warning(f"The heartbeat's address could not be told of this night: {trouble}")
        return told
    return due.isoformat()


def _behind(instance: dg.DagsterInstance, found: StoreList, hours: float) -> list[str]:
    """The stores whose last good purge is some hours old."""
    names = {*found.stores, *found.left_out}
    since = dg.AssetRecordsFilter(purged_rows.key, after_timestamp=time.time() - hours * 3_600)
    cursor, more = None, True
    while more and names:
        page = instance.fetch_materializations(since, limit=_PAGE, cursor=cursor)
        names = names - {record.partition_key for record in page.records if record.partition_key}
        cursor, more = page.cursor, page.has_more
    return sorted(names)


def _verdict(found: StoreList, behind: list[str]) -> dict[str, Any]:
    """What the check says of the stores."""
    problems, count = found.problems, len(found.stores) + len(found.left_out)
    late = f"{len(behind):,} of {plural(count, 'store')} had no good run for too long: {some_of(behind)}"
    return {
        "passed": not (problems or behind),
        "severity": dg.AssetCheckSeverity.WARN,
        "description": "; ".join([*([late] if behind else []), *problems])
        or f"{plural(count, 'store')}, none is behind",
        "metadata": {metadata.BEHIND: metadata.bullets(behind), metadata.UNUSABLE: metadata.bullets(problems)},
    }
