"""``vidurai-pipeline search``."""

import sys
from typing import Any

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cli.questions import analyst, question_options
from vidurai_pipeline.settings import load_settings

#: The columns for which a terminal has room.
ON_A_TERMINAL = ("store", "id", "tier", "created_at", "salience", "gist", "file_path", "snippet")


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The most memories to show.")
@click.option("--project", help="Only memories of the project with this id, name or path.")
@click.option("--since", help="Only memories created at or after this time.")
@click.option("--until", help="Only memories created before this time, or before the end of this month or year.")
@click.option("--salience", help="Only memories of this salience, such as HIGH.")
@click.option("--outcome", type=click.IntRange(-1, 1), help="Only memories with this outcome: -1, 0 or 1.")
@click.option(
    "--tier",
    type=click.Choice(["all", "cold", "hot"]),
    default="all",
    show_default=True,
    help="Where to look: in the archive (cold), in the hot store (hot), or in both (all).",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "words", "meaning", "exact"]),
    default="auto",
    show_default=True,
    help="How to look: by the index of words, by meaning, by reading every memory (exact), or by words and meaning "
    "as far as they can be used (auto).",
)
@question_options
@format_option("table", "json", "csv")
def search(
    words: tuple[str, ...],
    *,
    limit: int,
    store: str | None,
    skip_damaged: bool,
    timeout: float | None,
    form: str,
    **filters: Any,
) -> None:
    """Find memories by words in their gist, text, tags or path.

    Memories with all the words come first, then those with similar words, then those with some of them. Ask in your
    own words; small words such as "how" and "the" don't count. Put a phrase between quotation marks:
    vidurai-pipeline search '"connection reset" pytest' --since 7d

    With --mode exact, all words must occur as plain text, in any case, also within longer words. Without a search
    index, `vidurai-pipeline index` makes one, and searches are exact until then.

    With --mode meaning, the memories come whose texts are most like the question's, whatever their words. This needs
    vidurai-pipeline[semantic]. Hot memories are found so only if Vidurai stored a vector with them.

    Times are written like 7d, 2w, today, yesterday, 2026, 2026-11, 2026-11-27 or 2026-11-27T08:30. 7d is seven days
    ago. today and yesterday are days of your time zone; the others are in UTC, as Vidurai stores them, unless they name
    a zone (2026-11-27T08:30+01:00). --until 2026-11 includes November; --until 2026-11-27 ends before that day.
    """
    with analyst(timeout, skip_damaged, store) as asked:
        found = asked.search_archive(" ".join(words), limit + 1, **filters)
        mode, project, tier = filters["mode"], filters["project"], filters["tier"]
        notes = []
        if form == "json":
            output.print_json(found[:limit])
        elif found or form == "csv":
            names = asked.search_columns(tier)
            if form == "table" and sys.stdout.isatty():
                names = [name for name in ON_A_TERMINAL if name in names]
            output.print_rows(names, ([row[name] for name in names] for row in found[:limit]), form)
        else:
            click.echo((project and asked.unknown_project(project)) or "no memory matches", err=True)
            if mode in {"auto", "words"} and asked.has_index:
                notes.append("`--mode exact` also finds what stands within longer words")
        indexed = asked.has_index or asked.is_empty() or load_settings().archive_key_file
        if mode == "auto" and tier != "hot" and not indexed:
            notes.append("there is no search index: `vidurai-pipeline index` makes one")
        if len(found) > limit:
            notes.append(f"there are more matches than the {limit:,} shown; --limit shows more")
        output.say("note", notes)
