"""The SQL that reads an archive for the learner: every version with an outcome, in a temporary table of DuckDB.

Memories that expired are among them: their tombstones say what they taught.

One row for each version: when it was archived first, its memory's id, a code of what it teaches, how many copies of it
there are, and why it can't be learned, if it can't. The code is (tokens x 5 + level of salience) x 2, and 1 more if the
outcome is good.
"""

import contextlib
import time
from collections.abc import Sequence
from datetime import datetime, tzinfo
from pathlib import Path

import duckdb
import pyarrow as pa

from vidurai_pipeline.analytics.damage import ADVICE, FLAW_ADVICE, damage_message, find_damaged, flaw_message
from vidurai_pipeline.analytics.sources import scan
from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import ArchiveFile, Listing, list_files, list_settled, quote_literal
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline.cold.tombstones import Tombstones
from vidurai_pipeline.cold.working_copy import refresh
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.rl.inference import CHARACTERS_PER_TOKEN, DEFAULT_LEVEL, IMPORTANCES, MAX_TOKENS, SALIENCES

_COLUMNS = ("id", "verbatim", "gist", "salience", "created_at", "outcome", "archived_at")
_READ_ATTEMPTS = 20
_NAME = "vidurai_experiences"
#: The temporary table, in the connection that read the archive.
TABLE = f"temp.{_NAME}"


# DuckDB's lower() makes ASCII of some other letters where Python's, which Vidurai uses, doesn't: hence ASCII only.
def level_of(size: str) -> str:
    """Make the SQL for the level of a column ``salience``.

    Args:
        size: the function that gives a text's size in bytes.
    """
    levels = " ".join(f"WHEN lower(salience) = '{name}' THEN {level}" for level, name in enumerate(SALIENCES))
    return f"CASE WHEN {size}(salience) <> length(salience) THEN {DEFAULT_LEVEL} {levels} ELSE {DEFAULT_LEVEL} END"


# Memories in the archive, and what is left of those that expired: each with the number of its characters.
_FILES = """(
    SELECT id, created_at, archived_at, outcome, salience,
        coalesce(length(CAST(verbatim AS VARCHAR)), 0) + coalesce(length(CAST(gist AS VARCHAR)), 0) AS characters
    FROM {files}
)"""
_TOMBSTONES = """(
    SELECT id, created_at, unnest(experience) FROM {files}
    WHERE experience IS NOT NULL
)"""
_TIMEZONE_KEY = "vidurai_pipeline.timezone"
_MOMENT = utc_timestamp("archived_at")
_HOUR = "left(archived_at, 13)"
_ZONED = r"regexp_matches(archived_at, ':\d\d.*[-+A-Za-z]')"

_CREATE = f"""
    CREATE OR REPLACE TEMP TABLE {_NAME} (
        archived_at TIMESTAMP, id BIGINT, code INTEGER, copies BIGINT, reason VARCHAR
    )
"""

# Rows with an outcome; of files in local time with the offset of each hour.
_ROWS = f"""
    SELECT
        TRY_CAST(id AS BIGINT) AS id,
        {_MOMENT}{{offset}} AS archived_at,
        CAST(created_at AS VARCHAR) AS created_at,
        outcome,
        {level_of("strlen")} AS level,
        least(characters // {CHARACTERS_PER_TOKEN}, {MAX_TOKENS}) AS tokens
    FROM (
        SELECT
            id, created_at, characters,
            CAST(archived_at AS VARCHAR) AS archived_at,
            CAST(salience AS VARCHAR) AS salience,
            TRY_CAST(outcome AS DOUBLE) AS outcome
        FROM {{source}}
        WHERE outcome IS NOT NULL AND TRY_CAST(outcome AS DOUBLE) IS DISTINCT FROM 0
    )
    {{offsets}}
"""

