"""``vidurai-pipeline run``."""

import os
import shlex
from typing import TYPE_CHECKING

import click
from pydantic import SecretStr

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from vidurai_pipeline.defs.maintenance import RunReport


@click.command()
@format_option("table", "json")
def run(form: str) -> None:
    """Archive, verify, purge and learn: the nightly job, now.

    It runs through Dagster, which keeps its history for the UI.

    For example: vidurai-pipeline run --format json
    """
    from vidurai_pipeline.defs.maintenance import run_maintenance  # noqa: PLC0415  (Dagster is slow to import)

    settings = load_settings()
    with output.ProgressLine() as progress:
        report = run_maintenance(settings, progress, lambda: progress.reached)
    output.answer(form, report, lambda report: print_report(report, settings), success=report.success)


def print_report(report: "RunReport", settings: Settings) -> None:
    """Say what happened in numbers, where the files are, and what to do next."""
    if not report.stopped:
        facts = report.to_dict()
        success, files = facts.pop("success"), ", ".join(facts.pop("files")) or "none"
        seldom = [name for name in ("recovered", "tombstoned") if not facts[name]]
        for name in ("notes", "errors", *seldom):
            del facts[name]
        facts |= {"rejected": len(report.rejected), "hot store": settings.db_path, "new files": files}
        facts |= {"archive": settings.archive_address or settings.archive_path, "Q-table": settings.q_table_path}
        output.print_facts("Maintenance: done" if success else "Maintenance: failed", facts)
    output.print_attention(report.rejected, report.notes, report.errors)
    if report.stopped:
        return
    shown = {f"VIDURAI_{n.upper()}" for n in Settings.model_fields if not isinstance(getattr(settings, n), SecretStr)}
    given = "".join(f"{name}={shlex.quote(os.environ[name])} " for name in sorted(shown) if os.environ.get(name))
    tool = f"{given}{output.program()}"
    if not report.success:
        click.echo(f"\nto see what is wrong, and what to do:\n  {tool} doctor")
        return
    click.echo(
        "\nnext:\n"
        f"  {tool} stats\n"
        f"  {tool} query 'SELECT salience, count(*) FROM history GROUP BY salience'\n"
        f"  {tool} ui   # Dagster's UI, at http://127.0.0.1:3000"
    )
