"""Which rows of other tables go with a memory, and which hold on to it: foreign keys and triggers of the store."""

import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline.hot.sql import quote_identifier

_SKIPS_DELETION = r"\bDELETE\s+ON\b.*\bRAISE\s*\(\s*IGNORE\b"


@dataclass(frozen=True)
class Restriction:
    """A foreign key whose rows hold on to the memories that they refer to: pairs of its column and theirs."""

    table: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Reference:
    """One column of a foreign key, and all pairs of columns of that key."""

    table: str
    column: str
    target: str
    target_column: str
    action: str
    pairs: tuple[tuple[str, str], ...]


def _references(con: sqlite3.Connection, tables: Iterable[str]) -> list[_Reference]:
    """All foreign keys of the store."""
    found = []
    for table in tables:
        rows = con.execute(
            'SELECT id, "from", "table", "to", on_delete FROM pragma_foreign_key_list(?)', (table,)
        ).fetchall()
        for key, column, target, target_column, action in rows:
            pairs = tuple((own, theirs or "id") for number, own, _, theirs, _ in rows if number == key)
            found.append(_Reference(table, column, target.lower(), target_column or "id", action, pairs))
    return found


def sort_references(con: sqlite3.Connection, tables: set[str]) -> tuple[dict[str, str], list[Restriction]]:
    """Tell the tables that a memory takes along from those that forbid its deletion.

    A memory takes a table's rows along where they can be archived with it: found by its id, in one column, with
    something in the others, and taking nothing further along themselves. All other references forbid its deletion,
    but for those that SQLite then sets to NULL or to their default.
    """
    references = _references(con, sorted(tables))
    owned: dict[str, str] = {}
    for table in ("audience_gists", "vec_memories"):
        if table in tables and _is_key(con, table, "memory_id"):
            owned[table] = "memory_id"
    restricting: dict[Restriction, None] = {}
    parents = {r.target for r in references if r.action == "CASCADE" and r.target != "memories"}
    to_memories = [r for r in references if r.target == "memories"]
    for r in to_memories:
        alone = sum(other.table == r.table for other in to_memories) == 1
        chained = r.table.lower() == "memories" or r.table.lower() in parents
        simple = alone and len(r.pairs) == 1 and r.target_column.lower() == "id" and not chained
        if (
            r.action == "CASCADE"
            and simple
            and _is_key(con, r.table, r.column)
            and owned.get(r.table) in {None, r.column}
        ):
            owned[r.table] = r.column
        elif r.action not in {"SET NULL", "SET DEFAULT"} or chained:
            owned.pop(r.table, None)
            restricting[Restriction(r.table, r.pairs)] = None
    return owned, list(restricting)


def _is_key(con: sqlite3.Connection, table: str, column: str) -> bool:
    """Whether a column holds integers, as ids are, and is not all that its table has."""
    info = con.execute("SELECT name, type FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table,)).fetchall()
    declared = {name.lower(): kind.upper() for name, kind in info}
    return len(info) > 1 and "INT" in declared.get(column.lower(), "")


def refuse_cascading_triggers(con: sqlite3.Connection, children: Sequence[str]) -> None:
    """Refuse a store whose own triggers do more than note that a memory is deleted.

    They may not take rows along, change memories, or keep rows of a child table. SQLite itself tells what a deletion
    would do: it asks an authorizer for each action, those of triggers included.

    Args:
        con: a connection to the store.
        children: the tables whose rows go with a memory.

    Raises:
        SchemaError: there is such a trigger, or no memory can be deleted at all.
    """
    found: list[tuple[str, str, str]] = []
    kept = {table.lower() for table in children}

    def watch(action: int, table: str | None, _column: str | None, _database: str | None, trigger: str | None) -> int:
        name = (table or "").lower()
        if trigger and not name.startswith("memories_fts"):
            if action == sqlite3.SQLITE_DELETE or (action == sqlite3.SQLITE_UPDATE and name in {"memories", *kept}):
                found.append((trigger, "deletes or changes", table or ""))
            elif action == sqlite3.SQLITE_INSERT and name in kept:
                found.append((trigger, "puts back", table or ""))
        return sqlite3.SQLITE_OK

    con.set_authorizer(watch)
    try:
        for table in ("memories", *children):
            con.execute(f"EXPLAIN DELETE FROM {quote_identifier(table)}").close()
    except sqlite3.OperationalError as error:
        raise SchemaError(f"lets no memory be deleted ({error}): mend that first, then run again") from None
    finally:
        con.set_authorizer(None)
    # Of RAISE(IGNORE), which skips a deletion without an error, the authorizer hears nothing.
    for trigger, table, sql in con.execute("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'"):
        if table.lower() in kept and re.search(_SKIPS_DELETION, sql, re.IGNORECASE | re.DOTALL):
            found.append((trigger, "keeps", table))
    for trigger, does, table in found:
        raise SchemaError(
            f"has a trigger `{trigger}` that {does} rows of `{table}` when a memory is deleted: those "
            "can't be archived with it, so nothing is. Drop the trigger to archive without them"
        )
