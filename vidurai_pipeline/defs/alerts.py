"""Tell a person when a run or a check has failed: by e-mail, Slack or a webhook, each where it is configured.

Dagster's own sensors of a run's end go on to the next run when one can't be told: what fails while the network is down,
as a laptop's is at night, nobody would ever hear of. And its e-mail knows no failed checks, and no mail server without
a password. So each channel has one sensor here, which tells all and tries until it succeeds; where one channel is down,
the others go on.

A message holds what the pipeline itself says of a failure: figures, ids and paths, never a memory's text. Of an error
that it did not foresee, only the kind is told.
"""

import contextlib
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import dagster as dg
import requests
from pydantic import BaseModel, ValidationError

from vidurai_pipeline.defs.automation import ALL_JOBS
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import Settings

_TIMEOUT_SECONDS = 30
#: Events are looked for again for so long.
_OVERLAP_SECONDS = 3_600.0
_MOST_EVENTS = 1_000
_ENDS = (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS)
_PORTS = {"none": 25, "starttls": 587, "ssl": 465}


@dataclass(frozen=True)
class Alert:
    """One message.

    Attributes:
        kind: ``run_failed`` or ``checks_failed``.
        job: the job whose run it was.
        run_id: Dagster's id of the run.
        lines: what failed and what to do, one line each.
        link: where Dagster's UI shows the run, if that is known.
    """

    kind: str
    job: str
    run_id: str
    lines: tuple[str, ...]
    link: str | None

    @property
    def subject(self) -> str:
        """The message in a few words."""
        what = "failed" if self.kind == "run_failed" else "found something"
        return f"vidurai-pipeline on {socket.gethostname()}: {self.job} {what}"

    @property
    def text(self) -> str:
        """The message."""
        where = self.link or f"run {self.run_id} in Dagster's UI (`vidurai-pipeline ui`)"
        return "\n".join([self.subject, *(f"- {line}" for line in self.lines), f"See {where}"])


Send = Callable[[Alert], None]


def alert_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """A sensor for each configured channel.

    Raises:
        ConfigError: a channel is configured by halves, or its package is missing.
    """
    return [_sensor(channel, send, settings) for channel, send in _channels(settings).items()]


def _channels(settings: Settings) -> dict[str, Send]:
    channels: dict[str, Send] = {}
    if settings.alert_email_to:
        channels["email"] = lambda alert: _send_email(settings, alert)
    if settings.alert_slack_token or settings.alert_slack_channel:
        channels["slack"] = _slack(settings)
    if settings.alert_webhook:
        channels["webhook"] = lambda alert: _post(settings, alert)
    return channels


