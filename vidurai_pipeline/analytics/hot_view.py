"""The hot store's memories, read when a query asks for them.

They are read in one snapshot by Python's own ``sqlite3`` (see :mod:`vidurai_pipeline.hot.store`), without any
lock that a writer would notice: a store in WAL mode never makes its writers wait for a reader, and of any other store
the pages are copied first, which takes a fraction of the time that reading the rows would.
"""

import contextlib
import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from vidurai_pipeline.hot.rows import read_all
from vidurai_pipeline.hot.salvage import Rejected
from vidurai_pipeline.hot.schema import SPECIFIED
from vidurai_pipeline.hot.sql import snapshot
from vidurai_pipeline.hot.store import HotStore

_NAMED = 3


@dataclass
class HotRows:
    """The memories of one snapshot, in batches; they can be read once.

    Attributes:
        schema: their columns, the specification's first; ``archived_at`` is NULL.
        batches: the rows.
        missing: why there are none, if there is no store.
        lost: the first few values that their column can't show.
        losses: how many there are.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    missing: str | None = None
    lost: list[Rejected] = field(default_factory=list)
    losses: int = 0


class HotTier:
    """The hot store as the analyst sees it.

    Args:
        path: the SQLite file, which need not exist.
        busy_timeout: seconds to wait for a lock.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.path = path
        self._store = HotStore(path, busy_timeout)

    def exists(self) -> bool:
        """Whether there is a store yet."""
        return self.path.exists()

    @contextlib.contextmanager
    def rows(self, scratch: Path) -> Iterator[HotRows]:
        """Take a snapshot; inside, its memories can be read.

        Args:
            scratch: a private folder for a copy of the store, where one is needed.

        Raises:
            HotStoreError: the store is busy, damaged, or not one of memories.
        """
        if not self.exists():
            schema = pa.schema(list(SPECIFIED.items()))
            yield HotRows(schema, iter(()), f"there is no hot store at {self.path}: `memories` shows the archive alone")
            return
        with contextlib.ExitStack() as stack:
            # DuckDB asks for the rows in threads of its own, never in two at once.
            con = stack.enter_context(contextlib.closing(self._store.connect(check_same_thread=False)))
            stack.enter_context(self._store.errors())
            if con.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                con = stack.enter_context(_copied(con, scratch))
            stack.enter_context(snapshot(con))
            schema = self._store.schema(con, to_purge=False)
            rows = HotRows(schema.arrow_schema, iter(()))

            def batches() -> Generator[pa.RecordBatch, None, None]:
                for batch in read_all(con, schema):
                    rows.losses += len(batch.rejected)
                    rows.lost += batch.rejected[: _NAMED - len(rows.lost)]
                    yield batch.record_batch(schema, archived_at=None)

            reading = batches()

            def stop_reading() -> None:
                # Before the connection is closed; unless a query that was stopped still reads in a thread of its own.
                with contextlib.suppress(ValueError):
                    reading.close()

            stack.callback(stop_reading)
            rows.batches = reading
            yield rows

    def loss(self, rows: HotRows) -> str | None:
        """What the reader must know of values that could not be shown; None if there are none."""
        if not rows.losses:
            return None
        more = f" (and {rows.losses - len(rows.lost)} more)" if rows.losses > len(rows.lost) else ""
        named = "; ".join(map(str, rows.lost))
        return (
            f"the hot store {self.path} holds what can't be shown as it is. Such a value is NULL; a memory whose id is "
            f"no integer is left out: {named}{more}"
        )


@contextlib.contextmanager
def _copied(con: sqlite3.Connection, scratch: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the store: a reader of the original would make its writers wait until it has seen every row."""
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))) / "hot.db"
        copy = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        stack.enter_context(contextlib.closing(copy))
        with snapshot(con):
            # The first read waits for its lock as long as it may; backup() on its own would wait forever.
            con.execute("SELECT count(*) FROM sqlite_master").fetchone()
            con.backup(copy)
        yield copy
