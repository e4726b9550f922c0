"""Memories in the hot store that had been removed from the archive for good, and came back, as from a backup."""

import sqlite3
from collections.abc import Iterator

import pyarrow as pa

from vidurai_pipeline.cold.tombstones import Tombstones
from vidurai_pipeline.hot.rows import BATCH_ROWS, read_all
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import json_ids

_WAITING = "status = 'ARCHIVED' AND id IN (SELECT value FROM json_each(?))"


def read_tombstoned(con: sqlite3.Connection, schema: StoreSchema, tombstones: Tombstones) -> Iterator[pa.RecordBatch]:
    """Read ARCHIVED memories that have a tombstone.

    Args:
        con: a connection to the hot store.
        schema: the hot store's schema.
        tombstones: of the archive.

    Raises:
        ArchiveError: the tombstones can't be read.
    """
    if not tombstones.files():
        return
    waiting = con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED' AND typeof(id) = 'integer'").fetchall()
    ids = tombstones.ids(pa.array([id_ for (id_,) in waiting], pa.int64()))
    for first in range(0, len(ids), BATCH_ROWS):
        # Whole, before any of them is purged: a statement that is still being read would keep the log from ending.
        parts = list(read_all(con, schema, _WAITING, (json_ids(ids[first : first + BATCH_ROWS]),)))
        for part in parts:
            rows = part.record_batch(schema, None)
            if (found := rows.filter(tombstones.stand_for(rows))).num_rows:
                yield found