def _sensor(channel: str, send: Send, settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"alert_by_{channel}",
        description="Tells of each run of the pipeline that failed, and of checks that failed in a run that went well "
        "otherwise. While the message can't be sent, its ticks fail, and it tries again.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """Tell of the next run that people must hear of."""
        told = _read_cursor(context.cursor)
        where = context.code_location_origin
        message = None
        for ended in _ENDS:
            for record in _ends(context.instance, ended, told):
                message = _message(context.instance, record.run_id, ended, where and where.location_name, settings)
                if message:
                    send(message)
                told.pass_by(ended, record.run_id, record.timestamp)
                if message:
                    break
            if message:
                # The next one has a tick of its own: should it fail, this one isn't sent again.
                break
        context.update_cursor(told.model_dump_json())
        return dg.SkipReason(f"told: {message.subject}" if message else "nothing new that anyone must hear of")

    return alert


class _Told(BaseModel):
    """How far a channel has come in the event log.

    Not by the events' ids: once its newest run is deleted, SQLite gives them out again.

    Attributes:
        begun: when the channel was configured: nobody wants to hear of all that ever failed before. In seconds since
            the epoch, as the others.
        until: the moment of the last event, by the event's type.
        passed: the moments of the events that are no more than so much older, by the event's type and the run's id:
            events of several processes may be stored in another order than they happened in.
    """

    begun: float
    until: dict[str, float] = {}
    passed: dict[str, dict[str, float]] = {}

    def since(self, ended: dg.DagsterEventType) -> float:
        return max(self.begun, self.until.get(ended.value, 0.0) - _OVERLAP_SECONDS)

    def has_passed(self, ended: dg.DagsterEventType, run_id: str) -> bool:
        return run_id in self.passed.get(ended.value, {})

    def pass_by(self, ended: dg.DagsterEventType, run_id: str, moment: float) -> None:
        self.until[ended.value] = max(moment, self.until.get(ended.value, 0.0))
        passed = {**self.passed.get(ended.value, {}), run_id: moment}
        since = self.since(ended)
        self.passed[ended.value] = {run: then for run, then in passed.items() if then >= since}


def _read_cursor(cursor: str | None) -> _Told:
    with contextlib.suppress(ValidationError):
        return _Told.model_validate_json(cursor or "")
    return _Told(begun=time.time())


def _ends(instance: dg.DagsterInstance, ended: dg.DagsterEventType, told: _Told) -> Iterator[dg.EventLogRecord]:
    """The ends of runs that were not looked at yet, the oldest first."""
    wanted = dg.RunStatusChangeRecordsFilter(
        ended,  # pyright: ignore[reportArgumentType]
        after_timestamp=told.since(ended),
    )
    records = instance.fetch_run_status_changes(wanted, limit=_MOST_EVENTS, ascending=True).records
    return (record for record in records if not told.has_passed(ended, record.run_id))


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
    # Not by the run's status, which is stored after the event.
    if ended == dg.DagsterEventType.RUN_SUCCESS:
        lines = _failed_checks(events)
        return _alert("checks_failed", run, lines, settings) if lines else None
    lines = [*_failures(events), *_failed_checks(events)] or ["it ended without a word"]
    return _alert("run_failed", run, lines, settings)


def _alert(kind: str, run: dg.DagsterRun, lines: Iterable[str], settings: Settings) -> Alert:
    link = f"{settings.alert_link.rstrip('/')}/runs/{run.run_id}" if settings.alert_link else None
    return Alert(kind, run.job_name, run.run_id, tuple(lines), link)


def _failures(events: Iterable[dg.DagsterEvent]) -> list[str]:
    lines = []
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            lines.append(f"{event.step_key}: {said or _kind(data.error)}")
        elif event.is_job_failure and not lines:
            # None where somebody else reported it: the sensor that ends dead runs, Dagster's own daemon.
            error = getattr(event.event_specific_data, "error", None)
            while error is not None and error.cause is not None:
                error = error.cause
            foreseen = error is not None and error.cls_name == "Failure"
            said = error.message.strip().partition(": ")[2] if error and foreseen else None
            lines.append(said or (_kind(error) if error else str(event.message)))
    return lines


def _kind(error: "dg.SerializableErrorInfo | None") -> str:
    return f"{error.cls_name if error else 'an error'}, which was not foreseen: see the run's log"


def _failed_checks(events: Iterable[dg.DagsterEvent]) -> list[str]:
    checks = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    return [f"{c.check_name} on {c.asset_key.to_user_string()}: {c.description}" for c in checks if not c.passed]


def _send_email(settings: Settings, alert: Alert) -> None:
    recipients = [address.strip() for address in (settings.alert_email_to or "").split(",")]
    message = EmailMessage()
    message["Subject"] = alert.subject
    message["From"] = settings.alert_email_from or recipients[0]
    message["To"] = ", ".join(recipients)
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid()
    message.set_content(alert.text)
    security = settings.alert_smtp_security
    host, port = settings.alert_smtp_host, settings.alert_smtp_port or _PORTS[security]
    context = ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_SECONDS, context=context)
        if security == "ssl"
        else smtplib.SMTP(host, port, timeout=_TIMEOUT_SECONDS)
    ) as server:
        if security == "starttls":
            server.starttls(context=context)
        if settings.alert_smtp_password:
            user = settings.alert_smtp_user or message["From"]
            server.login(user, settings.alert_smtp_password.get_secret_value())
        server.send_message(message)


def _slack(settings: Settings) -> Send:
    token, channel = settings.alert_slack_token, settings.alert_slack_channel
    if not (token and channel):
        raise ConfigError("VIDURAI_ALERT_SLACK_TOKEN and VIDURAI_ALERT_SLACK_CHANNEL belong together: set both")
    try:
        from dagster_slack import SlackResource  # noqa: PLC0415  (optional)
    except ImportError:
        raise ConfigError("alerts by Slack need dagster-slack: pip install 'vidurai-pipeline[slack]'") from None

    def send(alert: Alert) -> None:
        SlackResource(token=token.get_secret_value()).get_client().chat_postMessage(channel=channel, text=alert.text)

    return send


def _post(settings: Settings, alert: Alert) -> None:
    assert settings.alert_webhook is not None  # noqa: S101
    body = {
        "text": alert.text,
        "kind": alert.kind,
        "subject": alert.subject,
        "job": alert.job,
        "run_id": alert.run_id,
        "lines": list(alert.lines),
        "link": alert.link,
    }
    try:
        response = requests.post(settings.alert_webhook.get_secret_value(), json=body, timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        # Its text would hold the address, which is as good as a password.
        raise dg.Failure(f"the webhook did not answer: {type(error).__name__}") from None
    if not response.ok:
        raise dg.Failure(f"the webhook answered {response.status_code} {response.reason}")
