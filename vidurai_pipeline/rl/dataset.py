"""The archive as the learner sees it: one row for each version that has an outcome, in order of ``archived_at, id``.

A version is the memory's id, ``created_at``, outcome, salience and size in tokens. The archive may hold it more than
once: Vidurai's own archiver writes a row again, with a new ``archived_at``, when it could not delete it the night
before. Only the copy archived first counts.

DuckDB keeps a few numbers of each experience in a temporary table (on disk beyond its memory limit) and hands them over
in batches, so a large archive takes little memory. No text leaves it.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple, Self
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator

from vidurai_pipeline.analytics.connection import connect
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.rl.archive_query import TABLE, ArchiveReader
from vidurai_pipeline.settings import Settings

_BATCH_ROWS = 65_536

#: The share of experiences that a table is judged by.
HELD_OUT_SHARE = 0.2
# Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of the id: it spreads consecutive ids evenly, and is
# the same in every version of DuckDB, as its own hash need not be.
HELD_OUT = f"((id & 2147483647) * 2654435769) & 4294967295 < {int(HELD_OUT_SHARE * 2**32)}"


def _in_utc(archived_at: str) -> str:
    moment = datetime.fromisoformat(archived_at)
    return (moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat()


@dataclass(frozen=True, order=True, slots=True)
class Watermark:
    """A place in the order of learning; ``archived_at`` is ISO text in UTC, without an offset."""

    archived_at: Annotated[str, AfterValidator(_in_utc)]
    id: int

    @classmethod
    def behind(cls, moment: datetime) -> Self:
        """The place behind all that was archived up to a moment, which has a zone."""
        return cls(_in_utc(moment.isoformat()), 2**63 - 1)

    @property
    def next(self) -> "Watermark":
        """The place right behind this one."""
        return Watermark(self.archived_at, self.id + 1)


class Batch(NamedTuple):
    """Some experiences in their order: codes (see ``archive_query``), and whether tables are judged by them."""

    codes: npt.NDArray[np.int32]
    held_out: npt.NDArray[np.bool_]
    archived_at: pa.Array
    ids: pa.Array

    @property
    def last(self) -> Watermark:
        """The place of the last one."""
        return Watermark(self.archived_at[-1].as_py().isoformat(), self.ids[-1].as_py())

    def slices(self, most: int) -> Iterator["Batch"]:
        """The batch in parts of like size, none larger than the given number of experiences."""
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

    def count(self, start: Watermark | None = None, end: Watermark | None = None) -> int:
        """How many experiences stand from one place up to, but not at, another."""
        within, places = _within(start, end)
        [(count,)] = self._cursor.execute(f"SELECT count(*) FROM {TABLE} WHERE {within}", places).fetchall()
        return count

    def nth(self, number: int) -> Watermark | None:
        """The place of an experience, counted from 1; None if there is none."""
        if not 0 < number <= self.total:
            return None
        [(moment, id_)] = self._cursor.execute(
            f"SELECT archived_at, id FROM {TABLE} WHERE reason IS NULL ORDER BY archived_at, id LIMIT 1 OFFSET ?",
            [number - 1],
        ).fetchall()
        return Watermark(moment.isoformat(), id_)

    def code_counts(self, *, held_out: bool = False) -> dict[int, int]:
        """How many experiences there are of each code; of all, or of those that tables are judged by."""
        chosen = f"AND {HELD_OUT}" if held_out else ""
        return dict(
            self._cursor.execute(
                f"SELECT code, count(*) FROM {TABLE} WHERE reason IS NULL {chosen} GROUP BY code ORDER BY code"
            ).fetchall()
        )

    def stream(
        self,
        start: Watermark | None = None,
        end: Watermark | None = None,
        *,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Iterator[Batch]:
        """Hand over experiences in order, from one place up to another; ask nothing else before the last has come."""
        direction = "DESC" if newest_first else "ASC"
        within, places = _within(start, end)
        # The code comes last in the order for copies of an id that a watermark can't tell apart: any order would
        # do, if only it is always the same.
        query = (
            f"SELECT archived_at, id, code, {HELD_OUT} AS held_out FROM {TABLE} WHERE {within}"
            f" ORDER BY archived_at {direction}, id {direction}, code {direction}"
            + ("" if limit is None else f" LIMIT {limit:d}")
        )
        for batch in self._cursor.sql(query, params=places).to_arrow_reader(_BATCH_ROWS):
            if batch.num_rows:
                held_out = batch["held_out"].to_numpy(zero_copy_only=False)
                yield Batch(batch["code"].to_numpy(), held_out, batch["archived_at"], batch["id"])


@contextlib.contextmanager
def open_experiences(
    settings: Settings, archive_base: Path | None = None, connection: duckdb.DuckDBPyConnection | None = None
) -> Iterator[Experiences]:
    """Read an archive; a missing or empty one has no experiences.

    Args:
        settings: limits, keys, and the time zone of files that Vidurai's own archiver wrote.
        archive_base: the archive's folder; default the settings'.
        connection: a DuckDB connection to work in; default a private one within the limits.

    Raises:
        ArchiveError: a file is damaged, or the archive can't be read.
    """
    keys = KeyRing(settings.archive_key_file)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vidurai-dream-")))
        if connection is None:
            private = connect(settings.memory_limit, settings.threads, scratch, keys)
            connection = stack.enter_context(private)
        cursor = stack.enter_context(connection.cursor())
        zone = ZoneInfo(settings.timezone) if settings.timezone else None
        reader = ArchiveReader(cursor, archive_base or settings.archive_path, scratch, zone, keys)
        reader.fill_table()
        try:
            yield Experiences(cursor)
        except duckdb.Error as error:
            raise reader.unreadable(error) from None
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.execute(f"DROP TABLE IF EXISTS {TABLE}")


def _within(start: Watermark | None, end: Watermark | None) -> tuple[str, list[str | int]]:
    """The SQL for the experiences from one place up to another, and its parameters."""
    terms, places = ["reason IS NULL"], []
    for place, relation in ((start, ">="), (end, "<")):
        if place is not None:
            terms.append(f"(archived_at, id) {relation} (CAST(? AS TIMESTAMP), ?)")
            places += (place.archived_at, place.id)
    return " AND ".join(terms), places
