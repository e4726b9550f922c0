"""Every error that a user is meant to read.

Each carries one line that says what was wrong, where, and what to do. The command line prints it as it
stands, Dagster shows it as the step's failure. None of them ever holds a memory's text: ids and counts only.
"""


class PipelineError(Exception):
    """Base of all errors below: something failed, nothing was lost."""


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


class VerificationError(ArchiveError):
    """A file read back from the archive does not equal the rows it was written from."""


class LogHeldError(BusyError):
    """Another program reads the hot store and keeps its write-ahead log from beginning anew; try again later."""


class LockedError(PipelineError):
    """Another run is at work on the same archive."""


class QueryError(PipelineError):
    """The SQL, the search or its parameters are wrong."""


class QTableError(PipelineError):
    """The Q-table file is damaged or can't be written."""


#: What to tell whoever asked a query for more than VIDURAI_MEMORY_LIMIT.
MORE_MEMORY = (
    "the query needs more memory than it may have: ask for less (fewer columns, a month at a time), or raise "
    "VIDURAI_MEMORY_LIMIT"
)
