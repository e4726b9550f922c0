"""``vidurai-pipeline expire``."""

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--dry-run", is_flag=True, help="Count what would be removed, and change nothing.")
@output.format_option("table", "json")
def expire(dry_run: bool, form: str) -> None:
    """Remove archived memories that are older than the rules allow.

    VIDURAI_RETENTION holds the rules, such as NOISE=90d. What they remove is gone for good: a restored backup of the
    hot store does not bring it back. Pinned memories stay, and so does what the Q-table has learned.

    For example: vidurai-pipeline expire --dry-run
    """
    from vidurai_pipeline.care.retention import expire as expire_memories
    from vidurai_pipeline.cold.mirror import open_archive

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
    if form == "json":
        output.print_json(report.to_dict())
    else:
        facts = {
            **({} if dry_run else {"expired": report.expired}),
            **(report.rules or {"rules": "none, everything is kept"}),
            "expired before": report.returned,
            "kept, pinned": report.pinned,
            "kept, without a time": report.undated,
            "months": len(report.months),
        }
        if not dry_run:
            facts["freed"] = output.human_bytes(report.bytes_freed)
        output.print_facts("Would expire (dry run: nothing was changed)" if dry_run else "Expired", facts)
    for problem in report.problems:
        click.echo(f"error: {output.one_line(problem)}", err=True)
    if not report.success:
        raise click.exceptions.Exit(1)
