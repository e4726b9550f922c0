"""The hot store's memories for those who ask questions: one snapshot, of which no more is read than is asked for.

A reader takes no lock that a writer would notice: a store in WAL mode never makes its writers wait for a reader, and of
any other store the pages are copied first, which takes a fraction of the time that reading the rows would.
"""

import contextlib
import dataclasses
import json
import re
import sqlite3
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.hot.rows import light_array, read_all
from vidurai_pipeline.hot.salvage import Rejected
from vidurai_pipeline.hot.schema import PROJECT_FIELDS, PYTHON_TYPES, Column, StoreSchema
from vidurai_pipeline.hot.sql import error_name, is_row_error, json_ids, quote_identifier, snapshot, tolerant_text
from vidurai_pipeline.hot.store import HotStore, can_read_vectors
from vidurai_pipeline.hot.word_search import ids_with_words

_NAMED = 3
#: Columns of a few bytes each, which need no bound but the number of rows.
_SHORT = {"salience", "created_at", "expires_at", "event_type", "file_path"}
_AT_ONCE = 1_000_000
_MOST_NEIGHBOURS = 4_096  # sqlite-vec gives no more
_INTEGERS = re.compile(r"\[-?\d[\d,-]*\]")
_SEARCHED = ("verbatim", "gist", "tags", "file_path")
# Tags are JSON, which may write a letter as its number: such tags are looked at by whoever reads them. A word of
# printable ASCII can only be hidden by numbers of ASCII, or by U+017F and U+212A, whose other case is ASCII.
_ESCAPED, _ESCAPED_ASCII = r"*\*", r"*\u[02][01][0-7]*"
_ONE_WAY = re.compile(r"[!#-.0-[\]-~]+")


class UnusualRowError(Exception):
    """A row that only :meth:`HotSnapshot.batches` can show."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of a column, as the archive calls it, with values of its type: integers, or ASCII text.

    The operator is ``=``, ``<``, ``>``, ``<=``, ``>=`` or ``IN``; only ``IN`` has more than one value.
    """

    field: str
    operator: str
    values: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class RowFilter:
    """Which memories are wanted: those that meet all comparisons, or any so many; all without either."""

    comparisons: tuple[Comparison, ...] = ()
    most: int | None = None

    @property
    def by_id(self) -> bool:
        """Whether they are picked by their ids."""
        return any(comparison.field == "id" for comparison in self.comparisons)

    def __bool__(self) -> bool:
        return bool(self.comparisons) or self.most is not None


@dataclasses.dataclass(frozen=True)
class HiddenProjects:
    """Projects whose memories nobody may see: as a user wrote them, and by the ids that the hot store knows them by."""

    names: tuple[str, ...]
    ids: frozenset[int]


class HotView:
    """The hot store as a reader of both tiers sees it, without hidden projects; it need not exist."""

    def __init__(self, path: Path, busy_timeout: float, hidden: Sequence[str] = ()) -> None:
        self.path = path
        self.hides = bool(hidden)
        self._hidden = tuple(hidden)
        self._store = HotStore(path, busy_timeout)

    def hidden(self) -> HiddenProjects | None:
        """Which projects are not shown, by the names that they have now; None if all are."""
        if not self.hides:
            return None
        known = {id_ for name in self._hidden for id_ in self.project_ids(name)}
        return HiddenProjects(self._hidden, frozenset({*known, *map(int, filter(str.isdecimal, self._hidden))}))

    def exists(self) -> bool:
        """Whether there is a store yet."""
        return self.path.exists()

    def project_ids(self, name_or_path: str) -> list[int]:
        """The ids of the projects with a name or path, whatever its case."""
        if not self.exists():
            return []
        with contextlib.closing(self._store.connect()) as con, self._store.errors():
            rows = _projects(con)
        wanted = _comparable(name_or_path)
        return [id_ for id_, *texts in rows if wanted in [text and _comparable(text) for text in texts]]

    @contextlib.contextmanager
    def snapshot(self, scratch: Path) -> Iterator["HotSnapshot"]:
        """Take a snapshot; inside, its memories can be read. It has none if there is no store.

        Args:
            scratch: a private folder for a copy of the store, where one is needed.

        Raises:
            HotStoreError: the store is busy, damaged, or not one of memories.
        """
        with contextlib.ExitStack() as stack:
            if missing := not self.exists():
                con = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)))
                con.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY)")
            else:
                # Queries run in threads of their own, never in two at once.
                con = stack.enter_context(contextlib.closing(self._store.connect(check_same_thread=False)))
                stack.enter_context(self._store.errors())
                if con.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    con = stack.enter_context(_copied(con, scratch))
                stack.enter_context(snapshot(con))
            schema = self._store.schema(con, to_purge=False)
            if not missing and (hidden := self.hidden()):
                _hide(con, schema, hidden)
            yield HotSnapshot(con, schema, self.path, missing=missing)


