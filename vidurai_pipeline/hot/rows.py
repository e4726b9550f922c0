"""Read memories from the hot store, as Arrow arrays in batches of bounded size.

Here stands what a well-formed row passes through. SQLite may hold any value in any column; a value of another type
than its column's is noticed here and dealt with in :mod:`vidurai_pipeline.hot.salvage`. (Arrow can't be asked whether a
value fits: it would turn 2.0 into 2, and a blob into text.)
"""

import array
import contextlib
import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.lib

from vidurai_pipeline.hot.salvage import Rejected, held_memories, misfit, shown_as
from vidurai_pipeline.hot.schema import PROJECT_FIELDS, PYTHON_TYPES, SPECIFIED, ChildTable, Column, StoreSchema
from vidurai_pipeline.hot.sql import is_undecodable, json_ids, quote_identifier, tolerant_text

BATCH_ROWS = 8_192
BATCH_BYTES = 24 * 1024 * 1024
_LONG_TEXTS = {"verbatim", "gist", "tags", "decay_reason"}


MakeArray = Callable[[Sequence[Any], pa.DataType], pa.Array]


@dataclass
class RowBatch:
    """Some memories.

    Attributes:
        ids: their ids.
        last: the last id that was read, rejected or not.
        arrays: their columns and the rows of their child tables, by Parquet name.
        rejected: memories that were left out; of :func:`read_all`, values that are not shown as they are.
    """

    ids: Sequence[int]
    last: int | None
    arrays: dict[str, pa.Array]
    rejected: list[Rejected] = field(default_factory=list)

    def record_batch(self, schema: StoreSchema, archived_at: str | None) -> pa.RecordBatch:
        """The rows in an archive file's schema: with their moment of archival, NULL for what the store lacks."""
        rows = len(self.ids)
        arrays = self.arrays if archived_at is None else self.arrays | {"archived_at": pa.repeat(archived_at, rows)}
        fields = schema.arrow_schema
        columns = [arrays[f.name] if f.name in arrays else pa.nulls(rows, f.type) for f in fields]
        return pa.RecordBatch.from_arrays(columns, schema=fields)


@dataclass
class _Values:
    """Rows of a table column by column, the memory that each belongs to, and their child table if it is one."""

    columns: tuple[Column, ...]
    owners: Sequence[int]
    values: list[Any]
    child: ChildTable | None = None

    def misfits(self) -> list[tuple[int, str, type, Sequence[Any]]]:
        """The columns that hold a value of another type: the position, the name to tell, the type, the values."""
        return [
            (position, f"{self.child.table}.{column.name}" if self.child else column.name, expected, values)
            for position, (column, values) in enumerate(zip(self.columns, self.values, strict=True))
            if not set(map(type, values)) <= {(expected := PYTHON_TYPES[column.type]), type(None)}
        ]

    def drop(self, ids: Collection) -> None:
        """Leave out what belongs to some memories."""
        kept = [owner not in ids for owner in self.owners]
        self.owners, *self.values = (list(compress(values, kept)) for values in (self.owners, *self.values))

    def arrays(self, ids: Sequence[int], make: MakeArray) -> dict[str, pa.Array]:
        """The rows as Arrow arrays by Parquet name; those of a child table nested in their memories'."""
        arrays = [make(values, column.type) for column, values in zip(self.columns, self.values, strict=True)]
        if self.child is None:
            return {column.field: made for column, made in zip(self.columns, arrays, strict=True)}
        counts = Counter(self.owners)
        offsets = make([0, *accumulate(counts[id_] for id_ in ids)], pa.int64()).cast(pa.int32())
        structs = pa.StructArray.from_arrays(arrays, fields=[column.arrow_field for column in self.columns])
        return {self.child.field: pa.ListArray.from_arrays(offsets, structs, type=self.child.type)}


