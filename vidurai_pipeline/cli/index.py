"""``vidurai-pipeline index``."""

from dataclasses import asdict

import click
from rich import filesize

from vidurai_pipeline.analytics.vector_index import update_vectors
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--rebuild", is_flag=True, help="Make it from nothing, not only from what is new.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="How long to embed memories for the search by meaning. Default: VIDURAI_EMBED_MINUTES.",
)
@format_option("table", "json")
def index(rebuild: bool, minutes: float | None, form: str) -> None:
    """Bring the search index in line with the archive.

    `search` finds memories by it. `flush` and `run` update it by themselves. It is made from the archive alone and can
    be deleted at any time: searches then read the archive.

    To search by meaning, install vidurai-pipeline[semantic]. Embedding takes about a minute for 5,000 memories: it
    stops when the minutes are over, and goes on with the next `index` or nightly run.

    For example: vidurai-pipeline index --minutes 60
    """
    settings = load_settings()
    archive = open_archive(settings)
    words = WordIndex(archive.root)
    with output.ProgressLine() as progress:
        report = words.update(archive, rebuild=rebuild, verify=True, progress=progress)
        vectors, note = update_vectors(archive, settings, minutes=minutes, rebuild=rebuild, progress=progress)
    if form == "json":
        output.print_json({**asdict(report), "vectors": asdict(vectors), "note": note})
    else:
        facts = {**asdict(report), "bytes": filesize.decimal(report.bytes), "folder": words.folder}
        output.print_facts("Search index", facts)
        facts = {**asdict(vectors), "bytes": filesize.decimal(vectors.bytes), "state": note or vectors.state}
        output.print_facts("Search by meaning", facts)
