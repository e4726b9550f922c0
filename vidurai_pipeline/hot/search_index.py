"""The full-text search index over memories: which of its rows are whose, and how they go.

``memory_id`` is not indexed there: looking a memory up by it would scan the whole index every time. In most stores
the rowid is the memory's id; one scan finds the exceptions.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from vidurai_pipeline.hot.sql import data_version, json_ids

_NEVER = -1


class SearchIndex:
    """``memories_fts``, an FTS5 table that keeps its content and has a column ``memory_id``; or none yet.

    Args:
        con: a writing connection to the hot store, in no transaction.
    """

    def __init__(self, con: sqlite3.Connection) -> None:
        self._con = con
        self._owner = ""
        self._scanned_at = _NEVER
        con.execute("CREATE TEMP TABLE search_strays (memory_id INTEGER, search_rowid INTEGER PRIMARY KEY)")
        con.execute("CREATE INDEX temp.search_strays_memory ON search_strays (memory_id)")

    def read_columns(self, *, present: bool) -> None:
        """Look at the index anew, as when the schema has changed; until a scan, its exceptions are unknown."""
        self._scanned_at = _NEVER
        self._owner = ""
        if present:
            columns = [
                name.lower() for (name,) in self._con.execute("SELECT name FROM pragma_table_info('memories_fts')")
            ]
            # The index's own content table is far cheaper to scan than the virtual table over it.
            self._owner = f"CAST(f.c{columns.index('memory_id')} AS INTEGER)"

    def scan(self) -> None:
        """List the rows whose rowid is not their memory's id."""
        # The version comes first: whatever changes after it is noticed.
        version = data_version(self._con)
        self._con.execute("DELETE FROM temp.search_strays")
        if self._owner:
            self._con.execute(
                f"INSERT INTO temp.search_strays SELECT {self._owner}, f.id FROM main.memories_fts_content AS f "
                f"WHERE {self._owner} IS NOT f.id"
            )
        self._scanned_at = version

    def outdated(self) -> bool:
        """Whether anyone else has changed the store since the scan: there may be rows that it did not see."""
        return data_version(self._con) != self._scanned_at

    def rows(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """The known rows of some memories: each memory's id and the row's rowid."""
        if not self._owner:
            return []
        # Both look once more whose row it is: rowids can have been given anew since the scan.
        return self._con.execute(
            f"SELECT wanted.value, f.id FROM json_each(?1) AS wanted CROSS JOIN main.memories_fts_content AS f "
            f"ON f.id = wanted.value WHERE {self._owner} = wanted.value UNION ALL "
            f"SELECT wanted.value, f.id FROM json_each(?1) AS wanted "
            "CROSS JOIN temp.search_strays AS s ON s.memory_id = wanted.value "
            f"CROSS JOIN main.memories_fts_content AS f ON f.id = s.search_rowid AND {self._owner} = s.memory_id",
            (json_ids(ids),),
        ).fetchall()

    def delete(self, rows: Sequence[tuple[int, int]]) -> None:
        """Delete some rows, given as :meth:`rows` gives them."""
        if rows:
            self._con.execute(
                "DELETE FROM memories_fts WHERE rowid IN (SELECT value FROM json_each(?))",
                (json_ids(rowid for _, rowid in rows),),
            )
