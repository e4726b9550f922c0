"""What someone who looks after a hot store should know of it: its space, who has it open, what looks wrong in it.

All of it only reads, and none of it is needed to archive anything.
"""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from vidurai_pipeline.hot.backlog import last_write
from vidurai_pipeline.hot.sql import error_name, quote_identifier, snapshot, tolerant_text
from vidurai_pipeline.hot.store import HotStore

# B-trees that VACUUM has just packed still have about this share of their pages unused.
_UNUSED_WHEN_PACKED = 0.04
# SQLite's locks in the file of shared memory beside a write-ahead log: https://sqlite.org/walformat.html, 2.3.
_READ_LOCKS = range(123, 128)


@dataclass(frozen=True)
class Holder:
    """A process that has a store open: its number, and its program with the script that it runs.

    ``reading``: it is in a read transaction now, which keeps the write-ahead log from being reused.
    """

    pid: int
    command: str
    reading: bool


@dataclass(frozen=True)
class Orphans:
    """Rows of a table whose column names memories which the hot store does not have; some are in the archive."""

    table: str
    column: str
    rows: int
    memory_ids: list[int]


def reclaimable_bytes(store: HotStore, con: sqlite3.Connection) -> int:
    """About how many bytes a full ``VACUUM`` would give back to the disk.

    Those are the free pages, and, in a store with a write-ahead log, what is unused within the others. To know the
    latter, the whole file is read (about a second for 1 GB); without such a log that would keep writers waiting.

    Raises:
        HotStoreError: the store can't be read.
    """
    size = store.size(con)
    unused = 0
    with store.errors(), snapshot(con):
        if con.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            try:
                (unused,) = con.execute("SELECT sum(unused) FROM dbstat WHERE aggregate = 1").fetchone()
            except sqlite3.OperationalError as error:
                if error_name(error) != "SQLITE_ERROR":
                    raise  # anything but an SQLite that was built without this table
    return size.free_bytes + max(0, round(unused - _UNUSED_WHEN_PACKED * size.used_bytes))


def holders(path: Path) -> list[Holder]:
    """Other processes that have a store open, as far as this user may see them; on Linux alone."""
    store = os.path.realpath(path)
    files = {store, f"{store}-wal", f"{store}-shm"}
    reading = _reading(Path(f"{store}-shm"))
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        opened = set()
        arguments = [""]
        with contextlib.suppress(OSError):  # it is another user's, or has ended
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed just now
                    opened.add(str(link.readlink()))
        if opened & files and (pid := int(folder.name)) != os.getpid():
            found.append(Holder(pid, " ".join(Path(argument).name for argument in arguments[:2]), pid in reading))
    return sorted(found, key=lambda holder: holder.pid)


def _reading(shared_memory: Path) -> set[int]:
    """The processes that hold one of SQLite's read locks."""
    try:
        inode = shared_memory.stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    found = set()
    # As in `1: POSIX  ADVISORY  READ 4242 08:01:131 124 124`; of a lock that is only waited for, `->` stands second.
    for fields in (line.split() for line in locks):
        if len(fields) == 8 and fields[1] == "POSIX" and fields[5].endswith(f":{inode}"):
            first, last = int(fields[6]), fields[7]
            if any(first <= lock and (last == "EOF" or lock <= int(last)) for lock in _READ_LOCKS):
                found.add(int(fields[4]))
    return found


def archived_but_protected(store: HotStore, con: sqlite3.Connection) -> list[int]:
    """The ids of memories that are ARCHIVED although they are pinned or CRITICAL: Vidurai keeps such memories active.

    Raises:
        HotStoreError: the store can't be read.
    """
    known = {column.field: quote_identifier(column.name) for column in store.schema(con).columns}
    signs = [f"CAST({known['pinned']} AS INTEGER) <> 0"] if "pinned" in known else []
    if "salience" in known:
        signs.append(f"upper(CAST({known['salience']} AS TEXT)) = 'CRITICAL'")
    if not signs:
        return []
    with store.errors(), snapshot(con), tolerant_text(con):
        rows = con.execute(f"SELECT id FROM memories WHERE status = 'ARCHIVED' AND ({' OR '.join(signs)}) ORDER BY id")
        return [id_ for (id_,) in rows]


def orphans(store: HotStore, con: sqlite3.Connection) -> list[Orphans]:
    """Rows that name a memory which is not in the store, such as those that a purge leaves in ``event_receipts``.

    Raises:
        HotStoreError: the store can't be read.
    """
    found = []
    with store.errors(), snapshot(con), tolerant_text(con):
        columns = con.execute(
            "SELECT t.name, c.name FROM sqlite_master AS t, pragma_table_xinfo(t.name) AS c WHERE t.type = 'table' "
            "AND t.sql NOT LIKE 'CREATE VIRTUAL%' AND lower(c.name) LIKE '%memory@_id' ESCAPE '@' ORDER BY 1, 2"
        ).fetchall()
        for table, column in columns:
            name = quote_identifier(column)
            rows = con.execute(
                f"SELECT {name}, count(*) FROM {quote_identifier(table)} WHERE typeof({name}) = 'integer' "
                f"AND {name} NOT IN (SELECT id FROM memories) GROUP BY 1 ORDER BY 1"
            ).fetchall()
            if rows:
                found.append(Orphans(table, column, sum(count for _, count in rows), [id_ for id_, _ in rows]))
    return found


def newer_store(path: Path) -> Path | None:
    """Vidurai's other store in the same folder, if that is the one that was written to last.

    Newer versions of Vidurai make ``memory.db``, older ones ``vidurai.db``.
    """
    other = path.with_name("vidurai.db" if path.name == "memory.db" else "memory.db")
    if path.name not in {"vidurai.db", "memory.db"} or not other.is_file():
        return None
    return other if last_write(other) > last_write(path) else None
