"""``vidurai-pipeline rekey``."""

import click
from rich import filesize

from vidurai_pipeline.care.rekey import RekeyReport
from vidurai_pipeline.care.rekey import rekey as encrypt_anew
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import dry_run_option, format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.settings import load_settings


@click.command()
@dry_run_option
@format_option("table", "json")
def rekey(dry_run: bool, form: str) -> None:
    """Encrypt archived files with the newest key.

    Rewrites the files that are plain or under an older key; each new file is read back and compared. Exit code 1: some
    files could not be rewritten.

    For example: vidurai-pipeline rekey --dry-run
    """
    settings = load_settings()
    with output.ProgressLine() as progress:
        report = encrypt_anew(
            open_archive(settings), dry_run=dry_run, lock_timeout=settings.lock_timeout, progress=progress
        )

    def show(report: RekeyReport) -> None:
        title = "Would be encrypted anew (dry run: nothing was changed)" if dry_run else "Encrypted anew"
        facts = {"files": report.files, "memories": report.memories, "size before": filesize.decimal(report.bytes)}
        keys = ", ".join(report.keys_in_use) or "none"
        output.print_facts(title, {**facts, "newest key": report.key, "keys in use": keys, "left": len(report.left)})
        left = [f"{settings.archive_path / file} was left: {reason}" for file, reason in report.left.items()]
        output.say("note", left)

    output.answer(form, report, show, success=not report.left)
