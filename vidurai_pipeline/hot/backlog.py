"""How much waits in the hot store, and how long since it was written to.

The look at the hot store costs it next to nothing: no lock that a writer could meet for longer than some
milliseconds, nothing at all while its files have not changed, and never more than a thousandth of the time.
"""

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidurai_pipeline.hot.store import HotStore

#: Memories that are worth a run for the disk's sake alone.
WORTH_A_RUN = 1_000
# Archives are smaller than this share of what they hold takes in SQLite.
_PARQUET_SHARE = 0.5
_ROWS_AT_A_TIME = 5_000
_COST_SHARE = 1 / 1_000


@dataclass(frozen=True)
class Count:
    """What waits in the hot store, as counted at some moment.

    Attributes:
        waiting: memories that are ARCHIVED.
        total: memories in all.
        used_bytes: the store's size without its free pages.
        stamp: the store's files as they were just before; equal stamps, equal stores.
        at: when it was counted, in seconds since 1970.
        seconds: how long that took.
    """

    waiting: int
    total: int
    used_bytes: int
    stamp: str
    at: float
    seconds: float

    def serves(self, stamp: str, now: float, last_run: float = 0.0) -> bool:
        """Whether it need not be counted again: nothing has changed, or it was counted recently, after the last run."""
        return stamp == self.stamp or last_run < self.at <= now < self.at + self.seconds / _COST_SHARE


def stamp(path: Path) -> str:
    """What tells a store's files from those of before, without opening them: sizes and times of the last write."""
    return " ".join(f"{stat.st_size}.{stat.st_mtime_ns}" if stat else "-" for stat in _stats(path))


def last_write(path: Path) -> float:
    """When the store was last written to, in seconds since 1970."""
    return max((stat.st_mtime for stat in _stats(path) if stat), default=0.0)


def _stats(path: Path) -> Iterator[os.stat_result | None]:
    for file in (path, Path(f"{os.path.realpath(path)}-wal")):
        try:
            stat = file.stat()
        except OSError:
            stat = None
        # Opening a store makes an empty log.
        yield stat if stat and stat.st_size else None


def count(store: HotStore) -> Count:
    """Count what waits, in short reads: the number is that of no single moment.

    Raises:
        HotStoreError: the store can't be read, or has no column ``status``.
    """
    began, at, before = time.perf_counter(), time.time(), stamp(store.path)
    with contextlib.closing(store.connect()) as con, store.errors():
        waiting, total = _by_index(con) if _is_indexed(con) else _by_portions(con)
        used = store.size(con).used_bytes
    return Count(waiting, total, used, before, at, time.perf_counter() - began)


def _is_indexed(con: sqlite3.Connection) -> bool:
    return (
        con.execute(
            "SELECT 1 FROM pragma_index_list('memories') AS l, pragma_index_info(l.name) AS i "
            "WHERE i.seqno = 0 AND lower(i.name) = 'status' AND l.partial = 0"
        ).fetchone()
        is not None
    )


def _by_index(con: sqlite3.Connection) -> tuple[int, int]:
    waiting = con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone()[0]
    return waiting, con.execute("SELECT count(*) FROM memories").fetchone()[0]


def _by_portions(con: sqlite3.Connection) -> tuple[int, int]:
    """Go through the table by its ids: a reader of the whole would hold up checkpoints, or without a WAL writers."""
    counts = "count(*), coalesce(sum(status = 'ARCHIVED'), 0)"
    # Behind an id that is no number (there is hardly any) it can't go on.
    total, waiting = con.execute(f"SELECT {counts} FROM memories WHERE id IS NULL OR id >= ''").fetchone()
    last = -math.inf
    while last is not None:
        rows, archived, last = con.execute(
            f"SELECT {counts}, max(id) FROM (SELECT id, status FROM memories "
            f"NOT INDEXED WHERE id > ? AND id < '' ORDER BY id LIMIT {_ROWS_AT_A_TIME})",
            (last,),
        ).fetchone()
        waiting, total = waiting + archived, total + rows
    return waiting, total


def bytes_needed(counted: Count) -> int:
    """How much disk the archive of what waits may take, at most, in bytes."""
    return round(counted.used_bytes * counted.waiting / max(counted.total, 1) * _PARQUET_SHARE)