_FILL = f"""
    INSERT INTO {TABLE}
    SELECT
        {{first}},
        id,
        (tokens * {len(IMPORTANCES)} + level) * 2 + CAST(coalesce(outcome > 0, false) AS INTEGER),
        {{copies}},
        CASE
            WHEN id IS NULL THEN 'no usable id'
            WHEN {{first}} IS NULL THEN 'archived_at is no time'
            WHEN outcome IS NULL OR outcome NOT IN (-1, 1) THEN 'outcome not -1, 0 or 1'
        END
    FROM ({{rows}})
    {{group}}
"""
_EACH_ROW = {"first": "archived_at", "copies": "1", "group": ""}
_EACH_VERSION = {
    "first": "min(archived_at)",
    "copies": "count(*)",
    "group": "GROUP BY id, created_at, outcome, level, tokens",
}


def require_sound(archive_base: Path, files: Sequence[ArchiveFile]) -> None:
    """Make sure that files, and the archive's tombstones, are what was written.

    Raises:
        ArchiveError: one of them is not.
    """
    manifests = Manifests(archive_base)
    if flaws := [*manifests.damaged(files), *manifests.altered(files), *Tombstones(archive_base).damaged()]:
        raise ArchiveError(f"{flaw_message(archive_base, flaws)}; nothing was learned", FLAW_ADVICE)


def read_archive(
    cursor: duckdb.DuckDBPyConnection,
    archive_base: Path,
    scratch: Path,
    zone: tzinfo | None = None,
    keys: KeyRing | None = None,
) -> None:
    """Fill the temporary table from the files without a pending mark.

    Files may come and go while they are read: the archive takes stale copies out by writing a file anew. Then it is
    read again.

    Args:
        cursor: reads the files.
        archive_base: the archive's folder.
        scratch: a private folder.
        zone: the time zone of files that name none; default this machine's.
        keys: the archive's keys; default none.

    Raises:
        ArchiveError: a file is damaged, or the archive can't be read.
    """
    tombstones = Tombstones(archive_base)
    for attempt in range(1, _READ_ATTEMPTS + 1):
        refresh(archive_base)
        files = list_files(archive_base)
        try:
            require_sound(archive_base, files)
        except ArchiveError:
            if attempt == _READ_ATTEMPTS or list_files(archive_base) == files:
                raise
            continue
        settled, removed = (
            Listing.readable(archive_base, found, lambda: scratch, keys)
            for found in (list_settled(archive_base), tombstones.files())
        )
        settled.require_keys()
        cursor.execute(_CREATE)
        sources = [(of, listing) for of, listing in ((_FILES, settled), (_TOMBSTONES, removed)) if listing.files]
        if not sources:
            return
        try:
            if settled.files:
                _require_columns(cursor, settled)
            rows = " UNION ALL ".join(_rows(cursor, listing, zone, source) for source, listing in sources)
            cursor.execute(_FILL.format(rows=rows, **_EACH_ROW))
            # Where no id comes twice, no version does; to find copies takes as long as to read all of it.
            if cursor.execute(f"SELECT count(*) <> count(DISTINCT id) FROM {TABLE}").fetchall() == [(True,)]:
                cursor.execute(_CREATE)
                cursor.execute(_FILL.format(rows=rows, **_EACH_VERSION))
            return
        except duckdb.Error as error:
            unchanged = (list_settled(archive_base), tombstones.files()) == (settled.files, removed.files)
            if attempt == _READ_ATTEMPTS or unchanged:
                raise unreadable(cursor, archive_base, scratch, error, keys) from None


def _rows(cursor: duckdb.DuckDBPyConnection, listing: Listing, zone: tzinfo | None, source: str) -> str:
    """The SQL for all rows with an outcome; the source has a place for the list of its files.

    Vidurai's own archiver writes local time. Its offset is looked up once for each hour that occurs, so that any zone
    that Python knows can be used.
    """
    in_utc = _written_in_utc(cursor, listing)
    local = [file for file in listing.files if file not in in_utc]
    offsets = _offsets(cursor, source.format(files=scan(cursor, listing, local)), zone) if local else {}
    if not offsets:
        return _ROWS.format(source=source.format(files=scan(cursor, listing)), offset="", offsets="")
    values = ", ".join(f"({quote_literal(hour)}, {seconds})" for hour, seconds in offsets.items())
    in_local_time = _ROWS.format(
        source=source.format(files=scan(cursor, listing, local)),
        offset=" - to_seconds(coalesce(seconds, 0))",
        offsets=f"LEFT JOIN (VALUES {values}) AS offsets (hour, seconds) ON NOT {_ZONED} AND {_HOUR} = hour",
    )
    if not in_utc:
        return in_local_time
    of_utc = _ROWS.format(source=source.format(files=scan(cursor, listing, list(in_utc))), offset="", offsets="")
    return f"{of_utc} UNION ALL {in_local_time}"


