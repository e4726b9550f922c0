"""Memories that can't go to the archive as they are: they stay hot and are named, and the others go on.

The readers come here only when something is wrong: a value has another type than its column, or another table's rows
hold on to a memory.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import BrokenText, json_ids, quote_identifier

_ONE = {int: "an integer", float: "a real", str: "text", bytes: "a blob"}
_MANY = {int: "integers", float: "reals", str: "text", bytes: "blobs"}


@dataclass(frozen=True)
class Rejected:
    """A memory that stays hot because Parquet can't hold it faithfully, and why."""

    id: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"memory {self.id}: {self.column}: {self.reason}"


def held_memories(con: sqlite3.Connection, schema: StoreSchema, ids: Sequence[int]) -> Iterator[Rejected]:
    """Those of some memories that another table's rows hold on to, or whose vector can't be read."""
    wanted = json_ids(ids)
    for restriction in schema.restricting:
        # The comparison of the columns is the foreign key's own: it lets '5' refer to 5.
        match = " AND ".join(
            f"m.{quote_identifier(theirs)} = t.{quote_identifier(own)}" for own, theirs in restriction.columns
        )
        rows = con.execute(
            "SELECT DISTINCT m.id FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value "
            f"CROSS JOIN {quote_identifier(restriction.table)} AS t ON {match}",
            (wanted,),
        )
        where = f"{restriction.table}.{', '.join(own for own, _ in restriction.columns)}"
        reason = f"still referred to by {where}, whose rows can't be archived with it"
        yield from (Rejected(id_, "id", reason) for (id_,) in rows)
    if reason := schema.unreadable_vectors:
        # The table can't be read, but its list of ids can.
        rows = con.execute(
            "SELECT DISTINCT wanted.value FROM json_each(?) AS wanted "
            "CROSS JOIN vec_memories_rowids AS v ON v.rowid = wanted.value",
            (wanted,),
        )
        yield from (Rejected(id_, "vec_memories", reason) for (id_,) in rows)


def misfit(expected: type, value: Any) -> str | None:
    """Why a column can't hold a value, which Arrow would convert or refuse; None if it can."""
    if value is None or type(value) is expected:
        return None
    if isinstance(value, BrokenText):
        return "text that is not valid UTF-8"
    return f"{_ONE[type(value)]} where the column holds {_MANY[expected]}"


def shown_as(expected: type, value: Any) -> tuple[Any, bool]:
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
