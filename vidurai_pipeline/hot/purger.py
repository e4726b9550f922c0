"""Delete archived memories from the hot store, without the daemon noticing.

A row goes only if its archived copy equals it as it is now. The comparison is made before the write lock is taken;
inside the deleting transaction ``PRAGMA data_version`` tells whether anyone has written since, and if so the rows
are compared once more, under the lock. Each transaction is kept short: its size follows from how long the ones
before it held the lock.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.errors import LogHeldError
from vidurai_pipeline.hot.comparison import compare
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.search_index import SearchIndex
from vidurai_pipeline.hot.sql import (
    WriteTransaction,
    busy_timeout,
    data_version,
    is_row_error,
    json_ids,
    quote_identifier,
)

#: What one transaction aims at, so that the slow ones among them stay below 100 ms.
TARGET_SECONDS = 0.025
_TRANSACTIONS_PER_CHECKPOINT = 16
_BYTES_PER_WEIGHT = 2_048
_INDEX_ROWS = 128
_STILL_THERE = "SELECT id FROM memories WHERE id IN (SELECT value FROM json_each(?))"


@dataclass
class PurgeCount:
    """What became of some archived copies' rows.

    Attributes:
        purged: rows deleted from the hot store.
        kept: ids of rows that stay hot, since they are not what was archived, or can't be deleted.
        held: those of them that the store's own rules (a trigger, a foreign key) don't let go.
        missing: ids that the hot store has no row of.
        longest_hold: the longest hold of the write lock, in seconds.
    """

    purged: int = 0
    kept: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    longest_hold: float = 0.0


class Purger:
    """Deletes memories with their search index entries and child tables.

    Args:
        con: a writing connection to the hot store, with foreign keys on.
        read_schema: reads the store's schema by a connection.
        log_limit: bytes of the write-ahead log beyond which a purge pauses while a reader holds it.
        patience: seconds that such a pause may last.

    Attributes:
        log_bytes: how much of the write-ahead log was in use at the last checkpoint.
    """

    #: How much the first transaction deletes, and the largest; a memory weighs 1, and more with long texts.
    first_weight = 256.0
    most_weight = 16_384.0

    def __init__(
        self,
        con: sqlite3.Connection,
        read_schema: Callable[[sqlite3.Connection], StoreSchema],
        log_limit: int,
        patience: float,
    ) -> None:
        self._con = con
        self._read_schema = read_schema
        self._log_limit = log_limit
        self._patience = patience
        self._schema_version = self._stored_schema_version()
        self._schema = read_schema(con)
        self._weight = self.first_weight
        self._transactions = 0
        self.log_bytes = 0
        self._page_size = con.execute("PRAGMA page_size").fetchone()[0]
        self._logged = con.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        if self._logged:
            con.execute("PRAGMA wal_autocheckpoint = 0")
        self._purged: list[int] = []
        self._index = SearchIndex(con)
        self._index.read_columns(present=self._schema.search_index)
        self._index.scan()

    def _stored_schema_version(self) -> int:
        return self._con.execute("PRAGMA schema_version").fetchone()[0]

    def _refresh_schema(self) -> bool:
        """A column or a table may be added at any time; what it holds must be archived before it is deleted."""
        if (version := self._stored_schema_version()) == self._schema_version:
            return False
        self._schema = self._read_schema(self._con)
        # It is scanned by `finish`, where nobody waits for the lock.
        self._index.read_columns(present=self._schema.search_index)
        self._schema_version = version
        return True

    def purge(self, copies: pa.RecordBatch, count: PurgeCount, verified_at: int | None = None) -> None:
        """Delete the rows of archived copies that are equal to them.

        Args:
            copies: rows as read back from a published file.
            count: added to.
            verified_at: the data version of this connection at which all copies were found equal to their rows.
        """
        # The version comes first: whatever changes after it is noticed inside the deleting transaction.
        version = data_version(self._con)
        self._refresh_schema()
        if verified_at != version:
            copies = self._equal(copies, count)
        for portion in self._portions(copies):
            if self._delete_portion(portion, version, count):
                continue
            # A row refused to go (a trigger, a foreign key): find out which, and keep it.
            for n in range(portion.num_rows):
                row = portion.slice(n, 1)
                if not self._delete_portion(row, version, count, grow=False):
                    count.held += row.column("id").to_pylist()
                    count.kept |= set(count.held)

    def _equal(self, copies: pa.RecordBatch, count: PurgeCount) -> pa.RecordBatch:
        """Those copies that are equal to their rows; the others are counted."""
        found = compare(self._con, self._schema, copies)
        count.kept |= found.differing.keys()
        count.missing += found.missing
        if len(found.equal) == copies.num_rows:
            return copies
        equal = pc.SetLookupOptions(pa.array(found.equal, pa.int64()))
        return copies.filter(pc.call_function("is_in", [copies.column("id")], equal))

    def _portions(self, copies: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Cut rows into portions that one transaction can delete in time; long texts weigh more."""
        weights = np.ones(copies.num_rows)
        for name in ("verbatim", "gist", "tags"):
            lengths = pc.fill_null(pc.call_function("binary_length", [copies.column(name)]), 0)
            weights += lengths.to_numpy(zero_copy_only=False) / _BYTES_PER_WEIGHT
        ends = weights.cumsum()
        first = 0
        while first < copies.num_rows:
            before = ends[first - 1] if first else 0.0
            last = max(first + 1, int(ends.searchsorted(before + self._weight, "right")))
            yield copies.slice(first, last - first)
            first = last

    def _delete_portion(self, copies: pa.RecordBatch, version: int, count: PurgeCount, *, grow: bool = True) -> bool:
        """Delete one portion in one transaction; returns whether it could: if not, nothing of it was deleted."""
        changed = deleted = False
        found = PurgeCount()
        ids: list[int] = []
        transaction = WriteTransaction(self._con)
        try:
            with transaction:
                if changed := data_version(self._con) != version:
                    self._refresh_schema()
                    copies = self._equal(copies, found)
                ids = copies.column("id").to_pylist()
                deleted = self.delete(ids)
                if not deleted:
                    transaction.undo()
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
            deleted = False
        if deleted:
            count.kept |= found.kept
            count.missing += found.missing
            count.purged += len(ids)
            self._purged += ids
        count.longest_hold = max(count.longest_hold, transaction.seconds)
        # What failed early took no time, which says nothing.
        self._weight = transaction.next_size(
            self._weight, most=self.most_weight, target=TARGET_SECONDS, grow=grow and deleted
        )
        # A waiting writer polls: it finds the lock free as often as we leave it free.
        time.sleep(transaction.seconds if changed else 0.001)
        self._transactions += 1
        if self._transactions % _TRANSACTIONS_PER_CHECKPOINT == 0:
            self.checkpoint()
        return deleted

    def delete(self, ids: list[int]) -> bool:
        """Delete rows with all that belongs to them, within a transaction; returns whether all are gone."""
        wanted = json_ids(ids)
        indexed = self._index.rows(ids)
        for child in self._schema.child_tables:
            key = f"{quote_identifier(child.table)} WHERE {quote_identifier(child.key)}"
            if child.virtual:
                self._con.executemany(f"DELETE FROM {key} = ?", [(id_,) for id_ in ids])
            else:
                self._con.execute(f"DELETE FROM {key} IN (SELECT value FROM json_each(?))", (wanted,))
        self._con.execute("DELETE FROM memories WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
        # A trigger of the store's own may have kept a row, or put it back.
        if self._con.execute(_STILL_THERE, (wanted,)).fetchone():
            return False
        self._index.delete(indexed)
        return True

    def finish(self, count: PurgeCount, gone: Sequence[int] = ()) -> None:
        """Delete what the search index still holds of purged memories: rows that came, or moved, behind its scan.

        Args:
            count: of the purge.
            gone: ids of memories that a run before this one may have purged without coming to this.
        """
        ids, self._purged = [*self._purged, *gone], []
        while ids and (gone or self._index.outdated()):
            self._refresh_schema()
            self._index.scan()
            left = sorted({id_ for id_, _ in self._index.rows(ids)})
            for first in range(0, len(left), _INDEX_ROWS):
                held = self._delete_index_rows(left[first : first + _INDEX_ROWS])
                if held is None:
                    break
                count.longest_hold = max(count.longest_hold, held)
            else:
                break

    def _delete_index_rows(self, ids: list[int]) -> float | None:
        """Delete purged memories' rows of the search index; returns how long that held the lock.

        None if the index was made anew since its scan: nothing was deleted then.
        """
        with WriteTransaction(self._con) as transaction:
            if self._refresh_schema():
                return None
            # An id can have been given to another memory.
            again = {id_ for (id_,) in self._con.execute(_STILL_THERE, (json_ids(ids),))}
            self._index.delete([row for row in self._index.rows(ids) if row[0] not in again])
        time.sleep(transaction.seconds)
        return transaction.seconds

    def checkpoint(self) -> None:
        """Move the write-ahead log's pages into the store, between transactions, as far as its readers let us.

        SQLite would do it inside the COMMIT that fills the log; here nobody waits for it.

        Raises:
            LogHeldError: the log is at its limit, and a reader kept it from beginning anew for too long.
        """
        if not self._logged:
            return
        before = self.log_bytes
        _, pages, _ = self._con.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.log_bytes = pages * self._page_size
        if 2 * self.log_bytes - before > self._log_limit:  # by the next time
            self._begin_log_anew()

    def _begin_log_anew(self) -> None:
        """Wait until no reader needs the log any more, so that what is written next stands at its beginning."""
        began, since = time.monotonic(), time.strftime("%H:%M:%S")
        with busy_timeout(self._con, 0):
            while self._con.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]:
                if time.monotonic() - began >= self._patience:
                    raise LogHeldError(
                        f"the hot store's write-ahead log has grown to {self.log_bytes / 1e6:,.0f} MB "
                        f"(VIDURAI_WAL_LIMIT), because another program has been reading the store since {since} or "
                        "longer: end what it does, and run again"
                    )
                time.sleep(0.05)
        self.log_bytes = 0
