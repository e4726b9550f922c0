"""``vidurai-pipeline move-into-store``."""

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.moving import move_into_store as move
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import load_settings, require_store_name


@click.command("move-into-store")
@click.argument("name")
@format_option("table", "json")
def move_into_store(name: str, form: str) -> None:
    """Move the archive into a folder of its own, so that other stores can share its place.

    The archive, and its mirror, become `store=NAME` of what VIDURAI_ARCHIVE and VIDURAI_MIRROR name. Then set
    VIDURAI_STORE_NAME to the name. If the command is interrupted, give it again.

    For example: vidurai-pipeline move-into-store alice
    """
    try:
        require_store_name(name)
    except ValueError as error:
        raise ConfigError(f"{name!r}: {error}") from None
    folder = move(load_settings(), name)
    if form == "json":
        output.print_json({"archive": str(folder)})
    else:
        output.print_facts("Moved", {"archive": folder, "next": f"set VIDURAI_STORE_NAME={name}"})
