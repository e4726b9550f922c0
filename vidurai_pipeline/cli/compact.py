"""``vidurai-pipeline compact``."""

import re

import click
from rich import filesize

from vidurai_pipeline.care.compaction import CompactionReport
from vidurai_pipeline.care.compaction import compact as compact_archive
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import dry_run_option, format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.settings import load_settings


def _month(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", value):
        return value
    raise click.BadParameter(f"{value!r} is not a month: write it like 2026-11")


@click.command()
@click.option("--month", metavar="YYYY-MM", callback=_month, help="Only this month. By default, all that are over.")
@dry_run_option
@format_option("table", "json")
def compact(month: str | None, dry_run: bool, form: str) -> None:
    """Put the many small files of past months together.

    No memory changes: the same rows are in fewer files, which are read back and compared before they take the place of
    the old ones. Queries answer faster, since each file costs time. The current month is left alone.

    For example: vidurai-pipeline compact --dry-run
    """
    settings = load_settings()
    with output.ProgressLine() as progress:
        report = compact_archive(
            open_archive(settings),
            month=month,
            dry_run=dry_run,
            lock_timeout=settings.lock_timeout,
            progress=progress,
        )
    output.answer(form, report, print_report, success=report.sound)
    output.say("error", [f"{failed.month}: {failed.error}" for failed in report.months if failed.error is not None])


def print_report(report: CompactionReport) -> None:
    """Show what was compacted."""
    changed = [month for month in report.months if month.files_after != month.files_before]
    if not changed:
        click.echo("nothing to do: no month that is over has small files to put together")
        return
    rows = [
        (
            month.month,
            f"{month.files_before:,}",
            f"{month.files_after:,}",
            filesize.decimal(month.bytes_before),
            "" if month.bytes_after is None else filesize.decimal(month.bytes_after),
        )
        for month in changed
    ]
    output.print_rows(["month", "files", "files after", "size", "size after"], rows, "table")
    if report.dry_run:
        click.echo("dry run: nothing was changed")
