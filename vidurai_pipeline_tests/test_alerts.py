"""Failed runs and checks are told to people, by servers that stand in for theirs."""

import json
import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from slack_sdk import WebClient

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings

SECRET = "correct horse battery staple"


@pytest.fixture
def home(sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    db = sample_store("guardian")
    con = sqlite3.connect(db)
    con.execute("UPDATE memories SET verbatim = ?, gist = ?", (SECRET, SECRET))
    con.commit()
    con.close()
    monkeypatch.setenv("VIDURAI_HOME", str(db.parent))
    return db.parent


class Web:
    """Takes HTTP posts, and answers as told."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        taken = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                taken.posts.append((self.path, json.loads(body)))
                self.send_response(taken.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"ok": true}')

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.stop()


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  (aiosmtpd's name)
        self.recipients += envelope.rcpt_tos
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 OK"

    def login(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"hush")


class Alerts:
    """The alert sensors, as Dagster's daemon evaluates them: a cursor is kept only after a tick that went well."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursors: dict[str, str | None] = {}

    def tick(self) -> list[str]:
        """One tick of each; gives what they say."""
        said = []
        for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs:
            if sensor.name.startswith("alert_by_"):
                context = dg.build_sensor_context(self.instance, cursor=self.cursors.get(sensor.name))
                ticked = sensor.evaluate_tick(context)
                self.cursors[sensor.name] = ticked.cursor
                said.append(ticked.skip_message or "")
        return said


@pytest.fixture
def alerts(instance: dg.DagsterInstance) -> Alerts:
    return Alerts(instance)


def run(alerts: Alerts, job: str) -> dg.ExecuteInProcessResult:
    """Run a job on an instance whose sensors are on."""
    if not alerts.cursors:
        alerts.tick()  # what was before the first one is not told
    job_def = build_definitions(load_settings()).resolve_job_def(job)
    return job_def.execute_in_process(instance=alerts.instance, raise_on_error=False)


def knock(port: int) -> Callable[[], None]:
    return lambda: socket.create_connection(("localhost", port)).close()


def break_(home: Path) -> None:
    con = sqlite3.connect(home / "vidurai.db")
    con.execute("CREATE TRIGGER greedy DELETE ON memories BEGIN DELETE FROM projects; END")
    con.commit()
    con.close()


def test_silent_when_nothing_is_set(home: Path) -> None:
    names = [sensor.name for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs]
    assert not [name for name in names if "alert" in name]


def test_a_failed_run_by_webhook(home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", f"{web.address}/hook")
    monkeypatch.setenv("VIDURAI_ALERT_LINK", "http://dagster.example/")
    break_(home)
    result = run(alerts, "maintenance")
    assert alerts.tick()[0].endswith("maintenance failed")
    ((path, body),) = web.posts
    assert path == "/hook"
    assert (body["kind"], body["job"], body["run_id"]) == ("run_failed", "maintenance", result.run_id)
    (line,) = body["lines"]
    assert line.startswith("archived_rows: the hot store")
    assert "Drop the trigger" in line
    assert body["text"].endswith(f"See http://dagster.example/runs/{result.run_id}")
    assert SECRET not in json.dumps(body)


def test_a_run_that_went_well_is_no_news(home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    for job in ("maintenance", "health"):
        run(alerts, job)
        assert alerts.tick() == ["nothing new that anyone must hear of"]
    assert web.posts == []


def test_failed_checks_of_a_run_that_went_well(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    run(alerts, "maintenance")
    (path,) = (home / "archive").rglob("*.parquet")
    os.truncate(path, 1_000)
    assert run(alerts, "health").success
    alerts.tick()
    ((_, body),) = web.posts
    assert body["kind"] == "checks_failed"
    assert any(line.startswith("archive_is_readable on parquet_archive: 1 of 1 file can't") for line in body["lines"])
    assert body["subject"].endswith("health found something")


def test_the_blocking_check_is_told_with_the_failed_run(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    publish = MemoryArchiver.publish

    def publish_and_damage(archiver: MemoryArchiver) -> Any:
        batch = publish(archiver)
        os.truncate(batch.files[0].path, 1_000)
        return batch

    monkeypatch.setattr(MemoryArchiver, "publish", publish_and_damage)
    run(alerts, "maintenance")
    alerts.tick()
    assert "archive_equals_hot_store on parquet_archive: Nothing is purged" in web.posts[0][1]["text"]


def test_a_run_that_was_turned_away_says_by_whom(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    (home / "archive").write_text("in the way")
    run(alerts, "maintenance")
    alerts.tick()
    assert "is not a folder: move it away" in web.posts[0][1]["text"]


def test_an_unforeseen_error_may_quote_a_memory_and_is_not_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    for target in ((MemoryArchiver, "backlog"), (MemoryArchiver, "run")):
        with mock.patch.object(*target, side_effect=ValueError(SECRET)):
            run(alerts, "maintenance")
            alerts.tick()
    assert len(web.posts) == 2
    for _, body in web.posts:
        assert SECRET not in json.dumps(body)
        assert "was not foreseen: see the run's log" in body["text"]


def test_a_webhook_that_does_not_answer_is_an_error_without_its_address(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", f"{web.address}/token")
    break_(home)
    run(alerts, "maintenance")
    web.status = 503
    with pytest.raises(dg.Failure) as caught:
        alerts.tick()
    assert "answered 503" in str(caught.value)
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", "http://127.0.0.1:1/token")
    with pytest.raises(dg.Failure) as caught:
        alerts.tick()
    assert "did not answer" in str(caught.value)
    assert "token" not in str(caught.value)


def test_what_failed_while_the_channel_was_down_is_told_later_and_once(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    alerts.tick()
    break_(home)
    web.status = 503
    failed = []
    for _ in range(3):
        failed.append(run(alerts, "maintenance").run_id)
        with pytest.raises(dg.Failure):
            alerts.tick()
    web.posts.clear()
    web.status = 200
    assert alerts.tick()[0].startswith("told: ")
    web.status = 503
    with pytest.raises(dg.Failure):
        alerts.tick()
    web.status = 200
    for _ in range(4):
        alerts.tick()
    assert [body["run_id"] for _, body in web.posts] == [failed[0], failed[1], *failed[1:]]
    assert alerts.tick() == ["nothing new that anyone must hear of"]


def test_a_run_that_others_report_as_failed_is_told_in_their_words(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the sensor that ends dead runs does, and Dagster's daemon."""
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    alerts.tick()
    job = build_definitions(load_settings()).resolve_job_def("health")
    dead = alerts.instance.create_run_for_job(job)
    alerts.instance.report_run_failed(dead, "Its process ended without a word")
    alerts.tick()
    assert web.posts[0][1]["lines"] == ["Its process ended without a word"]
    break_(home)
    failed = run(alerts, "maintenance").run_id
    alerts.tick()
    assert web.posts[1][1]["run_id"] == failed


def test_a_run_after_one_that_was_deleted_is_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives the deleted events' ids to the next ones."""
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    break_(home)
    runs = []
    for _ in range(3):
        runs.append(run(alerts, "maintenance").run_id)
        alerts.tick()
        alerts.instance.delete_run(runs[-1])
    assert [body["run_id"] for _, body in web.posts] == runs


def test_a_success_whose_status_is_not_stored_yet_is_no_failure(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    run(alerts, "maintenance")
    with mock.patch.object(dg.DagsterRun, "is_success", False):
        assert alerts.tick() == ["nothing new that anyone must hear of"]


@pytest.mark.parametrize("cursor", ["xx", "[]", "null", "5", '{"begun": "yesterday"}', '{"PIPELINE_FAILURE": 5}'])
def test_a_cursor_that_cannot_be_read_begins_anew(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch, cursor: str
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    alerts.cursors["alert_by_webhook"] = cursor
    alerts.tick()
    break_(home)
    run(alerts, "maintenance")
    alerts.tick()
    assert len(web.posts) == 1


def test_what_failed_before_the_channel_was_configured_is_not_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_(home)
    run(alerts, "maintenance")
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", web.address)
    for _ in range(2):
        assert alerts.tick() == ["nothing new that anyone must hear of"]
    run(alerts, "maintenance")
    alerts.tick()
    assert len(web.posts) == 1


@pytest.mark.parametrize("security", ["none", "starttls", "ssl"])
def test_email(home: Path, alerts: Alerts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, security: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    mailbox = Mailbox()
    secure: dict[str, Any] = {
        "none": {"auth_require_tls": False},
        "starttls": {"tls_context": context, "require_starttls": True},
        "ssl": {"ssl_context": context, "auth_require_tls": False},
    }[security]
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    server = Controller(mailbox, "localhost", port, authenticator=mailbox.login, auth_required=True, **secure)
    with mock.patch.object(server, "_trigger_server", side_effect=knock(port)):
        server.start()
    try:
        for name, value in {
            "EMAIL_TO": "ann@example.org, bob@example.org",
            "EMAIL_FROM": "pipeline@example.org",
            "SMTP_PORT": str(port),
            "SMTP_SECURITY": security,
            "SMTP_PASSWORD": "hush",
        }.items():
            monkeypatch.setenv(f"VIDURAI_ALERT_{name}", value)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        break_(home)
        run(alerts, "maintenance")
        assert alerts.tick()[0].startswith("told: ")
    finally:
        server.stop(no_assert=True)
    (mail,) = mailbox.mails
    assert mailbox.recipients == ["ann@example.org", "bob@example.org"]
    assert mailbox.logins == [(b"pipeline@example.org", b"hush")]
    assert mail["Subject"].endswith("maintenance failed")
    assert mail["Date"]
    assert "Drop the trigger" in mail.get_content()
    assert SECRET not in mail.as_string()


def test_slack(home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_SLACK_TOKEN", "xoxb-1")
    monkeypatch.setenv("VIDURAI_ALERT_SLACK_CHANNEL", "#memory")
    break_(home)
    client = WebClient("xoxb-1", base_url=f"{web.address}/")
    with mock.patch("dagster_slack.SlackResource.get_client", return_value=client):
        run(alerts, "maintenance")
        alerts.tick()
    ((path, body),) = web.posts
    assert (path, body["channel"]) == ("/chat.postMessage", "#memory")
    assert "Drop the trigger" in body["text"]


def test_slack_by_halves_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_SLACK_CHANNEL", "#memory")
    with pytest.raises(ConfigError, match="belong together"):
        build_definitions(load_settings())
    monkeypatch.setenv("VIDURAI_ALERT_SLACK_TOKEN", "xoxb-1")
    with mock.patch.dict("sys.modules", dagster_slack=None), pytest.raises(ConfigError, match="pip install"):
        build_definitions(load_settings())


def test_one_channel_that_is_down_does_not_silence_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_WEBHOOK", "http://127.0.0.1:1")
    monkeypatch.setenv("VIDURAI_ALERT_EMAIL_TO", "ann@example.org")
    names = {sensor.name for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs}
    assert {n for n in names if n.startswith("alert")} == {"alert_by_email", "alert_by_webhook"}


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMTP_PASSWORD", "SLACK_TOKEN", "WEBHOOK"):
        monkeypatch.setenv(f"VIDURAI_ALERT_{name}", "hush-hush")
    assert "hush-hush" not in repr(load_settings()) + str(load_settings())
