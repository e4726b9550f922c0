"""The archive as the learner sees it: one row for each version that has an outcome, in a total order.

A version is the memory's id, ``created_at``, outcome, salience and size in tokens. The archive may hold it more than
once: Vidurai's own archiver writes a row again, with a new ``archived_at``, when it could not delete it the night
before. Such copies teach nothing new; only the one archived first counts.

DuckDB reads the files once, keeps a few numbers of each experience in a temporary table (on disk beyond its memory
limit) and hands them over in batches, so a large archive takes little memory. No text leaves it.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidurai_pipeline.analytics.connection import connect
from vidurai_pipeline.rl.archive_query import TABLE, decode_experience, read_archive, unreadable
from vidurai_pipeline.rl.inference import Transition, infer_transition

_BATCH_ROWS = 65_536

#: The share of experiences that a table is judged by.
HELD_OUT_SHARE = 0.2
# Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of the id: it spreads consecutive ids evenly, and is
# the same in every version of DuckDB, as its own hash need not be.
_HELD_OUT = f"((id & 2147483647) * 2654435769) & 4294967295 < {int(HELD_OUT_SHARE * 2**32)}"


class Watermark(NamedTuple):
    """A place in the order of learning: everything up to it is behind."""

    archived_at: str
    id: int


class Batch(NamedTuple):
    """Some experiences in their order.

    Attributes:
        codes: each as the code that ``decode_experience`` takes apart.
        held_out: whether it is one of those that tables are judged by.
        archived_at: when it was archived.
        ids: of its memory.
    """

    codes: npt.NDArray[np.int32]
    held_out: npt.NDArray[np.bool_]
    archived_at: pa.Array
    ids: pa.Array

    @property
    def last(self) -> Watermark:
        """The place of the last one."""
        return Watermark(self.archived_at[-1].as_py(), self.ids[-1].as_py())

    def slices(self, most: int) -> Iterator["Batch"]:
        """The batch in parts of like size, of no more than so many experiences."""
        size = math.ceil(len(self.codes) / math.ceil(len(self.codes) / most))
        for start in range(0, len(self.codes), size):
            part = slice(start, start + size)
            yield Batch(self.codes[part], self.held_out[part], self.archived_at[part], self.ids[part])


class Experiences:
    """All experiences of an archive, read when it is opened.

    Attributes:
        total: how many there are.
        skipped: how many rows with an outcome can't be learned, by reason.
        duplicates: how many further copies of the experiences the archive holds.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        [(self.total, self.duplicates)] = cursor.execute(
            f"SELECT count(*), coalesce(sum(copies), 0)::BIGINT - count(*) FROM {TABLE} WHERE reason IS NULL"
        ).fetchall()
        self.skipped: dict[str, int] = dict(
            cursor.execute(
                f"SELECT reason, sum(copies)::BIGINT FROM {TABLE} WHERE reason IS NOT NULL GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        )

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        archive_base: Path,
        connection: duckdb.DuckDBPyConnection | None = None,
        *,
        memory_limit: str = "1GB",
        threads: int | None = None,
    ) -> Iterator[Self]:
        """Read an archive; a missing or empty one has no experiences.

        Args:
            archive_base: the archive's folder.
            connection: a DuckDB connection to work in; default a private one within the limits that follow.
            memory_limit: the most memory that the private one may use, in DuckDB's notation.
            threads: of the private one; default one for each core.

        Raises:
            ArchiveError: a file is damaged, or the archive can't be read.
        """
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vidurai-dream-")))
            if connection is None:
                connection = stack.enter_context(connect(memory_limit, threads, scratch))
            cursor = stack.enter_context(connection.cursor())
            read_archive(cursor, archive_base, scratch)
            try:
                yield cls(cursor)
            except duckdb.Error as error:
                raise unreadable(archive_base, error) from None
            finally:
                with contextlib.suppress(duckdb.Error):
                    cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")

    def last(self) -> Watermark | None:
        """The place of the last experience; None if there is none."""
        rows = self._cursor.execute(
            f"SELECT archived_at, id FROM {TABLE} WHERE reason IS NULL ORDER BY archived_at DESC, id DESC LIMIT 1"
        ).fetchall()
        return Watermark(*rows[0]) if rows else None

    def count_up_to(self, watermark: Watermark | None) -> int:
        """How many experiences stand at or before a place."""
        if watermark is None:
            return 0
        [(count,)] = self._cursor.execute(
            f"SELECT count(*) FROM {TABLE} WHERE reason IS NULL AND (archived_at, id) <= (?, ?)", list(watermark)
        ).fetchall()
        return count

    def held_out(self) -> dict[int, int]:
        """The codes of the experiences that tables are judged by, each with how many there are of it."""
        return dict(
            self._cursor.execute(
                f"SELECT code, count(*) FROM {TABLE} WHERE reason IS NULL AND {_HELD_OUT} GROUP BY code ORDER BY code"
            ).fetchall()
        )

    def transition(self, code: int) -> Transition:
        """What the experiences of a code teach."""
        return infer_transition(*decode_experience(code))

    def stream(
        self, *, after: Watermark | None = None, newest_first: bool = False, limit: int | None = None
    ) -> Iterator[Batch]:
        """Hand over experiences in order; nothing else may be asked before the last one has come.

        Args:
            after: only those behind this place; default all.
            newest_first: from the last to the first.
            limit: no more than this many.
        """
        direction = "DESC" if newest_first else "ASC"
        # The code comes last in the order for copies of an id that a watermark can't tell apart: any order would
        # do, if only it is always the same.
        query = (
            f"SELECT archived_at, id, code, {_HELD_OUT} AS held_out FROM {TABLE} WHERE reason IS NULL"
            + ("" if after is None else " AND (archived_at, id) > (?, ?)")
            + f" ORDER BY archived_at {direction}, id {direction}, code {direction}"
            + ("" if limit is None else f" LIMIT {limit:d}")
        )
        for batch in self._cursor.sql(query, params=list(after or ())).to_arrow_reader(_BATCH_ROWS):
            if batch.num_rows:
                held_out = batch["held_out"].to_numpy(zero_copy_only=False)
                yield Batch(batch["code"].to_numpy(), held_out, batch["archived_at"], batch["id"])
