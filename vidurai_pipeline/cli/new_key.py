"""``vidurai-pipeline new-key``."""

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.keys import SETTING, add_key
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings


@click.command("new-key")
@format_option("table", "json")
def new_key(form: str) -> None:
    """Make a key that new archive files are encrypted with.

    It is added to the file that VIDURAI_ARCHIVE_KEY_FILE names. The older keys stay in it: the files under them need
    them until `vidurai-pipeline rekey` has rewritten these.

    For example: VIDURAI_ARCHIVE_KEY_FILE=~/.vidurai/archive.key vidurai-pipeline new-key
    """
    path = load_settings().archive_key_file
    if path is None:
        raise ConfigError(f"{SETTING} is not set", "set it to where the key file is, or is to be")
    id_ = add_key(path)
    if form == "json":
        output.print_json({"key": id_, "path": str(path)})
    else:
        output.print_facts("New key", {"key": id_, "path": path})
        click.echo("Keep a copy of this file elsewhere. If it is lost, so are all memories that it encrypts.")
