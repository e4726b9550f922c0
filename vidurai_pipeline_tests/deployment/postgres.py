"""A PostgreSQL server of a test's own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from vidurai_pipeline_tests.support.processes import free_port

USER, PASSWORD, DATABASE = "dagster", "of this test only", "dagster"


def server_programs() -> Path:
    """The folder of the server's programs, newest version first: Debian keeps them off the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("pg_ctl")
    for folder in [*versions, *([Path(on_path).parent] if on_path else [])]:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")


@contextmanager
def postgres_server() -> Iterator[dict[str, str]]:
    """Run a server until the test is over; gives the environment by which a client finds it.

    PostgreSQL refuses to run as root, so root hands the folder to somebody else.
    """
    programs = server_programs()
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, port = Path(name), free_port()
        nobody = pwd.getpwnam("nobody")
        as_root = os.geteuid() == 0
        if as_root:
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

        def call(program: str, *arguments: str) -> None:
            subprocess.run(
                [programs / program, "-D", str(folder / "data"), *arguments],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                user=nobody.pw_uid if as_root else None,
                group=nobody.pw_gid if as_root else None,
            )

        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        call("initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        try:
            con = psycopg2.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname="postgres")
            con.autocommit = True
            con.cursor().execute(f"CREATE DATABASE {DATABASE}")
            con.close()
            yield {
                "POSTGRES_HOST": "127.0.0.1",
                "POSTGRES_PORT": str(port),
                "POSTGRES_USER": USER,
                "POSTGRES_PASSWORD": PASSWORD,
                "POSTGRES_DB": DATABASE,
            }
        finally:
            call("pg_ctl", "stop", "-w", "-m", "immediate")
