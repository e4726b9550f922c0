"""Compare archived copies with the rows they were made from.

This shares nothing with the code that reads rows for the archive: it asks SQLite for the raw bytes of every text,
for rows by their ids and not by their status, and compares plain Python values, not Arrow arrays. A mistake in the
writing path can't hide itself here.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vidurai_pipeline.hot.schema import PROJECT_FIELDS, PYTHON_TYPES, ChildTable, Column, StoreSchema
from vidurai_pipeline.hot.sql import json_ids, quote_identifier, text_as


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


def compare(
    con: sqlite3.Connection, schema: StoreSchema, copies: pa.RecordBatch, *, projects: bool = False
) -> Comparison:
    """Compare every column of archived copies, no id twice, with their rows as the connection sees them now.

    Args:
        con: a connection to the hot store; inside a transaction, that transaction's view counts.
        schema: the hot store's schema.
        copies: rows as read back from an archive file.
        projects: compare the names and paths of their projects, too. They are as they were when the memory was
            archived: a project that was renamed since does not make a copy stale.
    """
    ids: list[int] = copies.column("id").to_pylist()
    with text_as(con, bytes):
        names, oddity = _select(schema.archived, "m")
        rows = con.execute(
            f"SELECT {names}, {oddity} FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value",
            (json_ids(ids),),
        ).fetchall()
        child_tables = {s: _child_rows(con, s, ids) for s in schema.child_tables}
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
    for child, hot in child_tables.items():
        _compare_children(child, hot, copies, ids, result.differing)
    if projects and schema.projects:
        position = [column.field for column in schema.archived].index("project_id")
        _compare_projects(con, values[position], copies, ids, result.differing)
    result.equal = [id_ for id_ in ids if id_ not in result.differing] if result.differing else ids
    return result


def _select(columns: Sequence[Column], alias: str) -> tuple[str, str]:
    """SQL for the columns, and for whether a text column holds a blob or the reverse, which raw bytes don't tell."""
    names, odd = [], []
    for column in columns:
        name = f"{alias}.{quote_identifier(column.name)}"
        names.append(name)
        if column.type == pa.string():
            odd.append(f"typeof({name}) = 'blob'")
        elif column.type == pa.binary():
            odd.append(f"typeof({name}) = 'text'")
    return ", ".join(names), f"({' OR '.join(odd) or '0'})"


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


def _compare_projects(
    con: sqlite3.Connection, project_ids: Sequence, copies: pa.RecordBatch, ids: list[int], differing: dict[int, str]
) -> None:
    """Find the memories whose copy tells another name or path of their project; what is no text is not told."""
    texts = ", ".join(f"CASE typeof({column}) WHEN 'text' THEN {column} END" for column in ("name", "path"))
    with text_as(con, _if_utf_8):
        projects = {id_: tuple(told) for id_, *told in con.execute(f"SELECT id, {texts} FROM projects")}
    now = [projects.get(id_, (None, None)) for id_ in project_ids]
    then = list(zip(*(_plain(copies.column(name)) for name in PROJECT_FIELDS.names), strict=True))
    if now != then:
        wrong = (id_ for id_, one, other in zip(ids, now, then, strict=True) if one != other)
        differing |= dict.fromkeys(wrong, "project")


def _if_utf_8(text: bytes) -> bytes | None:
    try:
        text.decode()
    except UnicodeDecodeError:
        return None
    return text


def _child_rows(con: sqlite3.Connection, child: ChildTable, ids: list[int]) -> list[tuple]:
    """A child table's rows as they are now: their memory's id, whether a value is odd, and the values."""
    names, oddity = _select(child.columns, "s")
    key = quote_identifier(child.key)
    return con.execute(
        f"SELECT s.{key}, {oddity}, {names} FROM json_each(?) AS wanted "
        f"CROSS JOIN {quote_identifier(child.table)} AS s ON s.{key} = wanted.value",
        (json_ids(ids),),
    ).fetchall()


def _compare_children(
    child: ChildTable, hot: list[tuple], copies: pa.RecordBatch, ids: list[int], differing: dict[int, str]
) -> None:
    """Find the memories whose own rows of another table differ from their copy's."""
    owners, columns = _archived_children(child, copies, ids)
    if hot:
        hot_owners, odd, *values = zip(*hot, strict=True)
        if (
            not any(odd)
            and list(hot_owners) == owners
            and all(
                list(now) == copy and set(map(type, now)) <= set(map(type, copy))
                for now, copy in zip(values, columns, strict=True)
            )
        ):
            return
    elif not owners:
        return
    # Rows of a table have no order, and Python finds 1 equal to 1.0.
    now: dict[int, Counter] = {}
    for owner, odd, *row in hot:
        now.setdefault(owner, Counter())[odd, tuple(row), tuple(map(type, row))] += 1
    then: dict[int, Counter] = {}
    for owner, *row in zip(owners, *columns, strict=True):
        then.setdefault(owner, Counter())[0, tuple(row), tuple(map(type, row))] += 1
    for id_ in ids:
        if now.get(id_) != then.get(id_):
            differing.setdefault(id_, child.table)


def _archived_children(child: ChildTable, copies: pa.RecordBatch, ids: list[int]) -> tuple[list[int], list[list[Any]]]:
    """The archived rows of a child table: the memory that each belongs to, and the values column by column."""
    position = copies.schema.get_field_index(child.field)
    if position < 0:
        return [], [[] for _ in child.columns]
    nested = copies.column(position)
    lengths = nested.value_lengths().to_pylist()
    owners = [id_ for id_, length in zip(ids, lengths, strict=True) for _ in range(length or 0)]
    structs = nested.flatten()
    columns = [
        _plain(structs.field(column.field))
        if structs.type.get_field_index(column.field) >= 0
        else [None] * len(structs)
        for column in child.columns
    ]
    return owners, columns
