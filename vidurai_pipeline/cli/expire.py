"""``vidurai-pipeline expire``."""

import click
from rich import filesize

from vidurai_pipeline.care.retention import ExpiryReport
from vidurai_pipeline.care.retention import expire as expire_memories
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import dry_run_option, format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.settings import load_settings


@click.command()
@dry_run_option
@format_option("table", "json")
def expire(dry_run: bool, form: str) -> None:
    """Remove archived memories that are older than the rules allow.

    VIDURAI_RETENTION holds the rules, such as NOISE=90d. What they remove is gone for good: a restored backup of the
    hot store does not bring it back. Pinned memories stay, and so does what the Q-table has learned.

    For example: vidurai-pipeline expire --dry-run
    """
    settings = load_settings()
    with output.ProgressLine() as progress:
        report = expire_memories(
            open_archive(settings),
            settings.retention,
            dry_run=dry_run,
            rows_per_file=settings.rows_per_file,
            lock_timeout=settings.lock_timeout,
            progress=progress,
        )

    def show(report: ExpiryReport) -> None:
        facts = {
            **({} if dry_run else {"expired": report.expired}),
            **(report.rules or {"rules": "none, everything is kept"}),
            "expired before": report.returned,
            "kept, pinned": report.pinned,
            "kept, without a time": report.undated,
            "months": len(report.months),
            **({} if dry_run else {"freed": filesize.decimal(report.bytes_freed)}),
        }
        output.print_facts("Would expire (dry run: nothing was changed)" if dry_run else "Expired", facts)

    output.answer(form, report, show, success=report.success)
    output.say("error", report.problems)
