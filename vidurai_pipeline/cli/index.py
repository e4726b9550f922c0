"""``vidurai-pipeline index``."""

from dataclasses import asdict

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--rebuild", is_flag=True, help="Make it from nothing, not only from what is new.")
@output.format_option("table", "json")
def index(rebuild: bool, form: str) -> None:
    """Bring the search index in line with the archive.

    `search` finds memories by it. `flush` and `run` update it by themselves. It is made from the archive alone and can
    be deleted at any time: searches then read the archive.

    For example: vidurai-pipeline index --rebuild
    """
    from vidurai_pipeline.analytics.word_index import WordIndex
    from vidurai_pipeline.cold.mirror import open_archive

    archive = open_archive(load_settings())
    words = WordIndex(archive.root)
    with output.ProgressLine() as progress:
        report = words.update(archive, rebuild=rebuild, progress=progress)
    if form == "json":
        output.print_json(asdict(report))
    else:
        facts = {**asdict(report), "bytes": output.human_bytes(report.bytes), "folder": words.folder}
        output.print_facts("Search index", facts)
