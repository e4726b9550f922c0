"""``vidurai-pipeline secrets``."""

from dataclasses import asdict

import click

from vidurai_pipeline.care.secrets import find_secrets
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.settings import load_settings


@click.command()
@format_option("table", "json")
def secrets(form: str) -> None:
    """List archived memories that look as if they hold credentials.

    It names ids and kinds, such as "AWS Access Key", and shows no text. Look at a memory with `show ID`, and erase it
    with `erase --id ID`. What looks like a credential need not be one.

    For example: vidurai-pipeline secrets --format json
    """
    with output.ProgressLine() as progress:
        report = find_secrets(open_archive(load_settings()), progress=progress)
    if form == "json":
        memories = [asdict(suspect) for suspect in report.suspects]
        output.print_json({"files": report.files, "memories": memories, "kinds": report.kinds})
    elif report.suspects:
        rows = ((suspect.id, ", ".join(suspect.kinds), suspect.file) for suspect in report.suspects)
        output.print_rows(["id", "looks like", "file"], rows, "table")
    else:
        click.echo("no archived memory looks as if it held a credential")
