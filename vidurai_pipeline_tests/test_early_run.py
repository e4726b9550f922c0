"""The sensor that starts a run early, evaluated as Dagster's daemon does."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.errors import LockedError
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.settings import load_settings


class Daemon:
    """Evaluates the sensor, tick after tick, and keeps its cursor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.definitions = build_definitions(load_settings())
        self.cursor: str | None = None

    def tick(self, after: float = 0.0) -> dg.RunRequest | str:
        repository = self.definitions.get_repository_def()
        with (
            dg.build_sensor_context(instance=self.instance, repository_def=repository, cursor=self.cursor) as context,
            mock.patch("time.time", return_value=time.time() + after),
        ):
            data = repository.get_sensor_def("early_run").evaluate_tick(context)
        self.cursor = data.cursor
        return data.run_requests[0] if data.run_requests else data.skip_message or ""

    def run(self) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def("maintenance")
        return job.execute_in_process(instance=self.instance, raise_on_error=False)


@pytest.fixture
def home(sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = sample_store("guardian").parent
    monkeypatch.setenv("VIDURAI_HOME", str(folder))
    monkeypatch.setenv("VIDURAI_EARLY_RUN_ROWS", "1000")
    monkeypatch.setenv("VIDURAI_EARLY_RUN_FREE_DISK", "0")
    monkeypatch.setenv("VIDURAI_EARLY_RUN_QUIET", "0")
    return folder


@pytest.fixture
def daemon(home: Path, instance: dg.DagsterInstance) -> Daemon:
    return Daemon(instance)


def test_a_backlog_starts_one_run_and_its_end_no_other(daemon: Daemon, home: Path) -> None:
    request = daemon.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["vidurai/why"] == "1,148 memories wait (a run starts at 1,000)"
    again = daemon.tick()
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == request.run_key  # which Dagster starts only once
    assert daemon.run().success
    assert str(daemon.tick()).startswith("no need: 0 of 1,000 memories wait")


def test_only_a_changed_store_is_opened_again(daemon: Daemon, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_EARLY_RUN_ROWS", "5000")
    daemon = Daemon(daemon.instance)
    with mock.patch.object(backlog, "count_backlog", wraps=backlog.count_backlog) as count:
        assert str(daemon.tick()).startswith("no need: 1,148")
        daemon.tick(after=10**6)
        assert count.call_count == 1
        con = sqlite3.connect(home / "vidurai.db", isolation_level=None)
        con.execute(
            "UPDATE memories SET status = 'ACTIVE' WHERE id = (SELECT id FROM memories WHERE status = 'ARCHIVED')"
        )
        con.close()
        assert str(daemon.tick(after=10**6)).startswith("no need: 1,147")
        assert count.call_count == 2


def test_rejected_memories_start_no_run_after_run(daemon: Daemon, home: Path) -> None:
    con = sqlite3.connect(home / "vidurai.db")
    con.execute("UPDATE memories SET access_count = 'many' WHERE status = 'ARCHIVED'")
    con.commit()
    con.close()
    assert isinstance(daemon.tick(), dg.RunRequest)
    assert daemon.run().success
    assert "0 memories wait, and 1,148 that the last run could not move" in str(daemon.tick())


def test_failed_runs_make_it_wait(daemon: Daemon, home: Path) -> None:
    first = daemon.tick()
    assert isinstance(first, dg.RunRequest)
    (home / "q_table.json").write_text("not JSON")
    con = sqlite3.connect(home / "vidurai.db", isolation_level=None)
    con.execute("CREATE TRIGGER t DELETE ON memories BEGIN DELETE FROM projects; END")
    assert not daemon.run().success
    assert "the last run failed or was stopped: waits for another 30 min" in str(daemon.tick())
    second = daemon.tick(after=1_900)
    assert isinstance(second, dg.RunRequest)
    assert second.run_key != first.run_key
    assert not daemon.run().success
    assert "the last 2 runs failed" in str(daemon.tick(after=1_900))
    con.execute("DROP TRIGGER t")
    con.close()
    (home / "q_table.json").unlink()
    assert daemon.run().success
    assert str(daemon.tick(after=1_900)).startswith("no need")


def test_waits_while_a_run_is_at_work_or_another_process_holds_the_archive(daemon: Daemon) -> None:
    job = daemon.definitions.resolve_job_def("maintenance")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "running or queued" in str(daemon.tick())
    daemon.instance.delete_run(run.run_id)
    with mock.patch.object(Archive, "lock", side_effect=LockedError("another run is at work on it")):
        assert "another run is at work" in str(daemon.tick())


def test_waits_for_the_daemon(daemon: Daemon, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_EARLY_RUN_QUIET", "60")
    daemon = Daemon(daemon.instance)
    os.utime(home / "vidurai.db")
    assert "waits for 60 s without a write, at most for another 60 min" in str(daemon.tick())
    with mock.patch.object(backlog, "last_write", side_effect=lambda _: time.time()):
        assert "at most for another 30 min" in str(daemon.tick(after=1_800))
        assert isinstance(daemon.tick(after=3_601), dg.RunRequest)


def test_a_missing_store_is_said(daemon: Daemon, home: Path) -> None:
    shutil.rmtree(home)
    assert "does not exist: start Vidurai once" in str(daemon.tick())


def test_one_switch_turns_it_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_EARLY_RUN", "false")
    names = [sensor.name for sensor in build_definitions(load_settings()).get_repository_def().sensor_defs]
    assert "early_run" not in names
