"""``vidurai-pipeline flush``."""

import click

from vidurai_pipeline.analytics.index_process import FlushIndexing
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import FlushReport
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--dry-run", is_flag=True, help="Read and check every row, but write and delete nothing.")
@format_option("table", "json")
def flush(dry_run: bool, form: str) -> None:
    """Archive and purge, without Dagster and without learning.

    For example: vidurai-pipeline flush --dry-run
    """
    settings = load_settings()
    with output.ProgressLine() as progress, FlushIndexing(settings, progress) as indexing:
        report = MemoryArchiver(settings=settings, progress=indexing.progress).flush(dry_run=dry_run)
        if not dry_run and (note := indexing.finish()):
            report.notes.append(note)
    output.answer(form, report, print_report, success=not report.problems)


def print_report(report: FlushReport) -> None:
    """Show what was moved, and what needs attention."""
    facts = report.to_dict()
    title = "Would be archived (dry run: nothing was changed)" if facts.pop("dry_run") else "Flush"
    rejected, files, problems, notes = (facts.pop(name) for name in ("rejected", "files", "problems", "notes"))
    if traffic := facts.pop("object_store", None):
        facts["object store"] = ", ".join(f"{name.replace('_', ' ')}: {n:,}" for name, n in traffic.items())
    output.print_facts(title, {**facts, "rejected": len(rejected), "files": ", ".join(files) or "none"})
    output.print_attention(rejected, notes, problems)
