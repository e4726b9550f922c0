"""The systemd units: systemd takes them, and their command lines do what they promise."""

import configparser
import os
import shlex
import shutil
import sqlite3
import string
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest

from vidurai_pipeline_tests.support.processes import (
    NOTHING_ON_ITS_OWN,
    answer,
    dagster,
    free_port,
    running,
    successful_runs,
)
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

pytestmark = pytest.mark.processes

UNITS = Path(__file__).parents[2] / "deploy/systemd"
NAMES = ("vidurai-pipeline-daemon.service", "vidurai-pipeline-webserver.service")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home with the package installed where the units look for it."""
    installed = tmp_path / "home/.local/share/vidurai-pipeline"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(sys.prefix)
    return tmp_path / "home"


def test_systemd_accepts_the_units(home: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    units = home / ".config/systemd/user"
    units.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(UNITS / name, units)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *(str(units / name) for name in NAMES)],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Unit:
    """A service's command lines and environment, as systemd would expand them."""

    def __init__(self, name: str, home: Path, **environment: str) -> None:
        parser = configparser.RawConfigParser()
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(UNITS / name)
        service = {key: value.replace("%h", str(home)) for key, value in parser["Service"].items()}
        given = dict(pair.split("=", 1) for pair in shlex.split(service["Environment"]))
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), **given, **environment}
        self.before, self.command = (
            [string.Template(word).substitute(self.environment) for word in shlex.split(service[key])]
            for key in ("ExecStartPre", "ExecStart")
        )


def test_both_services_started_at_once_in_a_new_home(
    home: Path, sample_store: Callable[[str], Path], tmp_path: Path
) -> None:
    vidurai = home / ".vidurai"
    sample_store("guardian").parent.rename(vidurai)
    before = hot_rows(vidurai / "vidurai.db")
    port = free_port()
    units = [Unit(name, home, DAGSTER_WEBSERVER_PORT=str(port), **NOTHING_ON_ITS_OWN) for name in NAMES]
    first = [subprocess.Popen(unit.before, env=unit.environment, stdout=subprocess.PIPE, text=True) for unit in units]
    dagster_home = vidurai / "dagster"
    assert [(process.communicate()[0], process.returncode) for process in first] == [(f"{dagster_home}\n", 0)] * 2
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        con = sqlite3.connect(dagster_home / name)
        assert con.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,), name
        con.close()
    with ExitStack() as stack:
        for unit in units:
            stack.enter_context(running(unit.command, unit.environment, tmp_path / "log", home))
        assert answer(f"http://127.0.0.1:{port}/server_info")["dagster_version"] == dg.__version__
        dagster("job launch -j maintenance", units[0].environment, dagster_home / "workspace.yaml", home)
        with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
            assert len(successful_runs(instance, 1)) == 1
    assert_one_tier(before, vidurai / "vidurai.db", vidurai / "archive")
    assert (dagster_home / "dagster.yaml").stat().st_uid == os.getuid()


def test_the_example_of_the_environment_changes_nothing() -> None:
    """Whoever copies it has the defaults, until they take a mark of a comment away."""
    lines = (UNITS / "environment").read_text().splitlines()
    assert all(line.startswith("#") or not line for line in lines)