class HotSnapshot:
    """The hot store at one moment.

    Attributes:
        schema: the columns that a memory would have in the archive, ``archived_at`` being NULL.
        missing: whether there is no store.
    """

    def __init__(self, con: sqlite3.Connection, schema: StoreSchema, path: Path, *, missing: bool) -> None:
        self.schema = schema.arrow_schema
        self.missing = missing
        self._con = con
        self._store_schema = schema
        self._path = path
        self._lost: list[Rejected] = []
        self._losses = 0

    def batches(self, names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns of every memory, whatever its status, in batches of bounded size.

        A value that its column can't show is NULL, or text with the replacement character; see :meth:`notes`.
        """
        yield from self._batches(names)

    def short_columns(self, names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Read columns as :meth:`batches` does, in any order of the rows, and several times as fast.

        Raises:
            UnusualRowError: a column's values have no bound, or one is of another type than its column; some batches
                may have been given already.
        """
        schema, fields = self._narrowed(names), self._fields(names)
        columns = schema.archived
        if (
            schema.child_tables
            or schema.projects
            or any(c.type != pa.int64() and c.field not in _SHORT for c in columns)
        ):
            raise UnusualRowError
        # A column as one JSON text costs a fraction of what its rows cost as Python's tuples.
        selected = ", ".join(f"json_group_array({quote_identifier(column.name)})" for column in columns)
        lowest, highest, count = self._con.execute("SELECT min(id), max(id), count(*) FROM memories").fetchone()
        try:
            for first in [lowest] if count <= _AT_ONCE else range(lowest, highest + 1, _AT_ONCE):
                where = f"id >= {first} AND id < {first + _AT_ONCE}" if count > _AT_ONCE else "1"
                texts = self._con.execute(f"SELECT {selected} FROM memories WHERE {where}").fetchone()
                arrays = {column.field: _short_array(column, text) for column, text in zip(columns, texts, strict=True)}
                rows = len(arrays["id"])
                yield pa.record_batch([arrays.get(f.name, pa.nulls(rows, f.type)) for f in fields], schema=fields)
        except sqlite3.Error as error:
            if not is_row_error(error):
                raise
            raise UnusualRowError from None

    def matching(self, words: Sequence[Sequence[str]], names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Read the memories that may hold every word, in batches of bounded size.

        Case is overlooked; so is, in letters beyond ASCII that have a case, which letter it is: some memories may hold
        no such word. What follows a NUL character in a text is not found.

        If all words are ASCII, ``verbatim`` gives instead of a memory's text those of the words that are in it.

        Args:
            words: the words, each in all its spellings.
            names: the columns to read.
        """
        columns = {column.field: quote_identifier(column.name) for column in self._store_schema.columns}
        searched = [columns[field] for field in _SEARCHED if field in columns]
        if not searched:
            return
        conditions, patterns = [], []
        for spellings in words:
            escaped = _ESCAPED_ASCII if _ONE_WAY.fullmatch(spellings[0]) else _ESCAPED
            hits = [f"{columns['tags']} GLOB '{escaped}'"] if "tags" in columns else []
            for spelling in spellings:
                patterns.append(_like(spelling))
                hits += [f"{name} LIKE ?{len(patterns)} ESCAPE '\\'" for name in searched]
            conditions.append(f"({' OR '.join(hits)})")
        shown_as = {}
        if "verbatim" in columns and all(word.isascii() and word.isprintable() for word, *_ in words):
            shown_as["verbatim"] = _words_in(columns["verbatim"], [word for word, *_ in words])
        yield from self._batches(names, " AND ".join(conditions), patterns, shown_as)

    def with_words(self, terms: Sequence[tuple[str, Sequence[str]]], most: int) -> list[Iterable[int]] | None:
        """The ids of the memories that may answer; see :func:`ids_with_words`."""
        return [] if self.missing else ids_with_words(self._con, terms, most)

    def nearest(self, vector: bytes, most: int) -> dict[int, float] | None:
        """The memories whose vectors are nearest to another one, by their ids, with the cosines of their angles.

        None if the store has no vectors of its length, or they can't be read.
        """
        if self.missing or not can_read_vectors(self._con):
            return None
        near = "SELECT memory_id FROM vec_memories WHERE embedding MATCH ? AND k = ?"
        cosines = "SELECT memory_id, 1 - vec_distance_cosine(embedding, ?1) FROM vec_memories WHERE memory_id IN ({})"
        try:
            ids = json_ids(id_ for (id_,) in self._con.execute(near, (vector, min(most, _MOST_NEIGHBOURS))))
            wanted = "SELECT value FROM json_each(?2)"
            return dict(self._con.execute(cosines.format(wanted), (vector, ids)).fetchall())
        except sqlite3.Error as error:
            if error_name(error) != "SQLITE_ERROR":
                raise
            return None  # vectors of another length

    def filtered(self, names: Collection[str], rows: RowFilter) -> Iterator[pa.RecordBatch]:
        """Read columns of the memories that a filter wants, and perhaps of others."""
        columns = {column.field: column for column in self._store_schema.columns}
        usable = [comparison for comparison in rows.comparisons if comparison.field in columns]
        conditions = ["1", *(_condition(columns[comparison.field], comparison) for comparison in usable)]
        values: list[object] = [value for comparison in usable for value in comparison.values]
        if rows.most is not None:
            conditions.append("id IN (SELECT id FROM memories ORDER BY id LIMIT ?)")
            values.append(rows.most)
        yield from self._batches(names, " AND ".join(conditions), values)

    def memories(self, ids: Iterable[int], names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of the memories with these ids."""
        yield from self._batches(names, "id IN (SELECT value FROM json_each(?))", [json_ids(ids)])

    def created(self, ids: Iterable[int]) -> pa.Table:
        """Give ``id`` and ``created_at`` of those of the memories that are in the store."""
        wanted = json_ids(ids)
        rows: list[tuple] = []
        with tolerant_text(self._con):
            if any(column.field == "created_at" for column in self._store_schema.columns):
                sql = "SELECT id, CAST(created_at AS TEXT) FROM memories WHERE id IN (SELECT value FROM json_each(?))"
                rows = self._con.execute(sql, (wanted,)).fetchall()
        texts = [_as_text(text) for _, text in rows]
        return pa.table(
            {"id": light_array([id_ for id_, _ in rows], pa.int64()), "created_at": light_array(texts, pa.string())}
        )

    def projects(self) -> list[tuple[int, str | None, str | None]]:
        """Give id, name and path of each of the store's projects, if it has a table of them."""
        return _projects(self._con)

    def interrupt(self) -> None:
        """Stop what is being read."""
        self._con.interrupt()

    def notes(self) -> list[str]:
        """What a reader must know: that there is no store, or which values could not be shown so far."""
        if self.missing:
            return [f"there is no hot store at {self._path}: only the archive is shown"]
        if not self._losses:
            return []
        more = f" (and {self._losses - len(self._lost)} more)" if self._losses > len(self._lost) else ""
        named = "; ".join(map(str, self._lost))
        return [f"the hot store {self._path} holds what can't be shown as it is. Such a value is NULL: {named}{more}"]

    def _batches(
        self,
        names: Collection[str],
        which: str = "1",
        values: Sequence[object] = (),
        shown_as: Mapping[str, str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        schema, fields = self._narrowed(names), self._fields(names)
        for batch in read_all(self._con, schema, which, values, shown_as):
            self._losses += len(batch.rejected)
            self._lost += batch.rejected[: _NAMED - len(self._lost)]
            yield batch.record_batch(schema, archived_at=None).select(fields.names)

    def _narrowed(self, names: Collection[str]) -> StoreSchema:
        """The store's schema without the columns that nobody asked for."""
        schema = self._store_schema
        projects = schema.projects and not set(PROJECT_FIELDS.names).isdisjoint(names)
        read = {"id", *names, *(["project_id"] if projects else [])}
        return dataclasses.replace(
            schema,
            columns=tuple(column for column in schema.columns if column.field in read),
            projects=projects,
            child_tables=tuple(child for child in schema.child_tables if child.field in names),
        )

    def _fields(self, names: Collection[str]) -> pa.Schema:
        return pa.schema([field for field in self.schema if field.name in {"id", *names}])


def _short_array(column: Column, text: str) -> pa.Array:
    """The values of a JSON array, as long as they are of the column's type."""
    if column.type == pa.int64() and _INTEGERS.fullmatch(text):
        return _split(text[1:-1], ",").cast(pa.int64())
    if column.type == pa.string() and text.startswith('["') and "\\" not in text:
        # Without an escape, a quotation mark begins or ends a text; only NULL and numbers have none.
        parts = _split(text[2:-2], '","')
        if text.count('"') == 2 * len(parts) and text.endswith('"]'):
            return parts
    values = json.loads(text)
    if not set(map(type, values)) <= {PYTHON_TYPES[column.type], *([] if column.field == "id" else [type(None)])}:
        raise UnusualRowError
    return light_array(values, column.type)


def _hide(con: sqlite3.Connection, schema: StoreSchema, hidden: HiddenProjects) -> None:
    """Put views before the store's tables for this connection, which SQLite finds first."""
    ids = ", ".join(map(str, sorted(hidden.ids)))
    keys = {"memories": [column.name for column in schema.columns if column.field == "project_id"]}
    keys["projects"] = ["id"] if _projects(con) else []
    for table, key in keys.items():
        for name in key:
            shown = f"ifnull(CAST({quote_identifier(name)} AS INTEGER) NOT IN ({ids}), 1)"
            con.execute(f"CREATE TEMP VIEW {table} AS SELECT * FROM main.{table} WHERE {shown}")


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name.rstrip("/").lower())


def _projects(con: sqlite3.Connection) -> list[tuple[int, str | None, str | None]]:
    """Id, name and path of each project, if the store has a table of them."""
    if not {"id", "name", "path"} <= {row[1] for row in con.execute("PRAGMA table_info(projects)")}:
        return []
    with tolerant_text(con):
        rows = con.execute("SELECT id, name, path FROM projects WHERE typeof(id) = 'integer'").fetchall()
    return [(id_, _as_text(name), _as_text(path)) for id_, name, path in rows]


def _as_text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


def _split(text: str, separator: str) -> pa.Array:
    """Split a text, without a Python object for each of its parts."""
    whole = light_array([text], pa.string())
    return pc.call_function("split_pattern", [whole], pc.SplitPatternOptions(pattern=separator)).values


def _condition(column: Column, comparison: Comparison) -> str:
    """SQL that each value meets which the column shows as one that meets the comparison.

    A value of another type than the column's may be shown as any value. The plus sign takes the column's affinity away,
    by which SQLite would convert what it compares.
    """
    places = ", ".join("?" * len(comparison.values))
    test = f"IN ({places})" if comparison.operator == "IN" else f"{comparison.operator} {places}"
    if column.field == "id":
        return f"id {test}"
    name, kind = quote_identifier(column.name), "integer" if column.type == pa.int64() else "text"
    return f"(+{name} COLLATE BINARY {test} OR typeof({name}) NOT IN ('{kind}', 'null'))"


def _like(word: str) -> str:
    """A pattern for LIKE that every text with the word fits, in whatever case.

    LIKE folds the case of ASCII letters; of any other letter that has a case, only the place is asked for.
    """

    def place(char: str) -> str:
        if char.isascii():
            return f"\\{char}" if char in "\\%_" else char
        return char if char.lower() == char.upper() == char.casefold() else "_"

    return f"%{''.join(map(place, word))}%"


def _words_in(text: str, words: Sequence[str]) -> str:
    """SQL for those of some words that a text holds, one a line; for the value itself if it is no text."""

    def literal(value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    lines = (
        rf"CASE WHEN {text} LIKE {literal(_like(word))} ESCAPE '\' THEN {literal(word)} || char(10) ELSE '' END"
        for word in words
    )
    return f"CASE WHEN typeof({text}) = 'text' THEN {' || '.join(lines)} ELSE {text} END"


@contextlib.contextmanager
def _copied(con: sqlite3.Connection, scratch: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the store: a reader of the original would make its writers wait until it has seen every row."""
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))) / "hot.db"
        copy = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        stack.enter_context(contextlib.closing(copy))
        with snapshot(con):
            # The first read waits for its lock as long as it may; backup() on its own would wait forever.
            con.execute("SELECT count(*) FROM sqlite_master").fetchone()
            con.backup(copy)
        yield copy
