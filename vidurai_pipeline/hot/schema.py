"""What a hot store's tables look like, and how their rows are laid out in Parquet.

Nothing is assumed of a store but a table ``memories`` with a primary key ``id`` and a column ``status``: every
other column is read from SQLite's own catalogue, so that a later Vidurai's columns are archived unasked.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline.hot.references import Restriction, refuse_cascading_triggers, sort_references
from vidurai_pipeline.hot.sql import quote_identifier

#: The columns of the specification, in its order, with its types.
SPECIFIED: dict[str, pa.DataType] = {
    "id": pa.int64(),
    "verbatim": pa.string(),
    "gist": pa.string(),
    "salience": pa.string(),
    "created_at": pa.string(),
    "expires_at": pa.string(),
    "access_count": pa.int64(),
    "outcome": pa.int64(),
    "file_path": pa.string(),
    "decay_reason": pa.string(),
    "event_type": pa.string(),
    "tags": pa.string(),
    "project_id": pa.int64(),
    "archived_at": pa.string(),
}

#: What the specified columns, and those that Vidurai has besides, mean to a reader of the archive.
MEANINGS: dict[str, str] = {
    "id": "the memory's id in the hot store",
    "verbatim": "the memory, word for word",
    "gist": "its summary",
    "salience": "how important it is: CRITICAL, HIGH, MEDIUM, LOW or NOISE",
    "created_at": "when it was made, as ISO text",
    "expires_at": "when it was to expire, as ISO text",
    "access_count": "how often it was recalled",
    "outcome": "what came of it: 1 useful, -1 harmful, 0 unknown",
    "file_path": "the file that it is about",
    "decay_reason": "why it was archived",
    "event_type": "what made it: an edit, an error, a chat",
    "tags": "its tags, a JSON array",
    "project_id": "the project's id in the hot store",
    "project_name": "the project's name when the memory was archived",
    "project_path": "the project's folder when the memory was archived",
    "archived_at": "when it was archived, in UTC, as ISO text",
    "line_number": "the line that it is about",
    "last_accessed": "when it was last recalled",
    "pinned": "1 if it was pinned",
    "pin_reason": "why it was pinned",
    "pinned_at": "when it was pinned",
    "occurrence_count": "how many equal memories were merged into it",
    "status": "its status when it was archived",
    "audience_gists": "its summaries for certain readers",
}

#: The names that readers of the archive give to columns of their own: partition keys, places in files, the columns that
#: the views work out. A store's own column of such a name is archived as ``memories_`` and its name, and shown so.
RESERVED = frozenset(
    {
        "archived_at",
        "archived_ts",
        "content",
        "created_ts",
        "expires_ts",
        "file_index",
        "file_row_number",
        "filename",
        "month",
        "project_name",
        "project_path",
        "salience_score",
        "store",
        "tier",
        "year",
    }
)

# SQLite bounds how deep an expression may be, and reading and comparing use one that grows with the columns.
_MOST_COLUMNS = 500
_UNREADABLE_VECTORS = (
    "has a vector, which can't be read: install sqlite-vec, under a Python whose sqlite3 module can load extensions"
)

#: What is archived of a memory's project, whose id means nothing once the store is gone.
PROJECT_FIELDS = pa.schema([("project_name", pa.string()), ("project_path", pa.string())])

PYTHON_TYPES: dict[pa.DataType, type] = {pa.int64(): int, pa.string(): str, pa.float64(): float, pa.binary(): bytes}
_STORAGE_CLASSES = {"integer": pa.int64(), "text": pa.string(), "real": pa.float64(), "blob": pa.binary()}


@dataclass(frozen=True)
class Column:
    """One column of a table: its name and declared type in SQLite, its name and type in Parquet."""

    name: str
    declared: str
    field: str
    type: pa.DataType

    @property
    def arrow_field(self) -> pa.Field:
        """The Parquet field, with the SQLite name and type kept as its metadata."""
        return pa.field(self.field, self.type, metadata={"sqlite_column": self.name, "sqlite_type": self.declared})


@dataclass(frozen=True)
class ChildTable:
    """A table whose rows belong to a memory and go when it goes, such as ``audience_gists``."""

    table: str
    key: str
    field: str
    columns: tuple[Column, ...]
    virtual: bool = False

    @property
    def type(self) -> pa.DataType:
        """The nested Parquet type: one list of structs for each memory."""
        return pa.list_(pa.struct([column.arrow_field for column in self.columns]))

    @property
    def select(self) -> str:
        """SQL that reads the memory's id and the columns of all rows of the memories in the JSON array ``?``."""
        names = ", ".join(f"s.{quote_identifier(column.name)}" for column in self.columns)
        return (
            f"SELECT wanted.value, {names} FROM json_each(?) AS wanted "
            f"CROSS JOIN {quote_identifier(self.table)} AS s ON s.{quote_identifier(self.key)} = wanted.value"
        )


