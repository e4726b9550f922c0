"""Read memories from the hot store, as Arrow arrays in batches of bounded size.

For the archive, what a Parquet column can't hold as it is stays behind: Arrow would convert it, or refuse the whole
batch. To those who only look, every memory is shown, such a value as well as its column can.
"""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa

from vidurai_pipeline.hot.salvage import Rejected, reject_broken_utf16, reject_referenced, reject_vectors
from vidurai_pipeline.hot.schema import PYTHON_TYPES, SPECIFIED, ChildTable, Column, StoreSchema
from vidurai_pipeline.hot.sql import BrokenText, is_row_error, json_ids, quote_identifier, tolerant_text

BATCH_ROWS = 8_192
BATCH_BYTES = 24 * 1024 * 1024
_LONG_TEXTS = {"verbatim", "gist", "tags", "decay_reason"}
_UNCOMPUTED = "a value that can't be computed for this memory: correct what it is computed from"
_TERMS = 50
_ODD_IDS = ("id IS NULL", "id >= ''")
_KIND_NAMES = {int: "an integer", float: "a real", str: "text", bytes: "a blob", type(None): "NULL"}


class Unreadable:
    """What stands for a value that SQLite fails to compute, such as a generated column's over malformed JSON."""


@dataclass
class RowBatch:
    """Rows of one read, as Arrow arrays by Parquet name, and the last numeric id that was read, rejected or not.

    What :func:`read_all` can't show as it is, it names in ``rejected``, too.
    """

    ids: list[int]
    last: float | None
    arrays: dict[str, pa.Array]
    rejected: list[Rejected] = field(default_factory=list)

    def record_batch(self, schema: StoreSchema, archived_at: str | None) -> pa.RecordBatch:
        """The rows in an archive file's schema: with their moment of archival, NULL for what the store lacks."""
        rows = len(self.ids)
        arrays = {**self.arrays, "archived_at": pa.array([archived_at] * rows, pa.string())}
        fields = schema.arrow_schema
        columns = [arrays[f.name] if f.name in arrays else pa.nulls(rows, f.type) for f in fields]
        return pa.RecordBatch.from_arrays(columns, schema=fields)


def read_archived(
    con: sqlite3.Connection, schema: StoreSchema, *, after: float | None = None, rows: int | None = None
) -> Iterator[RowBatch]:
    """Read ARCHIVED memories in order of id, in batches of bounded size.

    A row with a value that its Parquet column can't hold is left out and named in ``RowBatch.rejected``.

    Args:
        con: a connection inside a snapshot.
        schema: the store's schema.
        after: start behind this id.
        rows: stop after so many rows, those left out not counted.
    """
    read = 0
    with contextlib.closing(_Rows(con, schema, after)) as source:
        while values := source.take(BATCH_ROWS if rows is None else min(BATCH_ROWS, rows - read)):
            batch = _to_arrow(con, schema, values, source.last)
            read += len(batch.ids)
            yield batch


def read_all(con: sqlite3.Connection, schema: StoreSchema) -> Iterator[RowBatch]:
    """Read every memory in order of id, whatever its status, in batches of bounded size.

    A value that its column can't hold is shown as well as it can be: text that is not UTF-8 with the replacement
    character, everything else as NULL. It is named in ``RowBatch.rejected``, but its row is there.

    Args:
        con: a connection inside a snapshot.
        schema: the store's schema.
    """
    with contextlib.closing(_Rows(con, schema, None, "TRUE")) as source:
        while values := source.take(BATCH_ROWS):
            yield _all_to_arrow(con, schema, values, source.last)


