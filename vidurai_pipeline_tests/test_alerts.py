"""Failed runs and checks are told to people, by a server that stands in for their services."""

import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import dagster as dg
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.alerts import channels, undelivered
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.dagster_runs import execute

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
        self.address = f"json://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    @property
    def runs(self) -> list[str]:
        """The runs that messages were about."""
        return [re.findall(r"See run (\S+) in", body["message"])[0] for _, body in self.posts]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The one service that is told."""
    web = Web()
    monkeypatch.setenv("VIDURAI_ALERT_URLS", f"{web.address}/token")
    yield web
    web.stop()


class Alerts:
    """The alert sensors, as Dagster's daemon evaluates them: a cursor is kept only after a tick that went well."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursors: dict[str, str | None] = {}

    def tick(self, after: timedelta = timedelta()) -> list[str]:
        """One tick of each at a later time; gives what they say."""
        said = []
        for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs:
            if sensor.name.startswith("alert_by_"):
                context = dg.build_sensor_context(self.instance, cursor=self.cursors.get(sensor.name))
                with mock.patch("time.time", return_value=time.time() + after.total_seconds()):
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
    return execute(load_settings(), alerts.instance, job)


def break_(home: Path) -> None:
    con = sqlite3.connect(home / "vidurai.db")
    con.execute("CREATE TRIGGER greedy DELETE ON memories BEGIN DELETE FROM projects; END")
    con.commit()
    con.close()


def test_silent_when_nothing_is_set(home: Path) -> None:
    names = [sensor.name for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs]
    assert not [name for name in names if "alert" in name]


