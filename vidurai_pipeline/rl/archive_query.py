"""Reading an archive for the learner: every version with an outcome, in a temporary table of DuckDB.

One row for each version: when it was archived first, its memory's id, a code of what it teaches, how many copies of it
there are, and why it can't be learned, if it can't. Columns that a later Vidurai may log (see ``logged``) are read
where a file has them.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType
from duckdb.sqltypes import BIGINT, VARCHAR

from vidurai_pipeline.cold.files import require_usable
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.rl import logged
from vidurai_pipeline.rl.inference import CHARACTERS_PER_TOKEN, DEFAULT_LEVEL, IMPORTANCES, MAX_TOKENS, SALIENCES
from vidurai_pipeline.rl.logged import LoggedTransition, UnreadableError, read_logged

_COLUMNS = ("id", "verbatim", "gist", "salience", "created_at", "outcome", "archived_at")
_READ_ATTEMPTS = 3
_PATTERN_CHARACTERS = frozenset("*?[\\")
_NAME = "vidurai_experiences"
_NUMBERS = "vidurai_logged_transitions"
#: The temporary table, in the connection that read the archive.
TABLE = f"temp.{_NAME}"
#: Codes from here on are places in the list of logged transitions.
FIRST_LOGGED = 1 << 20

# DuckDB's lower() makes ASCII of some other letters where Python's, which Vidurai uses, doesn't: hence ASCII only.
_LEVEL = (
    "CASE WHEN strlen(salience) <> length(salience) THEN {default} "
    + " ".join(f"WHEN lower(salience) = '{name}' THEN {level}" for level, name in enumerate(SALIENCES))
    + " ELSE {default} END"
).format(default=DEFAULT_LEVEL)

_CREATE = f"""
    CREATE OR REPLACE TEMP TABLE {_NAME} (
        archived_at VARCHAR, id BIGINT, code BIGINT, copies BIGINT, reason VARCHAR,
        action VARCHAR, state VARCHAR, decision VARCHAR
    )
