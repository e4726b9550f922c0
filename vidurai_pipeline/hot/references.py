"""Which rows of other tables go with a memory, and which hold on to it: foreign keys and triggers of the store."""

import itertools
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline.hot.sql import quote_identifier

_SKIPS_DELETION = r"\bDELETE\s+ON\b.*\bRAISE\s*\(\s*IGNORE\b"


@dataclass(frozen=True)
class Restriction:
    """A foreign key whose rows hold on to the memories that they refer to: pairs of its column and theirs."""

    table: str
    columns: tuple[tuple[str, str], ...]


def sort_references(con: sqlite3.Connection, tables: Collection[str]) -> tuple[dict[str, str], list[Restriction]]:
    """Tell the tables that a memory takes along, each with its key, from those that forbid its deletion.

    A memory takes a table's rows along where they can be archived with it: found by its id, in one column, with
    something in the others, and taking nothing further along themselves. All other references forbid its deletion,
    but for those that SQLite then sets to NULL or to their default.
    """
    columns = con.execute(
        'SELECT t.value, f.id, f."table", f.on_delete, f."from", coalesce(f."to", \'id\') '
        "FROM json_each(?) AS t, pragma_foreign_key_list(t.value) AS f ORDER BY t.value, f.id, f.seq",
        (json.dumps(sorted(tables)),),
    )
    keys = [
        (table, target.lower(), action, tuple(row[4:] for row in rows))
        for (table, _, target, action), rows in itertools.groupby(columns, key=lambda row: row[:4])
    ]
    chained = {"memories", *(target for _, target, action, _ in keys if action == "CASCADE")}
    to_memories = [key for key in keys if key[1] == "memories"]
    number = Counter(table for table, *_ in to_memories)
    owned = {
        table: "memory_id"
        for table in ("audience_gists", "vec_memories")
        if table in tables and _is_key(con, table, "memory_id")
    }
    restricting = []
    for table, _, action, pairs in to_memories:
        column, target = pairs[0]
        simple = number[table] == len(pairs) == 1 and target.lower() == "id" and table.lower() not in chained
        if action == "CASCADE" and simple and _is_key(con, table, column) and owned.get(table) in {None, column}:
            owned[table] = column
        elif action not in {"SET NULL", "SET DEFAULT"} or table.lower() in chained:
            owned.pop(table, None)
            restricting.append(Restriction(table, pairs))
    return owned, restricting


def _is_key(con: sqlite3.Connection, table: str, column: str) -> bool:
    """Whether a column holds integers, as ids are, and is not all that its table has."""
    info = con.execute("SELECT lower(name), upper(type) FROM pragma_table_info(?)", (table,)).fetchall()
    return len(info) > 1 and "INT" in dict(info).get(column.lower(), "")


def refuse_cascading_triggers(con: sqlite3.Connection, children: Collection[str]) -> None:
    """Refuse a store whose own triggers do more than note that a memory is deleted.

    They may not take rows along, change memories, or keep rows of a child table. SQLite itself tells what a deletion
    would do: it asks an authorizer for each action, those of triggers included.

    Args:
        con: a connection to the store.
        children: the tables whose rows go with a memory.

    Raises:
        SchemaError: there is such a trigger, or no memory can be deleted at all.
    """
    found: dict[str, str] = {}
    kept = {table.lower() for table in children}

    def watch(action: int, table: str | None, _column: str | None, _database: str | None, trigger: str | None) -> int:
        name = (table or "").lower()
        if trigger and not name.startswith("memories_fts"):
            if action == sqlite3.SQLITE_DELETE or (action == sqlite3.SQLITE_UPDATE and name in {"memories", *kept}):
                found[trigger] = f"deletes or changes rows of `{table}`"
            elif action == sqlite3.SQLITE_INSERT and name in kept:
                found[trigger] = f"puts back rows of `{table}`"
        return sqlite3.SQLITE_OK

    con.set_authorizer(watch)
    try:
        for table in ("memories", *children):
            con.execute(f"EXPLAIN DELETE FROM {quote_identifier(table)}").close()
    except sqlite3.OperationalError as error:
        raise SchemaError(f"lets no memory be deleted ({error})", hint="mend that first, then run again") from None
    finally:
        con.set_authorizer(None)
    # Of RAISE(IGNORE), which skips a deletion without an error, the authorizer hears nothing.
    for trigger, table, sql in con.execute("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'"):
        if table.lower() in kept and re.search(_SKIPS_DELETION, sql, re.IGNORECASE | re.DOTALL):
            found[trigger] = f"keeps rows of `{table}`"
    for trigger, does in found.items():
        raise SchemaError(
            f"has a trigger `{trigger}` that {does} when a memory is deleted: those can't be archived with it, so "
            "nothing is",
            hint="drop the trigger to archive without them",
        )
