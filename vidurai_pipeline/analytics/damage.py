"""Which of the archive's files can't be read, for when DuckDB failed and its message names none."""

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from vidurai_pipeline.cold.listing import ArchiveFile, Listing
from vidurai_pipeline.cold.manifest import Flaw

#: What to do about a file that can't be read.
ADVICE = "move it out of the archive or restore it from a backup"


def find_damaged(
    connection: duckdb.DuckDBPyConnection,
    listing: Listing,
    files: Sequence[ArchiveFile] | None = None,
    *,
    footers_only: bool = False,
) -> list[ArchiveFile]:
    """Read the files one by one, to find those that can't be read in full. Files that are gone by now are no matter.

    Args:
        connection: reads them; what interrupts it ends the search.
        listing: the archive.
        files: which of its files; all of them by default.
        footers_only: whether their rows are left unread.

    Raises:
        duckdb.InterruptException: the search was stopped.
        duckdb.OutOfMemoryException: DuckDB lacked memory or threads, for which no file is to blame.
    """
    damaged = []
    for file in listing.files if files is None else files:
        path = listing.sql([file])
        # An aggregate that needs every value: the file's statistics can answer nothing of it.
        sql = "SELECT max(hash(COLUMNS(*))) FROM read_parquet({}, hive_partitioning = false)"
        try:
            connection.execute(("SELECT count(*) FROM parquet_schema({})" if footers_only else sql).format(path))
            connection.fetchall()
        except (duckdb.InterruptException, duckdb.OutOfMemoryException):
            raise
        except duckdb.Error as error:
            if any(said in str(error) for said in ("bad_alloc", "temporarily unavailable")):
                raise duckdb.OutOfMemoryException(f"Out of Memory Error: {error}") from None
            if listing.path(file).exists():
                damaged.append(file)
    return damaged


def flaw_message(base: Path, flaws: Sequence[Flaw]) -> str:
    """Name the first file that is not what is recorded of it, how many more there are, and what to do."""
    first = flaws[0]
    memories = sum(flaw.memories or 0 for flaw in flaws)
    more = f", and {len(flaws) - 1:,} more like it" if len(flaws) > 1 else ""
    held = f" ({memories:,} memories)" if memories else ""
    return f"{base / first.file}: {first.reason}{more}{held}. `vidurai-pipeline scrub` says what can be done"


def damage_message(listing: Listing, damaged: Sequence[ArchiveFile]) -> str:
    """Name the first damaged file, how many more there are, and what to do."""
    more = f" ({len(damaged) - 1} more like it)" if len(damaged) > 1 else ""
    path = listing.path(damaged[0])
    if not os.access(path, os.R_OK):
        return f"{path} can't be read: it is not readable for this user{more}"
    return f"{path} is not a readable Parquet file{more}: {ADVICE}"