class _Rows:
    """Rows as tuples; one that can't be read as it is does not stop the rest.

    Text that is not UTF-8 comes as ``BrokenText``, a value that can't be computed as ``Unreadable``.

    Attributes:
        last: the last id that was read, of those that are numbers.
    """

    def __init__(
        self,
        con: sqlite3.Connection,
        schema: StoreSchema,
        after: float | None,
        which: str = "status = 'ARCHIVED'",
    ) -> None:
        self.last = after
        self._con = con
        self._which = which
        self._names = [quote_identifier(column.name) for column in schema.archived]
        # What the specification bounds to a few words can't fill the memory; texts of unknown kind can.
        sizes = [
            f"ifnull(length(CAST({name} AS BLOB)), 0)"
            for name, column in zip(self._names, schema.archived, strict=True)
            if column.type != pa.int64() and (column.field in _LONG_TEXTS or column.field not in SPECIFIED)
        ]
        # SQLite adds each row's size up far faster than Python would; it bounds how deep an expression may be.
        sums = [f"({' + '.join(sizes[n : n + _TERMS])})" for n in range(0, len(sizes), _TERMS)]
        self._selected = f"{', '.join(self._names)}, {' + '.join(['0', *sums])}"
        # Only an id that is a number is a place to go on from: NULLs, texts and blobs are read apart, at first.
        self._odd = self._odd_rows() if after is None else iter(())
        # SQLite reads the first row when it is asked, so this waits until a failure can be dealt with.
        self._cursor: sqlite3.Cursor | None = None

    def _odd_rows(self) -> Iterator[tuple]:
        # Two looks at the primary key's ends, where nearly always nothing is, instead of a scan.
        exists = " OR ".join(f"EXISTS (SELECT 1 FROM memories WHERE {odd})" for odd in _ODD_IDS)
        if not self._con.execute(f"SELECT {exists}").fetchone()[0]:
            return
        odd = f"({' OR '.join(_ODD_IDS)})"
        names = []
        with tolerant_text(self._con):
            for name in self._names:
                try:
                    for _ in self._select(odd, selected=name):
                        pass
                except sqlite3.Error as error:
                    if not is_row_error(error):
                        raise
                    names.append("NULL")  # for some it can't be computed; they are named for their ids anyway
                else:
                    names.append(name)
        for row in self._select(odd, selected=", ".join(names)):
            yield (*row, sum(len(value) for value in row if isinstance(value, str | bytes)))

    def _select(self, where: str, *values: Any, selected: str | None = None) -> sqlite3.Cursor:
        return self._con.execute(
            f"SELECT {selected or self._selected} FROM memories WHERE {self._which} AND {where} ORDER BY id", values
        )

    def _select_behind(self, selected: str | None = None) -> sqlite3.Cursor:
        if self.last is None:
            return self._select("id < ''", selected=selected)
        return self._select("id > ? AND id < ''", self.last, selected=selected)

    def take(self, most: int) -> list[tuple]:
        """The next rows, at most so many and of bounded size (each may be as large as a batch); their size is last."""
        rows: list[tuple] = []
        with tolerant_text(self._con):
            _fetch(self._odd, rows, most)
        if rows:
            return rows
        try:
            if self._cursor is None:
                self._cursor = self._select_behind()
            _fetch(self._cursor, rows, most)
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
            if rows:
                self.last = rows[-1][0]
            self._take_singly(rows, most)
            if not rows:
                raise
        if rows:
            self.last = rows[-1][0]
        return rows

    def _take_singly(self, rows: list[tuple], most: int) -> None:
        """Add rows one by one, with a slower eye; then all goes on behind them."""
        ids = self._select_behind("id").fetchmany(most - len(rows))
        size = sum(row[-1] for row in rows)
        with tolerant_text(self._con):
            for (id_,) in ids:
                rows.append(self._single(id_))
                size += rows[-1][-1]
                if size >= BATCH_BYTES:
                    break
        self._cursor = None

    def _single(self, id_: float) -> tuple:
        try:
            return self._select("id = ?", id_).fetchone()
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
        values = []
        for name in self._names:
            try:
                values += self._select("id = ?", id_, selected=name).fetchone()
            except sqlite3.Error as error:
                if not is_row_error(error):
                    raise
                values.append(Unreadable())
        return (*values, 0)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()


def _fetch(source: Iterator[tuple], rows: list[tuple], most: int) -> None:
    size = 0
    for row in source if most > 0 else ():
        rows.append(row)
        size += row[-1]
        if len(rows) == most or size >= BATCH_BYTES:
            break


def _to_arrow(con: sqlite3.Connection, schema: StoreSchema, rows: list[tuple], last: float | None) -> RowBatch:
    faults: dict[int, Rejected] = {}
    *columns, _ = zip(*rows, strict=True)
    ids = list(columns[0])
    _check(zip(schema.archived, columns, strict=True), ids, faults)
    for restriction in schema.restricting:
        reject_referenced(con, restriction, ids, faults)
    if schema.unreadable_vectors:
        reject_vectors(con, schema.unreadable_vectors, ids, faults)
    owned = {child: _read_children(con, child, ids, faults) for child in schema.child_tables}
    if schema.encoding != "utf-8":
        reject_broken_utf16(con, schema, ids, faults)
    if faults:
        columns = [[value for n, value in enumerate(values) if n not in faults] for values in columns]
        ids = columns[0]
    return RowBatch(ids, last, _arrays(schema, columns, ids, owned), [faults[n] for n in sorted(faults)])


def _all_to_arrow(con: sqlite3.Connection, schema: StoreSchema, rows: list[tuple], last: float | None) -> RowBatch:
    *columns, _ = zip(*rows, strict=True)
    ids = list(columns[0])
    lost: list[Rejected] = []
    columns = [
        _shown(column, column.name, values, ids, lost) for column, values in zip(schema.archived, columns, strict=True)
    ]
    unread: dict[int, Rejected] = {}
    owned = {child: _shown_rows(child, _read_children(con, child, ids, unread), lost) for child in schema.child_tables}
    lost += (fault for fault in unread.values() if fault.reason == _UNCOMPUTED)
    return RowBatch(ids, last, _arrays(schema, columns, ids, owned), lost)


def _arrays(
    schema: StoreSchema, columns: Iterable[Sequence], ids: list, owned: dict[ChildTable, list[tuple]]
) -> dict[str, pa.Array]:
    arrays = {
        column.field: pa.array(values, column.type) for column, values in zip(schema.archived, columns, strict=True)
    }
    for child, theirs in owned.items():
        arrays[child.field] = _nested(child, ids, theirs)
    return arrays


