"""The lifecycle under Dagster's own processes: its commands, its daemon, several users at once."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.dagster_runs import holding, status_of
from vidurai_pipeline_tests.support.processes import NOTHING_ON_ITS_OWN, dagster, running, successful_runs, wait_until
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent
HELD_BACK = """
import pathlib, sys, time

class Waiting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        while name == "vidurai_pipeline.definitions" and pathlib.Path({hold!r}).exists():
            time.sleep(0.1)

sys.meta_path.insert(0, Waiting)
"""
DAEMON = [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"]


@pytest.fixture
def settings(sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("VIDURAI_HOME", str(sample_store("guardian").parent))
    return load_settings()


def call_dagster(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run one of Dagster's own commands, without a daemon, to its good end."""
    done = subprocess.run(
        [sys.executable, "-m", "dagster", *command],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done


def test_dagsters_own_command_for_assets(settings: Settings, tmp_path: Path) -> None:
    """That for jobs has a test below."""
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    before = hot_rows(settings.db_path)
    select = ["--select", "group:memory_lifecycle"]
    call_dagster(["asset", "materialize", "-m", "vidurai_pipeline.definitions", *select], home)
    assert_one_tier(before, settings.db_path, settings.archive_path)
    con = sqlite3.connect(settings.db_path)
    assert con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone() == (0,)
    con.close()


def test_launched_into_the_queue_of_a_running_daemon(settings: Settings, tmp_path: Path) -> None:
    """What `dagster job launch` and the UI's buttons do: a queued run, taken up by the daemon."""
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    # Dagster learns a pool's limit from the first run that it takes up: of two that waited by then, both may start.
    environment = {**os.environ, **NOTHING_ON_ITS_OWN, "DAGSTER_HOME": str(home), "VIDURAI_LOCK_TIMEOUT": "60"}
    before = hot_rows(settings.db_path)
    with dg.DagsterInstance.from_config(str(home)) as instance:  # Dagster can't create its databases in two at once.
        with running(DAEMON, environment, tmp_path / "daemon.log", ROOT):
            for _ in range(2):
                dagster("job launch -j maintenance", environment, ROOT / "workspace.yaml", ROOT)
            runs = successful_runs(instance, 2)
        assert_steps_never_at_once(instance, [run.run_id for run in runs])
    assert_one_tier(before, settings.db_path, settings.archive_path)


def test_the_next_night_runs_whatever_state_the_last_was_killed_in(settings: Settings, tmp_path: Path) -> None:
    """As in a power cut: the daemon, its code server and the processes of three runs are killed at once."""
    home, hold = tmp_path / "dagster", tmp_path / "hold"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    tell = (home / "dagster.yaml").read_text()
    environment = {**os.environ, **NOTHING_ON_ITS_OWN, "DAGSTER_HOME": str(home), "VIDURAI_LOCK_TIMEOUT": "600"}
    # While the file is there, a new process waits before it loads the pipeline: its run stays STARTING.
    (tmp_path / "sitecustomize.py").write_text(HELD_BACK.format(hold=str(hold)))
    held_back = {**environment, "PYTHONPATH": str(tmp_path)}
    before = hot_rows(settings.db_path)
    settings.archive_path.mkdir()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (home / "dagster.yaml").write_text(tell.replace("default_limit: 1", "default_limit: 9"))
        with holding(settings.archive_path), running(DAEMON, held_back, tmp_path / "killed.log", ROOT) as daemon:
            dagster("job launch -j maintenance", environment, ROOT / "workspace.yaml", ROOT)
            (started,) = instance.get_runs()
            wait_until(lambda: status_of(instance, started.run_id) == dg.DagsterRunStatus.STARTED)
            # It waits for the archive's lock now. It is cheaper to queue copies of it than to launch further runs.
            not_started, starting, canceling, night = (started._replace(run_id=str(uuid4())) for _ in range(4))
            hold.touch()
            for run in (starting, canceling):
                instance.add_run(run._replace(status=dg.DagsterRunStatus.QUEUED))
            wait_until(lambda: {status_of(instance, run.run_id).value for run in (starting, canceling)} == {"STARTING"})
            instance.report_run_canceling(canceling)
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        hold.unlink()
        # Between the two steps by which a run gets its process, nothing can be killed on purpose.
        instance.add_run(not_started._replace(status=dg.DagsterRunStatus.NOT_STARTED))
        left = [not_started, starting, started, canceling]
        statuses = [status_of(instance, run.run_id).value for run in left]
        assert statuses == ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"]
        with sqlite3.connect(home / "history/runs.db") as con:
            con.execute("UPDATE runs SET update_timestamp = datetime('now', '-1 hour'), start_time = start_time - 3600")
        con.close()
        (home / "dagster.yaml").write_text(tell)
        instance.add_run(night._replace(status=dg.DagsterRunStatus.QUEUED))
        with running(DAEMON, environment, tmp_path / "daemon.log", ROOT):
            wait_until(lambda: all(run.is_finished for run in instance.get_runs()))
        ended = [status_of(instance, run.run_id).value for run in (*left, night)]
        assert ended == ["FAILURE", "FAILURE", "FAILURE", "CANCELED", "SUCCESS"]
    assert_one_tier(before, settings.db_path, settings.archive_path)


def test_schedule_sensor_queue_and_command_line_at_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    for name, value in {
        "DAGSTER_HOME": str(home),
        "VIDURAI_SCHEDULE": "* * * * *",
        "VIDURAI_EARLY_RUN_ROWS": "1000",
        "VIDURAI_EARLY_RUN_QUIET": "0",
        "VIDURAI_LOCK_TIMEOUT": "120",
    }.items():
        monkeypatch.setenv(name, value)
    before = hot_rows(settings.db_path)
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        stack.enter_context(running(DAEMON, os.environ, tmp_path / "daemon.log", ROOT))
        ways: dict[str, bool] = {}
        deadline = time.monotonic() + 240
        launched = False
        while time.monotonic() < deadline:
            runs = instance.get_runs()
            if not launched and runs:  # as soon as the daemon has started one
                launched = True
                launch = [
                    sys.executable,
                    *["-m", "dagster", "job", "launch", "-w", "workspace.yaml", "-j", "maintenance"],
                ]
                stack.enter_context(running(launch, os.environ, tmp_path / "launch.log", ROOT))
                subprocess.run([sys.executable, "-m", "vidurai_pipeline", "run"], check=True, capture_output=True)
            ways |= {
                "sensor": any("dagster/sensor_name" in run.tags for run in runs) or ways.get("sensor", False),
                "schedule": any("dagster/schedule_name" in run.tags for run in runs),
                "other": sum(not {"dagster/sensor_name", "dagster/schedule_name"} & run.tags.keys() for run in runs)
                == 2,
            }
            if all(ways.values()) and all(run.is_finished for run in runs):
                break
            time.sleep(0.5)
        assert ways == {"sensor": True, "schedule": True, "other": True}
        finished = [run for run in instance.get_runs() if run.is_finished]
        assert {run.status for run in finished} == {dg.DagsterRunStatus.SUCCESS}
        assert_steps_never_at_once(instance, [run.run_id for run in finished])
    assert_one_tier(before, settings.db_path, settings.archive_path)


def assert_steps_never_at_once(instance: dg.DagsterInstance, runs: list[str]) -> None:
    """A run that waits for the archive's lock is reported as started; its steps come when it holds it."""
    spans = []
    for run in runs:
        steps = [e.timestamp for e in instance.all_logs(run) if e.dagster_event and e.dagster_event.is_step_event]
        spans.append((min(steps), max(steps)))
    for (_, ended), (began, _) in itertools.pairwise(sorted(spans)):
        assert ended <= began


def test_first_users_of_a_new_dagster_home_at_once(settings: Settings, programs: Path) -> None:
    script = (
        "from vidurai_pipeline.defs.instance import dagster_home; from vidurai_pipeline.settings import load_settings; "
        "print(dagster_home(load_settings()))"
    )
    users = [
        subprocess.Popen([programs / "python", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [(user.communicate()[1], user.returncode) for user in users] == [("", 0)] * 3
    home = settings.home / "dagster"
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        con = sqlite3.connect(home / name)
        assert con.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,), name
        con.close()


def test_no_memory_text_in_dagsters_events(settings: Settings, tmp_path: Path) -> None:
    secret = "correct horse battery staple"
    con = sqlite3.connect(settings.db_path)
    con.execute("UPDATE memories SET verbatim = ?, gist = ?, tags = ?", (secret,) * 3)
    con.execute("UPDATE memories SET access_count = ? WHERE id % 50 = 0", (secret,))
    con.commit()
    con.close()
    before = hot_rows(settings.db_path)
    home = tmp_path / "dagster"
    home.mkdir()
    done = call_dagster(["job", "execute", "-m", "vidurai_pipeline.definitions", "-j", "maintenance"], home)
    assert secret not in done.stdout + done.stderr
    assert_one_tier(before, settings.db_path, settings.archive_path)
    for path in home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert json.loads(settings.q_table_path.read_text())["q_table"]