"""

_ANY_LOGGED = " OR ".join(f"{name} IS NOT NULL" for name in logged.COLUMNS)


def _select(present: Mapping[str, str]) -> str:
    """The query for what an experience needs of a row.

    Args:
        present: the columns of ``logged`` that the files have, with their types.
    """
    texts = "".join(
        f", nullif(trim({name if kind == 'VARCHAR' else f'CAST(to_json({name}) AS VARCHAR)'}), '') AS {name}"
        for name, kind in present.items()
    )
    return f"""
        SELECT
            TRY_CAST(id AS BIGINT) AS id,
            CAST(archived_at AS VARCHAR) AS archived_at,
            CAST(created_at AS VARCHAR) AS created_at,
            outcome,
            {_LEVEL} AS level,
            least(
                (coalesce(length(verbatim), 0) + coalesce(length(gist), 0)) // {CHARACTERS_PER_TOKEN}, {MAX_TOKENS}
            ) AS tokens
            {"".join(f", {name}" for name in present)}
        FROM (
            SELECT
                id, archived_at, created_at,
                CAST(salience AS VARCHAR) AS salience,
                CAST(verbatim AS VARCHAR) AS verbatim,
                CAST(gist AS VARCHAR) AS gist,
                TRY_CAST(outcome AS DOUBLE) AS outcome
                {texts}
            FROM read_parquet(?, union_by_name = true, hive_partitioning = false)
            WHERE outcome IS NOT NULL AND TRY_CAST(outcome AS DOUBLE) IS DISTINCT FROM 0
        )
    """


def _fill(present: Mapping[str, str], *, copies: bool) -> str:
    """The statement that fills the table.

    Args:
        present: as for ``_select``.
        copies: whether the archive may hold a version more than once.
    """
    names = "".join(f", {name}" for name in present)
    first, count, group = (
        ("min(archived_at)", "count(*)", f"GROUP BY id, created_at, outcome, level, tokens{names}")
        if copies
        else ("archived_at", "1", "")
    )
    return f"""
        INSERT INTO {TABLE} (archived_at, id, code, copies, reason{names})
        SELECT
            {first},
            id,
            (tokens * {len(IMPORTANCES)} + level) * 2 + CAST(coalesce(outcome > 0, false) AS INTEGER),
            {count},
            CASE
                WHEN id IS NULL THEN 'no usable id'
                WHEN {first} IS NULL THEN 'no archived_at'
                WHEN outcome IS NULL OR outcome NOT IN (-1, 1) THEN 'outcome not -1, 0 or 1'
            END
            {names}
        FROM ({_select(present)})
        {group}
    """


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


def archive_files(archive_base: Path) -> list[str]:
    """The archive's settled Parquet files, sorted; none if there is no archive.

    A file with a pending mark is left for later: it may yet be found damaged, or lose memories that changed.

    Raises:
        ArchiveError: the archive is not a folder, or a folder in it can't be listed.
    """
    if not archive_base.exists():
        require_usable(archive_base)
        return []
    files: list[str] = []
    try:
        # Not rglob: it passes over folders that it may not read, and their memories would silently not be learned.
        for folder, folders, names in os.walk(archive_base, onerror=_raise):
            folders[:] = [name for name in folders if name != "lost+found"]  # for root alone, on a disk of its own
            files += [
                f"{folder}/{name}"
                for name in names
                if name.endswith(".parquet") and not (archive_base / ".pending" / f"{name}.json").exists()
            ]
    except OSError as error:
        raise ArchiveError(f"{error.filename or archive_base} can't be listed: {error.strerror}") from error
    if other := next((name for name in files if Path(name).exists() and not Path(name).is_file()), None):
        raise ArchiveError(f"{other} is not a file of the archive: move it away")  # a pipe would be waited for
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


def connect(memory_limit: str, threads: int | None, scratch: str) -> duckdb.DuckDBPyConnection:
    """A private DuckDB within limits.

    Raises:
        ConfigError: DuckDB takes no such memory limit.
    """
    config: dict[str, str | int] = {"memory_limit": memory_limit, "temp_directory": scratch}
    if threads is not None:
        config["threads"] = threads
    try:
        return duckdb.connect(config=config)  # pyright: ignore[reportArgumentType]
    except duckdb.Error:
        raise ConfigError(f"VIDURAI_MEMORY_LIMIT={memory_limit}: DuckDB takes no such limit; try 1GB") from None


def read_archive(cursor: duckdb.DuckDBPyConnection, archive_base: Path, scratch: Path) -> list[LoggedTransition]:
    """Fill the temporary table.

    Files may come and go while they are read: the archive takes stale copies out by writing a file anew. Then it is
    read again.

    Returns:
        The logged transitions; the place of each, from ``FIRST_LOGGED`` on, is its code.

    Raises:
        ArchiveError: a file is damaged, or the archive can't be read.
    """
    for attempt in range(1, _READ_ATTEMPTS + 1):
        files = archive_files(archive_base)
        cursor.execute(_CREATE)
        if not files:
            return []
        names = _plain_names(files, scratch)
        try:
            columns = _columns(cursor, names)
            missing = [column for column in _COLUMNS if column not in columns]
            if not missing:
                present = {name: columns[name] for name in logged.COLUMNS if name in columns}
                cursor.execute(_fill(present, copies=False), [names])
                # Where no id comes twice, no version does; to find copies takes as long as to read all of it.
                if cursor.execute(f"SELECT count(*) <> count(DISTINCT id) FROM {TABLE}").fetchall() == [(True,)]:
                    cursor.execute(_CREATE)
                    cursor.execute(_fill(present, copies=True), [names])
                return _read_logged(cursor) if present else []
        except duckdb.Error as error:
            if attempt < _READ_ATTEMPTS and archive_files(archive_base) != files:
                continue
            damaged = None
            if not isinstance(error, duckdb.OutOfMemoryException):
                damaged = next(
                    (file for file, name in zip(files, names, strict=True) if _is_damaged(cursor, name)), None
                )
            raise ArchiveError(advice(archive_base, error, damaged)) from None
        raise ArchiveError(
            f"the Parquet files in {archive_base} have no column {', '.join(missing)}: is this a Vidurai archive?"
        )
    return []


def _read_logged(cursor: duckdb.DuckDBPyConnection) -> list[LoggedTransition]:
    """Give the rows that log something the codes of what they log."""
    cursor.create_function(
        _NUMBERS,
        _number_all,
        [BIGINT, *[VARCHAR] * 3],
        BIGINT,
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )
    try:
        cursor.execute(f"""
            UPDATE {TABLE} SET code = {_NUMBERS}(code, action, state, decision), copies = -copies
            WHERE reason IS NULL AND ({_ANY_LOGGED})
        """)
    finally:
        cursor.remove_function(_NUMBERS)
    for number, reason in enumerate(logged.REASONS, start=1):
        cursor.execute(f"UPDATE {TABLE} SET reason = ? WHERE copies < 0 AND code = ?", [reason, -number])
    found = cursor.execute(
        f"SELECT DISTINCT code FROM {TABLE} WHERE copies < 0 AND reason IS NULL ORDER BY code"
    ).fetchnumpy()["code"]
    cursor.register(_NUMBERS, pa.table({"number": found, "place": range(FIRST_LOGGED, FIRST_LOGGED + len(found))}))
    try:
        cursor.execute(f"UPDATE {TABLE} SET code = place FROM {_NUMBERS} WHERE copies < 0 AND code = number")
    finally:
        cursor.unregister(_NUMBERS)
    cursor.execute(f"UPDATE {TABLE} SET copies = -copies WHERE copies < 0")
    return [LoggedTransition.from_number(number) for number in found.tolist()]


def _number_all(
    codes: pa.ChunkedArray, actions: pa.ChunkedArray, states: pa.ChunkedArray, decisions: pa.ChunkedArray
) -> pa.Array:
    rows = zip(*(column.to_pylist() for column in (codes, actions, states, decisions)), strict=True)
    return pa.array([_number(*row) for row in rows], pa.int64())


@lru_cache(maxsize=100_000)
def _number(code: int, action: str | None, state: str | None, decision: str | None) -> int:
    """The number of what a row logs; of a reason, negative, where it can't be read."""
    try:
        found = read_logged(*decode_experience(code), action=action, state=state, decision=decision)
        return found.to_number()
    except UnreadableError as error:
        return -1 - logged.REASONS.index(str(error))


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


