"""When things run by themselves, and in which time zone."""

import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import dagster as dg
from tzlocal import get_localzone_name

from vidurai_pipeline.defs.assets import purged_rows
from vidurai_pipeline.defs.automation import health_job, maintenance
from vidurai_pipeline.defs.care import care
from vidurai_pipeline.defs.fleet import fleet_job
from vidurai_pipeline.defs.partitions import STORE_TAG, STORES, registered, store_of
from vidurai_pipeline.defs.run_retention import PruneConfig, prune, prune_history
from vidurai_pipeline.errors import ConfigError, plural
from vidurai_pipeline.hot.stores import find_stores
from vidurai_pipeline.settings import Settings

logger = logging.getLogger(__name__)
#: How long a missed night waits for the schedule to start it after all.
GRACE_SECONDS = 600.0
#: The minutes between the turns of two groups of stores, where there are many.
TURN_MINUTES = 5
_DAY = 24 * 60
_LOOK_SECONDS = 300


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


def last_due(settings: Settings, now: datetime, line: str | None = None) -> datetime | None:
    """When a cron line was due last, by default that of the nightly schedule; see :func:`next_run`."""
    window = _ticks(settings, now, line).get_prev_partition_window(now, respect_bounds=False)
    return window.end if window else None


def _ticks(settings: Settings, now: datetime, line: str | None = None) -> dg.TimeWindowPartitionsDefinition:
    """The moments of a cron line, as Dagster reckons them, summer time and all."""
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=line or settings.schedule,
        start=now,
        fmt="%Y-%m-%dT%H:%M:%S%z",
        timezone=schedule_zone(settings).name,
    )


def turns(settings: Settings, setting: str) -> list[str]:
    """The cron lines of a schedule: with several stores, one for each of the turns that they take.

    Raises:
        ConfigError: the schedule has no time that could be moved by so much.
    """
    line, most = getattr(settings, setting), settings.stores_spread_minutes
    moved = range(0, most, TURN_MINUTES)
    if settings.stores is None or len(moved) < 2:
        return [line]
    minute, hour, days = [*line.split(maxsplit=2), "", "", ""][:3]
    if minute.isdecimal() and int(minute) + moved[-1] < 60:
        return [f"{int(minute) + minutes} {hour} {days}" for minutes in moved]
    if minute.isdecimal() and hour.isdecimal():
        moments = [int(hour) * 60 + int(minute) + minutes for minutes in moved]
        if moments[-1] < _DAY or days.split() == ["*", "*", "*"]:
            return [f"{moment % 60} {moment % _DAY // 60} {days}" for moment in moments]
    raise ConfigError(
        f"VIDURAI_{setting.upper()}={line!r} can't be spread over {most} minutes",
        hint="name one hour and minute whose runs all begin before midnight, or set VIDURAI_STORES_SPREAD_MINUTES=0",
    )


def turn_of(store: str | None, count: int) -> int:
    """Which of the turns is a store's: the same one every night, whatever other stores there are."""
    return zlib.crc32((store or "").encode()) % count


