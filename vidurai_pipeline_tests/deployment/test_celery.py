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
from dagster._core.code_pointer import CodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.processes import free_port, wait_until
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

pytest.importorskip("dagster_celery")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]
ROWS = 6_000
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
def definitions(tmp_path: Path, broker: str, dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """For a store whose memories all wait, and a home of Dagster's, whose runs go to Celery as the docs say."""
    make_store(tmp_path / "alice/vidurai.db", ROWS)
    change(tmp_path / "alice/vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    home = tmp_path / "dagster"
    shutil.copytree(dagster_home, home)  # with its databases, which two workers would make at once, and break
    shutil.copy(LAUNCHER, home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("VIDURAI_HOME", str(tmp_path / "team"))
    monkeypatch.setenv("VIDURAI_STORES", str(tmp_path / "*/vidurai.db"))
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "archive"))
    monkeypatch.setenv("VIDURAI_ROWS_PER_FILE", "500")
    monkeypatch.setenv("CELERY_BROKER", f"{broker}/0")
    monkeypatch.setenv("CELERY_BACKEND", f"{broker}/1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    return build_definitions(load_settings())


@pytest.fixture
def workers(tmp_path: Path, broker: str, definitions: dg.Definitions) -> Iterator[list[subprocess.Popen[bytes]]]:
    config = tmp_path / "celery.yaml"
    config.write_text(f"broker: {broker}/0\nbackend: {broker}/1\n")
    command = ["dagster-celery", "worker", "start", "-A", "dagster_celery.app", "-y", str(config), "-n"]
    started = []
    for name in ("one", "two"):
        with (tmp_path / f"{name}.log").open("wb") as log:
            options = [name, "--", "--concurrency", "1", "--prefetch-multiplier", "1"]
            started.append(subprocess.Popen([*command, *options], stdout=log, stderr=log, start_new_session=True))
    yield started
    for worker in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _launch(instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
    """Start a run as the daemon does once it takes one from the queue."""
    code = RepositoryPythonOrigin(sys.executable, CodePointer.from_module("vidurai_pipeline.definitions", "defs", None))
    run = instance.create_run_for_job(
        definitions.resolve_job_def("maintenance"),
        tags={"dagster/partition": "alice"},
        job_code_origin=JobPythonOrigin("maintenance", code),
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))


def test_a_worker_dies_and_no_memory_is_lost(
    tmp_path: Path, definitions: dg.Definitions, workers: list[subprocess.Popen[bytes]]
) -> None:
    db, archive = tmp_path / "alice/vidurai.db", tmp_path / "archive/store=alice"
    before = hot_rows(db)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("stores", ["alice"])
        _launch(instance, definitions)
        wait_until(lambda: bool(list(archive.glob(".pending/*.json"))))
        holder = json.loads((archive / ".lock.json").read_text())
        os.killpg(os.getpgid(holder["pid"]), signal.SIGKILL)
        assert hot_rows(db), "it died too late"
        assert [worker.poll() is None for worker in workers].count(True) >= 1
        _launch(instance, definitions)  # which the other worker takes
        wait_until(lambda: bool(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))))
    assert_one_tier(before, db, archive)