def test_a_failed_run(home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_LINK", "http://dagster.example/")
    break_(home)
    result = run(alerts, "maintenance")
    assert alerts.tick()[0].endswith("maintenance: failed")
    ((path, body),) = web.posts
    assert (path, body["type"]) == ("/token", "failure")
    assert body["title"].endswith("maintenance: failed")
    assert "- archived rows: the hot store" in body["message"]
    assert "drop the trigger" in body["message"]
    assert body["message"].endswith(f"See http://dagster.example/runs/{result.run_id}")
    assert SECRET not in json.dumps(body)


def test_the_first_run_of_all_on_a_sample_is_no_news(home: Path, alerts: Alerts, web: Web) -> None:
    """What *Materialize all* runs: all assets with all of their checks."""
    for job in ("__ASSET_JOB", "maintenance", "health"):
        result = run(alerts, job)
        assert result.success
        assert [check.check_name for check in result.get_asset_check_evaluations() if not check.passed] == []
        assert alerts.tick() == ["nothing new to tell"]
    assert web.posts == []


def test_checks_look_at_what_is_there_after_the_run(home: Path, alerts: Alerts) -> None:
    found = {c.check_name: c.description for c in run(alerts, "__ASSET_JOB").get_asset_check_evaluations()}
    assert (found["backlog_shrinks"] or "").startswith("0 memories wait; 1,148 when the last run began")
    assert "1 file, 1,148 rows, all readable" in (found["archive_is_readable"] or "")


def test_failed_checks_of_a_run_that_went_well(home: Path, alerts: Alerts, web: Web) -> None:
    run(alerts, "maintenance")
    (path,) = (home / "archive").rglob("*.parquet")
    os.truncate(path, 1_000)
    assert run(alerts, "health").success
    alerts.tick()
    ((_, body),) = web.posts
    assert body["title"].endswith("health check: a check failed")
    assert body["type"] == "failure"
    assert "- Failed check: archive is readable: 1 of 1 file can't" in body["message"]


def test_a_warning_is_told_as_one(home: Path, alerts: Alerts, web: Web) -> None:
    run(alerts, "maintenance")
    (path,) = (home / "archive").rglob("*.parquet")
    path.with_name("copy.parquet").write_bytes(path.read_bytes())
    run(alerts, "health")
    alerts.tick()
    ((_, body),) = web.posts
    assert (body["type"], body["title"].rpartition(": ")[2]) == ("warning", "a warning")
    assert "- Warning: no version twice: " in body["message"]


def test_rejected_memories_are_told_from_the_second_night_on(home: Path, alerts: Alerts, web: Web) -> None:
    with sqlite3.connect(home / "vidurai.db") as con:
        con.execute("UPDATE memories SET status = 'ARCHIVED', access_count = 'many' WHERE id < 4")
    con.close()
    result = run(alerts, "maintenance")
    assert result.success
    (check,) = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert (check.check_name, check.severity) == ("no_memory_is_rejected", dg.AssetCheckSeverity.WARN)
    assert SECRET not in (check.description or "")
    alerts.tick()
    run(alerts, "maintenance")  # an early run of the same night
    alerts.tick()
    assert web.posts == []
    run(alerts, "maintenance")
    alerts.tick(timedelta(hours=24))
    ((_, body),) = web.posts
    assert body["type"] == "warning"
    assert "no memory is rejected: 3 memories can't be archived" in body["message"]
    with sqlite3.connect(home / "vidurai.db") as con:
        con.execute("UPDATE memories SET access_count = 1 WHERE id < 4")
    con.close()
    assert all(c.passed for c in run(alerts, "maintenance").get_asset_check_evaluations())


def test_the_blocking_check_is_told_with_the_failed_run(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = MemoryArchiver.publish

    def publish_and_damage(archiver: MemoryArchiver) -> Any:
        batch = publish(archiver)
        os.truncate(batch.files[0].path, 1_000)
        return batch

    monkeypatch.setattr(MemoryArchiver, "publish", publish_and_damage)
    run(alerts, "maintenance")
    alerts.tick()
    (line,) = web.posts[0][1]["message"].splitlines()[1:-1]
    assert line.startswith("- Failed check: archive equals hot store: Nothing is purged")


def test_a_run_that_was_turned_away_says_by_whom(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "archive").write_text("in the way")
    run(alerts, "maintenance")
    alerts.tick()
    assert "name an archive's folder" in web.posts[0][1]["message"]


def test_an_unforeseen_error_may_quote_a_memory_and_is_not_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ((MemoryArchiver, "backlog"), (MemoryArchiver, "run")):
        with mock.patch.object(*target, side_effect=ValueError(SECRET)):
            run(alerts, "maintenance")
            alerts.tick()
    assert len(web.posts) == 2
    for _, body in web.posts:
        assert SECRET not in json.dumps(body)
        assert "was not foreseen: see the run's log" in body["message"]


def test_what_failed_while_the_service_was_down_is_told_later_and_once(home: Path, alerts: Alerts, web: Web) -> None:
    break_(home)
    web.status = 503
    failed = [run(alerts, "maintenance").run_id for _ in range(3)]
    for hours in range(3):
        assert "has taken no message since" in alerts.tick(timedelta(hours=hours))[0]
    web.posts.clear()
    web.status = 200
    for hours in range(8, 13):
        alerts.tick(timedelta(hours=hours))
    assert web.runs == failed
    assert alerts.tick(timedelta(hours=13)) == ["nothing new to tell"]


def test_a_service_that_is_down_is_tried_ever_less_often_and_no_tick_fails(
    home: Path, alerts: Alerts, web: Web
) -> None:
    break_(home)
    run(alerts, "maintenance")
    web.status = 503
    for minute in (*range(60), *range(60, 24 * 60, 10)):  # as often as the shortest wait of then asks for
        (said,) = alerts.tick(timedelta(minutes=minute))
        assert "has taken no message since" in said
        assert "token" not in said
    assert 8 < len(web.posts) < 16
    assert len(alerts.cursors["alert_by_json"] or "") < 1_000
    web.status = 200
    alerts.tick(timedelta(hours=30))
    web.status = 503
    run(alerts, "maintenance")
    tried = len(web.posts)
    for minute in range(10):
        alerts.tick(timedelta(hours=31, minutes=minute))
    assert len(web.posts) == tried + 4, "it begins with short waits again"


def test_since_when_a_service_is_down_can_be_asked_for(
    home: Path, instance: dg.DagsterInstance, alerts: Alerts, web: Web
) -> None:
    settings = load_settings()
    assert undelivered(instance, settings) == {}
    break_(home)
    run(alerts, "maintenance")
    web.status = 503
    alerts.tick()
    state = SimpleNamespace(
        name="alert_by_json", instigator_data=SimpleNamespace(cursor=alerts.cursors["alert_by_json"])
    )
    other = SimpleNamespace(name="nightly", instigator_data=None)
    with mock.patch.object(type(instance), "all_instigator_state", return_value=[other, state]):
        down = undelivered(instance, settings)
    assert list(down) == ["json"]
    assert abs((datetime.now(UTC) - down["json"]).total_seconds()) < 600


def test_a_run_that_others_report_as_failed_is_told_in_their_words(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the sensor that ends dead runs does, and Dagster's daemon."""
    alerts.tick()
    job = build_definitions(load_settings()).resolve_job_def("health")
    dead = alerts.instance.create_run_for_job(job)
    alerts.instance.report_run_failed(dead, "Its process ended without a word")
    alerts.tick()
    assert web.posts[0][1]["message"].splitlines()[1] == "- Its process ended without a word"
    break_(home)
    failed = run(alerts, "maintenance").run_id
    alerts.tick()
    assert web.runs[1] == failed


def test_of_many_stores_an_alert_names_the_one(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_STORES", str(home.parent / "*/vidurai.db"))
    alerts.tick()
    job = build_definitions(load_settings()).resolve_job_def("maintenance")
    dead = alerts.instance.create_run_for_job(job, tags={"dagster/partition": "alice"})
    alerts.instance.report_run_failed(dead, "Its process ended without a word")
    alerts.tick()
    assert " of alice: failed" in web.posts[0][1]["message"].splitlines()[0]


def test_a_run_after_one_that_was_deleted_is_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives the deleted events' ids to the next ones."""
    break_(home)
    runs = []
    for _ in range(3):
        runs.append(run(alerts, "maintenance").run_id)
        alerts.tick()
        alerts.instance.delete_run(runs[-1])
    assert web.runs == runs


def test_a_success_whose_status_is_not_stored_yet_is_no_failure(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(alerts, "maintenance")
    with mock.patch.object(dg.DagsterRun, "is_success", False):
        assert alerts.tick() == ["nothing new to tell"]


@pytest.mark.parametrize("cursor", ["xx", "[]", "null", "5", '{"begun": "yesterday"}', '{"PIPELINE_FAILURE": 5}'])
def test_a_cursor_that_cannot_be_read_begins_anew(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch, cursor: str
) -> None:
    alerts.cursors["alert_by_json"] = cursor
    alerts.tick()
    break_(home)
    run(alerts, "maintenance")
    alerts.tick()
    assert len(web.posts) == 1


def test_what_failed_before_the_channel_was_configured_is_not_told(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_(home)
    job = build_definitions(load_settings()).resolve_job_def("maintenance")
    job.execute_in_process(instance=alerts.instance, raise_on_error=False)
    for _ in range(2):
        assert alerts.tick() == ["nothing new to tell"]
    run(alerts, "maintenance")
    alerts.tick()
    assert len(web.posts) == 1


def test_one_service_that_is_down_does_not_silence_another(
    home: Path, alerts: Alerts, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_URLS", f"json://127.0.0.1:1/token, {web.address}")
    break_(home)
    run(alerts, "maintenance")
    down, up = alerts.tick()
    assert "has taken no message" in down
    assert up.startswith("told: ")
    assert len(web.posts) == 1
    assert sorted(alerts.cursors) == ["alert_by_json", "alert_by_json_2"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("mailtos://user:hush-hush@example.org?to=ann@example.org,bob@example.org", ["mailtos"]),
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#memory json://example.org/x", ["slack", "json"]),
        ("jsons://a.example/x\njsons://b.example/x, json://c.example", ["jsons", "jsons_2", "json"]),
    ],
)
def test_addresses_as_apprise_takes_them(monkeypatch: pytest.MonkeyPatch, given: str, names: list[str]) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_URLS", given)
    settings = load_settings()
    assert [channel.name for channel in channels(settings)] == names
    sensors = build_definitions(settings).get_repository_def().sensor_defs
    assert {f"alert_by_{name}" for name in names} <= {sensor.name for sensor in sensors}
    assert "hush-hush" not in repr(settings) + str(settings) + repr(sensors) + repr(channels(settings))


@pytest.mark.parametrize(
    "given",
    ["ann@example.org", "nosuch://hush-hush@example.org", "hush-hush, json://example.org/x", "mailto://hush-hush"],
)
def test_an_address_that_is_none_is_refused_without_being_quoted(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VIDURAI_ALERT_URLS", given)
    with pytest.raises(ConfigError, match=r"VIDURAI_ALERT_URLS.* is not an address") as caught:
        build_definitions(load_settings())
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "instead"),
    [("EMAIL_TO", "mailtos://"), ("SMTP_PASSWORD", "mailtos://"), ("SLACK_TOKEN", "slack://"), ("WEBHOOK", "jsons://")],
)
def test_an_old_setting_is_refused_with_what_to_set_instead(
    monkeypatch: pytest.MonkeyPatch, old: str, instead: str
) -> None:
    monkeypatch.setenv(f"VIDURAI_ALERT_{old}", "hush-hush")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"VIDURAI_ALERT_{old}: no longer used")
    assert "VIDURAI_ALERT_URLS" in str(caught.value)
    assert instead in str(caught.value)
    assert "hush-hush" not in str(caught.value)
