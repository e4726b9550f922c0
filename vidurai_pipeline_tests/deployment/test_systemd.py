"""The systemd units: systemd takes them, and their command lines do what they promise."""

import configparser
import os
import re
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

from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.processes import (
    NOTHING_ON_ITS_OWN,
    answer,
    dagster,
    free_port,
    running,
    successful_runs,
)
from vidurai_pipeline_tests.support.stores import QUICK
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
    """A service's command line and environment, as systemd would expand them."""

    def __init__(self, name: str, home: Path, **environment: str) -> None:
        parser = configparser.RawConfigParser()
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(UNITS / name)
        service = {key: value.replace("%h", str(home)) for key, value in parser["Service"].items()}
        given = dict(pair.split("=", 1) for pair in shlex.split(service.get("Environment", "")))
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), **QUICK, **given, **environment}
        line = service["ExecStart"].replace("\\\n", " ")
        self.command = [string.Template(word).substitute(self.environment) for word in shlex.split(line)]


def test_both_services_started_at_once_in_a_new_home(
    home: Path, sample_store: Callable[[str], Path], tmp_path: Path
) -> None:
    vidurai = home / ".vidurai"
    sample_store("guardian").parent.rename(vidurai)
    before = hot_rows(vidurai / "vidurai.db")
    port = free_port()
    units = [Unit(name, home, DAGSTER_WEBSERVER_PORT=str(port), **NOTHING_ON_ITS_OWN) for name in NAMES]
    dagster_home = vidurai / "dagster"
    with ExitStack() as stack:
        for unit in units:
            stack.enter_context(running(unit.command, unit.environment, tmp_path / "log", home))
        assert answer(f"http://127.0.0.1:{port}/server_info")["dagster_version"] == dg.__version__
        for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
            con = sqlite3.connect(dagster_home / name)
            assert con.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,), name
            con.close()
        environment = {**units[0].environment, "DAGSTER_HOME": str(dagster_home)}
        dagster("job launch -j maintenance", environment, dagster_home / "workspace.yaml", home)
        with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
            assert len(successful_runs(instance, 1)) == 1
    assert_one_tier(before, vidurai / "vidurai.db", vidurai / "archive")
    assert (dagster_home / "dagster.yaml").stat().st_uid == os.getuid()


@pytest.fixture
def noting_home(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home in which Dagster's programs only print their home and arguments."""
    monkeypatch.delenv("VIDURAI_HOME")
    installed = tmp_path / "a home/.local/share/vidurai-pipeline/bin"
    installed.mkdir(parents=True)
    (installed / "vidurai-pipeline").symlink_to(programs / "vidurai-pipeline")
    for name in ("dagster-daemon", "dagster-webserver"):
        (installed / name).write_text('#!/bin/sh\necho "$DAGSTER_HOME"\nfor word; do echo "$word"; done\n')
        (installed / name).chmod(0o755)
    return tmp_path / "a home"


def output(words: list[str], environment: dict[str, str], home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "settings", [{}, {"VIDURAI_HOME": "{0}"}, {"VIDURAI_DB": "{0}/vidurai.db"}, {"DAGSTER_HOME": "{1}"}]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_service_and_the_command_line_have_the_same_home(
    noting_home: Path, sample_store: Callable[[str], Path], tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    named = "VIDURAI_HOME" in settings or "VIDURAI_DB" in settings
    vidurai = tmp_path / "else where" if named else noting_home / ".vidurai"
    sample_store("schema_v7").parent.rename(vidurai)
    filled = {key: value.format(vidurai, tmp_path / "history") for key, value in settings.items()}
    unit = Unit(name, noting_home, **filled)
    said, *arguments = output(unit.command, unit.environment, noting_home).stdout.splitlines()
    assert said == cli("home", **unit.environment).stdout.strip()
    assert Path(said) == (tmp_path / "history" if "DAGSTER_HOME" in settings else vidurai / "dagster")
    assert f"{said}/workspace.yaml" in arguments
    assert Path(said, "workspace.yaml").is_file()


@pytest.mark.parametrize("settings", [{}, {"VIDURAI_HOME": "{0}"}, {"VIDURAI_DB": "{0}/vidurai.db"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_service_names_the_folder_that_is_missing_and_makes_none(
    noting_home: Path, tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    missing = tmp_path / "missing" if settings else noting_home / ".vidurai"
    unit = Unit(name, noting_home, **{key: value.format(missing) for key, value in settings.items()})
    done = output(unit.command, unit.environment, noting_home)
    assert done.returncode != 0
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert str(missing) in done.stderr
    assert not missing.exists()


def test_the_example_of_the_environment_changes_nothing() -> None:
    """A copy of it has the defaults, until a line's comment mark is removed."""
    lines = (UNITS / "environment").read_text().splitlines()
    assert all(line.startswith("#") or not line for line in lines)


def test_the_example_reads_the_same_in_a_shell(tmp_path: Path) -> None:
    lines = [line[1:] for line in (UNITS / "environment").read_text().splitlines() if re.match(r"#[A-Z_]+=", line)]
    assert lines
    for line in lines:
        name, value = line.split("=", 1)
        done = output(["/bin/sh", "-ec", f'{line}\nprintf %s "${name}"'], {}, tmp_path)
        assert f'"{done.stdout}"' == value
