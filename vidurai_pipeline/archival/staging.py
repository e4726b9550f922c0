"""Stage a file: write it, read it back and compare it with the hot store, all while it is hidden.

Staging only reads the hot store, and what it writes has no name yet that a reader of the archive would find. So it
can be left to a process of its own, which may die at any point.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidurai_pipeline.cold.archive import Archive, discard, read_back
from vidurai_pipeline.cold.files import archive_errors, digest
from vidurai_pipeline.errors import VerificationError
from vidurai_pipeline.hot.comparison import Comparison, compare
from vidurai_pipeline.hot.rows import RowBatch, read_archived
from vidurai_pipeline.hot.salvage import Rejected
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import snapshot
from vidurai_pipeline.hot.store import HotStore


@dataclass
class StagedFile:
    """A hidden file that equals the hot store's rows, or none if no row was left.

    Attributes:
        schema: the file's schema.
        hidden: the file; None if there was no row for it.
        sha256: its digest.
        rows: how many memories it holds.
        last: the last id that was read, whether its memory was rejected or not.
        rejected: memories left out because Parquet can't hold them.
    """

    schema: pa.Schema
    hidden: Path | None = None
    sha256: str = ""
    rows: int = 0
    last: Any = None
    rejected: list[Rejected] = field(default_factory=list)


class Stager:
    """Stages the files of one run, one after the other.

    Args:
        store: the hot store.
        archive: the archive.
        moment: the moment of archival, in UTC.
        batch: identifies the run in the files' metadata.
        rows_per_file: the most rows that a file holds.
    """

    def __init__(self, store: HotStore, archive: Archive, moment: datetime, batch: str, rows_per_file: int) -> None:
        self.moment = moment
        self.batch = batch
        self._store = store
        self._archive = archive
        self._archived_at = moment.replace(tzinfo=None).isoformat(timespec="microseconds")
        self._rows_per_file = rows_per_file
        self._con: sqlite3.Connection | None = None

    def stage(self, path: Path, after: Any, progress: Callable[[int], None]) -> StagedFile:
        """Stage the next file; it is read in a snapshot of its own.

        Args:
            path: the name that the file is to get.
            after: the last id of the file before it.
            progress: called with how many of its memories were read.

        Raises:
            HotStoreError, ArchiveError: nothing of the file is left.
        """
        if self._con is None:
            self._con = self._store.connect()
        con = self._con
        with self._store.errors(), snapshot(con):
            schema = self._store.schema(con)
            staged = StagedFile(schema.arrow_schema, last=after)
            parts = _noted(read_archived(con, schema, after=after, rows=self._rows_per_file), staged, progress)
            with contextlib.closing(parts):  # before the connection is
                if (first := next(parts, None)) is not None:
                    self._write(con, schema, path, itertools.chain([first], parts), staged)
        return staged

    def _write(
        self, con: sqlite3.Connection, schema: StoreSchema, path: Path, parts: Iterable[RowBatch], staged: StagedFile
    ) -> None:
        with self._archive.writer(path, schema.arrow_schema) as writer:
            for part in parts:
                writer.write(part.record_batch(schema, self._archived_at))
            writer.annotate(
                {"vidurai_pipeline": "1", "vidurai_pipeline.batch": self.batch, "vidurai_pipeline.timezone": "UTC"}
            )
        try:
            found = compare_file(con, writer.path, schema)
            if found.differing or found.missing or len(found.equal) != staged.rows:
                raise VerificationError(
                    f"{path}: read back before it was published, it does not equal the hot store "
                    f"({found.describe()}); it was removed, and nothing was purged"
                )
            staged.sha256 = digest(writer.path)
        except BaseException:
            discard(writer.path)
            raise
        staged.hidden = writer.path

    def close(self) -> None:
        """Close the connection to the hot store."""
        if self._con is not None:
            self._con.close()
            self._con = None


def compare_file(con: sqlite3.Connection, path: Path, schema: StoreSchema) -> Comparison:
    """Read a file back from the disk and compare all of it with the hot store.

    Raises:
        ArchiveError: it can't be read.
    """
    result = Comparison()
    with archive_errors(path):
        for copies in read_back(path):
            result += compare(con, schema, copies)
    return result


def _noted(
    source: Iterator[RowBatch], staged: StagedFile, progress: Callable[[int], None]
) -> Generator[RowBatch, None, None]:
    """Pass on what holds rows; note how far it is and what was rejected."""
    with contextlib.closing(source):  # pyright: ignore[reportArgumentType]
        for part in source:
            staged.rejected += part.rejected
            staged.rows += len(part.ids)
            staged.last = part.last
            progress(staged.rows)
            if part.ids:
                yield part
