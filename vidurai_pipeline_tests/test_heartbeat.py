"""A service that waits for a ping after each night is told how it went."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.heartbeat import ping
from vidurai_pipeline.defs.stores import store_sensor
from vidurai_pipeline.hot.stores import find_stores
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.dagster_runs import execute, holding
from vidurai_pipeline_tests.support.stores import small_store


class Switch:
    """A dead man's switch: notes the paths that are called, and answers as told."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.status = 200
        noted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                noted.called.append(self.path)
                self.send_response(noted.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/token"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    switch = Switch()
    monkeypatch.setenv("VIDURAI_HEARTBEAT_URL", switch.address)
    yield switch
    switch.stop()


@pytest.fixture
def watched(settings: Settings, switch: Switch) -> Settings:
    return load_settings()


def test_a_good_night(watched: Settings, switch: Switch, instance: dg.DagsterInstance) -> None:
    assert execute(watched, instance).success
    assert switch.called == ["/token/start", "/token"]


def test_a_run_from_the_command_line(watched: Settings, switch: Switch) -> None:
    done = cli("run")
    assert done.returncode == 0, done.stderr
    assert switch.called == ["/token/start", "/token"]
    assert "token" not in done.stdout + done.stderr


@pytest.mark.parametrize("job", ["dream_job", "health", "__ASSET_JOB"])
def test_other_jobs_are_no_night(watched: Settings, switch: Switch, instance: dg.DagsterInstance, job: str) -> None:
    assert execute(watched, instance, job).success
    assert switch.called == []


@pytest.mark.parametrize("error", [ValueError("unforeseen"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("step", ["backlog", "purge"])
def test_a_night_that_fails(
    watched: Settings, switch: Switch, instance: dg.DagsterInstance, *, step: str, error: BaseException
) -> None:
    with mock.patch.object(MemoryArchiver, step, side_effect=error):
        assert not execute(watched, instance).success
    assert switch.called == ["/token/start", "/token/fail"]


def test_a_night_that_is_turned_away(watched: Settings, switch: Switch, instance: dg.DagsterInstance) -> None:
    watched.archive_path.mkdir()
    with holding(watched.archive_path):
        assert not execute(watched, instance).success
    assert switch.called == ["/token/start", "/token/fail"]


def test_a_service_that_is_down_stops_no_night(
    watched: Settings, switch: Switch, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch.status = 503
    assert execute(watched, instance).success
    monkeypatch.setenv("VIDURAI_HEARTBEAT_URL", "http://127.0.0.1:1/token")
    result = execute(load_settings(), instance)
    assert result.success
    said = [entry.user_message for entry in instance.all_logs(result.run_id) if "heartbeat" in entry.user_message]
    assert len(said) == 2
    assert "token" not in "".join(said)


@pytest.mark.parametrize(
    ("path", "end", "called"),
    [
        ("", "", "/token"),
        ("", "/fail", "/token/fail"),
        ("/", "/start", "/token/start"),
        ("?create=1", "/start", "/token/start?create=1"),
    ],
)
def test_the_address_below_it(switch: Switch, path: str, end: str, called: str) -> None:
    assert ping(switch.address + path, end) is None
    assert switch.called == [called]


def test_the_address_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_HEARTBEAT_URL", "https://hc.example/hush-hush")
    assert "hush-hush" not in repr(load_settings())
    assert "hush-hush" not in (ping("http://127.0.0.1:1/hush-hush") or "")


def test_a_night_of_many_stores_is_told_of_once_all_had_a_good_run(
    tmp_path: Path, switch: Switch, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob"):
        small_store(tmp_path / name / "vidurai.db")
    monkeypatch.setenv("VIDURAI_STORES", str(tmp_path / "*/vidurai.db"))
    settings = load_settings()
    assert find_stores(settings).settings_of("alice").heartbeat_url is None
    job = build_definitions(settings).resolve_job_def("maintenance")
    cursor = None
    for store, status, pings in (
        ("alice", dg.DagsterRunStatus.SUCCESS, 0),
        ("bob", dg.DagsterRunStatus.FAILURE, 0),
        ("bob", dg.DagsterRunStatus.SUCCESS, 1),
        ("bob", dg.DagsterRunStatus.SUCCESS, 1),
    ):
        instance.create_run_for_job(job, status=status, tags={"dagster/partition": store})
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        cursor = store_sensor(settings).evaluate_tick(context).cursor
        assert switch.called == ["/token"] * pings
    (tmp_path / "bob/vidurai.db").write_text("Dear")
    store_sensor(settings).evaluate_tick(dg.build_sensor_context(instance=instance))  # without a cursor, all is new
    assert switch.called == ["/token"]
