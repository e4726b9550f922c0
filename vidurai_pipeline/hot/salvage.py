"""Memories that can't go to the archive as they are: they stay hot and are named, and the others go on.

The readers come here only when something is wrong: a value has another type than its column, SQLite can't read a row,
another table's rows hold on to it.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidurai_pipeline.hot.schema import PYTHON_TYPES, ChildTable, Column, StoreSchema
from vidurai_pipeline.hot.sql import BrokenText, is_row_error, json_ids, quote_identifier, tolerant_text

_UNCOMPUTED = "a value that can't be computed for this memory: correct what it is computed from"
_ONE = {int: "an integer", float: "a real", str: "text", bytes: "a blob", type(None): "NULL"}
_MANY = {int: "integers", float: "reals", str: "text", bytes: "blobs"}


@dataclass(frozen=True)
class Rejected:
    """A memory that stays hot because Parquet can't hold it faithfully, and why."""

    id: float | str | None
    column: str
    reason: str

    def __str__(self) -> str:
        return f"memory {self.id}: {self.column}: {self.reason}"


class _Uncomputed:
    """What stands for a value that SQLite fails to compute, such as a generated column's over malformed JSON."""


class Salvage:
    """Deals with what is wrong with memories while they are read.

    Args:
        con: a connection inside the snapshot that they are read in.
        schema: the store's schema.
    """

    def __init__(self, con: sqlite3.Connection, schema: StoreSchema) -> None:
        self._con = con
        self._schema = schema
        self._names = [quote_identifier(column.name) for column in schema.archived]
        self._found: list[Rejected] = []

    def take_rejected(self) -> list[Rejected]:
        """What was found since this was last asked."""
        found, self._found = self._found, []
        return found

    def without_integer_id(self, which: str, values: Sequence[object] = ()) -> list[Rejected]:
        """Memories whose id is no integer. Vidurai's own tables, whose ids are the rowids, have none."""
        if self._con.execute("SELECT 1 FROM pragma_index_list('memories') WHERE origin = 'pk'").fetchone() is None:
            return []
        with tolerant_text(self._con):
            rows = self._con.execute(
                f"SELECT id FROM memories WHERE {which} AND typeof(id) <> 'integer'", values
            ).fetchall()
        return [Rejected(id_ if isinstance(id_, float | str) else None, "id", _reason(int, id_)) for (id_,) in rows]

    def read_row(self, id_: int) -> tuple:
        """A memory's columns as far as they can be read, with their size behind them."""
        with tolerant_text(self._con):
            values = self._select(", ".join(self._names), id_)
            if values is None:
                values = [value for name in self._names for value in self._select(name, id_) or [_Uncomputed()]]
        return (*values, sum(len(value) for value in values if isinstance(value, str | bytes)))

    def _select(self, what: str, id_: int) -> tuple | None:
        try:
            return self._con.execute(f"SELECT {what} FROM memories WHERE id = ?", (id_,)).fetchone()
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
            return None

    def read_children(self, child: ChildTable, ids: Sequence[int]) -> list[tuple]:
        """The rows of a child table as far as they can be read; the memories of the others are rejected."""
        rows = []
        with tolerant_text(self._con):
            for id_ in ids:
                try:
                    rows += self._con.execute(child.select, (json_ids([id_]),)).fetchall()
                except sqlite3.Error as error:
                    if not is_row_error(error):
                        raise
                    self._found.append(Rejected(id_, child.table, _UNCOMPUTED))
        return rows

    def reject_held(self, ids: Sequence[int]) -> None:
        """Reject memories that another table's rows hold on to, or whose vector can't be read."""
        wanted = json_ids(ids)
        for restriction in self._schema.restricting:
            # The comparison of the columns is the foreign key's own: it lets '5' refer to 5.
            match = " AND ".join(
                f"m.{quote_identifier(theirs)} = t.{quote_identifier(own)}" for own, theirs in restriction.columns
            )
            rows = self._con.execute(
                "SELECT DISTINCT m.id FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value "
                f"CROSS JOIN {quote_identifier(restriction.table)} AS t ON {match}",
                (wanted,),
            ).fetchall()
            where = f"{restriction.table}.{', '.join(own for own, _ in restriction.columns)}"
            reason = f"still referred to by {where}, whose rows can't be archived with it"
            self._found += (Rejected(id_, "id", reason) for (id_,) in rows)
        if reason := self._schema.unreadable_vectors:
            # The table can't be read, but its list of ids can.
            rows = self._con.execute(
                "SELECT DISTINCT wanted.value FROM json_each(?) AS wanted "
                "CROSS JOIN vec_memories_rowids AS v ON v.rowid = wanted.value",
                (wanted,),
            ).fetchall()
            self._found += (Rejected(id_, "vec_memories", reason) for (id_,) in rows)

    def reject_misfits(self, name: str, column: Column, owners: Sequence[int], values: Sequence) -> None:
        """Reject the memories with a value of another type than its column's: Arrow would convert or refuse it."""
        expected = PYTHON_TYPES[column.type]
        for owner, value in zip(owners, values, strict=True):
            if value is not None and type(value) is not expected:
                self._found.append(Rejected(owner, name, _reason(expected, value)))

    def show_misfits(self, name: str, column: Column, owners: Sequence[int], values: Sequence) -> Sequence:
        """The values as their column can show them; a value that loses something by that is named."""
        expected = PYTHON_TYPES[column.type]
        shown = []
        for owner, value in zip(owners, values, strict=True):
            fits = value is None or type(value) is expected
            converted, faithful = (value, True) if fits else _converted(expected, value)
            shown.append(converted)
            if not faithful:
                self._found.append(Rejected(owner, name, _reason(expected, value)))
        return shown


def _converted(expected: type, value: Any) -> tuple[Any, bool]:
    """What a column of another type shows of a value, and whether nothing is lost; never anything made up."""
    if expected is str and isinstance(value, bytes):
        text = value.decode(errors="replace")
        return text, text.encode() == value
    if expected is str and isinstance(value, int | float):
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
    if isinstance(value, _Uncomputed):
        return _UNCOMPUTED
    return f"{_ONE[type(value)]} where the column holds {_MANY[expected]}"
