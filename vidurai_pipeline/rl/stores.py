"""The stores whose memories an archive holds, and how many experiences of which kind each has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vidurai_pipeline.cold.listing import list_files, store_roots
from vidurai_pipeline.cold.mirror import open_root
from vidurai_pipeline.cold.working_copy import refresh
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.rl.dataset import open_experiences
from vidurai_pipeline.settings import Settings

#: What a store without a name is called.
NO_NAME = "(no name)"


class Store(NamedTuple):
    """One store of the fleet.

    Attributes:
        name: as reports call it.
        archive: the folder of its archive.
        q_table: its own table; None if that is not on this machine.
    """

    name: str
    archive: Path
    q_table: Path | None


class CodeCounts(NamedTuple):
    """How many experiences of a store there are of each code (see ``archive_query``).

    Attributes:
        total: of all of them.
        held_out: of those that tables are judged by.
    """

    total: dict[int, int]
    held_out: dict[int, int]


def find_stores(settings: Settings, tables: Mapping[str, Path] | None = None) -> list[Store]:
    """The stores whose memories lie in the archive.

    Args:
        settings: which archive.
        tables: the Q-tables of stores on this machine, by their names; of the settings' own store, theirs is known.
    """
    tables = tables or {}
    base = open_root(settings)
    refresh(base)
    roots = store_roots(base)
    if list_files(base):
        roots = {NO_NAME: base} | roots
    return [
        Store(name, root, settings.q_table_path if root == settings.archive_path else tables.get(name))
        for name, root in roots.items()
    ]


def count_with_duckdb(settings: Settings, stores: Sequence[Store]) -> tuple[dict[str, CodeCounts], dict[str, str]]:
    """Count the experiences of one store after the other.

    Returns:
        The counts, and why a store is left out; by the stores' names.
    """
    counts, left_out = {}, {}
    for store in stores:
        try:
            with open_experiences(settings, store.archive) as experiences:
                counts[store.name] = CodeCounts(experiences.code_counts(), experiences.code_counts(held_out=True))
        except ArchiveError as error:
            left_out[store.name] = str(error)
    return counts, left_out
