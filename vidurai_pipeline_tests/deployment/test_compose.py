"""The containers: their files are valid, and each service's command does its work on a real PostgreSQL server."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg2
import pytest
import yaml

from vidurai_pipeline.defs.run_retention import prune_runs
from vidurai_pipeline_tests.deployment.postgres import postgres_server, server_programs
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

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/compose"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def tool(name: str, *arguments: str | Path) -> None:
    words = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_valid() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    tool("hadolint", DEPLOY / "Dockerfile")


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignored, name


def test_every_variable_has_an_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    named = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) - {"VIDURAI_PIPELINE_VERSION"}
    examples = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    assert named <= set(examples)
    assert examples["POSTGRES_PASSWORD"] == ""


def test_nobody_is_root_and_only_the_code_server_sees_the_memories() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)[-1] == "${UID}:${GID}"
    for name, service in SERVICES.items():
        assert "no-new-privileges:true" in service["security_opt"]
        assert "healthcheck" in service or name == "migrate"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        folders = [volume for volume in service.get("volumes", []) if isinstance(volume, dict)]
        assert bool(folders) == (name == "code")


@pytest.fixture
def environment(sample_store: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """A container's environment, as far as it is not in the compose file."""
    home = tmp_path / "dagster"
    home.mkdir()
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(DEPLOY / name, home)
    return {
        **NOTHING_ON_ITS_OWN,
        **QUICK,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "DAGSTER_HOME": str(home),
        "DAGSTER_LOGS": str(tmp_path / "logs"),
        "VIDURAI_HOME": str(sample_store("guardian").parent),
        "CODE_HOST": "127.0.0.1",
        "CODE_PORT": str(free_port()),
        "UI_PORT": str(free_port()),
        "VIDURAI_LOCK_TIMEOUT": "60",  # for two runs that Dagster takes up at once
    }


def command(words: list[str], environment: dict[str, str]) -> list[str]:
    """A command of the compose file, with ports that are free here."""
    ports = {"4000": environment["CODE_PORT"], "3000": environment["UI_PORT"], "0.0.0.0": "127.0.0.1"}
    return [ports.get(word, word.replace(":3000/", f":{ports['3000']}/")) for word in words]


def healthy(service: str, environment: dict[str, str], cwd: Path, seconds: float = 120) -> None:
    test = SERVICES[service]["healthcheck"]["test"]
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            command(test[1:], environment), env=environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, f"{service}: {done.stdout[-500:]}{done.stderr[-500:]}"
        time.sleep(2)  # each try takes a second of the processor


def test_the_services_run_the_job_and_keep_its_history_in_postgresql(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = Path(environment["DAGSTER_HOME"]), Path(environment["VIDURAI_HOME"])
    before = hot_rows(store / "vidurai.db")
    with ExitStack() as stack:
        environment |= stack.enter_context(postgres_server())
        subprocess.run(SERVICES["migrate"]["command"], env=environment, cwd=home, check=True, capture_output=True)
        for service in ("code", "webserver", "daemon"):
            words = command(SERVICES[service]["command"], environment)
            stack.enter_context(running(words, environment, tmp_path / f"{service}.log", home))
            if service == "code":
                healthy(service, environment, home)
        healthy("webserver", environment, home)
        healthy("daemon", environment, home)
        assert answer(f"http://127.0.0.1:{environment['UI_PORT']}/server_info")
        dagster("job launch -j maintenance", environment, home / "workspace.yaml", home)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            (run,) = instance.get_runs()
            instance.add_run(run._replace(run_id=str(uuid4()), status=dg.DagsterRunStatus.QUEUED))
            runs = successful_runs(instance, 2)
            assert len(runs) == 2
            con = stack.enter_context(closing(connect(environment)))
            con.autocommit = True
            cursor = con.cursor()
            cursor.execute("SELECT run_id FROM runs WHERE status = 'SUCCESS'")
            assert {row[0] for row in cursor.fetchall()} == {run.run_id for run in runs}
            cursor.execute("SELECT asset_key FROM asset_keys WHERE last_materialization IS NOT NULL")
            assert len(cursor.fetchall()) == 5
            assert not list(home.rglob("*.db"))

            assert prune_runs(instance, datetime.now(tz=UTC) + timedelta(days=1)) == 1
            cursor.execute("SELECT DISTINCT run_id FROM event_logs WHERE run_id <> ''")
            assert {row[0] for row in cursor.fetchall()} == {run.run_id for run in instance.get_runs()}
    assert_one_tier(before, store / "vidurai.db", store / "archive")


def connect(found: dict[str, str]) -> Any:
    return psycopg2.connect(
        host=found["POSTGRES_HOST"],
        port=found["POSTGRES_PORT"],
        dbname=found["POSTGRES_DB"],
        user=found["POSTGRES_USER"],
        password=found["POSTGRES_PASSWORD"],
    )


def test_the_databases_backup_restores(environment: dict[str, str], tmp_path: Path) -> None:
    """The guide's way back after an upgrade, by the client programs of this machine."""
    text = (ROOT / "docs/deployment.md").read_text()
    dump, restore = re.findall(r"exec -T postgres (pg_dump|pg_restore)( .*) [<>] before\.dump", text)
    file = tmp_path / "before.dump"
    with postgres_server() as found, closing(connect(found)) as con:
        client = {
            "PATH": f"{server_programs()}:{os.environ['PATH']}",
            "PGHOST": found["POSTGRES_HOST"],
            "PGPORT": found["POSTGRES_PORT"],
            "PGPASSWORD": found["POSTGRES_PASSWORD"],
        }
        con.autocommit = True
        cursor = con.cursor()
        home = environment["DAGSTER_HOME"]
        subprocess.run(
            SERVICES["migrate"]["command"], env=environment | found, cwd=home, check=True, capture_output=True
        )
        cursor.execute("INSERT INTO runs (run_id, status) VALUES ('before', 'SUCCESS')")
        file.write_bytes(subprocess.run("".join(dump).split(), env=client, check=True, capture_output=True).stdout)
        cursor.execute("INSERT INTO runs (run_id, status) VALUES ('after', 'SUCCESS')")
        cursor.execute("ALTER TABLE runs ADD COLUMN of_a_newer_version TEXT")
        subprocess.run("".join(restore).split(), env=client, check=True, input=file.read_bytes())
        cursor.execute("SELECT * FROM runs")
        assert "of_a_newer_version" not in {column.name for column in cursor.description or ()}
        cursor.execute("SELECT run_id FROM runs")
        assert cursor.fetchall() == [("before",)]


def test_first_users_of_a_new_database_at_once(environment: dict[str, str], programs: Path) -> None:
    """Whoever leaves `migrate` out must not get the broken home that SQLite would give.

    PostgreSQL may turn one of them away, for making a table that another one is making; the container starts again.
    """
    script = "import dagster as dg, sys\nwith dg.DagsterInstance.get() as i: print(len(i.get_runs()))"
    with postgres_server() as found:

        def user() -> subprocess.Popen[str]:
            command = [programs / "python", "-c", script]
            return subprocess.Popen(command, env=environment | found, stdout=subprocess.PIPE, text=True)

        first = [user() for _ in range(4)]
        assert "0\n" in [each.communicate()[0] for each in first]
        again = user()
        assert (again.communicate()[0], again.returncode) == ("0\n", 0)
        with closing(connect(found)) as con, con.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM alembic_version")
            assert cursor.fetchone() == (1,)
