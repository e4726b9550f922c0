"""When things run by themselves, and in which time zone."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import dagster as dg
from tzlocal import get_localzone_name

from vidurai_pipeline.defs.automation import health_job, maintenance
from vidurai_pipeline.defs.care import care
from vidurai_pipeline.defs.fleet import fleet_job
from vidurai_pipeline.defs.partitions import STORE_TAG, STORES
from vidurai_pipeline.defs.run_retention import PruneConfig, prune, prune_history
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.stores import find_stores
from vidurai_pipeline.settings import Settings

logger = logging.getLogger(__name__)
#: How long a missed night waits for the schedule to start it after all.
GRACE_SECONDS = 600.0


@dataclass(frozen=True)
class Zone:
    """The time zone of the schedules.

    Attributes:
        name: as in the IANA database; ``UTC`` if the machine's own can't be determined.
        doubt: why it can't, and what to do; None if all is well.
    """

    name: str
    doubt: str | None = None


def schedule_zone(settings: Settings) -> Zone:
    """``VIDURAI_TIMEZONE``, else ``TZ``, else the time zone of the machine."""
    if settings.timezone:
        return Zone(settings.timezone)
    given = os.environ.get("TZ")
    if given is not None:
        # As the C library has it: a colon may stand in front, a path means a file, and nothing at all means UTC.
        name = _zone_of(given.removeprefix(":")) if given else "UTC"
        return Zone(name) if name else _utc(f"TZ={given} is not the name of a time zone, such as Europe/Paris")
    try:
        name = get_localzone_name()
    except ZoneInfoNotFoundError:  # two files of the system name different zones
        name = None
    if name not in available_timezones():
        return _utc("This machine's time zone can't be determined")
    now = time.time()
    offset = datetime.fromtimestamp(now, ZoneInfo(name)).utcoffset()
    if offset is not None and offset.total_seconds() != time.localtime(now).tm_gmtoff:
        return _utc(f"This machine says that its time zone is {name}, but its clock goes by another")
    return Zone(name)


def _zone_of(given: str) -> str | None:
    """The name of a zone that is given by its name, or by its file."""
    parts = Path(given).resolve().parts[1:] if given.startswith("/") else Path(given).parts
    tails = ["/".join(parts[start:]) for start in range(len(parts))] if given.startswith("/") else [given]
    return next((tail for tail in tails if tail in available_timezones()), None)


def _utc(reason: str) -> Zone:
    return Zone("UTC", f"{reason}, so the schedules run in UTC. Set VIDURAI_TIMEZONE, for example to Europe/Paris")


def next_run(settings: Settings, now: datetime) -> datetime | None:
    """When the nightly schedule starts its next run, in the schedules' time zone.

    Args:
        settings: which schedule and zone.
        now: the time, with a zone.

    Returns:
        The moment; None if the cron line has none within the next years.
    """
    window = _ticks(settings, now).get_next_partition_window(now, respect_bounds=False)
    return window.start if window else None


def last_due(settings: Settings, now: datetime) -> datetime | None:
    """When the nightly schedule was due last; see :func:`next_run`."""
    window = _ticks(settings, now).get_prev_partition_window(now, respect_bounds=False)
    return window.end if window else None


def _ticks(settings: Settings, now: datetime) -> dg.TimeWindowPartitionsDefinition:
    """The moments of the nightly schedule, as Dagster reckons them, summer time and all."""
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=settings.schedule, start=now, fmt="%Y-%m-%dT%H:%M:%S%z", timezone=schedule_zone(settings).name
    )


def missed_night_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that makes up for a night that no schedule started.

    Dagster itself catches up after the machine was off. It goes on with the next tick where the cron line was changed
    to an hour that had just passed.
    """

    @dg.sensor(
        name="missed_night",
        job=maintenance,
        description="Starts maintenance if the schedule nightly was due and no run began within 10 minutes, for "
        "example because the schedule was moved to an earlier hour. It does nothing while nightly is off. "
        "Next: nothing. If you want no nightly runs, turn off nightly under Automation.",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def missed_night(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        now = time.time()
        due = last_due(settings, datetime.fromtimestamp(now, UTC))
        records = context.instance.get_run_records(dg.RunsFilter(job_name=maintenance.name), limit=1)
        if due is None or not records:
            return dg.SkipReason("no night was due yet")
        if records[0].create_timestamp.timestamp() >= due.timestamp():
            return dg.SkipReason(f"the run that was due at {due:%Y-%m-%d %H:%M} has begun")
        if any(s.name == "nightly" and s.status.value == "STOPPED" for s in context.instance.all_instigator_state()):
            return dg.SkipReason("the schedule nightly is off")
        seen, _, since = (context.cursor or "").partition(" ")
        if seen != due.isoformat():
            since = str(now)
            context.update_cursor(f"{due.isoformat()} {since}")
        if now - float(since) < GRACE_SECONDS:
            waited = f"{(now - float(since)) / 60:.0f} of {GRACE_SECONDS / 60:.0f} minutes"
            return dg.SkipReason(f"no run has begun since {due:%Y-%m-%d %H:%M}: waited {waited} for the schedule")
        return dg.RunRequest(run_key=f"missed-{due.isoformat()}")

    return missed_night


def build_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """All schedules: on as soon as a Dagster daemon runs.

    Raises:
        ConfigError: a setting is not a cron line.
    """
    zone = schedule_zone(settings)
    if zone.doubt:
        logger.warning(zone.doubt)
    fleet = _schedule(settings, "daily_fleet", fleet_job.name, "fleet_schedule", "Makes the Q-table of all stores.")
    return [
        *([fleet] if settings.fleet_q_table else []),
        _schedule(settings, "nightly", maintenance.name, "schedule", "Runs the job maintenance."),
        _schedule(settings, "health_check", health_job.name, "health_schedule", "Checks all tiers.", partitioned=False),
        _schedule(settings, "nightly_care", care.name, "care_schedule", "Runs the job `care`."),
        dg.ScheduleDefinition(
            name="weekly_prune",
            job=prune_history,
            cron_schedule="30 5 * * 0",
            run_config=dg.RunConfig(ops={prune.name: PruneConfig(keep_days=settings.history_days)}),
            execution_timezone=zone.name,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"Deletes Dagster's records of runs that ended more than {settings.history_days} days ago. "
            f"Runs on Sundays at 05:30, {_in(zone)}",
        ),
    ]


def _schedule(
    settings: Settings, name: str, job: str, setting: str, description: str, *, partitioned: bool = True
) -> dg.ScheduleDefinition:
    zone = schedule_zone(settings)
    cron, variable = getattr(settings, setting), f"VIDURAI_{setting.upper()}"
    once = settings.stores is None or job == fleet_job.name
    try:
        return dg.ScheduleDefinition(
            name=name,
            job_name=job,
            cron_schedule=cron,
            execution_timezone=zone.name,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"{description} {variable} sets the time, {_in(zone)}",
            execution_fn=None if once else _for_each_store(settings, partitioned=partitioned),
        )
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(
            f"{variable}={cron!r}: not a cron line of five fields, such as `0 2 * * *` (at 02:00)"
        ) from None


def _for_each_store(settings: Settings, *, partitioned: bool = True) -> Callable[..., Iterator[dg.RunRequest]]:
    """Make what a schedule requests: a run for each store, once for each tick."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        found = find_stores(settings)
        for problem in found.problems:
            context.log.warning(problem)
        # One that was made since the sensor looked last has no partition yet.
        context.instance.add_dynamic_partitions(str(STORES.name), list(found.stores))
        for name in found.stores:
            key = f"{context.scheduled_execution_time.isoformat()} {name}"
            if partitioned:
                yield dg.RunRequest(run_key=key, partition_key=name)
            else:
                yield dg.RunRequest(run_key=key, tags={STORE_TAG: name})

    return requests


def _in(zone: Zone) -> str:
    return f"in the time zone {zone.name}.{f' Warning: {zone.doubt}.' if zone.doubt else ''}"
