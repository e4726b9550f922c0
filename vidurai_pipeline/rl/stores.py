"""The stores whose memories an archive holds, and how many experiences of which kind each has."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vidurai_pipeline.cold.listing import list_files, store_roots
from vidurai_pipeline.cold.mirror import open_root
from vidurai_pipeline.cold.working_copy import refresh
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.rl.dataset import open_experiences
from vidurai_pipeline.settings import Settings

#: What a store without a name is called.
NO_NAME = "(no name)"


@dataclass(slots=True)
class Store:
    """One store of the fleet, and how many of its experiences there are of each code (see ``archive_query``).

    Attributes:
        name: as reports call it.
        archive: the folder of its archive.
        q_table: its own table; None if that is not on this machine.
        total: of all experiences.
        held_out: of those that tables are judged by.
        left_out: why its archive can't be read; None if it can.
    """

    name: str
    archive: Path
    q_table: Path | None
    total: Counter[int] = field(default_factory=Counter)
    held_out: Counter[int] = field(default_factory=Counter)
    left_out: str | None = None


def find_stores(settings: Settings, tables: Mapping[str, Path] | None = None) -> list[Store]:
    """The stores whose memories lie in the archive, given the Q-tables of those on this machine by their names."""
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


def count_with_duckdb(settings: Settings, stores: Sequence[Store]) -> None:
    """Count the experiences of one store after the other."""
    for store in stores:
        try:
            with open_experiences(settings, store.archive) as experiences:
                store.total.update(experiences.code_counts())
                store.held_out.update(experiences.code_counts(held_out=True))
        except ArchiveError as error:
            store.left_out = str(error)
