"""A DuckDB database of our own, within limits."""

from pathlib import Path

import duckdb

from vidurai_pipeline.errors import ConfigError

_LARGEST_SPILL = "20GB"


def connect(memory_limit: str, threads: int | None, scratch: Path, **further: object) -> duckdb.DuckDBPyConnection:
    """Open a database in memory.

    Args:
        memory_limit: the most memory that DuckDB may use, such as ``1GB``.
        threads: DuckDB's threads; None for one for each core.
        scratch: a private folder, for what does not fit into memory.
        further: more of DuckDB's settings.

    Raises:
        ConfigError: DuckDB does not take a setting.
    """
    settings: dict[str, object] = {
        **({} if threads is None else {"threads": threads}),
        "memory_limit": memory_limit,
        "temp_directory": str(scratch / "spill"),
        "max_temp_directory_size": _LARGEST_SPILL,
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
