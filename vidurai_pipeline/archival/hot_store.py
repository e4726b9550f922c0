"""The hot store: Vidurai's SQLite file, opened politely and read faithfully.

Only Python's own ``sqlite3`` opens it. A second SQLite in the same process (``adbc-driver-sqlite`` and ``apsw``
bring one each) would break the first one's POSIX locks when it closes the file, under a live daemon
(https://sqlite.org/howtocorrupt.html, 2.2.1).
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote as quote_uri

import pyarrow as pa

from vidurai_pipeline.archival.schema import PYTHON_TYPES, Column, Satellite, StoreSchema, quote, read_schema
from vidurai_pipeline.errors import HotStoreError, SchemaError

BATCH_ROWS = 8_192
BATCH_BYTES = 16 * 1024 * 1024
_FETCH_ROWS = 64
_KIND_NAMES = {int: "an integer", float: "a real", str: "text", bytes: "a blob", type(None): "NULL"}


class BrokenText(bytes):
    """A TEXT value that is not valid UTF-8, which neither Arrow nor Parquet can hold as text."""


@dataclass(frozen=True)
class Rejected:
    """A memory that stays hot because Parquet can't hold it faithfully, and why."""

    id: int | str | None
    column: str
    reason: str

    def __str__(self) -> str:
        return f"memory {self.id}: {self.column}: {self.reason}"


@dataclass
class RowBatch:
    """Rows of one read, as Arrow arrays by Parquet name, and the last id that was read, rejected or not."""

    ids: list[int]
    last: Any
    arrays: dict[str, pa.Array]
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class Backlog:
    """What waits in the hot store."""

    waiting: int
    total: int
    by_status: dict[str, int]
    by_salience: dict[str, int]
    oldest: str | None
    newest: str | None
    columns: tuple[Column, ...]
    bytes: int


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
        except SchemaError as error:
            if str(error).startswith("the hot store"):
                raise
            raise SchemaError(f"the hot store {self.path} {error}") from None
        except sqlite3.Error as error:
            raise HotStoreError(f"the hot store {self.path}: {self._advice(error)}") from error

    def _advice(self, error: sqlite3.Error) -> str:
        text = str(error)
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return f"busy for more than {self.busy_timeout:g} s ({text}); try again, or raise VIDURAI_BUSY_TIMEOUT"
        if name.startswith("SQLITE_NOTADB"):
            return "not a SQLite database, or an encrypted one; point VIDURAI_DB at Vidurai's own file"
        if name.startswith("SQLITE_CORRUPT"):
            return (
                f"damaged ({text}); stop Vidurai, keep a copy, and recover it with `sqlite3 STORE .recover` "
                "or from a backup"
            )
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return f"{text}; free some space on its disk and run again"
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN")):
            return f"{text}; it and its folder must be readable and writable for this user"
        return text

    def connect(self, *, write: bool = False) -> sqlite3.Connection:
        """Open a connection in autocommit mode; transactions are begun by hand.

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
        # A URI, so that a missing file is never created as an empty store.
        uri = f"file:{quote_uri(str(self.path.resolve()))}?mode={'rw' if write else 'ro'}"
        with self.errors():
            con = sqlite3.connect(
                uri, uri=True, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                con.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if write:
                    self._prepare_writing(con)
            except BaseException:
                con.close()
                raise
        return con

    def _prepare_writing(self, con: sqlite3.Connection) -> None:
        # SQLite opens a file that it may not write as read-only without a word; ask before any work is done.
        con.execute("BEGIN IMMEDIATE")
        con.execute("ROLLBACK")
        # As the daemon's own connection has it: rows that refer to a memory go with it, or forbid its deletion.
        con.execute("PRAGMA foreign_keys = ON")
        con.execute("PRAGMA cache_size = -65536")
        if con.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            con.execute("PRAGMA synchronous = NORMAL")

    def schema(self, con: sqlite3.Connection) -> StoreSchema:
        """Read the schema that is there.

        Raises:
            SchemaError: memories can't be archived from this store.
        """
        with self.errors():
            return read_schema(con, vectors=_load_vector_extension(con))

    def backlog(self, con: sqlite3.Connection) -> Backlog:
        """Count what waits, in one snapshot."""
        schema = self.schema(con)
        with self.errors(), snapshot(con):
            by_status = dict(con.execute("SELECT status, count(*) FROM memories GROUP BY status").fetchall())
            where = "FROM memories WHERE status = 'ARCHIVED'"
            known = {column.field for column in schema.columns}
            by_salience = (
                dict(con.execute(f"SELECT salience, count(*) {where} GROUP BY salience ORDER BY 2 DESC").fetchall())
                if "salience" in known
                else {}
            )
            oldest, newest = (
                con.execute(f"SELECT min(created_at), max(created_at) {where}").fetchone()
                if "created_at" in known
                else (None, None)
            )
        return Backlog(
            waiting=by_status.get("ARCHIVED", 0),
            total=sum(by_status.values()),
            by_status={str(status): count for status, count in by_status.items()},
            by_salience={str(salience): count for salience, count in by_salience.items()},
            oldest=oldest,
            newest=newest,
            columns=schema.archived,
            bytes=self.path.stat().st_size,
        )


@contextlib.contextmanager
def snapshot(con: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: everything inside sees the store as it was at the first read."""
    con.execute("BEGIN")
    try:
        yield
    finally:
        if con.in_transaction:
            con.execute("ROLLBACK")


