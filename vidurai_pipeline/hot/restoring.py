"""Put archived memories back into the hot store, in transactions as short as the purge's.

A row is inserted, compared with its archived copy inside the same transaction, and only then committed. What can't come
back whole is refused by name, and nothing of it stays.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from vidurai_pipeline.hot.comparison import compare
from vidurai_pipeline.hot.purger import TARGET_SECONDS
from vidurai_pipeline.hot.schema import PROJECT_FIELDS, StoreSchema
from vidurai_pipeline.hot.sql import (
    WriteTransaction,
    error_name,
    is_row_error,
    json_ids,
    quote_identifier,
    tolerant_text,
)

_FIRST_ROWS, _MOST_ROWS = 64.0, 4_096.0
_NOT_COLUMNS = {"archived_at", *PROJECT_FIELDS.names}


@dataclass(frozen=True)
class RestoreOptions:
    """What may be given up, or made, to bring a memory back.

    Attributes:
        drop_columns: leave out columns and child rows that the store has no place for.
        make_projects: make a project that is gone anew, from the name and path in the archive, or find it by its path.
        keep_expiry: keep ``expires_at`` although it has passed; Vidurai may then delete the memory at once.
    """

    drop_columns: bool = False
    make_projects: bool = False
    keep_expiry: bool = False


@dataclass
class Restored:
    """What became of some archived copies: the memories that the store has now, and why the others did not come back.

    ``unexpired`` counts memories whose ``expires_at`` had passed, and was removed.
    """

    ids: list[int]
    refused: dict[int, str]
    unexpired: int = 0
    longest_hold: float = 0.0


class Restorer:
    """Inserts archived memories by a writing connection with foreign keys on."""

    def __init__(self, con: sqlite3.Connection, schema: StoreSchema, options: RestoreOptions) -> None:
        self._con = con
        self._schema = schema
        self._options = options
        self._rows = _FIRST_ROWS

    def restore(self, copies: pa.RecordBatch) -> Restored:
        """Insert some memories, no id twice; those that the store has already are left as they are."""
        done = Restored([], {})
        first = 0
        while first < copies.num_rows:
            portion = copies.slice(first, round(self._rows))
            first += portion.num_rows
            refused = self._refused_columns(portion)
            portion, unexpired = self._as_active(portion)
            while (stored := self._store(_without(portion, refused), refused, done)) is None:
                pass
            done.ids += stored
            done.refused |= refused
            done.unexpired += len(unexpired.intersection(stored))
        return done

    def _store(self, copies: pa.RecordBatch, refused: dict[int, str], done: Restored) -> list[int] | None:
        """Store memories in one transaction, unless they are there; None if one did not come out equal to its copy."""
        with WriteTransaction(self._con) as transaction:
            same, taken = self._present(copies)
            refused |= taken
            wanted = _without(copies, same | refused.keys())
            wanted = _without(self._with_projects(wanted, refused), refused)
            reasons = {row["id"]: self._insert(row) for row in wanted.to_pylist()}
            refused |= {id_: reason for id_, reason in reasons.items() if reason}
            wanted = _without(wanted, refused)
            known = tuple(column for column in self._schema.columns if column.field in copies.schema.names)
            differing = compare(self._con, replace(self._schema, columns=known), wanted).differing
            refused |= {
                id_: f"the hot store does not keep `{column}` as it was archived" for id_, column in differing.items()
            }
            if differing:
                transaction.undo()
                return None
        done.longest_hold = max(done.longest_hold, transaction.seconds)
        self._rows = transaction.next_size(self._rows, most=_MOST_ROWS, target=TARGET_SECONDS)
        time.sleep(0.001)
        return [*same, *wanted.column("id").to_pylist()]

    # What is restored of a copy

    def _refused_columns(self, copies: pa.RecordBatch) -> dict[int, str]:
        """The memories with something in a column or table that the store does not have."""
        refused: dict[int, str] = {}
        if self._options.drop_columns:
            return refused
        known = {column.field for column in self._schema.archived} | _NOT_COLUMNS
        known |= {child.field for child in self._schema.child_tables}
        ids = copies.column("id").to_pylist()
        for name in copies.schema.names:
            if name in known:
                continue
            nested = pa.types.is_list(copies.schema.field(name).type)
            what = f"table `{name}`" if nested else f"column `{name}`"
            reason = f"the hot store has no {what}, and the memory has something there"
            if name == "vec_memories":
                reason = (self._schema.unreadable_vectors and f"it {self._schema.unreadable_vectors}") or reason
            refused |= {id_: reason for id_, value in zip(ids, copies.column(name), strict=True) if value.as_py()}
        return refused

    def _as_active(self, copies: pa.RecordBatch) -> tuple[pa.RecordBatch, set[int]]:
        """The copies as they are to stand in the store; and the ids of those whose expiry is removed."""
        rows, unexpired = copies.num_rows, set()
        copies = _replaced(copies, "status", ["ACTIVE"] * rows)
        if not self._options.keep_expiry and "expires_at" in copies.schema.names:
            texts = copies.column("expires_at").to_pylist()
            expired = dict(
                self._con.execute(
                    "SELECT key, datetime(value) <= datetime('now') FROM json_each(?)", (json.dumps(texts),)
                ).fetchall()
            )
            ids = copies.column("id").to_pylist()
            unexpired = {id_ for n, id_ in enumerate(ids) if expired.get(n)}
            texts = [None if id_ in unexpired else text for id_, text in zip(ids, texts, strict=True)]
            copies = _replaced(copies, "expires_at", texts)
        return copies, unexpired

    # What the store has already

    def _present(self, copies: pa.RecordBatch) -> tuple[set[int], dict[int, str]]:
        """The ids under which the store has the same memory, and those that belong to another one."""
        born = dict(zip(copies.column("id").to_pylist(), copies.column("created_at").to_pylist(), strict=True))
        with tolerant_text(self._con):
            rows = self._con.execute(
                "SELECT id, created_at FROM memories WHERE id IN (SELECT value FROM json_each(?))", (json_ids(born),)
            ).fetchall()
        same = {id_ for id_, created in rows if created == born[id_]}
        return same, {id_: "its id belongs to another memory by now" for id_, _ in rows if id_ not in same}

    def _with_projects(self, copies: pa.RecordBatch, refused: dict[int, str]) -> pa.RecordBatch:
        """The copies with the ids of the projects that the store has; those that are gone are made, if they may be."""
        if not self._schema.projects or not {"project_id", *PROJECT_FIELDS.names} <= set(copies.schema.names):
            return copies
        columns = (copies.column(name).to_pylist() for name in ("id", "project_id", *PROJECT_FIELDS.names))
        ids = []
        for memory, *project in zip(*columns, strict=True):
            id_, name, path = project
            # A project that was moved keeps its name, one that was renamed its path.
            found = dict(
                self._con.execute(
                    "SELECT id, path = ?3 OR (id = ?1 AND name = ?2) FROM projects WHERE id = ?1 OR path = ?3", project
                ).fetchall()
            )
            if not (id_ is None or path is None or found.get(id_)):
                if self._options.make_projects:
                    same = next((known for known, is_same in found.items() if is_same), None)
                    row = (None if id_ in found else id_, name or path, path)
                    sql = "INSERT INTO projects (id, name, path) VALUES (?, ?, ?)"
                    id_ = same or self._con.execute(sql, row).lastrowid
                elif id_ in found:
                    refused[memory] = "the id of its project belongs to another project by now"
            ids.append(id_)
        return _replaced(copies, "project_id", ids)

    # Insert

    def _insert(self, values: dict[str, Any]) -> str | None:
        """Insert a memory with all that belongs to it; if that can't be done, say why and leave nothing of it."""
        self._con.execute("SAVEPOINT memory")
        try:
            columns = [column for column in self._schema.archived if column.field in values]
            self._insert_into("memories", {column.name: values[column.field] for column in columns})
            for child in self._schema.child_tables:
                for own in values.get(child.field) or ():
                    theirs = {column.name: own[column.field] for column in child.columns if column.field in own}
                    self._insert_into(child.table, {child.key: values["id"], **theirs})
            if self._schema.search_index:
                self._index(values)
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
            self._con.execute("ROLLBACK TO memory")
            if error_name(error) == "SQLITE_CONSTRAINT_FOREIGNKEY":
                return "its project is no longer in the hot store"
            return f"the hot store does not take it: {error}"
        finally:
            self._con.execute("RELEASE memory")
        return None

    def _insert_into(self, table: str, values: dict[str, Any]) -> None:
        names = ", ".join(map(quote_identifier, values))
        marks = ", ".join("?" * len(values))
        self._con.execute(f"INSERT INTO {quote_identifier(table)} ({names}) VALUES ({marks})", list(values.values()))

    def _index(self, values: dict[str, Any]) -> None:
        """Give the memory its row in the search index, unless a trigger has done so."""
        indexed = [name for (name,) in self._con.execute("SELECT name FROM pragma_table_info('memories_fts')")]
        own = {name: values["id"] if name.lower() == "memory_id" else values.get(name) for name in indexed}
        mine = f"c{[name.lower() for name in indexed].index('memory_id')}"
        row = self._con.execute(
            f"SELECT CAST({mine} AS INTEGER) = id FROM memories_fts_content WHERE id = ?", (values["id"],)
        ).fetchone()
        if row != (1,):
            self._insert_into("memories_fts", own if row else {"rowid": values["id"], **own})


def _replaced(copies: pa.RecordBatch, name: str, values: Sequence[Any]) -> pa.RecordBatch:
    """The copies with other values in a column, or with a column that their file does not have."""
    columns = dict(zip(copies.schema.names, copies.columns, strict=True))
    type_ = copies.schema.field(name).type if name in columns else pa.string()
    return pa.RecordBatch.from_pydict(columns | {name: pa.array(values, type_)})


def _without(copies: pa.RecordBatch, ids: Collection[int]) -> pa.RecordBatch:
    return copies.filter(pa.array([id_ not in ids for id_ in copies.column("id").to_pylist()], pa.bool_()))
