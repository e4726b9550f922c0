"""The SQL that every part of this package uses, and what SQLite's errors mean."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

#: A connection to the store, for annotations in packages that open none themselves.
Connection = sqlite3.Connection

# What a row, or the store's own rules for it, can cause.
_ROW_CODES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}


class BrokenText(bytes):
    """A TEXT value that is not valid UTF-8, which neither Arrow nor Parquet can hold as text."""


def quote_identifier(name: str) -> str:
    """Quote an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def json_ids(ids: Iterable[int]) -> str:
    """The ids as a JSON array: one bound parameter for ``json_each``, however many they are."""
    return json.dumps(list(ids))


class WriteTransaction:
    """Within: a transaction with the store's write lock, committed at the end and undone by an error.

    Attributes:
        seconds: how long it held the lock.
    """

    def __init__(self, con: sqlite3.Connection) -> None:
        self._con = con
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._con.execute("BEGIN IMMEDIATE")
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._con.in_transaction:
                self._con.execute("COMMIT")
        finally:
            self.undo()
            self.seconds = time.monotonic() - self._began

    def undo(self) -> None:
        """Take back what was done in it."""
        if self._con.in_transaction:
            self._con.execute("ROLLBACK")

    def next_size(self, size: float, *, most: float, target: float, grow: bool = True) -> float:
        """How much the next transaction should do, if this one did so much, to hold the lock for some seconds."""
        return min(most, max(1.0, size * min(1.5 if grow else 1.0, max(0.25, target / max(self.seconds, 1e-4)))))


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


@contextlib.contextmanager
def busy_timeout(con: sqlite3.Connection, milliseconds: int) -> Iterator[None]:
    """Within: wait so long for a lock."""
    before = con.execute("PRAGMA busy_timeout").fetchone()[0]
    con.execute(f"PRAGMA busy_timeout = {milliseconds}")
    try:
        yield
    finally:
        con.execute(f"PRAGMA busy_timeout = {before}")


@contextlib.contextmanager
def text_as(con: sqlite3.Connection, decode: Callable[[bytes], object]) -> Iterator[None]:
    """Within: TEXT is read as what a function makes of its bytes."""
    before, con.text_factory = con.text_factory, decode
    try:
        yield
    finally:
        con.text_factory = before


def tolerant_text(con: sqlite3.Connection) -> contextlib.AbstractContextManager[None]:
    """Within: TEXT that is not UTF-8 is read as ``BrokenText`` where it would raise an error."""

    def decode(raw: bytes) -> str | BrokenText:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return BrokenText(raw)

    return text_as(con, decode)


def is_undecodable(error: sqlite3.Error) -> bool:
    """Whether an error is Python's own for TEXT that is not UTF-8: the only one that has no code of SQLite's."""
    return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode")


def is_row_error(error: sqlite3.Error) -> bool:
    """Whether an error comes of what a row holds, or of the store's own rules for it, and not of the whole store."""
    return is_undecodable(error) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _ROW_CODES


def is_busy(error: sqlite3.Error) -> bool:
    """Whether an error means that another connection holds the store's lock."""
    return error_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def error_name(error: sqlite3.Error) -> str:
    """SQLite's own name of an error, such as ``SQLITE_BUSY_SNAPSHOT``; empty for Python's own errors."""
    return getattr(error, "sqlite_errorname", "")