def data_version(con: sqlite3.Connection) -> int:
    """A number that changes when, and only when, another connection has changed the store.

    https://sqlite.org/pragma.html#pragma_data_version: commits of ``con`` itself leave it alone.
    """
    return con.execute("PRAGMA data_version").fetchone()[0]


def json_ids(ids: Iterable[Any]) -> str:
    """The integer ids as a JSON array: one bound parameter for ``json_each``, however many they are."""
    return json.dumps([id_ for id_ in ids if type(id_) is int])


def read_archived(
    con: sqlite3.Connection, schema: StoreSchema, *, after: int | str | None = None, rows: int | None = None
) -> Iterator[RowBatch]:
    """Read ARCHIVED memories in order of id, in batches of bounded size.

    A row with a value that its Parquet column can't hold is left out and named in ``RowBatch.rejected``.

    Args:
        con: a connection inside a snapshot.
        schema: the store's schema.
        after: start behind this id.
        rows: stop after about so many rows.
    """
    read = 0
    with contextlib.closing(_Rows(con, schema, after)) as source:
        while (rows is None or read < rows) and (values := source.take()):
            batch = _to_arrow(con, schema, values)
            read += len(values)
            yield batch


class _Rows:
    """ARCHIVED rows as tuples; text that is not UTF-8 comes as ``BrokenText`` and does not stop the rest."""

    def __init__(self, con: sqlite3.Connection, schema: StoreSchema, after: int | str | None) -> None:
        self._con = con
        self._names = ", ".join(quote(column.name) for column in schema.archived)
        self._texts = [n for n, column in enumerate(schema.archived) if column.type != pa.int64()]
        self._last: Any = after
        self._cursor = self._select()

    def _select(self) -> sqlite3.Cursor:
        behind = "" if self._last is None else "AND id > ?"
        return self._con.execute(
            f"SELECT {self._names} FROM memories WHERE status = 'ARCHIVED' {behind} ORDER BY id",
            () if self._last is None else (self._last,),
        )

    def _fetch(self) -> list[tuple]:
        try:
            return self._cursor.fetchmany(_FETCH_ROWS)
        except sqlite3.OperationalError as error:
            if "decode" not in str(error).lower():
                raise
        # One of the next rows holds broken text. Read those few with a slower eye, then go on as before.
        with tolerant_text(self._con):
            rows = self._select().fetchmany(_FETCH_ROWS)
        self._last = rows[-1][0]
        self._cursor = self._select()
        return rows

    def take(self) -> list[tuple]:
        rows: list[tuple] = []
        size = 0
        while len(rows) < BATCH_ROWS and size < BATCH_BYTES:
            part = self._fetch()
            if not part:
                break
            self._last = part[-1][0]
            rows += part
            size += sum(len(value) for row in part for n in self._texts if isinstance(value := row[n], str | bytes))
        return rows

    def close(self) -> None:
        self._cursor.close()


@contextlib.contextmanager
def tolerant_text(con: sqlite3.Connection) -> Iterator[None]:
    """Within: TEXT that is not UTF-8 is read as ``BrokenText`` where it would raise an error."""

    def decode(raw: bytes) -> str | BrokenText:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return BrokenText(raw)

    before, con.text_factory = con.text_factory, decode
    try:
        yield
    finally:
        con.text_factory = before


def _to_arrow(con: sqlite3.Connection, schema: StoreSchema, rows: list[tuple]) -> RowBatch:
    faults: dict[int, Rejected] = {}
    ids = [row[0] for row in rows]
    last = ids[-1]
    _check(zip(schema.archived, zip(*rows, strict=True), strict=True), ids, faults)
    for table, column in schema.restricting:
        _reject_referenced(con, table, column, ids, faults)
    if schema.sealed_vectors:
        _reject_vectors(con, ids, faults)
    owned = {satellite: _read_satellite(con, satellite, ids, faults) for satellite in schema.satellites}
    if faults:
        rows = [row for n, row in enumerate(rows) if n not in faults]
        ids = [row[0] for row in rows]
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema.archived)
    arrays = {
        column.field: pa.array(values, column.type) for column, values in zip(schema.archived, columns, strict=True)
    }
    for satellite, by_memory in owned.items():
        arrays[satellite.field] = _nested(satellite, ids, by_memory)
    return RowBatch(ids, last, arrays, list(faults.values()))


