"""``vidurai-pipeline ui``."""

import os
import socket
import sys

import click

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True, help="Where to serve it.")
def ui(port: int) -> None:
    """Open Dagster's UI.

    It shows the history of all runs. The nightly schedule is on for as long as it is open.

    For example: vidurai-pipeline ui --port 3001
    """
    from vidurai_pipeline.defs.instance import dagster_home, workspace_file  # noqa: PLC0415  (Dagster is slow to import)

    settings = load_settings()
    home = dagster_home(settings)
    require_free(port)
    click.echo(f"Dagster's UI for the hot store {settings.db_path}, at http://127.0.0.1:{port}; Ctrl-C ends it")
    # Absolute, since Dagster starts in another folder.
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "VIDURAI_HOME": str(settings.home),
        "VIDURAI_DB": str(settings.db_path),
        "VIDURAI_ARCHIVE": str(settings.archive or settings.archive_root),
        "VIDURAI_Q_TABLE": str(settings.q_table_path),
    }
    command = ["dagster", "dev", "-w", str(workspace_file(home)), "--port", str(port)]
    os.chdir(home)
    # Dagster recommends `dg dev`, which needs a project's folder that an installed package has not.
    quiet = ["-W", "ignore:Function `dev_command` is superseded:FutureWarning"]
    os.execve(sys.executable, [sys.executable, *quiet, "-m", *command], environment)  # noqa: S606


def require_free(port: int) -> None:
    """Refuse a port that another program uses, before Dagster does so at length.

    Raises:
        ConfigError: it can't be used; the hint names another.
    """
    with socket.socket() as probe:
        # As the web server does it: a connection that has just ended does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            another = port + 1 if port < 65_535 else 3000
            raise ConfigError(
                f"port {port} can't be used: {os.strerror(error.errno or 0)}",
                f"close the program that uses it, or choose another: `vidurai-pipeline ui --port {another}`",
            ) from None