def missed_night_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that makes up for a night that no schedule started, for each store by itself.

    After the machine was off, Dagster itself catches up with the last tick alone. Where the cron line was changed to an
    hour that had just passed, it goes on with the next tick.
    """
    lines = turns(settings, "schedule")

    @dg.sensor(
        name="missed_night",
        job=maintenance,
        description="Starts maintenance if the schedule nightly was due and no run began within 10 minutes, for "
        "example because the schedule was moved to an earlier hour. It does nothing while nightly is off. "
        "Next: nothing. If you want no nightly runs, turn off nightly under Automation.",
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def missed_night(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        now = time.time()
        looked, _, since = (context.cursor or "").partition(" ")
        if not looked or now - datetime.fromisoformat(looked).timestamp() > 3 * _LOOK_SECONDS:
            since = str(now)  # until now nothing ran here: the schedule may be about to catch up
        context.update_cursor(f"{datetime.fromtimestamp(now, UTC).isoformat()} {since}")
        missed = _not_begun(settings, context.instance, lines, now)
        if not missed:
            return dg.SkipReason("each run that was due has begun. A new store waits for its first night")
        if any(s.name == "nightly" and s.status.value == "STOPPED" for s in context.instance.all_instigator_state()):
            return dg.SkipReason("the schedule nightly is off")
        waited = {store: now - max(float(since), due.timestamp()) for store, due in missed.items()}
        if max(waited.values()) < GRACE_SECONDS:
            minutes = f"{max(waited.values()) / 60:.0f} of {GRACE_SECONDS / 60:.0f} minutes"
            return dg.SkipReason(
                f"no run has begun since {min(missed.values()):%Y-%m-%d %H:%M}: waited {minutes} for the schedule"
            )
        return [
            dg.RunRequest(f"missed-{due.isoformat()}{f' {store}' if store else ''}", partition_key=store)
            for store, due in missed.items()
            if waited[store] >= GRACE_SECONDS
        ]

    return missed_night


def _not_begun(
    settings: Settings, instance: dg.DagsterInstance, lines: Sequence[str], now: float
) -> dict[str | None, datetime]:
    """The stores whose last run is older than the night that was due last, with when it was due."""
    moments = [last_due(settings, datetime.fromtimestamp(now, UTC), line) for line in lines]
    stores = registered(settings, instance)
    due = {store: moment for store in stores if (moment := moments[turn_of(store, len(lines))])}
    if not due:
        return {}
    recent = dg.RunsFilter(job_name=maintenance.name, created_after=min(due.values()) - timedelta(seconds=1))
    began: dict[str | None, float] = {}
    for record in instance.get_run_records(recent):
        began.setdefault(settings.stores and store_of(record.dagster_run), record.create_timestamp.timestamp())
    if settings.stores is None:
        ran = {None} if instance.get_run_records(dg.RunsFilter(job_name=maintenance.name), limit=1) else {}
    else:
        ran = instance.get_materialized_partitions(purged_rows.key)
    return {store: at for store, at in due.items() if store in ran and began.get(store, 0.0) < at.timestamp()}


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
        _schedule(settings, "health_check", health_job.name, "health_schedule", "Checks all tiers."),
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


def _schedule(settings: Settings, name: str, job: str, setting: str, description: str) -> dg.ScheduleDefinition:
    zone = schedule_zone(settings)
    variable = f"VIDURAI_{setting.upper()}"
    once = settings.stores is None or job == fleet_job.name
    lines = [getattr(settings, setting)] if once else turns(settings, setting)
    try:
        return dg.ScheduleDefinition(
            name=name,
            job_name=job,
            cron_schedule=lines[0] if len(lines) == 1 else lines,
            execution_timezone=zone.name,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"{description} {variable} sets the time, {_in(zone)}",
            execution_fn=None if once else _for_each_store(settings, lines, partitioned=job != health_job.name),
        )
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(
            f"{variable}={getattr(settings, setting)!r}: not a cron line of five fields, such as `0 2 * * *` (at 02:00)"
        ) from None


def _for_each_store(settings: Settings, lines: Sequence[str], *, partitioned: bool) -> Callable[..., Any]:
    """Make what a schedule requests: a run for each store whose turn it is."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        found, now = find_stores(settings), context.scheduled_execution_time
        for problem in found.problems:
            context.log.warning(problem)
        # One that was made since the sensor looked last has no partition yet.
        context.instance.add_dynamic_partitions(str(STORES.name), list(found.stores))
        due = {turn for turn, line in enumerate(lines) if last_due(settings, now + timedelta(seconds=1), line) == now}
        names = [name for name in found.stores if turn_of(name, len(lines)) in due]
        for name in names:
            which: dict[str, Any] = {"partition_key": name} if partitioned else {"tags": {STORE_TAG: name}}
            yield dg.RunRequest(f"{now.isoformat()} {name}", **which)
        if not names:
            yield dg.SkipReason(f"it is the turn of none of {plural(len(found.stores), 'store')}")

    return requests


def _in(zone: Zone) -> str:
    return f"in the time zone {zone.name}.{f' Warning: {zone.doubt}.' if zone.doubt else ''}"
