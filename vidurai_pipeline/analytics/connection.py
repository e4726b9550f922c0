"""A DuckDB database of our own, within limits."""

from pathlib import Path

import duckdb

from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.errors import ConfigError

_LARGEST_SPILL = "20GB"
# Without its extension httpfs, DuckDB has no random numbers that it calls safe, and must be told to encrypt with those
# that it has. Files that it spills are gone after the query.
_ENCRYPTED_SPILL = {"force_mbedtls_unsafe": True, "temp_file_encryption": True}


def connect(
    memory_limit: str, threads: int | None, scratch: Path, keys: KeyRing | None = None, **further: object
) -> duckdb.DuckDBPyConnection:
    """Open a database in memory.

    Args:
        memory_limit: the most memory that DuckDB may use, such as ``1GB``.
        threads: DuckDB's threads; None for one for each core.
        scratch: a private folder, for what does not fit into memory. With keys, it is encrypted there.
        keys: the archive's keys; default none.
        further: more of DuckDB's settings.
    """
    settings: dict[str, object] = {
        **({} if threads is None else {"threads": threads}),
        "memory_limit": memory_limit,
        "temp_directory": str(scratch / "spill"),
        "max_temp_directory_size": _LARGEST_SPILL,
        **(_ENCRYPTED_SPILL if keys is not None and keys.path else {}),
        "TimeZone": "UTC",  # as Vidurai's own times, so that nothing depends on where a query runs
        **further,
    }
    connection = duckdb.connect()
    for name, value in settings.items():
        try:
            # A plain SET would be the session's, and each query has a session of its own.
            connection.execute(f"SET GLOBAL {name} = $value", {"value": value})
        except duckdb.Error as error:
            connection.close()
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"DuckDB can't work with {name} = {value!r}: {reason}") from None
    return connection
