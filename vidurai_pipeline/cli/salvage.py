"""``vidurai-pipeline salvage``."""

from pathlib import Path

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.keys import key_of
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.cold.salvage import SalvageReport
from vidurai_pipeline.cold.salvage import salvage as save
from vidurai_pipeline.errors import some_of
from vidurai_pipeline.settings import load_settings


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="The new file. By default FILE.salvaged.")
@format_option("table", "json")
def salvage(file: Path, to: Path | None, form: str) -> None:
    """Save what can be read of a damaged file of the archive.

    For a file that has no sound copy in a mirror or a backup. What the checksums in the file prove is written to a new
    one; the damaged file is left as it is. Exit code 1: something is lost.

    For example: vidurai-pipeline salvage archive/year=2026/month=11/memories_20261120_020001.parquet
    """
    report = save(open_archive(load_settings()), file.absolute(), to and to.absolute())
    output.answer(form, report, print_report, success=report.complete)
    if report.to is not None:
        suffix = ".parquet" if (key := key_of(report.to.name)) is None else f".key-{key}.parquet"
        click.echo(
            "next: move the damaged file out of the archive, move the new one into its folder under a new name that "
            f"ends in {suffix}, and run `vidurai-pipeline scrub --all --forget`",
            err=True,
        )


def print_report(report: SalvageReport) -> None:
    """Show what was saved, and what is lost."""
    lost = "none" if report.rows is not None and report.saved == report.rows else some_of(report.lost_ids)
    if report.lost_range is not None:
        lost += " (not all could be read; they are from {} to {})".format(*report.lost_range)
    incomplete = ", ".join(f"{name} ({n:,})" for name, n in report.incomplete.items()) or "none"
    facts = {"memories": report.rows, "saved": report.saved, "lost ids": lost, "NULL in some": incomplete}
    output.print_facts("Salvage", {**facts, "written to": report.to})
