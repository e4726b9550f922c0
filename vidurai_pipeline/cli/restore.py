"""``vidurai-pipeline restore``."""

from pathlib import Path

import click

from vidurai_pipeline.archival.restorer import MemoryRestorer
from vidurai_pipeline.archival.restoring import RestoreReport
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import choice_options, confirm, format_option
from vidurai_pipeline.errors import plural
from vidurai_pipeline.hot.restoring import RestoreOptions


@click.command()
@choice_options("restore")
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make a new store from archived memories, as when the hot store is lost. The archive stays as it is.",
)
@click.option("--drop-columns", is_flag=True, help="Leave out what the hot store has no column or table for.")
@click.option("--make-projects", is_flag=True, help="Make projects anew that the hot store no longer has.")
@click.option("--keep-expiry", is_flag=True, help="Keep an expiry that has passed. Vidurai may then delete the memory.")
@format_option("table", "json")
def restore(
    *, ids: tuple[int, ...], where: str | None, into: Path | None, dry_run: bool, yes: bool, form: str, **choices: bool
) -> None:
    """Bring archived memories back into the hot store.

    They are ACTIVE again, whole, and leave the archive. For VIDURAI_RESTORE_GRACE_DAYS they are not archived again.
    Exit code 1: some were refused.

    \b
    For example:
      vidurai-pipeline restore --id 1234
      vidurai-pipeline restore --where "file_path LIKE '%auth.py'" --dry-run
      vidurai-pipeline restore --into rescued.db --where true
    """  # noqa: D301  (click's mark for lines that stay as they are)
    options = RestoreOptions(**choices)
    with output.ProgressLine() as progress:
        restorer = MemoryRestorer(progress=progress)
        if into is not None:
            report = restorer.restore_into(into, ids, where, dry_run=dry_run, options=options)
        else:
            if not (dry_run or yes):
                found = restorer.restore(ids, where, dry_run=True)
                confirm(f"Restore {plural(found.restored, 'memory')}?")
            report = restorer.restore(ids, where, dry_run=dry_run, options=options)
    output.answer(form, report, lambda report: print_report(report, into), success=not report.refused)


def print_report(report: RestoreReport, into: Path | None) -> None:
    """Show what was restored, and what a person should know of it."""
    facts: dict[str, object] = {"restored": report.restored, "refused": len(report.refused)}
    facts |= {"already hot": report.already_hot} if into is None else {"store": into}
    if not (report.dry_run or into):
        facts["archive files rewritten"] = report.files
    output.print_facts("Would be restored (dry run: nothing was changed)" if report.dry_run else "Restored", facts)
    output.say_refused(report)
    notes = []
    if report.unexpired:
        notes.append(
            f"{plural(report.unexpired, 'memory')} had expired. Vidurai hides and deletes expired memories, so the "
            "expiry was removed (--keep-expiry keeps it)"
        )
    if report.would_decay and into is None:
        until = f"until {report.until[:10]}" if report.until else "for VIDURAI_RESTORE_GRACE_DAYS"
        notes.append(
            f"Vidurai's own rules would set {report.would_decay:,} of them aside again: old, seldom recalled, of no "
            f"known use. The pipeline leaves them alone {until}"
        )
    output.say("note", notes)
