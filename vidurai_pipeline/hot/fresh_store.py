"""A new, empty hot store with Vidurai's tables."""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import pyarrow as pa

from vidurai_pipeline.errors import ConfigError, HotStoreError
from vidurai_pipeline.hot.sql import quote_identifier
from vidurai_pipeline.hot.store import load_vector_extension

_SQL = files("vidurai_pipeline.hot") / "sample"
#: Vidurai's own table of vectors.
VECTORS = "CREATE VIRTUAL TABLE vec_memories USING vec0(memory_id INTEGER PRIMARY KEY, embedding float[384])"


def require_new(path: Path) -> None:
    """Make sure that there is no store at a path, nor a part of one.

    Raises:
        ConfigError: a file exists there.
    """
    # SQLite would replay a log left behind by an earlier store into the new one.
    for taken in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
        if os.path.lexists(taken):
            raise ConfigError(f"{taken} exists already; choose another place or move it away")


@contextlib.contextmanager
def new_store(path: Path) -> Iterator[sqlite3.Connection]:
    """Fill a new store: a connection to its draft, with Vidurai's tables; at the end the file appears, complete.

    Args:
        path: the new SQLite file; its folder is created if need be.

    Raises:
        ConfigError: a file exists at the path, or none can be created there.
        HotStoreError: SQLite could not write it, for instance because the disk is full.
    """
    require_new(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            draft.touch(mode=0o600)
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as con:
                # No fsync: what a crash leaves is a draft that nobody reads.
                con.executescript(
                    "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA cache_size = -131072;"
                )
                con.executescript((_SQL / "tables.sql").read_text("utf-8"))
                yield con
                con.executescript((_SQL / "indexes.sql").read_text("utf-8") + "PRAGMA journal_mode = WAL;")
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            path.hardlink_to(draft)  # unlike a rename, fails if a file has appeared there meanwhile
    except OSError as error:
        raise ConfigError(f"can't create {path}: {error.strerror}; choose another place") from error
    except sqlite3.Error as error:
        raise HotStoreError(f"can't write {path}: {error}; free some space or choose another place") from error


def add_places(con: sqlite3.Connection, schemas: Iterable[pa.Schema]) -> None:
    """Give a new store the columns of ``memories`` and the vectors that archived files of some schemas have."""
    present = {row[1].lower() for row in con.execute("PRAGMA table_info(memories)")}
    for field in (field for schema in schemas for field in schema):
        told = field.metadata or {}
        if (name := told.get(b"sqlite_column", b"").decode()) and name.lower() not in present:
            present.add(name.lower())
            declared = told.get(b"sqlite_type", b"").decode()
            con.execute(f"ALTER TABLE memories ADD COLUMN {quote_identifier(name)} {quote_identifier(declared)}")
        elif field.name == "vec_memories" and "vec_memories" not in present and load_vector_extension(con):
            present.add("vec_memories")
            con.execute(VECTORS)