def _columns(cursor: duckdb.DuckDBPyConnection, files: list[str]) -> dict[str, str]:
    """The columns of files, in small letters, with their types."""
    described = cursor.execute(
        "DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]
    ).fetchall()
    return {row[0].lower(): row[1] for row in described}


def _is_damaged(cursor: duckdb.DuckDBPyConnection, name: str) -> bool:
    try:
        columns = _columns(cursor, [name])
        present = {column: columns[column] for column in logged.COLUMNS if column in columns}
        # Every column in an aggregate that needs its values: nothing may be answered from the file's statistics.
        cursor.execute(f"SELECT max(hash(COLUMNS(*))) FROM ({_select(present)})", [[name]])
    except duckdb.BinderException:
        return False  # a column is missing, which is allowed where another file has it
    except duckdb.Error:
        return True
    return False


def advice(archive_base: Path, error: duckdb.Error, damaged: str | None = None) -> str:
    """What was wrong with an archive, and what to do; without DuckDB's own text, which may quote a value."""
    kind = type(error).__name__
    if damaged is not None:
        return (
            f"{damaged} is damaged or not a Parquet file ({kind}): restore it from a backup, or move it out of the "
            "archive; nothing was learned"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"the archive {archive_base} needs more memory than VIDURAI_MEMORY_LIMIT or the disk has room for"
    return f"the archive {archive_base} can't be read ({kind}): its files don't fit together; nothing was learned"
