"""The commands that make a key for the archive, and encrypt archived files with it."""

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings


@click.command("new-key")
@output.format_option("table", "json")
def new_key(form: str) -> None:
    """Make a key that new archive files are encrypted with.

    It is added to the file that VIDURAI_ARCHIVE_KEY_FILE names. The older keys stay in it: the files under them need
    them until `vidurai-pipeline rekey` has rewritten these.

    For example: VIDURAI_ARCHIVE_KEY_FILE=~/.vidurai/archive.key vidurai-pipeline new-key
    """
    from vidurai_pipeline.cold.keys import SETTING, add_key

    path = load_settings().archive_key_file
    if path is None:
        raise ConfigError(f"{SETTING} is not set", "set it to where the key file is, or is to be")
    id_ = add_key(path)
    if form == "json":
        output.print_json({"key": id_, "path": str(path)})
    else:
        output.print_facts("New key", {"key": id_, "path": path})
        click.echo("Keep a copy of this file elsewhere. If it is lost, so are all memories that it encrypts.")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@output.format_option("table", "json")
def rekey(dry_run: bool, form: str) -> None:
    """Encrypt archived files with the newest key.

    Rewrites the files that are plain or under an older key; each new file is read back and compared. Exit code 1: some
    files could not be rewritten.

    For example: vidurai-pipeline rekey --dry-run
    """
    from vidurai_pipeline.care.rekey import rekey as run_rekey
    from vidurai_pipeline.cold.mirror import open_archive

    settings = load_settings()
    with output.ProgressLine() as progress:
        report = run_rekey(
            open_archive(settings), dry_run=dry_run, lock_timeout=settings.lock_timeout, progress=progress
        )
    if form == "json":
        output.print_json(report.to_dict())
    else:
        title = "Would be encrypted anew (dry run: nothing was changed)" if dry_run else "Encrypted anew"
        facts = {"files": report.files, "memories": report.memories, "size before": output.human_bytes(report.bytes)}
        keys = ", ".join(report.keys_in_use) or "none"
        output.print_facts(title, {**facts, "newest key": report.key, "keys in use": keys, "left": len(report.left)})
        for file, reason in report.left.items():
            click.echo(output.one_line(f"note: {settings.archive_path / file} was left: {reason}"), err=True)
    if report.left:
        raise click.exceptions.Exit(1)
