"""``vidurai-pipeline compact``."""

import re
from typing import TYPE_CHECKING

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.settings import load_settings

if TYPE_CHECKING:
    from vidurai_pipeline.care.compaction import CompactionReport


def _month(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", value):
        return value
    raise click.BadParameter(f"{value!r} is not a month: write it like 2026-11")


@click.command()
@click.option("--month", metavar="YYYY-MM", callback=_month, help="Only this month. By default, all that are over.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@output.format_option("table", "json")
def compact(month: str | None, dry_run: bool, form: str) -> None:
    """Put the many small files of past months together.

    No memory changes: the same rows are in fewer files, which are read back and compared before they take the place of
    the old ones. Queries answer faster, since each file costs time. The current month is left alone.

    For example: vidurai-pipeline compact --dry-run
    """
    from vidurai_pipeline.care.compaction import compact as compact_archive
    from vidurai_pipeline.cold.mirror import open_archive

    settings = load_settings()
    with output.ProgressLine() as progress:
        report = compact_archive(
            open_archive(settings),
            month=month,
            dry_run=dry_run,
            lock_timeout=settings.lock_timeout,
            progress=progress,
        )
    if form == "json":
        output.print_json(report.to_dict())
    else:
        _print(report)
    for failed in report.months:
        if failed.error is not None:
            click.echo(output.one_line(f"error: {failed.month}: {failed.error}"), err=True)
    if not report.sound:
        raise click.exceptions.Exit(1)


def _print(report: "CompactionReport") -> None:
    changed = [month for month in report.months if month.files_after != month.files_before]
    if not changed:
        click.echo("nothing to do: no month that is over has small files to put together")
        return
    rows = [
        (
            month.month,
            f"{month.files_before:,}",
            f"{month.files_after:,}",
            output.human_bytes(month.bytes_before),
            "" if month.bytes_after is None else output.human_bytes(month.bytes_after),
        )
        for month in changed
    ]
    output.print_rows(["month", "files", "files after", "size", "size after"], rows, "table")
    if report.dry_run:
        click.echo("dry run: nothing was changed")
