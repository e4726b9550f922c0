"""Runs go to Celery's workers: one of them dies in the middle of a run, and no memory is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline_tests.support.processes import free_port, wait_until
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

pytest.importorskip("dagster_celery")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]
ROWS = 20_000
LAUNCHER = Path(__file__).parents[2] / "deploy/celery/dagster.yaml"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A Redis of the test's own."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as redis:
        yield f"redis://127.0.0.1:{port}"
        redis.kill()


@pytest.fixture
def environment(tmp_path: Path, broker: str) -> dict[str, str]:
    """A store whose memories all wait, and a home of Dagster's, whose runs go to Celery as the docs say."""
    make_store(tmp_path / "alice/vidurai.db", ROWS)
    change(tmp_path / "alice/vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    home = tmp_path / "dagster"
    home.mkdir()
    content = yaml.safe_load(LAUNCHER.read_text())
    content["run_coordinator"] = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}
    (home / "dagster.yaml").write_text(yaml.safe_dump(content))
    # Before the workers do: two processes can't make one SQLite database at the same time.
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("stores", ["alice"])
        instance.get_runs_count()
    return {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "VIDURAI_HOME": str(tmp_path / "team"),
        "VIDURAI_STORES": str(tmp_path / "*/vidurai.db"),
        "VIDURAI_ARCHIVE": str(tmp_path / "archive"),
        "CELERY_BROKER": f"{broker}/0",
        "CELERY_BACKEND": f"{broker}/1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture
def workers(tmp_path: Path, environment: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    config = tmp_path / "celery.yaml"
    config.write_text(
        yaml.safe_dump({"broker": environment["CELERY_BROKER"], "backend": environment["CELERY_BACKEND"]})
    )
    command = ["dagster-celery", "worker", "start", "-A", "dagster_celery.app", "-y", str(config), "-n"]
    started = []
    for name in ("one", "two"):
        with (tmp_path / f"{name}.log").open("wb") as log:
            options = [name, "--", "--concurrency", "1", "--prefetch-multiplier", "1"]
            started.append(
                subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, start_new_session=True)
            )
    yield started
    for worker in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _launch(environment: dict[str, str]) -> None:
    tags = json.dumps({"dagster/partition": "alice"})
    command = ["dagster", "job", "launch", "-m", "vidurai_pipeline.definitions", "-j", "maintenance", "--tags", tags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_worker_dies_and_no_memory_is_lost(
    tmp_path: Path, environment: dict[str, str], workers: list[subprocess.Popen[bytes]]
) -> None:
    db, archive = tmp_path / "alice/vidurai.db", tmp_path / "archive/store=alice"
    before = hot_rows(db)
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        _launch(environment)
        wait_until(lambda: bool(list(archive.glob(".pending/*.json"))))
        holder = json.loads((archive / ".lock.json").read_text())
        os.killpg(os.getpgid(holder["pid"]), signal.SIGKILL)
        assert hot_rows(db), "it died too late"
        assert [worker.poll() is None for worker in workers].count(True) >= 1
        _launch(environment)  # which the other worker takes
        wait_until(lambda: bool(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))))
    assert_one_tier(before, db, archive)