def _written_in_utc(cursor: duckdb.DuckDBPyConnection, listing: Listing) -> dict[ArchiveFile, None]:
    """The files whose footers say so; of encrypted ones, DuckDB's function reads none."""
    plain = [file for file in listing.files if file.key is None]
    found = (
        cursor.execute(
            f"SELECT file_name FROM parquet_kv_metadata({listing.sql(plain)}) "
            f"WHERE key = CAST('{_TIMEZONE_KEY}' AS BLOB) AND value = CAST('UTC' AS BLOB)"
        ).fetchall()
        if plain
        else []
    )
    paths = {path for (path,) in found}
    in_utc = dict.fromkeys(file for file in plain if f"{listing.root}/{file.relative}" in paths)
    for file in listing.files:
        if file.key is not None:
            path = listing.path(file)
            try:
                with listing.keys.open(path) as parquet:
                    metadata = parquet.metadata.metadata or {}
            except (OSError, pa.ArrowException):
                raise duckdb.IOException(f"IO Error: {path} can't be read") from None
            if metadata.get(_TIMEZONE_KEY.encode()) == b"UTC":
                in_utc[file] = None
    return in_utc


def _offsets(cursor: duckdb.DuckDBPyConnection, source: str, zone: tzinfo | None) -> dict[str, int]:
    """For each hour of local time in some files, how many seconds it is ahead of UTC, where it is."""
    if zone is None and not (time.timezone or time.daylight):
        return {}
    hours = cursor.execute(
        f"SELECT DISTINCT {_HOUR} FROM (SELECT CAST(archived_at AS VARCHAR) AS archived_at FROM {source})"
    ).fetchall()
    return {hour: offset for (hour,) in hours if (offset := _offset(hour, zone))}


def _offset(hour: str | None, zone: tzinfo | None) -> int:
    """How many seconds local time is ahead of UTC; 0 for what is no time, or one that the zone does not know."""
    try:
        local = datetime.fromisoformat(hour or "")
        offset = (local.astimezone() if zone is None else local.replace(tzinfo=zone)).utcoffset()
    except (OverflowError, ValueError, OSError):
        return 0
    return 0 if offset is None else round(offset.total_seconds())


def _require_columns(cursor: duckdb.DuckDBPyConnection, listing: Listing) -> None:
    described = cursor.execute(f"DESCRIBE SELECT * FROM {scan(cursor, listing)}").fetchall()
    present = {row[0].lower() for row in described}
    if missing := [column for column in _COLUMNS if column not in present]:
        raise ArchiveError(
            f"the Parquet files in {listing.base} have no column {', '.join(missing)}",
            "set VIDURAI_ARCHIVE to the folder of a Vidurai archive",
        )


def unreadable(
    cursor: duckdb.DuckDBPyConnection,
    archive_base: Path,
    scratch: Path,
    error: duckdb.Error,
    keys: KeyRing | None = None,
) -> ArchiveError:
    """What was wrong and what to do; without DuckDB's own text, which may quote a value."""
    with contextlib.suppress(duckdb.OutOfMemoryException):
        if not isinstance(error, duckdb.OutOfMemoryException):
            listing = Listing.readable(archive_base, list_settled(archive_base), lambda: scratch, keys)
            if damaged := find_damaged(cursor, listing):
                return ArchiveError(f"{damage_message(listing, damaged)}; nothing was learned", ADVICE)
            return ArchiveError(
                f"the archive {archive_base} can't be read ({type(error).__name__}), because its files don't fit "
                "together; nothing was learned",
                "move files of other programs out of it",
            )
    return ArchiveError(
        f"learning from {archive_base} needs more memory than VIDURAI_MEMORY_LIMIT, or more disk than there is",
        "raise the limit or free some space",
    )
