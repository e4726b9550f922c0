"""Tell a person when a run or a check has failed: by e-mail, Slack or a webhook, each where it is configured.

Dagster's own e-mail sensor knows failed runs only, not failed checks, and no mail server without a password; so
one message is made here for both, and each channel has two sensors: where one is down, the others go on.

A message holds what the pipeline itself says of a failure: figures, ids and paths, never a memory's text. Of an error
that it did not foresee, only the kind is told.
"""

import smtplib
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import dagster as dg
import requests

from vidurai_pipeline.automation import ALL_JOBS
from vidurai_pipeline.config import Settings
from vidurai_pipeline.errors import ConfigError

_TIMEOUT_SECONDS = 30
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
    """Two sensors for each configured channel: for failed runs, and for failed checks of runs that went well.

    Raises:
        ConfigError: a channel is configured by halves, or its package is missing.
    """
    return [
        sensor
        for channel, send in _channels(settings).items()
        for sensor in (_on_failed_runs(channel, send, settings), _on_failed_checks(channel, send, settings))
    ]


def _channels(settings: Settings) -> dict[str, Send]:
    channels: dict[str, Send] = {}
    if settings.alert_email_to:
        channels["email"] = lambda alert: _send_email(settings, alert)
    if settings.alert_slack_token or settings.alert_slack_channel:
        channels["slack"] = _slack(settings)
    if settings.alert_webhook:
        channels["webhook"] = lambda alert: _post(settings, alert)
    return channels


def _on_failed_runs(channel: str, send: Send, settings: Settings) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name=f"alert_of_failed_runs_by_{channel}",
        description="Tells of each failed run of the pipeline.",
        monitor_all_code_locations=True,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alert(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        run = context.dagster_run
        if run.job_name not in ALL_JOBS:
            return dg.SkipReason(f"{run.job_name} is no job of the pipeline")
        events = _events(context.instance, run.run_id)
        lines = [*_failures(events), *_failed_checks(events)] or ["it ended without a word"]
        send(_alert("run_failed", run, lines, settings))
        return None

    return alert


def _on_failed_checks(channel: str, send: Send, settings: Settings) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name=f"alert_of_failed_checks_by_{channel}",
        description="Tells of checks that failed in a run of the pipeline that went well otherwise.",
        monitor_all_code_locations=True,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def alert(context: dg.RunStatusSensorContext) -> dg.SkipReason | None:
        run = context.dagster_run
        if run.job_name not in ALL_JOBS:
            return dg.SkipReason(f"{run.job_name} is no job of the pipeline")
        lines = _failed_checks(_events(context.instance, run.run_id))
        if not lines:
            return dg.SkipReason("all of its checks passed")
        send(_alert("checks_failed", run, lines, settings))
        return None

    return alert


def _alert(kind: str, run: dg.DagsterRun, lines: Iterable[str], settings: Settings) -> Alert:
    link = f"{settings.alert_link.rstrip('/')}/runs/{run.run_id}" if settings.alert_link else None
    return Alert(kind, run.job_name, run.run_id, tuple(lines), link)


def _events(instance: dg.DagsterInstance, run_id: str) -> list[dg.DagsterEvent]:
    return [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]


def _failures(events: Iterable[dg.DagsterEvent]) -> list[str]:
    lines = []
    for event in events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            lines.append(f"{event.step_key}: {said or _kind(data.error)}")
        elif event.is_job_failure and not lines:
            error = event.job_failure_data.error
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
