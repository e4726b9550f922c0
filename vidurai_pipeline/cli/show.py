"""``vidurai-pipeline show``."""

from typing import Any

import click

from vidurai_pipeline.cli import output, text
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cli.questions import analyst, question_options
from vidurai_pipeline.errors import QueryError


@click.command()
@click.argument("memory_id", metavar="ID", type=int)
@question_options
@format_option("table", "json")
def show(memory_id: int, form: str, **options: Any) -> None:
    """Show one memory, whole, and where it is.

    It is looked up in both tiers. Of a memory with several versions, each is shown, the newest first.

    For example: vidurai-pipeline show 1234
    """
    with analyst(**options) as asked:
        found = asked.memory(memory_id)
        if not found and not asked.left_out:
            raise QueryError(f"no memory has the id {memory_id}", "look for it with `vidurai-pipeline search WORDS`")
        if not found:
            click.echo(f"no memory that can be read has the id {memory_id}", err=True)
        if form == "json":
            output.print_json(found)
        for row in found if form == "table" else ():
            where = {name: row.pop(name) for name in ("tier", "file")}
            del row["content"]  # the text once more
            values = {name: text.cell(value) for name, value in row.items()}
            output.print_facts(f"Memory {memory_id}", where | values)
