"""Tell people when a run or a check has failed, by the services that ``VIDURAI_ALERT_URLS`` names.

Dagster's own run-failure sensors go on to the next run when a message can't be sent: nobody would ever hear of what
fails while the network is down, as a laptop's is at night. So each address has one sensor here, which tells of
everything and tries until it succeeds, ever less often. While one service is down, the others go on.
"""

import contextlib
import logging
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg
from pydantic import BaseModel, ValidationError

from vidurai_pipeline.defs.failures import failed_checks, failures
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.runs import ALL_JOBS
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import Settings

#: The first wait after a message could not be sent; it doubles up to the last.
FIRST_WAIT_SECONDS = 60.0
LAST_WAIT_SECONDS = 4 * 3_600.0
# Events are looked for again for this long.
_OVERLAP_SECONDS = 3_600.0
_MOST_EVENTS = 1_000
_ENDS = (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS)
_TITLES = {"__ASSET_JOB": "Materialize all", "dream_job": "dream", "health": "health check"}


@dataclass(frozen=True)
class Alert:
    """One message.

    Attributes:
        subject: the message in a few words.
        text: what failed and what to do, one line each.
        severity: ``failure``, or ``warning`` if every line is one.
    """

    subject: str
    text: str
    severity: str


@dataclass(frozen=True)
class Channel:
    """A service that takes alerts.

    Attributes:
        name: by what it goes, without anything secret.
        address: in Apprise's form; secret.
    """

    name: str
    address: str = field(repr=False)

    def send(self, alert: Alert) -> bool:
        """Send a message; says whether the service took it. Nothing of the address is printed or logged."""
        import apprise  # noqa: PLC0415  (slow, and of use only where alerts are sent)

        logging.getLogger("apprise").disabled = True
        service = apprise.Apprise()
        service.add(self.address)
        return bool(
            service.notify(
                title=alert.subject,
                body=alert.text,
                notify_type=apprise.NotifyType(alert.severity),
                body_format=apprise.NotifyFormat.TEXT,
            )
        )


def channels(settings: Settings) -> list[Channel]:
    """The services that are to be told.

    Raises:
        ConfigError: an address is none that Apprise knows. The message does not quote it.
    """
    if settings.alert_urls is None:
        return []
    import apprise  # noqa: PLC0415
    from apprise.utils.parse import parse_urls  # noqa: PLC0415

    logging.getLogger("apprise").disabled = True
    given = settings.alert_urls.get_secret_value()
    addresses = parse_urls(given)
    # What is no address at all is left out of the list.
    complete = re.sub(r"[\s,;]", "", given) == re.sub(r"[\s,;]", "", "".join(addresses))
    found: dict[str, Channel] = {}
    for number, address in enumerate(addresses, 1):
        service = apprise.Apprise.instantiate(address)
        if service is None or not complete:
            which = f": address {number} ({address.partition('://')[0]}://…)" if complete and "://" in address else ""
            raise ConfigError(
                f"VIDURAI_ALERT_URLS{which} is not an address that Apprise knows",
                "write it like mailtos://user:password@example.org; see https://appriseit.com/services",
            )
        kind = re.sub(r"\W", "_", service.url(privacy=True).partition("://")[0])
        same = sum(name.rstrip("_0123456789") == kind for name in found)
        name = f"{kind}_{same + 1}" if same else kind
        found[name] = Channel(name, address)
    return list(found.values())


def undelivered(instance: dg.DagsterInstance, settings: Settings) -> dict[str, datetime]:
    """The services that can't be reached now, and since when."""
    names = {f"alert_by_{channel.name}": channel.name for channel in channels(settings)}
    found = {}
    for state in instance.all_instigator_state():
        cursor = getattr(state.instigator_data, "cursor", None)
        if state.name in names and cursor and (since := _read_cursor(cursor).down_since):
            found[names[state.name]] = datetime.fromtimestamp(since, UTC)
    return found