def read_archived(
    con: sqlite3.Connection,
    schema: StoreSchema,
    *,
    after: int | None = None,
    rows: int | None = None,
    left_alone: Collection[int] = (),
) -> Iterator[RowBatch]:
    """Read ARCHIVED memories in order of id, in batches of bounded size.

    A memory that can't be archived as it is, is left out and named in ``RowBatch.rejected``.

    Args:
        con: a connection inside a snapshot.
        schema: the store's schema.
        after: start behind this id.
        rows: stop after this many rows, not counting those left out.
        left_alone: ids of memories that are not read.
    """
    which, values = "status = 'ARCHIVED'", []
    if left_alone:
        which, values = f"{which} AND id NOT IN (SELECT value FROM json_each(?))", [json_ids(left_alone)]
    reader = _Reader(con, schema, which, values)
    left = sys.maxsize if rows is None else rows
    with contextlib.closing(reader.rows(after)) as source:
        while left and (taken := _take(source, min(BATCH_ROWS, left))):
            batch = reader.faithful_batch(taken)
            left -= len(batch.ids)
            yield batch


def read_all(
    con: sqlite3.Connection,
    schema: StoreSchema,
    which: str = "1",
    values: Sequence[object] = (),
    shown_as: Mapping[str, str] | None = None,
) -> Iterator[RowBatch]:
    """Read every memory in order of id, whatever its status, in batches of bounded size.

    A value that its column can't hold is shown as well as it can be: text that is not UTF-8 with the replacement
    character, everything else as NULL. It is named in ``RowBatch.rejected``, but its row is there.

    Args:
        con: a connection inside a snapshot.
        schema: the store's schema, or a part of it.
        which: a condition, to read only the memories that meet it.
        values: of its parameters.
        shown_as: SQL to read instead of a column, by the column's Parquet name.
    """
    reader = _Reader(con, schema, which, values, shown_as)
    with contextlib.closing(reader.rows(None)) as source:
        while taken := _take(source, BATCH_ROWS):
            yield reader.shown_batch(taken)


