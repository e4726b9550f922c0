"""Stage a file: write it, read it back and compare it with the hot store, all while it is hidden.

Staging only reads the hot store, and no reader of the archive finds what it writes. So it can be left to a process of
its own, which may die at any point.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.contents import FileContents
from vidurai_pipeline.cold.files import discard
from vidurai_pipeline.errors import VerificationError
from vidurai_pipeline.hot.comparison import Comparison, compare
from vidurai_pipeline.hot.rows import RowBatch, read_archived
from vidurai_pipeline.hot.salvage import Rejected
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import snapshot
from vidurai_pipeline.hot.store import HotStore

#: A file ends once its rows take this many bytes in memory, so that it can be read back, and digested, in one go.
FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class StagingRequest:
    """Which file to stage next.

    Attributes:
        path: the name that it is to get.
        after: the last id of the file before it, None for the first.
        rows: the most rows that it holds.
        left_alone: ids of memories that are not archived now.
        version: the hot store's data version before it is read, for the caller to know again.
    """

    path: Path
    after: Any
    rows: int
    left_alone: Collection[int] = ()
    version: int = 0


@dataclass
class StagedFile:
    """A hidden file that equals the hot store's rows, or none if no row was left.

    Attributes:
        path: the name that it is to get.
        schema: the file's schema.
        hidden: the file; None if there was no row for it.
        sha256: its digest.
        rows: how many memories it holds.
        last: the last id that was read, whether its memory was rejected or not.
        rejected: memories left out because Parquet can't hold them.
        version: that of the request.
    """

    path: Path
    schema: pa.Schema
    version: int
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
        verify: read each file back and compare it; the benchmarks measure what that costs.
    """

    def __init__(self, store: HotStore, archive: Archive, moment: datetime, batch: str, *, verify: bool = True) -> None:
        self.moment = moment
        self.batch = batch
        self._store = store
        self._archive = archive
        self._archived_at = moment.replace(tzinfo=None).isoformat(timespec="microseconds")
        self._verify = verify
        self._con: sqlite3.Connection | None = None

    def stage(self, request: StagingRequest, progress: Callable[[int], None]) -> StagedFile:
        """Stage a file, read in a snapshot of its own; tell how many of its memories were read.

        Raises:
            HotStoreError, ArchiveError: nothing of the file is left.
        """
        if self._con is None:
            self._con = self._store.connect()
        con = self._con
        with self._store.errors(), snapshot(con):
            schema = self._store.schema(con)
            staged = StagedFile(request.path, schema.arrow_schema, request.version, last=request.after)
            with contextlib.closing(_read(con, schema, request, staged, progress)) as parts:
                if (first := next(parts, None)) is not None:
                    self._write(con, schema, itertools.chain([first], parts), staged)
        return staged

    def _write(
        self, con: sqlite3.Connection, schema: StoreSchema, parts: Iterable[RowBatch], staged: StagedFile
    ) -> None:
        with self._archive.writer(staged.path, schema.arrow_schema) as writer:
            for part in parts:
                writer.write(part.record_batch(schema, self._archived_at))
            writer.annotate(
                {"vidurai_pipeline": "1", "vidurai_pipeline.batch": self.batch, "vidurai_pipeline.timezone": "UTC"}
            )
        try:
            contents = self._archive.contents(writer.path)
            if self._verify:
                found = compare_contents(con, schema, contents, projects=True)
                if found.differing or found.missing or len(found.equal) != staged.rows:
                    raise VerificationError(
                        f"{staged.path}: read back before it was published, it does not equal the hot store "
                        f"({found.describe()}); it was removed, and nothing was purged"
                    )
        except BaseException:
            discard(writer.path)
            raise
        staged.sha256 = contents.sha256
        staged.hidden = writer.path

    def close(self) -> None:
        """Close the connection to the hot store."""
        if self._con is not None:
            self._con.close()
            self._con = None


def compare_contents(
    con: sqlite3.Connection, schema: StoreSchema, contents: FileContents, *, projects: bool = False
) -> Comparison:
    """Compare all of a file, as it was read from the disk, with the hot store; see :func:`compare`.

    Raises:
        ArchiveError: it is not Parquet.
    """
    result = Comparison()
    for copies in contents.batches():
        result += compare(con, schema, copies, projects=projects)
    return result


def _read(
    con: sqlite3.Connection,
    schema: StoreSchema,
    request: StagingRequest,
    staged: StagedFile,
    progress: Callable[[int], None],
) -> Generator[RowBatch, None, None]:
    """The rows of one file; how far it is and what was rejected is noted."""
    size = 0
    rows = read_archived(con, schema, after=request.after, rows=request.rows, left_alone=request.left_alone)
    with contextlib.closing(rows) as source:  # pyright: ignore[reportArgumentType]
        for part in source:
            staged.rejected += part.rejected
            staged.rows += len(part.ids)
            staged.last = part.last
            progress(staged.rows)
            if part.ids:
                size += sum(array.nbytes for array in part.arrays.values())
                yield part
            if size >= FILE_BYTES:
                return