def _check(columns: Iterable[tuple[Column, Sequence]], ids: list, faults: dict[int, Rejected]) -> None:
    """Find the values whose storage class is not their column's: Arrow would convert or refuse them."""
    for column, values in columns:
        expected = PYTHON_TYPES[column.type]
        optional = column.field != "id"
        if set(map(type, values)) <= ({expected, type(None)} if optional else {expected}):
            continue
        for n, value in enumerate(values):
            if type(value) is not expected and not (value is None and optional):
                id_ = ids[n] if isinstance(ids[n], int | str) else None
                faults.setdefault(n, Rejected(id_, column.name, _reason(expected, value)))


def _reason(expected: type, value: object) -> str:
    if isinstance(value, BrokenText):
        return "text that is not valid UTF-8"
    return f"{_KIND_NAMES[type(value)]} where the column holds {_KIND_NAMES[expected].removeprefix('an ')}"


def _reject_referenced(
    con: sqlite3.Connection, table: str, column: str, ids: list, faults: dict[int, Rejected]
) -> None:
    rows = con.execute(
        f"SELECT DISTINCT wanted.value FROM json_each(?) AS wanted "
        f"CROSS JOIN {quote(table)} AS t ON t.{quote(column)} = wanted.value",
        (json_ids(ids),),
    )
    for (id_,) in rows.fetchall():
        reason = f"still referred to by {table}.{column}, whose rows can't be archived with it"
        faults.setdefault(ids.index(id_), Rejected(id_, "id", reason))


def _reject_vectors(con: sqlite3.Connection, ids: list, faults: dict[int, Rejected]) -> None:
    """Without its extension the vector table can be neither read nor cleaned, but its list of ids can be read."""
    names = {name for (name,) in con.execute("SELECT name FROM pragma_table_info('vec_memories_rowids')")}
    if not names:
        return
    # vec0 keeps an integer key as the rowid and any other key in a column of its own.
    rows = con.execute(
        "SELECT DISTINCT wanted.value FROM json_each(?) AS wanted "
        "CROSS JOIN vec_memories_rowids AS v ON v.rowid = wanted.value",
        (json_ids(ids),),
    )
    reason = (
        "has a vector, which can't be read: install sqlite-vec, under a Python whose sqlite3 module can load extensions"
    )
    for (id_,) in rows.fetchall():
        faults.setdefault(ids.index(id_), Rejected(id_, "vec_memories", reason))


def _read_satellite(
    con: sqlite3.Connection, satellite: Satellite, ids: list, faults: dict[int, Rejected]
) -> dict[int, list[tuple]]:
    wanted = json_ids(ids)
    try:
        rows = con.execute(satellite.select, (wanted,)).fetchall()
    except sqlite3.OperationalError as error:
        if "decode" not in str(error).lower():
            raise
        with tolerant_text(con):
            rows = con.execute(satellite.select, (wanted,)).fetchall()
    position = {id_: n for n, id_ in enumerate(ids)}
    by_memory: dict[int, list[tuple]] = {}
    expected = [PYTHON_TYPES[column.type] for column in satellite.columns]
    for id_, *values in rows:
        for column, kind, value in zip(satellite.columns, expected, values, strict=True):
            if value is not None and type(value) is not kind:
                where = f"{satellite.table}.{column.name}"
                faults.setdefault(position[id_], Rejected(id_, where, _reason(kind, value)))
        by_memory.setdefault(id_, []).append(tuple(values))
    return by_memory


def _nested(satellite: Satellite, ids: list[int], by_memory: dict[int, list[tuple]]) -> pa.Array:
    offsets, rows = [0], []
    for id_ in ids:
        rows += by_memory.get(id_, ())
        offsets.append(len(rows))
    fields = [column.arrow_field for column in satellite.columns]
    columns = zip(*rows, strict=True) if rows else ([] for _ in fields)
    arrays = [pa.array(values, field.type) for field, values in zip(fields, columns, strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=satellite.type)


def _load_vector_extension(con: sqlite3.Connection) -> bool:
    """Load sqlite-vec into the connection where the store has vectors, it is installed and may be loaded."""
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'vec_memories'").fetchone() is None:
        return False
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
