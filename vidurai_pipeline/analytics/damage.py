"""Which of the archive's files are damaged, for when DuckDB failed and its message names none, and to go on without."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from vidurai_pipeline.analytics.sources import scan
from vidurai_pipeline.cold.keys import is_encrypted
from vidurai_pipeline.cold.listing import ArchiveFile, Listing
from vidurai_pipeline.cold.manifest import Flaw, Manifests, StoreManifests
from vidurai_pipeline.errors import ArchiveError, plural

#: What to do about a file that can't be read, and about one that is not what is recorded of it.
ADVICE = "move it out of the archive or restore it from a backup"
FLAW_ADVICE = "`vidurai-pipeline scrub` says what can be done"
#: What to do about either when a question was asked.
ASK_ON = "; with `--skip-damaged`, `query`, `search` and `show` answer without it"

_MONTH = re.compile(r"(?:^|/)year=(\d{1,4})/month=(\d{1,2})(?:/|$)")


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
        try:
            rows = scan(connection, listing, [file])
            # An aggregate that needs every value: the file's statistics can answer nothing of it.
            columns = "DESCRIBE SELECT *" if footers_only else "SELECT max(hash(COLUMNS(*)))"
            connection.execute(f"{columns} FROM {rows}")
            connection.fetchall()
        except (duckdb.InterruptException, duckdb.OutOfMemoryException):
            raise
        except ArchiveError:  # encrypted, and can't be opened
            damaged.append(file)
        except duckdb.Error as error:
            if any(said in str(error) for said in ("bad_alloc", "temporarily unavailable")):
                raise duckdb.OutOfMemoryException(f"Out of Memory Error: {error}") from None
            if listing.path(file).exists():
                damaged.append(file)
    return damaged


def flaw_message(base: Path, flaws: Sequence[Flaw]) -> str:
    """Name the first file that is not what is recorded of it, and how many more there are."""
    first = flaws[0]
    memories = sum(flaw.memories or 0 for flaw in flaws)
    more = f", and {len(flaws) - 1:,} more like it" if len(flaws) > 1 else ""
    held = f" ({plural(memories, 'memory')})" if memories else ""
    return f"{base / first.file}: {first.reason}{more}{held}"


def damage_message(listing: Listing, damaged: Sequence[ArchiveFile]) -> str:
    """Name the first damaged file, and how many more there are."""
    more = f" ({len(damaged) - 1} more like it)" if len(damaged) > 1 else ""
    return f"{listing.path(damaged[0])} {_unreadable(listing, damaged[0])}{more}"


def _unreadable(listing: Listing, file: ArchiveFile) -> str:
    if not os.access(listing.path(file), os.R_OK):
        return "can't be read: it is not readable for this user"
    if file.key is None and is_encrypted(listing.path(file)):
        return "is encrypted, but its name names no key: give it its old name"
    return "is not a readable Parquet file"


def without_damaged(
    connection: duckdb.DuckDBPyConnection, listing: Listing, manifests: StoreManifests, intact: set[ArchiveFile]
) -> tuple[Listing, list[Flaw]]:
    """Leave out what is damaged, so that the rest of an archive can be asked.

    Every file is read that is not known to be intact.

    Returns:
        the intact files; and what is wrong with the others, and with those that are gone.
    """

    def memories(file: ArchiveFile) -> int | None:
        if entry := manifests.entry(file.relative):
            return entry.rows
        try:  # its footer may be well
            with listing.keys.open(listing.path(file)) as parquet:
                return parquet.metadata.num_rows
        except (OSError, pa.ArrowException, ArchiveError):
            return None

    flaws = [*manifests.find(Manifests.missing, listing.files), *manifests.find(Manifests.damaged, listing.files)]
    for file in listing.files:
        if listing.keys.missing([file.name]):
            flaws.append(Flaw(file.relative, f"its key {file.key} is not there", memories(file)))
            continue
        try:
            flaws += manifests.find(Manifests.altered, [file])
        except ArchiveError:
            flaws.append(Flaw(file.relative, _unreadable(listing, file), None))
    altered = {flaw.file for flaw in flaws}
    rest = [file for file in listing.files if file.relative not in altered]
    damaged = find_damaged(connection, listing, [file for file in rest if file not in intact])
    flaws += [Flaw(file.relative, _unreadable(listing, file), memories(file)) for file in damaged]
    intact.update(set(rest).difference(damaged))
    return replace(listing, files=tuple(file for file in rest if file in intact)), flaws


def left_out_message(flaws: Sequence[Flaw]) -> str:
    """Say how many memories of which months an answer lacks, and name the first file with its reason."""
    months: dict[str, list[int | None]] = {}
    for flaw in flaws:
        found = _MONTH.search(flaw.file)
        month = f"{int(found[1]):04d}-{int(found[2]):02d}" if found else "unknown months"
        months.setdefault(month, []).append(flaw.memories)
    lacking = []
    for month, counts in sorted(months.items()):
        known = sum(count or 0 for count in counts)
        lost = plural(known, "memory") if known or None not in counts else "an unknown number of memories"
        lacking.append(f"{'at least ' if known and None in counts else ''}{lost} of {month}")
    first = flaws[0]
    count = len(flaws)
    files = "a file is damaged or missing," if count == 1 else f"{count:,} files are damaged or missing, the first is"
    return f"the answer lacks {', '.join(lacking)}: {files} {first.file}: {first.reason}"
