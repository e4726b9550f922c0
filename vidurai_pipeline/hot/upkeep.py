"""Keep the hot store small after a purge, without the daemon noticing.

- The write-ahead log is checkpointed, and truncated if nobody is in the way.
- The search index is merged in short steps, as ``optimize`` would do in one long one
  (https://sqlite.org/fts5.html#the_merge_command).
- Free pages are given back to the disk only where that was chosen. Vidurai's next memories take them anyway, and a
  full ``VACUUM`` holds the write lock for as long as copying the store takes.
"""

import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vidurai_pipeline.errors import HotStoreError
from vidurai_pipeline.hot.sql import WriteTransaction, busy_timeout, data_version, is_busy
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import Settings

#: What one step aims at, so that the slow ones among them stay below 100 ms.
TARGET_SECONDS = 0.020
#: How long the search index may be merged after a purge, at least and for each memory purged: a tenth of what
#: the purge itself took. The next run goes on where this one stopped.
MERGE_SECONDS = 0.5
MERGE_SECONDS_PER_MEMORY = 2e-6
#: How long the search index may be merged after an erasure, which rewrites all of it.
ERASE_SECONDS = 600.0
#: How long free pages may be given back in steps after a purge; the next run goes on.
VACUUM_SECONDS = 30.0
# Of the memories that stay in the search index; SQLite itself merges away what fewer deletions leave, bit by bit.
_MERGE_SHARE = 0.1
# No other process may have written for so long when the store is locked for a full vacuum.
_QUIET_SECONDS = 3.0
_FIRST_PAGES = 16
_MOST_PAGES = 256
_STEPS_PER_CHECKPOINT = 16
_CHECKPOINT_SECONDS = 0.05
_INCREMENTAL = 2


@dataclass
class Upkeep:
    """What was done for the hot store.

    Attributes:
        merge_steps: steps in which the search index was merged.
        reclaimed_bytes: what its file gave back to the disk.
        longest_hold: the longest hold of the write lock in seconds, that of a full vacuum not among them.
        vacuum_seconds: how long a full vacuum held it.
        notes: what was left for another time, and why.
    """

    merge_steps: int = 0
    reclaimed_bytes: int = 0
    longest_hold: float = 0.0
    vacuum_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def keep_small(store: HotStore, con: sqlite3.Connection, settings: Settings, purged: int) -> Upkeep:
    """Checkpoint the log, merge the search index, give free pages back, as the settings say.

    Nothing here is needed for the memories' sake: what fails is noted, and raises nothing.
    """
    done = Upkeep()
    try:
        with store.errors():
            if purged and store.schema(con).search_index:
                seconds = MERGE_SECONDS + purged * MERGE_SECONDS_PER_MEMORY
                anew = _worth_merging(con, purged)
                _merge_in_steps(con, done, settings.wal_limit, anew=anew, seconds=seconds)
            before = store.path.stat().st_size
            if settings.vacuum == "incremental":
                _vacuum_in_steps(con, done, settings.wal_limit)
            elif settings.vacuum == "full":
                _vacuum_at_once(store, con, settings.vacuum_share, done)
            if purged or done.merge_steps or settings.vacuum != "off":
                checkpoint(con)
            done.reclaimed_bytes = max(0, before - store.path.stat().st_size)
    except (HotStoreError, OSError) as error:
        done.notes.append(f"the hot store was not made smaller: {error}")
    return done


def _worth_merging(con: sqlite3.Connection, purged: int) -> bool:
    """Whether so much left the search index that merging pays: it rewrites all of what stays."""
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'memories_fts_docsize'").fetchone() is None:
        return False  # made with columnsize=0: to count it would mean to read it
    (left,) = con.execute("SELECT count(*) FROM memories_fts_docsize").fetchone()
    return purged > left * _MERGE_SHARE


