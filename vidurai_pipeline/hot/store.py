"""The hot store: Vidurai's SQLite file, opened politely and read faithfully.

Only Python's own ``sqlite3`` opens it. A second SQLite in the same process (``adbc-driver-sqlite`` and ``apsw``
bring one each) would break the first one's POSIX locks when it closes the file, under a live daemon
(https://sqlite.org/howtocorrupt.html, 2.2.1).
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote as quote_uri

from vidurai_pipeline.errors import BusyError, HotStoreError, SchemaError
from vidurai_pipeline.hot.schema import StoreSchema, read_schema
from vidurai_pipeline.hot.sql import error_name, is_busy, is_undecodable


@dataclass(frozen=True)
class StoreSize:
    """How large the hot store is, in bytes: on the disk with its log, in use, free for what comes next, and its log."""

    bytes: int
    used_bytes: int
    free_bytes: int
    log_bytes: int


class HotStore:
    """A Vidurai SQLite store.

    Args:
        path: the file.
        busy_timeout: seconds to wait for a lock before giving up.
    """

    def __init__(self, path: Path, busy_timeout: float = 60.0) -> None:
        self.path = Path(path)
        self.busy_timeout = busy_timeout

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into a line that names the store and says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            kind = BusyError if is_busy(error) else HotStoreError
            raise kind(f"the hot store {self.path}: {self._advice(error)}") from error

    def _advice(self, error: sqlite3.Error) -> str:
        # Of text that can't be decoded, sqlite3's own message quotes a part.
        text = "text that is not valid UTF-8" if is_undecodable(error) else str(error)
        name = error_name(error)
        if is_busy(error):
            return f"busy for more than {self.busy_timeout:g} s ({text}); try again, or raise VIDURAI_BUSY_TIMEOUT"
        if name.startswith("SQLITE_NOTADB"):
            return "not a SQLite database, or an encrypted one; point VIDURAI_DB at Vidurai's own file"
        if name.startswith("SQLITE_CORRUPT"):
            return (
                f"damaged ({text}); stop Vidurai, keep a copy, and recover it with `sqlite3 STORE .recover` "
                "or from a backup"
            )
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return f"{text}; free some space on its disk and in the folder for temporary files, and run again"
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN")):
            return f"{text}; it and its folder must be readable and writable for this user"
        return text

    def connect(self, *, write: bool = False, check_same_thread: bool = True) -> sqlite3.Connection:
        """Open a connection in autocommit mode; transactions are begun by hand.

        Args:
            write: whether anything is to be changed by it.
            check_same_thread: no other thread may use it. Two that do so at once may wait for each other for ever:
                one holds SQLite's mutex and waits for Python's lock, the other the other way round.

        Raises:
            HotStoreError: the file does not exist, can't be read, or (``write``) can't be written.
        """
        if not self.path.exists():
            raise HotStoreError(
                f"the hot store {self.path} does not exist: start Vidurai once, or set VIDURAI_DB or VIDURAI_HOME "
                "(`vidurai-pipeline demo DIR` makes a sample store)"
            )
        if not self.path.is_file():
            raise HotStoreError(f"the hot store {self.path} is not a file: point VIDURAI_DB at Vidurai's SQLite file")
        if write and self.path.stat().st_nlink > 1:
            raise HotStoreError(
                f"the hot store {self.path} is a file with several names (hard links): SQLite keeps a log by each, so "
                "two programs that use different names destroy it. Replace the others by copies or symbolic links"
            )
        with self.errors():
            con = self._open("rw" if write else "ro", check_same_thread)
            try:
                con.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as error:
                con.close()
                if write or not error_name(error).startswith("SQLITE_READONLY"):
                    raise
                # A daemon died and left its journal: only a connection that may write can roll it back.
                con = self._open("rw", check_same_thread)
            if write:
                try:
                    self._prepare_writing(con)
                except BaseException:
                    con.close()
                    raise
        return con

    def require(self) -> None:
        """Make sure that this is a store of Vidurai's, before anything is written on its account.

        Raises:
            HotStoreError: it does not exist, or is something else.
        """
        try:
            # Who holds its lock is waited for later, by whoever needs it.
            with contextlib.closing(HotStore(self.path, 0).connect()) as con, self.errors():
                found = con.execute("SELECT 1 FROM sqlite_master WHERE name = 'memories'").fetchone()
        except BusyError:
            return
        if found is None:
            raise SchemaError(
                f"the hot store {self.path} has no table `memories`: it is not a Vidurai store, or Vidurai has not "
                "set it up yet",
                hint="start Vidurai once, or point the settings at its own file",
            )

    def _open(self, mode: str, check_same_thread: bool) -> sqlite3.Connection:
        # A URI, so that a missing file is never created as an empty store.
        uri = f"file:{quote_uri(os.path.realpath(os.fsencode(self.path)))}?mode={mode}"
        return sqlite3.connect(
            uri, uri=True, timeout=self.busy_timeout, isolation_level=None, check_same_thread=check_same_thread
        )

    def _prepare_writing(self, con: sqlite3.Connection) -> None:
        # SQLite opens a file that it may not write as read-only without a word, and on a read-only disk it even
        # begins a transaction to write; ask for something to write before any work is done.
        con.execute("BEGIN IMMEDIATE")
        (version,) = con.execute("PRAGMA user_version").fetchone()
        con.execute(f"PRAGMA user_version = {version}")
        con.execute("ROLLBACK")
        # As the daemon's own connection has it: rows that refer to a memory go with it, or forbid its deletion.
        con.execute("PRAGMA foreign_keys = ON")
        con.execute("PRAGMA cache_size = -16384")
        if con.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            con.execute("PRAGMA synchronous = NORMAL")

    def schema(self, con: sqlite3.Connection, *, to_purge: bool = True) -> StoreSchema:
        """Read the schema that is there, to purge from the store or only to read its memories.

        Raises:
            SchemaError: memories can't be archived (or read) from this store.
        """
        with self.errors():
            try:
                return read_schema(con, vectors=can_read_vectors(con), to_purge=to_purge)
            except SchemaError as error:
                raise SchemaError(f"the hot store {self.path} {error.args[0]}", error.hint) from None

    def size(self, con: sqlite3.Connection) -> StoreSize:
        """How large the store is, and how much of it is in use."""
        log = Path(f"{os.path.realpath(self.path)}-wal")
        log_bytes = log.stat().st_size if log.exists() else 0
        with self.errors():
            pages, free, size = (
                con.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
            )
        return StoreSize(self.path.stat().st_size + log_bytes, (pages - free) * size, free * size, log_bytes)


def can_read_vectors(con: sqlite3.Connection) -> bool:
    """Whether the store has vectors that this connection can read."""
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'vec_memories'").fetchone() is None:
        return False
    return load_vector_extension(con)


def load_vector_extension(con: sqlite3.Connection) -> bool:
    """Load sqlite-vec into a connection, if it is installed and may be loaded."""
    try:
        import sqlite_vec  # pyright: ignore[reportMissingImports]  # noqa: PLC0415  (optional)
    except ImportError:
        return False
    if not hasattr(con, "enable_load_extension"):
        return False
    con.enable_load_extension(True)
    try:
        sqlite_vec.load(con)
    finally:
        con.enable_load_extension(False)
    return True
