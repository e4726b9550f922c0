"""The archive's files as something that DuckDB can read from: plain ones by itself, encrypted ones by way of Arrow."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from vidurai_pipeline.cold.files import archive_errors
from vidurai_pipeline.cold.listing import FILE, MONTH, STORE, YEAR, ArchiveFile, Listing
from vidurai_pipeline.cold.manifest import StoreManifests, schema_digest
from vidurai_pipeline.errors import ArchiveError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset


def scan(connection: duckdb.DuckDBPyConnection, listing: Listing, files: Sequence[ArchiveFile] | None = None) -> str:
    """Make the SQL that reads all rows of files, with the columns of any of them.

    Args:
        connection: the one that will run it: encrypted files become tables of its own.
        listing: the archive.
        files: which of its files; all of them by default.

    Raises:
        duckdb.IOException: one was withdrawn since it was listed.
    """
    files = listing.files if files is None else files
    sources = []
    if plain := [file for file in files if file.key is None]:
        sources.append(f"read_parquet({listing.sql(plain)}, union_by_name = true, hive_partitioning = false)")
    for group in group_by_schema(listing, [file for file in files if file.key is not None]):
        name = table_name(group)
        connection.register(name, open_encrypted(listing, group))
        sources.append(f"(SELECT * EXCLUDE ({FILE}, {YEAR}, {MONTH}, {STORE}) FROM {name})")
    return sources[0] if len(sources) == 1 else f"({' UNION ALL BY NAME '.join(f'FROM {one}' for one in sources)})"


def group_by_schema(
    listing: Listing, files: Sequence[ArchiveFile], manifests: StoreManifests | None = None
) -> list[list[ArchiveFile]]:
    """The files by key and columns, as they can be read together; those that the manifests know are not opened."""
    groups: dict[tuple[str | None, str], list[ArchiveFile]] = {}
    for file in files:
        entry = None if manifests is None else manifests.entry(file.relative)
        if entry is not None and entry.schema and entry.same_file(file):
            schema = entry.schema
        else:
            path = listing.path(file)
            with _withdrawn(path), archive_errors(path), listing.keys.open(path) as parquet:
                schema = schema_digest(parquet.schema_arrow)
        groups.setdefault((file.key, schema), []).append(file)
    return list(groups.values())


def open_encrypted(listing: Listing, files: Sequence[ArchiveFile]) -> "Dataset":
    """Open encrypted files of one key and schema, for a table."""
    from vidurai_pipeline.cold.encrypted import open_dataset  # noqa: PLC0415  (slow to import)

    with _withdrawn(listing.path(files[0])):
        return open_dataset(listing, files)


@contextlib.contextmanager
def _withdrawn(path: Path) -> Iterator[None]:
    """Say as DuckDB says it that a file is gone, so that the archive is listed again."""
    try:
        yield
    except ArchiveError:
        if not path.exists():
            raise duckdb.IOException(f"IO Error: {path} is gone") from None
        raise


def table_name(files: Sequence[ArchiveFile]) -> str:
    """What the table of some encrypted files is called."""
    names = "\n".join(file.relative for file in files)
    return f"_encrypted_{hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]}"
