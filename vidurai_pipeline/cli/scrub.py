"""``vidurai-pipeline scrub``."""

import click
from rich import filesize

from vidurai_pipeline.care.healing import prove
from vidurai_pipeline.care.scrub import ADVICE, ScrubReport
from vidurai_pipeline.cli import limits, output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--all", "everything", is_flag=True, help="Read every file, not only the share that is due.")
@click.option("--repair", is_flag=True, help="Heal the archive and its mirror, each from the other.")
@click.option("--forget", is_flag=True, help="Accept that missing files are gone: remove their records.")
@format_option("table", "json")
def scrub(everything: bool, repair: bool, forget: bool, form: str) -> None:
    """Prove that archived files are still what was written.

    Reads files from the disk, at low priority, and compares their SHA-256 with the manifest; in the mirror too if
    VIDURAI_MIRROR names one. Exit code 1: a file is damaged or missing.

    For example: vidurai-pipeline scrub --all
    """
    settings = load_settings()
    if repair and (settings.mirror is None or forget):
        raise ConfigError("--repair needs VIDURAI_MIRROR, and can't be used with --forget")
    limits.lower_priority()
    with output.ProgressLine() as progress:
        report = prove(
            open_archive(settings),
            days=None if everything else settings.scrub_days,
            repair=repair,
            forget_missing=forget,
            lock_timeout=settings.lock_timeout,
            progress=progress,
        )
    output.answer(form, report, print_report, success=report.sound)


def print_report(report: ScrubReport) -> None:
    """Show what was read, and what is wrong."""
    counts = {name: len(getattr(report, name)) for name in ("damaged", "missing", "unknown", "adopted", "forgotten")}
    for title, read, more in (("Scrub", report, counts), ("Mirror", report.mirror, {})):
        if read is not None:
            facts = {"files read": read.files, "size": filesize.decimal(read.bytes), "intact": read.intact, **more}
            output.print_facts(title, {**facts, "oldest proof": read.oldest_proof})
    for path in report.healed:
        click.echo(f"healed: {path}")
    archive = load_settings().archive_path
    for flaw in report.flaws:
        held = "" if flaw.memories is None else f" ({flaw.memories:,} memories)"
        output.say("error", [f"{archive / flaw.file}: {flaw.reason}{held}"])
    if not report.sound:
        click.echo(ADVICE, err=True)
