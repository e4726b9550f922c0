"""``vidurai-pipeline home``."""

import click

from vidurai_pipeline.settings import load_settings


@click.command()
def home() -> None:
    """Print where Dagster keeps its history.

    The folder is made ready, so that several services can start at the same time.

    For example: export DAGSTER_HOME="$(vidurai-pipeline home)"
    """
    from vidurai_pipeline.defs.instance import dagster_home, workspace_file  # noqa: PLC0415  (Dagster is slow to import)

    folder = dagster_home(load_settings())
    workspace_file(folder)
    click.echo(folder)
