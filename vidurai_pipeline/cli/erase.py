"""``vidurai-pipeline erase``."""

import click

from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.archival.erasing import EraseReport
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import choice_options, confirm, format_option
from vidurai_pipeline.errors import plural
from vidurai_pipeline.rl.dreamer import DreamCycle


@click.command()
@choice_options("erase")
@click.option("--match", metavar="WORDS", help="Erase the memories in which all these words occur, as they stand.")
@click.option("--history", is_flag=True, help="List earlier erasures: when, how many memories, how they were chosen.")
@format_option("table", "json")
def erase(
    *, ids: tuple[int, ...], where: str | None, match: str | None, dry_run: bool, yes: bool, history: bool, form: str
) -> None:
    """Erase memories for good, wherever they are, and prove it.

    They leave the hot store, the archive and its mirror in all versions. Then the files are searched for their text.
    A restored backup of the store does not bring them back, but backups themselves are out of reach: delete these
    yourself. Of several ways to choose, each adds memories. Exit code 1: something is left, or was refused.

    \b
    For example:
      vidurai-pipeline erase --match hunter2 --dry-run
      vidurai-pipeline erase --id 1234 --yes
    """  # noqa: D301  (click's mark for lines that stay as they are)
    with output.ProgressLine() as progress:
        eraser = MemoryEraser(progress=progress)
        if history:
            rows = [(one.at, one.memories, one.chosen, one.left) for one in eraser.history()]
            output.print_rows(["at", "memories", "chosen", "left"], rows, form)
            return
        if not (dry_run or yes):
            found = eraser.erase(ids, where, match, dry_run=True)
            confirm(f"Erase {plural(found.erased, 'memory')} for good?")
        report = eraser.erase(ids, where, match, dry_run=dry_run, forget=DreamCycle().forget)
    output.answer(form, report, print_report, success=report.success)


def print_report(report: EraseReport) -> None:
    """Show what became of the memories in each place."""
    facts: dict[str, object] = {"memories": report.erased, "refused": len(report.refused)}
    facts |= {place.place: f"{place.found:,}, {place.how}" if place.found else place.how for place in report.places}
    if not report.dry_run:
        facts["searched for"] = (
            f"{plural(report.proved, 'piece')} of the text of {report.searched:,} of {plural(report.erased, 'memory')}"
        )
        facts["backups and snapshots"] = "out of reach; delete these yourself"
    output.print_facts("Would be erased (dry run: nothing was changed)" if report.dry_run else "Erased", facts)
    output.say_refused(report)
