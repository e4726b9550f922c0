"""Memories that stay hot for another reason than a value that Parquet can't hold; all are told in the same way."""

import sqlite3
from dataclasses import dataclass

import pyarrow as pa

from vidurai_pipeline.hot.references import Restriction
from vidurai_pipeline.hot.schema import StoreSchema, vectors_have_text_keys
from vidurai_pipeline.hot.sql import json_ids, quote_identifier


@dataclass(frozen=True)
class Rejected:
    """A memory that stays hot because Parquet can't hold it faithfully, and why."""

    id: float | str | None
    column: str
    reason: str

    def __str__(self) -> str:
        return f"memory {self.id}: {self.column}: {self.reason}"


def reject_referenced(
    con: sqlite3.Connection, restriction: Restriction, ids: list, faults: dict[int, Rejected]
) -> None:
    """Reject memories that rows of another table hold on to.

    Args:
        con: a connection inside the snapshot that the memories were read in.
        restriction: what holds on to them.
        ids: the memories'.
        faults: added to, by position in ``ids``.
    """
    # The comparison of the columns is the foreign key's own: it lets '5' refer to 5.
    match = " AND ".join(
        f"m.{quote_identifier(theirs)} = t.{quote_identifier(own)}" for own, theirs in restriction.columns
    )
    rows = con.execute(
        "SELECT DISTINCT m.id FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value "
        f"CROSS JOIN {quote_identifier(restriction.table)} AS t ON {match}",
        (json_ids(ids),),
    )
    columns = ", ".join(own for own, _ in restriction.columns)
    reason = f"still referred to by {restriction.table}.{columns}, whose rows can't be archived with it"
    for (id_,) in rows.fetchall():
        faults.setdefault(ids.index(id_), Rejected(id_, "id", reason))


def reject_vectors(con: sqlite3.Connection, reason: str, ids: list, faults: dict[int, Rejected]) -> None:
    """Reject memories with a vector: without its extension its table can't be read, but its list of ids can.

    Args:
        con: a connection inside the snapshot that the memories were read in.
        reason: why the vectors can't be archived.
        ids: the memories'.
        faults: added to, by position in ``ids``.
    """
    if con.execute("SELECT 1 FROM sqlite_master WHERE name = 'vec_memories_rowids'").fetchone() is None:
        return
    match = "v.id = CAST(wanted.value AS TEXT)" if vectors_have_text_keys(con) else "v.rowid = wanted.value"
    rows = con.execute(
        f"SELECT DISTINCT wanted.value FROM json_each(?) AS wanted CROSS JOIN vec_memories_rowids AS v ON {match}",
        (json_ids(ids),),
    )
    for (id_,) in rows.fetchall():
        faults.setdefault(ids.index(id_), Rejected(id_, "vec_memories", reason))


def reject_broken_utf16(con: sqlite3.Connection, schema: StoreSchema, ids: list, faults: dict[int, Rejected]) -> None:
    """Reject text with lone surrogates: SQLite makes a pair of each and what follows it, another text, not an error.

    Args:
        con: a connection inside the snapshot that the memories were read in.
        schema: the schema of a store that keeps text as UTF-16.
        ids: the memories'.
        faults: added to, by position in ``ids``.
    """
    wanted = json_ids(ids)
    tables = [("memories", "id", "", schema.archived)]
    tables += [(s.table, s.key, f"{s.table}.", s.columns) for s in schema.child_tables if not s.virtual]
    for table, key, prefix, columns in tables:
        for name in (column.name for column in columns if column.type == pa.string()):
            owner, value = f"t.{quote_identifier(key)}", f"t.{quote_identifier(name)}"
            rows = con.execute(
                f"SELECT {owner}, CAST({value} AS BLOB) FROM json_each(?) AS wanted CROSS JOIN "
                f"{quote_identifier(table)} AS t ON {owner} = wanted.value WHERE typeof({value}) = 'text'",
                (wanted,),
            )
            for id_, raw in rows:
                try:
                    raw.decode(schema.encoding)
                except UnicodeDecodeError:
                    faults.setdefault(ids.index(id_), Rejected(id_, f"{prefix}{name}", "text that is not valid UTF-16"))
