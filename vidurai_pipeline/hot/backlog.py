"""How much waits in the hot store to be archived, and when the store was last written to.

A count costs the hot store next to nothing: no lock is held for longer than some milliseconds, nothing is read while
its files have not changed, and counting takes no more than a thousandth of the time.
"""

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vidurai_pipeline.hot.schema import Column
from vidurai_pipeline.hot.sql import Connection, json_ids, snapshot, tolerant_text
from vidurai_pipeline.hot.store import HotStore

#: Memories that are worth a run for the disk's sake alone.
WORTH_A_RUN = 1_000
# Archives are smaller than this share of what they hold takes in SQLite.
_PARQUET_SHARE = 0.5
_ROWS_AT_A_TIME = 5_000
_COST_SHARE = 1 / 1_000


@dataclass(frozen=True)
class Backlog:
    """What the hot store holds and what of it waits, in one snapshot.

    All but ``total``, ``by_status`` and ``bytes`` is of the ARCHIVED memories; ``oldest`` and ``newest`` are by
    ``created_at``, ``columns`` in the archive's order, ``bytes`` without the write-ahead log.
    """

    waiting: int
    total: int
    by_status: dict[str, int]
    by_salience: dict[str, int]
    oldest: str | None
    newest: str | None
    columns: tuple[Column, ...]
    bytes: int


@dataclass(frozen=True)
class BacklogCount:
    """How much waits, as counted at some moment.

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


def read_backlog(store: HotStore, con: Connection, left_alone: Collection[int] = ()) -> Backlog:
    """Look at all that waits, but for some memories.

    Raises:
        HotStoreError: the store can't be read, or its memories can't be archived.
    """
    schema = store.schema(con)
    known = {column.field for column in schema.columns}
    waiting = "FROM memories WHERE status = 'ARCHIVED' AND id NOT IN (SELECT value FROM json_each(?))"
    values = (json_ids(left_alone),)
    by_salience, oldest, newest = {}, None, None
    with store.errors(), snapshot(con), tolerant_text(con):
        by_status = dict(con.execute("SELECT status, count(*) FROM memories GROUP BY status").fetchall())
        if "salience" in known:
            by_salience = dict(
                con.execute(f"SELECT salience, count(*) {waiting} GROUP BY salience ORDER BY 2 DESC", values).fetchall()
            )
        if "created_at" in known:
            oldest, newest = con.execute(f"SELECT min(created_at), max(created_at) {waiting}", values).fetchone()
        (count,) = con.execute(f"SELECT count(*) {waiting}", values).fetchone()
    return Backlog(
        waiting=count,
        total=sum(by_status.values()),
        by_status={str(status): count for status, count in by_status.items()},
        by_salience={str(salience): count for salience, count in by_salience.items()},
        oldest=oldest,
        newest=newest,
        columns=schema.archived,
        bytes=store.path.stat().st_size,
    )


def count_backlog(store: HotStore) -> BacklogCount:
    """Count what waits, in short reads: the number is that of no single moment.

    Raises:
        HotStoreError: the store can't be read, or has no column ``status``.
    """
    began, at, before = time.perf_counter(), time.time(), stamp(store.path)
    waiting = total = 0
    last = -math.inf
    with contextlib.closing(store.connect()) as con, store.errors():
        # A reader of the whole table would hold up checkpoints, or without a WAL writers.
        while last is not None:
            rows, archived, last = con.execute(
                "SELECT count(*), coalesce(sum(status = 'ARCHIVED'), 0), max(id) FROM (SELECT id, status "
                f"FROM memories NOT INDEXED WHERE id > ? ORDER BY id LIMIT {_ROWS_AT_A_TIME})",
                (last,),
            ).fetchone()
            waiting, total = waiting + archived, total + rows
        used = store.size(con).used_bytes
    return BacklogCount(waiting, total, used, before, at, time.perf_counter() - began)


def bytes_needed(counted: BacklogCount) -> int:
    """How much disk the archive of what waits may take, at most, in bytes."""
    return round(counted.used_bytes * counted.waiting / max(counted.total, 1) * _PARQUET_SHARE)
