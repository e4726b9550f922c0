"""Is there so much to archive that the nightly run should not be waited for?

The look at the hot store costs it next to nothing: no lock that a writer could meet for longer than some
milliseconds, nothing at all while its files have not changed, and never more than a thousandth of the time.
"""

import contextlib
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidurai_pipeline.archival.hot_store import HotStore

#: Memories that are worth a run for the disk's sake alone.
WORTH_A_RUN = 1_000
#: The longest wait for a daemon that never pauses; runs are made to go beside it.
PATIENCE_SECONDS = 3_600.0
#: A failed run is tried again after so long, then after twice as long, and so on.
FIRST_RETRY_SECONDS = 1_800.0
LAST_RETRY_SECONDS = 86_400.0
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


@dataclass(frozen=True)
class Thresholds:
    """When a run starts early; 0 switches one off.

    Attributes:
        rows: waiting memories.
        bytes: growth of the hot store since the last run.
        free_disk: bytes free on the hot store's disk, or fewer.
        quiet: seconds without a write to the store for which a run waits.
    """

    rows: int
    bytes: int
    free_disk: int
    quiet: float


@dataclass(frozen=True)
class Past:
    """What the runs before tell.

    Attributes:
        left: memories that the last run could not move; they are no reason for another.
        used_bytes: the hot store's size without free pages after the last run, if known.
        failures: how many runs in a row have failed, up to the last.
        ended: when the last run ended, in seconds since 1970.
    """

    left: int = 0
    used_bytes: int | None = None
    failures: int = 0
    ended: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Whether to start a run now, and why, in words.

    Attributes:
        start: start one.
        wanted: a threshold is passed, whether or not something stands in the way.
        why: for whoever looks at the sensor's ticks.
    """

    start: bool
    wanted: bool
    why: str


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


def free_bytes(folder: Path) -> int:
    """The free space, in bytes, where a folder is or will be."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(place).free


def decide(
    counted: Count,
    thresholds: Thresholds,
    past: Past,
    *,
    now: float,
    written: float,
    wanted_since: float | None,
    store_free: int,
    archive_free: int,
) -> Decision:
    """Decide whether to start a run.

    Args:
        counted: what waits.
        thresholds: when a run starts early.
        past: what the runs before tell.
        now: the time, in seconds since 1970, as are the next two.
        written: when the store was last written to.
        wanted_since: since when a run has been wanted without a pause, if it has.
        store_free: bytes free on the hot store's disk.
        archive_free: bytes free on the archive's.
    """
    fresh = max(0, counted.waiting - past.left)
    grown = counted.used_bytes - past.used_bytes if past.used_bytes is not None else counted.used_bytes
    reasons = []
    if thresholds.rows and fresh >= thresholds.rows:
        reasons.append(f"{fresh:,} memories wait (a run starts at {thresholds.rows:,})")
    if thresholds.bytes and fresh >= WORTH_A_RUN and grown >= thresholds.bytes:
        reasons.append(f"the hot store has grown by {_mb(grown)} (a run starts at {_mb(thresholds.bytes)})")
    if thresholds.free_disk and fresh >= WORTH_A_RUN and store_free < thresholds.free_disk:
        reasons.append(f"only {_mb(store_free)} are free on its disk (a run starts below {_mb(thresholds.free_disk)})")
    if not reasons:
        left = f", and {past.left:,} that the last run could not move" if past.left else ""
        return Decision(
            start=False,
            wanted=False,
            why=f"no need: {fresh:,} memories wait{left}; the hot store has grown by {_mb(max(0, grown))}; "
            f"{_mb(store_free)} are free on its disk",
        )
    why = "; ".join(reasons)
    if obstacle := _obstacle(
        counted, thresholds, past, now=now, written=written, wanted_since=wanted_since, archive_free=archive_free
    ):
        return Decision(start=False, wanted=True, why=f"{why}. {obstacle}")
    return Decision(start=True, wanted=True, why=why)


def _obstacle(
    counted: Count,
    thresholds: Thresholds,
    past: Past,
    *,
    now: float,
    written: float,
    wanted_since: float | None,
    archive_free: int,
) -> str | None:
    if archive_free < (needed := bytes_needed(counted)):
        return f"But the archive's disk has {_mb(archive_free)} free and may need {_mb(needed)}: free some"
    if past.failures:
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (past.failures - 1))
        if (wait := past.ended + delay - now) > 0:
            runs = "the last run" if past.failures == 1 else f"the last {past.failures} runs"
            return f"But {runs} failed or was stopped: waits for another {_minutes(wait)}"
    quiet, patience = now - written, PATIENCE_SECONDS - (now - (wanted_since or now))
    if 0 <= quiet < thresholds.quiet and patience > 0:
        return (
            f"But the store was written to {quiet:.0f} s ago: waits for {thresholds.quiet:g} s without a write, "
            f"at most for another {_minutes(patience)}"
        )
    return None


def _mb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"
