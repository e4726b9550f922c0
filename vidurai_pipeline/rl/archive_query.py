"""The SQL that reads an archive for the learner: every version with an outcome, in a temporary table of DuckDB.

Memories that expired are among them: their tombstones say what they taught.

One row for each version: when it was archived first, its memory's id, a code of what it teaches, how many copies of it
there are, and why it can't be learned, if it can't. The code is (tokens x 5 + level of salience) x 2, and 1 more if the
outcome is good.
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from time import sleep

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
    """Make the SQL for the level of a column ``salience``, given the function for a text's size in bytes."""
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


Files = tuple[ArchiveFile, ...]


def sound_files(archive_base: Path) -> tuple[Files, Files]:
    """List the files without a pending mark, and the tombstones, having made sure that all are what was written.

    Raises:
        ArchiveError: one of them is not.
    """
    manifests, tombstones = Manifests(archive_base), Tombstones(archive_base)
    files = list_files(archive_base)
    if flaws := [*manifests.damaged(files), *manifests.altered(files), *tombstones.damaged()]:
        raise ArchiveError(f"{flaw_message(archive_base, flaws)}; nothing was learned", FLAW_ADVICE)
    return list_settled(archive_base), tombstones.files()


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Reads an archive into the temporary table.

    Attributes:
        cursor: of the connection that is to have the table.
        base: the archive's folder.
        scratch: a private folder.
        zone: the time zone of files that name none; None for this machine's.
        keys: the archive's.
    """

    cursor: duckdb.DuckDBPyConnection
    base: Path
    scratch: Path
    zone: tzinfo | None
    keys: KeyRing

    def fill_table(self) -> None:
        """Fill the table from the files without a pending mark, and from the tombstones.

        Files may come and go while they are read: the archive takes stale copies out by writing a file anew. Then it
        is read again.

        Raises:
            ArchiveError: a file is damaged, or the archive can't be read.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            refresh(self.base)
            before = list_files(self.base), Tombstones(self.base).files()
            try:
                settled, removed = map(self._listing, sound_files(self.base))
                settled.require_keys()
                self._fill(settled, removed)
                return
            except (ArchiveError, duckdb.Error) as error:
                unchanged = before == (list_files(self.base), Tombstones(self.base).files())
                if attempt == _READ_ATTEMPTS or unchanged:
                    raise (self.unreadable(error) if isinstance(error, duckdb.Error) else error) from None
                # Compaction may change the next month before this one is read again.
                sleep(attempt / 20)

    def unreadable(self, error: duckdb.Error) -> ArchiveError:
        """What was wrong and what to do; without DuckDB's own text, which may quote a value."""
        with contextlib.suppress(duckdb.OutOfMemoryException):
            if not isinstance(error, duckdb.OutOfMemoryException):
                listing = self._listing(list_settled(self.base))
                if damaged := find_damaged(self.cursor, listing):
                    return ArchiveError(f"{damage_message(listing, damaged)}; nothing was learned", ADVICE)
                return ArchiveError(
                    f"the archive {self.base} can't be read ({type(error).__name__}), because its files don't fit "
                    "together; nothing was learned",
                    "move files of other programs out of it",
                )
        return ArchiveError(
            f"learning from {self.base} needs more memory than VIDURAI_MEMORY_LIMIT, or more disk than there is",
            "raise the limit or free some space",
        )

    def _listing(self, files: Files) -> Listing:
        return Listing.readable(self.base, files, lambda: self.scratch, self.keys)

    def _fill(self, settled: Listing, removed: Listing) -> None:
        execute = self.cursor.execute
        execute(_CREATE)
        if settled.files:
            described = execute(f"DESCRIBE SELECT * FROM {scan(self.cursor, settled)}").fetchall()
            present = {row[0].lower() for row in described}
            if missing := [column for column in _COLUMNS if column not in present]:
                raise ArchiveError(
                    f"the Parquet files in {self.base} have no column {', '.join(missing)}",
                    "set VIDURAI_ARCHIVE to the folder of a Vidurai archive",
                )
        sources = [
            (source, listing) for source, listing in ((_FILES, settled), (_TOMBSTONES, removed)) if listing.files
        ]
        if not sources:
            return
        rows = " UNION ALL ".join(self._rows(listing, source) for source, listing in sources)
        execute(_FILL.format(rows=rows, **_EACH_ROW))
        # Where no id comes twice, no version does; to find copies takes as long as to read all of it.
        if execute(f"SELECT count(*) <> count(DISTINCT id) FROM {TABLE}").fetchall() == [(True,)]:
            execute(_CREATE)
            execute(_FILL.format(rows=rows, **_EACH_VERSION))

    def _rows(self, listing: Listing, source: str) -> str:
        """The SQL for all rows with an outcome; the source has a place for the list of its files.

        Vidurai's own archiver writes local time. Its offset is looked up once for each hour that occurs, so that any
        zone that Python knows can be used.
        """
        in_utc = self._written_in_utc(listing)
        local = [file for file in listing.files if file not in in_utc]
        parts = []
        if in_utc:
            files = scan(self.cursor, listing, [file for file in listing.files if file in in_utc])
            parts.append(_ROWS.format(source=source.format(files=files), offset="", offsets=""))
        if local:
            of_files = source.format(files=scan(self.cursor, listing, local))
            hours = self.cursor.execute(
                f"SELECT DISTINCT {_HOUR} FROM (SELECT CAST(archived_at AS VARCHAR) AS archived_at FROM {of_files})"
            ).fetchall()
            ahead = {hour: seconds for (hour,) in hours if hour and (seconds := self._offset(hour))}
            values = ", ".join(f"({quote_literal(hour)}, {seconds})" for hour, seconds in ahead.items())
            offsets = f"LEFT JOIN (VALUES {values}) AS offsets (hour, seconds) ON NOT {_ZONED} AND {_HOUR} = hour"
            offset = " - to_seconds(coalesce(seconds, 0))" if values else ""
            parts.append(_ROWS.format(source=of_files, offset=offset, offsets=offsets if values else ""))
        return " UNION ALL ".join(parts)

    def _written_in_utc(self, listing: Listing) -> set[ArchiveFile]:
        """The files whose footers say so; of encrypted ones, DuckDB's function reads none."""
        plain = [file for file in listing.files if file.key is None]
        paths = set()
        if plain:
            found = self.cursor.execute(
                f"SELECT file_name FROM parquet_kv_metadata({listing.sql(plain)}) "
                f"WHERE key = CAST('{_TIMEZONE_KEY}' AS BLOB) AND value = CAST('UTC' AS BLOB)"
            ).fetchall()
            paths = {path for (path,) in found}
        in_utc = {file for file in plain if f"{listing.root}/{file.relative}" in paths}
        for file in listing.files:
            if file.key is not None:
                path = listing.path(file)
                try:
                    with listing.keys.open(path) as parquet:
                        metadata = parquet.metadata.metadata or {}
                except (OSError, pa.ArrowException):
                    raise duckdb.IOException(f"IO Error: {path} can't be read") from None
                if metadata.get(_TIMEZONE_KEY.encode()) == b"UTC":
                    in_utc.add(file)
        return in_utc

    def _offset(self, hour: str) -> int:
        """How many seconds local time is ahead of UTC; 0 for what is no time, or one that the zone does not know."""
        try:
            local = datetime.fromisoformat(hour)
            offset = (local.astimezone() if self.zone is None else local.replace(tzinfo=self.zone)).utcoffset()
        except (OverflowError, ValueError, OSError):
            return 0
        return 0 if offset is None else round(offset.total_seconds())
