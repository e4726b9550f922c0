"""Compare archived copies with the rows they were made from.

This shares nothing with the code that reads rows for the archive: it asks SQLite for the raw bytes of every text,
for rows by their ids and not by their status, and compares plain Python values, not Arrow arrays. A mistake in the
writing path can't hide itself here.
"""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vidurai_pipeline.archival.hot_store import json_ids
from vidurai_pipeline.archival.schema import PYTHON_TYPES, Column, Satellite, StoreSchema, quote


@dataclass
class Comparison:
    """How some archived copies compare with the hot store.

    Attributes:
        equal: ids of memories whose row, and all that belongs to it, equals the copy.
        differing: for each other memory that the hot store has, a column that differs.
        missing: ids that the hot store has no row of.
    """

    equal: list[int] = field(default_factory=list)
    differing: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    def __iadd__(self, other: "Comparison") -> "Comparison":
        self.equal += other.equal
        self.differing |= other.differing
        self.missing += other.missing
        return self

    def describe(self, named: int = 10) -> str:
        """The differences in words: ids and columns, never what stands in them."""
        words = [f"memory {id_}: {column}" for id_, column in list(self.differing.items())[:named]]
        if (more := len(self.differing) - len(words)) > 0:
            words.append(f"and {more:,} more")
        text = f"{len(self.differing):,} rows differ" + (f" ({', '.join(words)})" if words else "")
        return text + (f", {len(self.missing):,} are missing" if self.missing else "")


def compare(con: sqlite3.Connection, schema: StoreSchema, copies: pa.RecordBatch) -> Comparison:
    """Compare every column of archived copies with their rows as the connection sees them now.

    Args:
        con: a connection to the hot store; inside a transaction, that transaction's view counts.
        schema: the hot store's schema.
        copies: rows as read back from an archive file, with no id twice.

    Returns:
        Each copy's id in one of three groups.
    """
    ids: list[int] = copies.column("id").to_pylist()
    with _raw_text(con):
        names, oddity = _select(schema.archived, "m")
        rows = con.execute(
            f"SELECT {names}, {oddity} FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value",
            (json_ids(ids),),
        ).fetchall()
        satellites = {s: _satellite_rows(con, s, ids) for s in schema.satellites}
    result = Comparison()
    if len(rows) != len(ids):
        found = {row[0] for row in rows}
        result.missing = [id_ for id_ in ids if id_ not in found]
        copies = copies.filter(pa.array([id_ in found for id_ in ids], pa.bool_()))
        ids = copies.column("id").to_pylist()
    if not rows:
        return result
    *values, odd = zip(*rows, strict=True)
    for column, hot in zip(schema.archived, values, strict=True):
        _compare_column(column, hot, copies, ids, result.differing)
    if any(odd):
        result.differing |= {id_: "storage class" for id_, flag in zip(ids, odd, strict=True) if flag}
    for satellite, (hot_rows, odd_ids) in satellites.items():
        archived = _archived_satellite(satellite, copies)
        for id_, copy in zip(ids, archived, strict=True):
            if id_ in odd_ids or not _same_rows(hot_rows.get(id_, []), copy):
                result.differing.setdefault(id_, satellite.table)
    result.equal = [id_ for id_ in ids if id_ not in result.differing] if result.differing else ids
    return result


@contextlib.contextmanager
def _raw_text(con: sqlite3.Connection) -> Iterator[None]:
    before, con.text_factory = con.text_factory, bytes
    try:
        yield
    finally:
        con.text_factory = before


def _select(columns: Sequence[Column], alias: str) -> tuple[str, str]:
    """SQL for the columns, and for whether a text column holds a blob or the reverse, which raw bytes don't tell."""
    names, odd = [], []
    for column in columns:
        name = f"{alias}.{quote(column.name)}"
        names.append(name)
        if column.type == pa.string():
            odd.append(f"typeof({name}) = 'blob'")
        elif column.type == pa.binary():
            odd.append(f"typeof({name}) = 'text'")
    return ", ".join(names), f"({' OR '.join(odd) or 'FALSE'})"


def _plain(array: pa.Array) -> list[Any]:
    """Archived values as Python's, text as the bytes it is made of."""
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.large_binary())
    return array.to_pylist()


def _compare_column(
    column: Column, hot: tuple, copies: pa.RecordBatch, ids: list[int], differing: dict[int, str]
) -> None:
    position = copies.schema.get_field_index(column.field)
    copy = _plain(copies.column(position)) if position >= 0 else [None] * len(ids)
    expected = bytes if column.type == pa.string() else PYTHON_TYPES[column.type]
    # Python finds 1 equal to 1.0; the archive must not.
    if list(hot) == copy and set(map(type, hot)) <= {expected, type(None)}:
        return
    for id_, left, right in zip(ids, hot, copy, strict=True):
        if left != right or type(left) is not type(right):
            differing.setdefault(id_, column.name)


def _satellite_rows(
    con: sqlite3.Connection, satellite: Satellite, ids: list[int]
) -> tuple[dict[int, list[tuple]], set[int]]:
    names, oddity = _select(satellite.columns, "s")
    key = quote(satellite.key)
    rows = con.execute(
        f"SELECT s.{key}, {oddity}, {names} FROM json_each(?) AS wanted "
        f"CROSS JOIN {quote(satellite.table)} AS s ON s.{key} = wanted.value",
        (json_ids(ids),),
    )
    by_memory: dict[int, list[tuple]] = {}
    odd: set[int] = set()
    for id_, flag, *values in rows:
        by_memory.setdefault(id_, []).append(tuple(values))
        if flag:
            odd.add(id_)
    return by_memory, odd


def _archived_satellite(satellite: Satellite, copies: pa.RecordBatch) -> list[list[tuple]]:
    position = copies.schema.get_field_index(satellite.field)
    if position < 0:
        return [[] for _ in range(copies.num_rows)]
    nested = copies.column(position)
    lengths = nested.value_lengths().to_pylist()
    structs = nested.flatten()
    columns = [
        _plain(structs.field(column.field))
        if structs.type.get_field_index(column.field) >= 0
        else [None] * len(structs)
        for column in satellite.columns
    ]
    flat = iter(zip(*columns, strict=True))
    return [[next(flat) for _ in range(length or 0)] for length in lengths]


def _same_rows(hot: list[tuple], copy: list[tuple]) -> bool:
    # Their texts tell types apart as well: see _compare_column.
    if repr(hot) == repr(copy):
        return True
    # Rows of a table have no order.
    return Counter((row, tuple(map(type, row))) for row in hot) == Counter((row, tuple(map(type, row))) for row in copy)
