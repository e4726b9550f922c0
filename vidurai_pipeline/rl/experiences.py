"""The archive as the learner sees it: one row for each version that has an outcome, in a total order.

A version is the memory's id, ``created_at``, outcome, salience and size in tokens. The archive may hold it more than
once: Vidurai's own archiver writes a row again, with a new ``archived_at``, when it could not delete it the night
before. Such copies teach nothing new; only the one archived first counts.

DuckDB reads the files once, keeps a few numbers of each experience in a temporary table (on disk beyond its memory
limit) and hands them over in batches, so a large archive takes little memory. No text leaves it.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.rl.inference import (
    CHARACTERS_PER_TOKEN,
    DEFAULT_LEVEL,
    IMPORTANCES,
    MAX_TOKENS,
    SALIENCES,
    Transition,
    infer_transition,
)

_COLUMNS = ("id", "verbatim", "gist", "salience", "created_at", "outcome", "archived_at")
_BATCH_ROWS = 65_536
_READ_ATTEMPTS = 3
_PATTERN_CHARACTERS = frozenset("*?[\\")
_NAME = "vidurai_experiences"
_TABLE = f"temp.{_NAME}"

#: The share of experiences that a table is judged by.
HELD_OUT_SHARE = 0.2
# Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of the id: it spreads consecutive ids evenly, and is
# the same in every version of DuckDB, as its own hash need not be.
_HELD_OUT = f"((id & 2147483647) * 2654435769) & 4294967295 < {int(HELD_OUT_SHARE * 2**32)}"

# DuckDB's lower() makes ASCII of some other letters where Python's, which Vidurai uses, doesn't: hence ASCII only.
_LEVEL = (
    "CASE WHEN strlen(salience) <> length(salience) THEN {default} "
    + " ".join(f"WHEN lower(salience) = '{name}' THEN {level}" for level, name in enumerate(SALIENCES))
    + " ELSE {default} END"
).format(default=DEFAULT_LEVEL)

_SELECT = f"""
    SELECT
        TRY_CAST(id AS BIGINT) AS id,
        CAST(archived_at AS VARCHAR) AS archived_at,
        CAST(created_at AS VARCHAR) AS created_at,
        outcome,
        {_LEVEL} AS level,
        least(
            (coalesce(length(verbatim), 0) + coalesce(length(gist), 0)) // {CHARACTERS_PER_TOKEN}, {MAX_TOKENS}
        ) AS tokens
    FROM (
        SELECT
            id, archived_at, created_at,
            CAST(salience AS VARCHAR) AS salience,
            CAST(verbatim AS VARCHAR) AS verbatim,
            CAST(gist AS VARCHAR) AS gist,
            TRY_CAST(outcome AS DOUBLE) AS outcome
        FROM read_parquet(?, union_by_name = true, hive_partitioning = false)
        WHERE outcome IS NOT NULL AND TRY_CAST(outcome AS DOUBLE) IS DISTINCT FROM 0
    )
"""

_CREATE = f"""
    CREATE OR REPLACE TEMP TABLE {_NAME} (
        archived_at VARCHAR, id BIGINT, code INTEGER, copies BIGINT, reason VARCHAR
    )
"""

_FILL = f"""
    INSERT INTO {_TABLE}
    SELECT
        min(archived_at),
        id,
        (tokens * {len(IMPORTANCES)} + level) * 2 + CAST(coalesce(outcome > 0, false) AS INTEGER),
        count(*),
        CASE
            WHEN id IS NULL THEN 'no usable id'
            WHEN min(archived_at) IS NULL THEN 'no archived_at'
            WHEN outcome IS NULL OR outcome NOT IN (-1, 1) THEN 'outcome not -1, 0 or 1'
        END
    FROM ({_SELECT})
    GROUP BY id, created_at, outcome, level, tokens
