"""``vidurai-pipeline restore``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.errors import NAMED, ConfigError, plural

if TYPE_CHECKING:
    from vidurai_pipeline.archival.restoring import RestoreReport


def agreed(question: str) -> bool:
    """Ask a person on a terminal.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether to go on", "add --yes, or --dry-run to look first")
    return click.confirm(question, err=True)


@click.command()
@click.option("--id", "ids", type=int, multiple=True, metavar="ID", help="A memory to restore. May be repeated.")
@click.option("--where", metavar="SQL", help="Restore the memories that meet this condition over `memories`.")
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make a new store from archived memories, as when the hot store is lost. The archive stays as it is.",
)
@click.option("--drop-columns", is_flag=True, help="Leave out what the hot store has no column or table for.")
@click.option("--make-projects", is_flag=True, help="Make projects anew that the hot store no longer has.")
@click.option("--keep-expiry", is_flag=True, help="Keep an expiry that has passed. Vidurai may then delete the memory.")
@click.option("--dry-run", is_flag=True, help="Show what would be restored, and change nothing.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@output.format_option("table", "json")
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
    from vidurai_pipeline.archival.restorer import MemoryRestorer
    from vidurai_pipeline.hot.restoring import RestoreOptions

    options = RestoreOptions(**choices)
    with output.ProgressLine() as progress:
        restorer = MemoryRestorer(progress=progress)
        if into is not None:
            report = restorer.restore_into(into, ids, where, dry_run=dry_run, options=options)
        else:
            if not (dry_run or yes):
                found = restorer.restore(ids, where, dry_run=True)
                if not agreed(f"Restore {plural(found.restored, 'memory')}?"):
                    raise click.Abort
            report = restorer.restore(ids, where, dry_run=dry_run, options=options)
    if form == "json":
        output.print_json(report.to_dict())
    else:
        _print(report, into)
    if report.refused:
        raise click.exceptions.Exit(1)


def _print(report: "RestoreReport", into: Path | None) -> None:
    """Show what was restored, and what a person should know of it."""
    facts: dict[str, object] = {"restored": report.restored, "refused": len(report.refused)}
    if into is not None:
        facts["store"] = into
    else:
        facts["already hot"] = report.already_hot
    if not (report.dry_run or into):
        facts["archive files rewritten"] = report.files
    output.print_facts("Would be restored (dry run: nothing was changed)" if report.dry_run else "Restored", facts)
    lines = [f"refused: memory {refusal.id}: {refusal.reason}" for refusal in report.refused[:NAMED]]
    if (more := len(report.refused) - NAMED) > 0:
        lines.append(f"refused: and {more:,} more; `--format json` lists them all")
    if report.unexpired:
        lines.append(
            f"note: {plural(report.unexpired, 'memory')} had expired. Vidurai hides and deletes expired memories, so "
            "the expiry was removed (--keep-expiry keeps it)"
        )
    if report.would_decay and into is None:
        until = f"until {report.until[:10]}" if report.until else "for VIDURAI_RESTORE_GRACE_DAYS"
        lines.append(
            f"note: Vidurai's own rules would set {report.would_decay:,} of them aside again: old, seldom recalled, of "
            f"no known use. The pipeline leaves them alone {until}"
        )
    for line in lines:
        click.echo(line, err=True)
