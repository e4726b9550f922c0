"""``vidurai-pipeline demo``."""

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.hot.sample_store import make_store


@click.command()
@click.argument("folder", default="sample", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(min=0), default=2_000, show_default=True, help="How many memories.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same memories.")
@format_option("table", "json")
def demo(folder: Path, rows: int, seed: int, form: str) -> None:
    """Make a sample hot store in FOLDER, for a machine without Vidurai.

    For example: vidurai-pipeline demo sample --rows 500
    """
    with output.ProgressLine() as progress:
        made = make_store(
            folder / "vidurai.db", rows, seed=seed, progress=lambda done, total: progress("writing", done, total)
        )
    if form == "json":
        output.print_json({**asdict(made), "path": str(made.path)})
    else:
        output.print_facts("Sample store", {"path": made.path, "memories": made.rows, **made.by_status})
        click.echo(f"\nnext: VIDURAI_HOME={shlex.quote(str(folder))} {output.program()} run")