@dataclass(frozen=True)
class StoreSchema:
    """What archival needs to know of one hot store.

    Attributes:
        columns: the columns of ``memories``.
        child_tables: the tables whose rows are archived with their memory.
        restricting: what refers to memories and forbids their deletion.
        projects: whether the store tells the names and paths of the memories' projects.
        search_index: whether the search index holds rows for memories, found by their ``memory_id``.
        unreadable_vectors: why the vectors in ``vec_memories`` can't be archived, if there are some that can't.
    """

    columns: tuple[Column, ...]
    child_tables: tuple[ChildTable, ...]
    restricting: tuple[Restriction, ...] = ()
    projects: bool = False
    search_index: bool = False
    unreadable_vectors: str | None = None

    @cached_property
    def archived(self) -> tuple[Column, ...]:
        """The columns in the archive's order: the specification's first, then every further one."""
        by_field = {column.field: column for column in self.columns}
        first = [by_field[name] for name in SPECIFIED if name in by_field]
        return (*first, *(column for column in self.columns if column not in first))

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The schema of an archive file: 14 columns, further columns, child tables, the project."""
        present = {column.field: column.arrow_field for column in self.archived}
        fields = [present.pop(name, None) or pa.field(name, kind) for name, kind in SPECIFIED.items()]
        fields.extend(present.values())
        fields.extend(pa.field(child.field, child.type) for child in self.child_tables)
        fields.extend(PROJECT_FIELDS if self.projects else ())
        return pa.schema(fields)


def read_schema(con: sqlite3.Connection, *, vectors: bool, to_purge: bool = True) -> StoreSchema:
    """Read the schema of a hot store, to purge from it or only to read its memories.

    Raises:
        SchemaError: memories can't be archived (or read) from this store; the message says what is missing.
    """
    _refuse_other_memories(con, to_purge=to_purge)
    tables = {name: sql or "" for name, sql in con.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")}
    ordinary = {name for name, sql in tables.items() if not sql.upper().startswith("CREATE VIRTUAL")}
    owned, restricting = sort_references(con, ordinary)
    if to_purge:
        refuse_cascading_triggers(con, list(owned))
    taken = {name.lower() for name in (*SPECIFIED, *RESERVED, *owned, "vec_memories")}
    columns = _memory_columns(con, taken, to_purge=to_purge)
    fields = {name.lower() for name in (*SPECIFIED, *RESERVED, *(column.field for column in columns))}
    children = []
    for table, key in sorted(owned.items()):
        field = table
        while field.lower() in fields:
            field += "_rows"
        fields.add(field.lower())
        children.append(ChildTable(table, key, field, tuple(_columns(con, table, but=key, to_purge=to_purge))))
    unreadable = None
    if {"vec_memories", "vec_memories_rowids"} <= tables.keys():
        known = re.search(
            r"""\bmemory_id["'`\]]?\s+INT(EGER)?\s+PRIMARY\s+KEY""", tables["vec_memories"], re.IGNORECASE
        )
        if to_purge and not known:
            raise SchemaError(
                "has a table `vec_memories` that is not Vidurai's: its key is not `memory_id INTEGER PRIMARY KEY`",
                hint="rename it, then run again",
            )
        if vectors and known:
            embedding = tuple(_columns(con, "vec_memories", but="memory_id"))
            children.append(ChildTable("vec_memories", "memory_id", "vec_memories", embedding, virtual=True))
        else:
            unreadable = _UNREADABLE_VECTORS
    # An index of another kind, or one that keeps no content of its own, is the business of the store's triggers.
    is_fts5 = re.match(r"CREATE\s+VIRTUAL\s+TABLE.*\bUSING\s+fts5\b", tables.get("memories_fts", ""), re.I | re.S)
    return StoreSchema(
        columns=columns,
        child_tables=tuple(children),
        restricting=tuple(restricting),
        projects="project_id" in _names(con, "memories")
        and {"name", "path"} <= _names(con, "projects")
        and _has_integer_id(con, "projects"),
        search_index=bool(is_fts5) and "memories_fts_content" in tables and "memory_id" in _names(con, "memories_fts"),
        unreadable_vectors=unreadable,
    )


def _names(con: sqlite3.Connection, table: str) -> set[str]:
    """The names of a table's columns, in lower case; none if there is no such table."""
    return {name for (name,) in con.execute("SELECT lower(name) FROM pragma_table_info(?)", (table,))}


