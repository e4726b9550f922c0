"""What the commands that read memories have in common: ``query``, ``search`` and ``show``."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vidurai_pipeline.cli import limits, output
from vidurai_pipeline.cli.options import Command, seconds_option
from vidurai_pipeline.errors import ArchiveWarning, HotStoreWarning, SearchIndexWarning, plural
from vidurai_pipeline.settings import load_settings, memory_bytes

if TYPE_CHECKING:
    from vidurai_pipeline.analytics.engine import RepoAnalyst


def question_options(command: Command) -> Command:
    """The options that become the arguments of :func:`analyst`."""
    command = seconds_option(31_536_000, None, "Stop after this many seconds. By default there is no limit.")(command)
    said = "Answer without damaged files of the archive, say what is missing, and exit with 3."
    command = click.option("--skip-damaged", is_flag=True, help=said)(command)
    said = "Of several stores that share the archive, ask this one alone."
    return click.option("--store", metavar="NAME", help=said)(command)


@contextlib.contextmanager
def analyst(timeout: float | None, skip_damaged: bool, store: str | None) -> "Iterator[RepoAnalyst]":
    """An analyst whose warnings are lines on stderr, and so is that there is nothing to ask yet."""
    from vidurai_pipeline.analytics.engine import RepoAnalyst  # noqa: PLC0415  (completion by Tab needs the options only)
    from vidurai_pipeline.cold.working_copy import traffic_of  # noqa: PLC0415

    settings = load_settings()
    limits.bound_memory(memory_bytes(settings.memory_limit), settings.threads)
    with warnings.catch_warnings(record=True, action="always", category=HotStoreWarning) as caught:
        warnings.simplefilter("always", SearchIndexWarning)
        warnings.simplefilter("always", ArchiveWarning)
        try:
            with RepoAnalyst(timeout=timeout, skip_damaged=skip_damaged, store=store) as asked:
                try:
                    yield asked
                finally:
                    output.end_with(3 if asked.left_out else 0)
                if (traffic := traffic_of(asked.archive_base)).bytes_read:
                    requests = plural(traffic.lists + traffic.reads, "request")
                    output.say("note", [f"{traffic.bytes_read:,} bytes came from the object store, in {requests}"])
                if asked.is_empty():
                    click.echo(
                        f"no archive yet at {asked.archive_base}; `vidurai-pipeline run` makes one, and VIDURAI_HOME "
                        "or VIDURAI_ARCHIVE says where",
                        err=True,
                    )
        finally:
            output.say("note", dict.fromkeys(str(warning.message) for warning in caught))