class _Reader:
    """Reads memories that meet an SQL condition, within one snapshot."""

    def __init__(
        self,
        con: sqlite3.Connection,
        schema: StoreSchema,
        which: str,
        values: Sequence[object] = (),
        shown_as: Mapping[str, str] | None = None,
    ) -> None:
        self._con = con
        self._schema = schema
        self._which = which
        self._values = values
        self._shown_as = shown_as or {}
        self._projects = pa.Table.from_batches([], pa.schema([("id", pa.int64()), *PROJECT_FIELDS]))
        if schema.projects:
            with tolerant_text(con):
                rows = con.execute("SELECT id, name, path FROM projects").fetchall()
            told = [(id_, *(text if type(text) is str else None for text in texts)) for id_, *texts in rows]
            columns = zip(*told, strict=True) if told else ((),) * 3
            self._projects = pa.table(
                [light_array(c, f.type) for c, f in zip(columns, self._projects.schema, strict=True)],
                self._projects.schema,
            )

    def rows(self, after: int | None) -> Generator[tuple, None, None]:
        """Rows as tuples in order of id, with their size in bytes behind the columns."""
        columns = self._schema.archived
        names = [self._shown_as.get(column.field, quote_identifier(column.name)) for column in columns]
        # What the specification bounds to a few words can't fill the memory; texts of unknown kind can. SQLite adds
        # their sizes up far faster than Python would.
        sizes = [
            f"ifnull(length(CAST({name} AS BLOB)), 0)"
            for name, column in zip(names, columns, strict=True)
            if column.type != pa.int64() and (column.field in _LONG_TEXTS or column.field not in SPECIFIED)
        ]
        select = f"SELECT {', '.join(names)}, {' + '.join(['0', *sizes])}"
        behind = f"FROM memories WHERE {self._which} AND id > ? ORDER BY id"
        last = -math.inf if after is None else after
        while True:
            try:
                for row in self._con.execute(f"{select} {behind}", (*self._values, last)):
                    last = row[0]
                    yield row
            except sqlite3.Error as error:
                if not is_undecodable(error):
                    raise
                with tolerant_text(self._con):
                    row = self._con.execute(f"{select} {behind} LIMIT 1", (*self._values, last)).fetchone()
                last = row[0]
                yield row
            else:
                return

    def faithful_batch(self, rows: list[tuple]) -> RowBatch:
        """The memories that their columns can hold as they are, and that nothing keeps hot."""
        tables = self._tables(rows)
        memories = tables[0]
        found = [
            Rejected(owner, name, reason)
            for table in tables
            for _, name, expected, values in table.misfits()
            for owner, value in zip(table.owners, values, strict=True)
            if (reason := misfit(expected, value))
        ]
        found += held_memories(self._con, self._schema, memories.owners)
        # One reason for each memory is enough.
        reasons = {fault.id: fault for fault in reversed(found)}
        rejected = [reasons[id_] for id_ in memories.owners if id_ in reasons]
        if rejected:
            for table in tables:
                table.drop(reasons)
        return RowBatch(memories.owners, rows[-1][0], self._arrays(tables, pa.array), rejected)

    def shown_batch(self, rows: list[tuple]) -> RowBatch:
        """All of the memories, with what their columns can show of each value."""
        tables = self._tables(rows)
        lossy = []
        for table in tables:
            for position, name, expected, values in table.misfits():
                table.values[position] = shown = list(values)
                for place, (owner, value) in enumerate(zip(table.owners, values, strict=True)):
                    if reason := misfit(expected, value):
                        shown[place], whole = shown_as(expected, value)
                        lossy += [] if whole else [Rejected(owner, name, reason)]
        return RowBatch(tables[0].owners, rows[-1][0], self._arrays(tables, light_array), lossy)

    def _tables(self, rows: list[tuple]) -> list[_Values]:
        """Memories, and the rows of their child tables in the same order."""
        ids, *columns, _ = zip(*rows, strict=True)
        tables = [_Values(self._schema.archived, ids, [ids, *columns])]
        wanted = (json_ids(ids),)
        for child in self._schema.child_tables:
            try:
                theirs = self._con.execute(child.select, wanted).fetchall()
            except sqlite3.Error as error:
                if not is_undecodable(error):
                    raise
                with tolerant_text(self._con):
                    theirs = self._con.execute(child.select, wanted).fetchall()
            theirs.sort(key=itemgetter(0))
            owners, *values = zip(*theirs, strict=True) if theirs else ((),) * (len(child.columns) + 1)
            tables.append(_Values(child.columns, owners, values, child))
        return tables

    def _arrays(self, tables: list[_Values], make: MakeArray) -> dict[str, pa.Array]:
        arrays = {name: made for table in tables for name, made in table.arrays(tables[0].owners, make).items()}
        if self._schema.projects:
            known = pc.SetLookupOptions(self._projects["id"])
            places = pc.call_function("index_in", [arrays["project_id"]], known)
            arrays |= {name: self._projects[name].take(places).combine_chunks() for name in PROJECT_FIELDS.names}
        return arrays


def light_array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Make the array that ``pa.array`` makes of values of the type or None, without what ``pa.array`` imports.

    It imports pandas, to ask whether the values are one of its series: 40 MB and 0.2 s, as much as a question.
    For large numbers of texts ``pa.array`` is faster.
    """
    if type_ == pa.string():
        builder = pyarrow.lib.StringBuilder()
        builder.append_values(values)
        return builder.finish()
    if type_ != pa.int64():
        return pa.array(values, type_)
    count = len(values)
    numbers = array.array("q", [value or 0 for value in values])
    integers = pa.Array.from_buffers(type_, count, [None, pa.py_buffer(numbers)])
    if None not in values:
        return integers
    known = pa.py_buffer(bytes(value is not None for value in values))
    known = pa.Array.from_buffers(pa.uint8(), count, [None, known]).cast(pa.bool_())
    return pc.call_function("if_else", [known, integers, pa.nulls(count, type_)])


def _take(source: Iterator[tuple], most: int) -> list[tuple]:
    """The next rows, of bounded number and size; a single one may be larger."""
    rows: list[tuple] = []
    size = 0
    for row in source:
        rows.append(row)
        size += row[-1]
        if len(rows) == most or size >= BATCH_BYTES:
            break
    return rows