def _has_integer_id(con: sqlite3.Connection, table: str) -> bool:
    """Whether a table has the primary key ``id``, and that is the rowid: only this is an integer in every row."""
    keys = con.execute("SELECT lower(name), upper(type) FROM pragma_table_info(?) WHERE pk", (table,)).fetchall()
    indexed = con.execute("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", (table,)).fetchone()
    return keys == [("id", "INTEGER")] and indexed is None


def _refuse_other_memories(con: sqlite3.Connection, *, to_purge: bool) -> None:
    """Refuse a store whose table of memories is not what Vidurai makes, in what archival relies on."""
    kind = con.execute("SELECT type FROM sqlite_master WHERE name = 'memories'").fetchone()
    if kind is None:
        raise SchemaError(
            "has no table `memories`: it is not a Vidurai store, or Vidurai has not set it up yet",
            hint="start Vidurai once, or point the settings at its own file",
        )
    if kind[0] != "table":
        raise SchemaError(f"`memories` is a {kind[0]}, not a table: nothing can be purged from it")
    if not _has_integer_id(con, "memories"):
        raise SchemaError("`memories.id` is not an INTEGER PRIMARY KEY, as Vidurai's is: rows can't be told apart")
    if (encoding := con.execute("PRAGMA encoding").fetchone()[0]) != "UTF-8":
        raise SchemaError(
            f"keeps its text as {encoding}, where Vidurai's stores keep UTF-8",
            hint="copy it into a new store with `sqlite3 STORE .dump | sqlite3 NEW`",
        )
    if to_purge and "status" not in _names(con, "memories"):
        version = "unknown"
        if "value" in _names(con, "metadata"):
            row = con.execute("SELECT value FROM metadata WHERE key = 'schema_version'").fetchone()
            version = row[0] if row else version
        raise SchemaError(
            f"`memories` has no column `status` (schema version {version}): what is missing is Vidurai's Guardian "
            "migration, which adds `status`, `decay_reason` and `outcome`",
            hint="let a Vidurai that has it open this store once; until then nothing can be archived",
        )


def _memory_columns(con: sqlite3.Connection, taken: set[str], *, to_purge: bool) -> tuple[Column, ...]:
    """The columns of ``memories``; one whose name the archive needs for itself gets another name there."""
    columns = []
    rows = "status = 'ARCHIVED'" if to_purge else "1"
    used = _names(con, "memories")
    for column in _columns(con, "memories", rows, to_purge=to_purge):
        field = column.field.lower()
        if field in SPECIFIED and field != "archived_at":
            columns.append(replace(column, field=field, type=SPECIFIED[field]))
            continue
        field = column.field
        if field.lower() in taken:
            while field.lower() in taken | used:
                field = f"memories_{field}"
            used.add(field.lower())
        columns.append(replace(column, field=field))
    return tuple(columns)


def _columns(
    con: sqlite3.Connection, table: str, rows: str = "1", but: str | None = None, *, to_purge: bool = True
) -> Iterator[Column]:
    """The columns of a table but one; what is declared of no type has that of most values in some of its rows."""
    info = con.execute("SELECT name, type, hidden FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table,)).fetchall()
    if len(info) > _MOST_COLUMNS:
        raise SchemaError(f"has {len(info):,} columns in `{table}`: with more than {_MOST_COLUMNS:,} it can't be read")
    for name, declared, computed in info:
        if computed and to_purge:
            raise SchemaError(
                f"has a column `{name}` in `{table}` that SQLite computes, as Vidurai's stores have none",
                hint="drop the column; a view can compute the same",
            )
        if name != but and not computed:
            kind = _declared_type(declared) or _stored_type(con, table, name, declared, rows)
            yield Column(name, declared, name, kind)


def _declared_type(declared: str) -> pa.DataType | None:
    """The Parquet type of a declared type, by SQLite's rules of affinity (https://sqlite.org/datatype3.html, 3.1).

    Those rules give dates, times and booleans no type of their own; Vidurai writes ISO text and 0 or 1.
    """
    parts = {
        ("INT", "BOOL"): pa.int64(),
        ("CHAR", "CLOB", "TEXT", "TIME", "DATE", "JSON"): pa.string(),
        ("REAL", "FLOA", "DOUB"): pa.float64(),
    }
    return next((kind for names, kind in parts.items() if any(name in declared.upper() for name in names)), None)


def _stored_type(con: sqlite3.Connection, table: str, column: str, declared: str, rows: str) -> pa.DataType:
    found = con.execute(
        f"SELECT typeof({quote_identifier(column)}) AS class FROM {quote_identifier(table)} WHERE {rows} "
        "GROUP BY class HAVING class <> 'null' ORDER BY count(*) DESC, class LIMIT 1"
    ).fetchone()
    if found is not None:
        return _STORAGE_CLASSES[found[0]]
    return pa.binary() if "BLOB" in declared.upper() or "[" in declared else pa.string()
