"""Every error that a user is meant to read.

    PipelineError
    ├── ConfigError             a setting or an argument is wrong
    ├── QueryError              the SQL, the search or its parameters are wrong
    │   └── QueryTimeoutError   ... or took longer than it may
    ├── HotStoreError           the SQLite store can't be used
    │   ├── BusyError           ... because of a lock; it may be free later
    │   └── SchemaError         ... because of its tables
    ├── ArchiveError            the Parquet archive can't be used
    │   ├── VerificationError   ... because a file is not what was written
    │   ├── MissingKeyError     ... because a key is not there, or the key file can't be used
    │   └── SearchIndexError    ... because its search index is missing or damaged; a scan finds all the same
    ├── LockedError             another run is at work
    └── QTableError             the Q-table can't be used

Each is one line that says what was wrong and where, and has a hint that says what to do. The command line prints both,
Dagster shows them as the step's failure. None ever holds a memory's text: ids and counts only.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

#: How many ids, files or rows a message names.
NAMED = 5


def some_of(things: Sequence[object]) -> str:
    """The first few of many, as a message names them: ``1, 2, 3, 4, 5 and 95 more``."""
    rest = len(things) - NAMED
    return ", ".join(map(str, things[:NAMED])) + (f" and {rest:,} more" if rest > 0 else "")


def plural(number: int, noun: str) -> str:
    """A number and its noun: ``1 file``, ``2,000 files``."""
    if number != 1:
        noun = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun}"


class PipelineError(Exception):
    """Base of all errors below.

    Args:
        message: what was wrong, and where.
        hint: what to do.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Both in one line."""
        message = super().__str__()
        return f"{message}: {self.hint}" if self.hint else message


class ConfigError(PipelineError):
    """A setting or an argument is wrong."""


class HotStoreError(PipelineError):
    """The SQLite store is missing, busy beyond patience, damaged, or not a database."""


class HotStoreWarning(UserWarning):
    """What a reader of both tiers must know: the hot store is missing, or a value in it can't be shown as it is."""


class BusyError(HotStoreError):
    """Something has held the hot store's lock for too long; it may be free later."""


class SchemaError(HotStoreError):
    """The store is a database, but its tables are not what archival needs."""


class ArchiveError(PipelineError):
    """The Parquet archive can't be read or written."""


class ArchiveWarning(UserWarning):
    """An answer lacks memories, because damaged files of the archive were left out as asked."""


class VerificationError(ArchiveError):
    """A file read back from the archive does not equal the rows it was written from."""


class MissingKeyError(ArchiveError):
    """An archived file is encrypted with a key that is not there, or the key file can't be used."""


class SearchIndexError(ArchiveError):
    """The archive's search index is missing, damaged or being updated; the archive itself is none the worse."""


class SearchIndexWarning(UserWarning):
    """A search went without the search index, or without some of it; what it found is complete all the same."""


class LogHeldError(BusyError):
    """Another program reads the hot store and keeps its write-ahead log from beginning anew; try again later."""


class LockedError(PipelineError):
    """Another run is at work on the same archive."""


class QueryError(PipelineError):
    """The SQL, the search or its parameters are wrong."""


class QueryTimeoutError(QueryError):
    """The query took longer than it may and was stopped."""


class QTableError(PipelineError):
    """The Q-table file is damaged or can't be written."""


#: What to tell the user whose query asked for more than VIDURAI_MEMORY_LIMIT.
MORE_MEMORY = (
    "the query needs more memory than it may have: ask for less (fewer columns, a month at a time), or raise "
    "VIDURAI_MEMORY_LIMIT"
)


def refuse_to_run(commands: str) -> NoReturn:
    """End a module that was started as a program: say what to type instead, exit code 2."""
    sys.stderr.write(f"error: this module is not a program: type {commands}\n")
    sys.exit(2)
