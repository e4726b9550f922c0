"""Long-running processes of a test, and what they serve."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

#: For a daemon that is to run only what it is told to, whatever the hour and however full the disk.
NOTHING_ON_ITS_OWN = {
    "VIDURAI_EARLY_RUN": "false",
    "VIDURAI_SCHEDULE": "0 0 29 2 *",
    "VIDURAI_CARE_SCHEDULE": "0 0 29 2 *",
    "VIDURAI_HEALTH_SCHEDULE": "0 0 29 2 *",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended with all that it started."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """As systemd does it: SIGTERM for the process, then SIGKILL for what is left of its group."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def answer(url: str, seconds: float = 90) -> Any:
    """The JSON that a server gives once it is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def wait_until(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.2)


def successful_runs(instance: dg.DagsterInstance, count: int, seconds: float = 200) -> list[dg.DagsterRun]:
    """The runs of an instance, once so many have ended well."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = [run for run in instance.get_runs() if run.is_finished]
        if failed := [run for run in runs if not run.is_success]:
            events = instance.all_logs(failed[0].run_id)
            raise AssertionError("\n".join(str(event.dagster_event or event.user_message) for event in events))
        if len(runs) >= count:
            return runs
        time.sleep(0.5)
    raise AssertionError(f"{[(run.job_name, run.status) for run in instance.get_runs()]} after {seconds} s")


def dagster(command: str, environment: Mapping[str, str], workspace: Path, cwd: Path) -> None:
    """Run one of Dagster's own commands to its end, on a workspace."""
    done = subprocess.run(
        [sys.executable, "-m", "dagster", *command.split(), "-w", str(workspace)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