def _in_steps(
    con: sqlite3.Connection, step: Callable[[int], bool], done: Upkeep, seconds: float, log_limit: int
) -> int:
    """Repeat a short transaction until it finds nothing to do, or time is up; returns how often it did something."""
    # SQLite would checkpoint inside the COMMIT that fills the log; between the steps nobody waits for it.
    (automatic,) = con.execute("PRAGMA wal_autocheckpoint").fetchone()
    (page_size,) = con.execute("PRAGMA page_size").fetchone()
    con.execute("PRAGMA wal_autocheckpoint = 0")
    pages, ends, count = _FIRST_PAGES, time.monotonic() + seconds, 0
    try:
        while True:
            with WriteTransaction(con) as transaction:
                more = step(pages)
            done.longest_hold = max(done.longest_hold, transaction.seconds)
            if not more:
                return count
            count += 1
            pages = round(transaction.next_size(pages, most=_MOST_PAGES, target=TARGET_SECONDS))
            if count % _STEPS_PER_CHECKPOINT == 1:
                _, log_pages, _ = con.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if log_pages * page_size > log_limit:
                    return count
            if time.monotonic() >= ends:
                return count
            # A waiting writer polls: it finds the lock free as often as we leave it free.
            time.sleep(transaction.seconds)
    finally:
        con.execute(f"PRAGMA wal_autocheckpoint = {automatic}")


def _merge_in_steps(con: sqlite3.Connection, done: Upkeep, log_limit: int, *, anew: bool, seconds: float) -> bool:
    """Returns whether there is more to merge."""
    more = True

    def step(pages: int) -> bool:
        # A first step with a negative number makes one level of all segments, as `optimize` does; a positive one goes
        # on with a merge that was begun, and begins none that SQLite would not begin itself.
        nonlocal anew, more
        before = con.total_changes
        con.execute("INSERT INTO memories_fts (memories_fts, rank) VALUES ('merge', ?)", (-pages if anew else pages,))
        anew = False
        more = con.total_changes - before >= 2
        return more

    done.merge_steps = _in_steps(con, step, done, seconds, log_limit)
    return more


def merge_search_index(con: sqlite3.Connection, log_limit: int, done: Upkeep) -> bool:
    """Merge the whole search index, which until then keeps the words of deleted rows; returns whether it is done."""
    until = time.monotonic() + ERASE_SECONDS
    anew = True
    while _merge_in_steps(con, done, log_limit, anew=anew, seconds=until - time.monotonic()):
        if time.monotonic() > until or not checkpoint(con, 1.0):
            return False
        anew = False
    return True


def _vacuum_in_steps(con: sqlite3.Connection, done: Upkeep, log_limit: int) -> None:
    if con.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
        done.notes.append(
            "VIDURAI_VACUUM=incremental needs a store that was vacuumed in full once: set it to full for one run"
        )
        return

    def step(pages: int) -> bool:
        con.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        return con.execute("PRAGMA freelist_count").fetchone()[0] > 0

    _in_steps(con, step, done, VACUUM_SECONDS, log_limit)


def _vacuum_at_once(store: HotStore, con: sqlite3.Connection, share: float, done: Upkeep) -> None:
    pages, free, size = (
        con.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    if free <= pages * share:
        return
    if lack := lacks_room(store, (pages - free) * size):
        done.notes.append(f"no vacuum: {lack}")
        return
    version = data_version(con)
    time.sleep(_QUIET_SECONDS)
    if data_version(con) != version:
        done.notes.append("no vacuum: Vidurai is writing; the next run tries again")
        return
    with busy_timeout(con, 0):
        began = time.monotonic()
        try:
            con.execute("PRAGMA auto_vacuum = INCREMENTAL")  # from now on it can be done in steps
            con.execute("VACUUM")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            done.notes.append("no vacuum: Vidurai uses the store; the next run tries again")
            return
        done.vacuum_seconds = time.monotonic() - began


def lacks_room(store: HotStore, used_bytes: int) -> str | None:
    """Why a full vacuum can't be made of a store of this size; None if its disk has room for it."""
    # The copy, and the log through which it becomes the store.
    room, needed = shutil.disk_usage(store.path.parent).free, 2 * used_bytes
    return None if room >= needed else f"it needs {needed / 1e6:,.0f} MB on the disk, {room / 1e6:,.0f} MB are free"


def checkpoint(con: sqlite3.Connection, seconds: float = 0.0) -> bool:
    """Move the log into the store beside readers and writers, and cut it off once nobody is in the way.

    Returns whether it was cut off, after waiting so many seconds for those in the way.
    """
    until = time.monotonic() + seconds
    while True:
        con.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # While SQLite waits for a reader here, it holds the write lock; so it does not wait.
        with busy_timeout(con, 0):
            if not con.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                return True
        if time.monotonic() >= until:
            return False
        time.sleep(_CHECKPOINT_SECONDS)