def _check(columns: Iterable[tuple[Column, Sequence]], ids: list, faults: dict[int, Rejected]) -> None:
    """Find the values whose storage class is not their column's: Arrow would convert or refuse them."""
    for column, values in columns:
        expected = PYTHON_TYPES[column.type]
        optional = column.field != "id"
        if set(map(type, values)) <= ({expected, type(None)} if optional else {expected}):
            continue
        for n, value in enumerate(values):
            if type(value) is not expected and not (value is None and optional):
                id_ = ids[n] if isinstance(ids[n], int | float | str) else None
                faults.setdefault(n, Rejected(id_, column.name, _reason(expected, value)))


def _shown(column: Column, where: str, values: Sequence, ids: Sequence, lost: list[Rejected]) -> Sequence:
    """The values as their column can show them; what is lost by that is added to ``lost``."""
    expected = PYTHON_TYPES[column.type]
    if set(map(type, values)) <= {expected, type(None)}:
        return values
    shown = []
    for id_, value in zip(ids, values, strict=True):
        if value is None or type(value) is expected:
            shown.append(value)
            continue
        converted, faithful = _converted(expected, value)
        shown.append(converted)
        if not faithful:
            lost.append(Rejected(id_ if isinstance(id_, int | float | str) else None, where, _reason(expected, value)))
    return shown


def _shown_rows(child: ChildTable, rows: list[tuple], lost: list[Rejected]) -> list[tuple]:
    if not rows:
        return rows
    keys, *columns = zip(*rows, strict=True)
    shown = [
        _shown(column, f"{child.table}.{column.name}", values, keys, lost)
        for column, values in zip(child.columns, columns, strict=True)
    ]
    return list(zip(keys, *shown, strict=True))


def _converted(expected: type, value: Any) -> tuple[Any, bool]:
    """What a column of another type shows of a value, and whether nothing is lost; never anything made up."""
    if expected is str and isinstance(value, bytes):
        text = value.decode(errors="replace")
        return text, text.encode() == value
    if expected is str and not isinstance(value, Unreadable):
        return str(value), True
    if expected is bytes and isinstance(value, str | bytes):
        return value.encode() if isinstance(value, str) else bytes(value), True
    if expected is int and isinstance(value, float) and value.is_integer() and -(2.0**63) <= value < 2.0**63:
        return int(value), True
    if expected is float and isinstance(value, int) and float(value) == value:
        return float(value), True
    return None, False


def _reason(expected: type, value: object) -> str:
    if isinstance(value, BrokenText):
        return "text that is not valid UTF-8"
    if isinstance(value, Unreadable):
        return _UNCOMPUTED
    return f"{_KIND_NAMES[type(value)]} where the column holds {_KIND_NAMES[expected].removeprefix('an ')}"


def _read_children(con: sqlite3.Connection, child: ChildTable, ids: list, faults: dict[int, Rejected]) -> list[tuple]:
    """A child table's rows, each behind its memory's id, in the order of the memories."""
    wanted = json_ids(ids)
    try:
        rows = con.execute(child.select, (wanted,)).fetchall()
    except sqlite3.Error as error:
        if not is_row_error(error):
            raise
        rows = _read_children_singly(con, child, ids, faults)
    if not rows:
        return rows
    position = {id_: n for n, id_ in enumerate(ids)}
    rows.sort(key=lambda row: position[row[0]])
    keys, *columns = zip(*rows, strict=True)
    for column, values in zip(child.columns, columns, strict=True):
        expected = PYTHON_TYPES[column.type]
        if set(map(type, values)) <= {expected, type(None)}:
            continue
        for id_, value in zip(keys, values, strict=True):
            if value is not None and type(value) is not expected:
                where = f"{child.table}.{column.name}"
                faults.setdefault(position[id_], Rejected(id_, where, _reason(expected, value)))
    return rows


def _read_children_singly(
    con: sqlite3.Connection, child: ChildTable, ids: list, faults: dict[int, Rejected]
) -> list[tuple]:
    rows = []
    with tolerant_text(con):
        for n, id_ in enumerate(ids):
            try:
                rows += con.execute(child.select, (json_ids([id_]),)).fetchall()
            except sqlite3.Error as error:
                if not is_row_error(error):
                    raise
                faults.setdefault(n, Rejected(id_, child.table, _UNCOMPUTED))
    return rows


def _nested(child: ChildTable, ids: list[int], rows: list[tuple]) -> pa.Array:
    counts = Counter(row[0] for row in rows)
    kept = set(ids)
    if not counts.keys() <= kept:
        rows = [row for row in rows if row[0] in kept]
    offsets = [0, *accumulate(counts[id_] for id_ in ids)]
    fields = [column.arrow_field for column in child.columns]
    _, *columns = zip(*rows, strict=True) if rows else ([] for _ in range(len(fields) + 1))
    arrays = [pa.array(values, field.type) for field, values in zip(fields, columns, strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=child.type)