"""


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


class CodedExperience(NamedTuple):
    """What an experience is made of: importance 0 to 1, tokens, outcome 1 or -1."""

    importance: float
    tokens: int
    outcome: int


def decode_experience(code: int) -> CodedExperience:
    """Take apart an experience's code: (tokens x 5 + level of salience) x 2 + (1 if the outcome is good)."""
    rest, good = divmod(code, 2)
    tokens, level = divmod(rest, len(IMPORTANCES))
    return CodedExperience(IMPORTANCES[level], tokens, 1 if good else -1)


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
            f"SELECT count(*), coalesce(sum(copies), 0)::BIGINT - count(*) FROM {_TABLE} WHERE reason IS NULL"
        ).fetchall()
        self.skipped: dict[str, int] = dict(
            cursor.execute(
                f"SELECT reason, sum(copies)::BIGINT FROM {_TABLE} WHERE reason IS NOT NULL GROUP BY ALL ORDER BY ALL"
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
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="vidurai-dream-"))
            if connection is None:
                connection = stack.enter_context(_connect(memory_limit, threads, scratch))
            cursor = stack.enter_context(connection.cursor())
            _read(cursor, archive_base, Path(scratch))
            try:
                yield cls(cursor)
            except duckdb.Error as error:
                raise ArchiveError(_advice(archive_base, error)) from None
            finally:
                with contextlib.suppress(duckdb.Error):
                    cursor.execute(f"DROP TABLE IF EXISTS {_TABLE}")

    def last(self) -> Watermark | None:
        """The place of the last experience; None if there is none."""
        rows = self._cursor.execute(
            f"SELECT archived_at, id FROM {_TABLE} WHERE reason IS NULL ORDER BY archived_at DESC, id DESC LIMIT 1"
        ).fetchall()
        return Watermark(*rows[0]) if rows else None

    def count_up_to(self, watermark: Watermark | None) -> int:
        """How many experiences stand at or before a place."""
        if watermark is None:
            return 0
        [(count,)] = self._cursor.execute(
            f"SELECT count(*) FROM {_TABLE} WHERE reason IS NULL AND (archived_at, id) <= (?, ?)", list(watermark)
        ).fetchall()
        return count

    def held_out(self) -> dict[int, int]:
        """The codes of the experiences that tables are judged by, each with how many there are of it."""
        return dict(
            self._cursor.execute(
                f"SELECT code, count(*) FROM {_TABLE} WHERE reason IS NULL AND {_HELD_OUT} GROUP BY code ORDER BY code"
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
            f"SELECT archived_at, id, code, {_HELD_OUT} AS held_out FROM {_TABLE} WHERE reason IS NULL"
            + ("" if after is None else " AND (archived_at, id) > (?, ?)")
            + f" ORDER BY archived_at {direction}, id {direction}, code {direction}"
            + ("" if limit is None else f" LIMIT {limit:d}")
        )
        for batch in self._cursor.sql(query, params=list(after or ())).to_arrow_reader(_BATCH_ROWS):
            if batch.num_rows:
                held_out = batch["held_out"].to_numpy(zero_copy_only=False)
                yield Batch(batch["code"].to_numpy(), held_out, batch["archived_at"], batch["id"])


def archive_files(archive_base: Path) -> list[str]:
    """The archive's settled Parquet files, sorted; none if there is no archive.

    A file with a pending mark is left for later: it may yet be found damaged, or lose memories that changed.

    Raises:
        ArchiveError: the archive is not a folder, or a folder in it can't be listed.
    """
    if not archive_base.exists():
        return []
    files: list[str] = []
    try:
        # Not rglob: it passes over folders that it may not read, and their memories would silently not be learned.
        for folder, _, names in os.walk(archive_base, onerror=_raise):
            files += [
                f"{folder}/{name}"
                for name in names
                if name.endswith(".parquet") and not (archive_base / ".pending" / f"{name}.json").exists()
            ]
    except OSError as error:
        raise ArchiveError(f"{error.filename or archive_base} can't be listed: {error.strerror}") from error
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


def _connect(memory_limit: str, threads: int | None, scratch: str) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | int] = {"memory_limit": memory_limit, "temp_directory": scratch}
    if threads is not None:
        config["threads"] = threads
    try:
        return duckdb.connect(config=config)  # pyright: ignore[reportArgumentType]
    except duckdb.Error:
        raise ConfigError(f"VIDURAI_MEMORY_LIMIT={memory_limit}: DuckDB takes no such limit; try 1GB") from None


def _read(cursor: duckdb.DuckDBPyConnection, archive_base: Path, scratch: Path) -> None:
    """Fill the temporary table.

    Files may come and go while they are read: the archive takes stale copies out by writing a file anew. Then it is
    read again.
    """
    for attempt in range(1, _READ_ATTEMPTS + 1):
        files = archive_files(archive_base)
        cursor.execute(_CREATE)
        if not files:
            return
        names = _plain_names(files, scratch)
        try:
            missing = _missing_columns(cursor, names)
            if not missing:
                cursor.execute(_FILL, [names])
                return
        except duckdb.Error as error:
            if attempt < _READ_ATTEMPTS and archive_files(archive_base) != files:
                continue
            damaged = None
            if not isinstance(error, duckdb.OutOfMemoryException):
                damaged = next(
                    (file for file, name in zip(files, names, strict=True) if _is_damaged(cursor, name)), None
                )
            raise ArchiveError(_advice(archive_base, error, damaged)) from None
        raise ArchiveError(
            f"the Parquet files in {archive_base} have no column {', '.join(missing)}: is this a Vidurai archive?"
        )


def _plain_names(files: list[str], scratch: Path) -> list[str]:
    """Names under which DuckDB finds exactly these files.

    It takes some characters for a pattern, and not every one of them can be escaped beside every other; names that
    are not UTF-8 it can't be told at all. Such files it reads through links.
    """
    names = []
    for number, file in enumerate(files):
        if file.isprintable() and not _PATTERN_CHARACTERS.intersection(file):
            names.append(file)
            continue
        link = scratch / f"{number}.parquet"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(file).absolute())
        names.append(str(link))
    return names


def _missing_columns(cursor: duckdb.DuckDBPyConnection, files: list[str]) -> list[str]:
    described = cursor.execute(
        "DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]
    ).fetchall()
    present = {row[0].lower() for row in described}
    return [column for column in _COLUMNS if column not in present]


def _is_damaged(cursor: duckdb.DuckDBPyConnection, name: str) -> bool:
    try:
        # Every column in an aggregate that needs its values: nothing may be answered from the file's statistics.
        cursor.execute(f"SELECT max(hash(COLUMNS(*))) FROM ({_SELECT})", [[name]])
    except duckdb.BinderException:
        return False  # a column is missing, which is allowed where another file has it
    except duckdb.Error:
        return True
    return False


def _advice(archive_base: Path, error: duckdb.Error, damaged: str | None = None) -> str:
    # DuckDB's own text may quote a value, so of its errors only the kind is told.
    kind = type(error).__name__
    if damaged is not None:
        return (
            f"{damaged} is damaged or not a Parquet file ({kind}): restore it from a backup, or move it out of the "
            "archive; nothing was learned"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"the archive {archive_base} needs more memory than VIDURAI_MEMORY_LIMIT or the disk has room for"
    return f"the archive {archive_base} can't be read ({kind}): its files don't fit together; nothing was learned"