def alert_sensor(channel: Channel, settings: Settings) -> dg.SensorDefinition:
    """The sensor that tells one service."""

    @dg.sensor(
        name=f"alert_by_{channel.name}",
        description=f"Sends a message by {channel.name} when a run or a check of the pipeline failed. The warning "
        "about rejected memories is sent once it has stood for 12 hours. If a message can't be sent, the sensor tries "
        "again after 1 minute, then ever less often, at least every 4 hours. Next: if its ticks say "
        "that the service takes no message, check the network and VIDURAI_ALERT_URLS, then restart Dagster.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        told, now = _read_cursor(context.cursor), time.time()
        if told.down_since and now < told.next_try:
            return dg.SkipReason(told.trouble)
        where = context.code_location_origin
        said = "nothing new to tell"
        for ended, record in _ends(context.instance, told):
            message = _message(context.instance, record.run_id, ended, where and where.location_name, settings)
            if message and not channel.send(message):
                told.wait(now)
                said = told.trouble
                break
            told.pass_by(ended, record.run_id, record.timestamp)
            if message:
                # The next one has a tick of its own: should it fail, this one isn't sent again.
                told.recover()
                said = f"told: {message.subject}"
                break
        context.update_cursor(told.model_dump_json())
        return dg.SkipReason(said)

    return alert


class _Told(BaseModel):
    """How far a channel has come in the event log, and whether its service can be reached.

    Not by the events' ids: once its newest run is deleted, SQLite gives them out again.

    Attributes:
        begun: when the channel was configured: nobody wants to hear of all that ever failed before. In seconds since
            the epoch, as the others.
        until: the moment of the last event, by the event's type.
        passed: the moments of the events that are no more than an hour older, by the event's type and the run's id:
            events of several processes may be stored in another order than they happened in.
        down_since: since when messages can't be sent; None if they can.
        tries: how often one was tried since.
        next_try: when it is tried again.
    """

    begun: float
    until: dict[str, float] = {}
    passed: dict[str, dict[str, float]] = {}
    down_since: float | None = None
    tries: int = 0
    next_try: float = 0.0

    def since(self, ended: dg.DagsterEventType) -> float:
        return max(self.begun, self.until.get(ended.value, 0.0) - _OVERLAP_SECONDS)

    def has_passed(self, ended: dg.DagsterEventType, run_id: str) -> bool:
        return run_id in self.passed.get(ended.value, {})

    def pass_by(self, ended: dg.DagsterEventType, run_id: str, moment: float) -> None:
        self.until[ended.value] = max(moment, self.until.get(ended.value, 0.0))
        passed = {**self.passed.get(ended.value, {}), run_id: moment}
        since = self.since(ended)
        self.passed[ended.value] = {run: then for run, then in passed.items() if then >= since}

    def wait(self, now: float) -> None:
        self.down_since = self.down_since or now
        self.next_try = now + min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self.tries)
        self.tries += 1

    def recover(self) -> None:
        self.down_since, self.tries, self.next_try = None, 0, 0.0

    @property
    def trouble(self) -> str:
        since, then = (
            f"{datetime.fromtimestamp(at or 0.0, UTC):%Y-%m-%d %H:%M} UTC" for at in (self.down_since, self.next_try)
        )
        return f"the service has taken no message since {since} ({self.tries} tries); the next try is at {then}"


def _read_cursor(cursor: str | None) -> _Told:
    with contextlib.suppress(ValidationError):
        return _Told.model_validate_json(cursor or "")
    return _Told(begun=time.time())


def _ends(instance: dg.DagsterInstance, told: _Told) -> Iterator[tuple[dg.DagsterEventType, dg.EventLogRecord]]:
    """The ends of runs that were not looked at yet: the failures first, then the others, each the oldest first."""
    for ended in _ENDS:
        wanted = dg.RunStatusChangeRecordsFilter(
            ended,  # pyright: ignore[reportArgumentType]
            after_timestamp=told.since(ended),
        )
        for record in instance.fetch_run_status_changes(wanted, limit=_MOST_EVENTS, ascending=True).records:
            if not told.has_passed(ended, record.run_id):
                yield ended, record


def _message(
    instance: dg.DagsterInstance, run_id: str, ended: dg.DagsterEventType, location: str | None, settings: Settings
) -> Alert | None:
    """What people must hear of a run that has ended, if anything."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.job_name not in ALL_JOBS:
        return None
    origin = run.remote_job_origin
    if location and origin and origin.repository_origin.code_location_origin.location_name != location:
        return None  # another project's job of the same name
    events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
    failed, warnings = failed_checks(events)
    what = "a check failed" if failed else "a warning"
    # Not by the run's status, which is stored after the event.
    if ended == dg.DagsterEventType.RUN_FAILURE:
        failed = [*failures(events), *failed] or ["It ended without a word"]
        what = "failed"
    if not failed + warnings:
        return None
    whose = f" of {store}" if settings.stores and (store := store_of(run)) else ""
    subject = f"vidurai-pipeline on {socket.gethostname()}: {_TITLES.get(run.job_name, run.job_name)}{whose}: {what}"
    where = (
        f"{settings.alert_link.rstrip('/')}/runs/{run_id}"
        if settings.alert_link
        else f"run {run_id} in Dagster's UI (`vidurai-pipeline ui`)"
    )
    lines = [f"- {line}" for line in failed + warnings]
    return Alert(subject, "\n".join([subject, *lines, f"See {where}"]), "failure" if failed else "warning")
