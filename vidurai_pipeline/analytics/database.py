"""The DuckDB database in which the views of the archive live, kept up to date with the archive's files."""

import contextlib
import itertools
import json
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from vidurai_pipeline.analytics import duckdb_errors
from vidurai_pipeline.analytics.connection import connect
from vidurai_pipeline.analytics.damage import (
    ADVICE,
    ASK_ON,
    FLAW_ADVICE,
    damage_message,
    find_damaged,
    flaw_message,
    left_out_message,
    without_damaged,
)
from vidurai_pipeline.analytics.file_schemas import merged_columns
from vidurai_pipeline.analytics.pushdown import Parameters, row_filter
from vidurai_pipeline.analytics.sandbox import Statement
from vidurai_pipeline.analytics.schema_cache import ListingCache
from vidurai_pipeline.analytics.search import RANKED, Search
from vidurai_pipeline.analytics.sources import group_by_schema, open_encrypted, table_name
from vidurai_pipeline.analytics.views import (
    COMMENTS,
    HOT,
    IN_BOTH,
    NEAREST,
    NEAREST_TYPE,
    SALIENCE_SCORE,
    SUPERSEDED,
    BothTiers,
    Stores,
    Views,
    hot_source,
    listed_memories,
    projects,
    similar_memories,
)
from vidurai_pipeline.cold.files import fetchers, is_placeholder
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import ArchiveFile, Listing, list_all_stores, quote_literal
from vidurai_pipeline.cold.manifest import Flaw, Manifests, StoreManifests
from vidurai_pipeline.cold.working_copy import evict, refresh
from vidurai_pipeline.errors import ArchiveError, ArchiveWarning, QueryError
from vidurai_pipeline.hot.view import HiddenProjects, HotSnapshot, RowFilter, UnusualRowError

#: How often files may be rewritten while they are read, before that is an error. Between two times lies a moment.
CHANGES = 20
if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

_INCOMING = f"{HOT}_incoming"
_WORTH_A_QUERY = 4 * 1024 * 1024
MakeSql = Callable[[str, Sequence[str]], tuple[str, dict[str, object]]]
_MAKE_MEMORIES = "CREATE OR REPLACE TEMPORARY VIEW memories AS"


class ArchiveDatabase:
    """A database in memory of its own, or the temporary views in a connection of the caller's.

    Args:
        base: the archive's folder; it is first looked at when a cursor is asked for.
        given: the caller's connection, if the views are to be made there.
        memory_limit: the most memory that a database of its own may use.
        threads: the threads of a database of its own; None for one per core.
        keys: the archive's keys.
        skip_damaged: whether damaged files are left out, with an ArchiveWarning; else they are an error.
        hidden: says whenever a cursor is asked for which projects are left out.
        find_stores: says which stores share the archive.
        only_store: the one store whose archive is read.
        near: finds the memories that are nearest to a text, as ``NEAREST_TYPE`` has them, for the table function
            ``similar_memories``; default none.

    Attributes:
        files: the files that the views read.
        left_out: the damaged and missing files that the views go without.
        columns: the columns of ``history``.
        hidden: the projects that the views leave out.
        manifests: what is recorded of the files.
        stores: the stores that share the archive.
    """

    def __init__(
        self,
        base: Path,
        given: duckdb.DuckDBPyConnection | None,
        memory_limit: str,
        threads: int | None,
        keys: KeyRing,
        *,
        skip_damaged: bool = False,
        hidden: Callable[[], HiddenProjects | None] = lambda: None,
        find_stores: Callable[[], Stores] = Stores,
        only_store: str | None = None,
        near: Callable[[str, int], list[dict[str, Any]]] | None = None,
    ) -> None:
        self.base = base
        self._find_stores = find_stores
        self._only_store = only_store
        self._keys = keys
        self.files: tuple[ArchiveFile, ...] = ()
        self.left_out: list[Flaw] = []
        self._listed: tuple[ArchiveFile, ...] = ()
        self._find_hidden = hidden
        self._near = near
        self.hidden: HiddenProjects | None = None
        self._given = given
        self._memory_limit = memory_limit
        self._threads = threads
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._cache = ListingCache(base)
        self.manifests = StoreManifests(base, only_store)
        self.stores = find_stores()
        self._skip_damaged = skip_damaged
        self._intact: set[ArchiveFile] = set()
        self.columns: Sequence[str] = ()
        self._encrypted: dict[str, Dataset] = {}
        self._types: dict[str, str] | None = None
        self._lock = threading.RLock()
        self._scratch: Path | None = None
        self._remove_scratch = lambda: None

    def close(self) -> None:
        """Close the database and remove its temporary files; it is opened again when it is needed again."""
        with self._lock:
            if self._connection is not None and self._given is None:
                with contextlib.suppress(duckdb.Error):  # a query that could not be interrupted still holds it
                    self._connection.close()
            self._connection = self._scratch = None
            self._remove_scratch()
            evict(self.base, self)

    @property
    def shared(self) -> bool:
        """Whether the connection is the caller's."""
        return self._given is not None

    def without_archive(self) -> "ArchiveDatabase":
        """One of the same settings over no archive at all, to ask the hot store alone."""
        nowhere, settings = self.scratch_folder() / "none", (self._memory_limit, self._threads, self._keys)
        return ArchiveDatabase(nowhere, None, *settings, find_stores=self._find_stores)

    def forget(self) -> None:
        """Start afresh with the next query: DuckDB may have given up on this database."""
        with self._lock:
            self._connection = None

    def changed(self) -> bool:
        """Whether the archive's files are no longer those that the views read."""
        return list_all_stores(self.base, self._only_store) != self._listed

    def lacks(self, needed: Callable[[ArchiveFile], bool]) -> bool:
        """Whether content of files that are needed is in the object store alone."""
        return bool(fetchers) and any(needed(file) and is_placeholder(self.base / file.relative) for file in self.files)

    def cursor(self, needed: Callable[[ArchiveFile], bool] = lambda _: True) -> duckdb.DuckDBPyConnection:
        """Give a connection whose views read the files that are there now.

        Args:
            needed: says which of the files will be read, of those in an object store.

        Warns:
            ArchiveWarning: damaged files are left out, as the database was told.
        """
        with self._lock:
            hidden = self._find_hidden()  # the names to hide may mean other projects by now
            self._connection, self.hidden = self._connection if hidden == self.hidden else None, hidden
            whole = self.shared or self._skip_damaged
            for last in [*[False] * CHANGES, True]:
                refresh(self.base, self, lambda file: whole or needed(file), damaged=self._skip_damaged)
                files = list_all_stores(self.base, self._only_store)
                if self._connection is not None and files == self._listed:
                    break
                self._connection = None
                self.files = self._listed = files
                flaws = self.manifests.find(Manifests.flaws, files) if not self._skip_damaged else ()
                if flaws:
                    if last or not self.changed():
                        raise ArchiveError(flaw_message(self.base, flaws), FLAW_ADVICE + ASK_ON)
                    continue  # files were rewritten meanwhile: what was listed is not to be read
                try:
                    connection = self._open(files)
                    if self.left_out and not last and self.changed():
                        continue
                    self._connection = connection
                    if self.left_out:
                        warnings.warn(left_out_message(self.left_out), ArchiveWarning, stacklevel=2)
                    break
                except RuntimeError as error:
                    if "interrupted" not in str(error):
                        raise
                    raise KeyboardInterrupt from None  # what DuckDB's client makes of Ctrl-C
                except (duckdb.Error, FileNotFoundError) as error:
                    if last or not self.changed():  # else a file was withdrawn meanwhile
                        raise duckdb_errors.explain(str(error), listing=self.listing(), bound=False) from None
            connection = self._connection
            assert connection is not None  # noqa: S101 - the last attempt either opened it or raised
            # Temporary views are the connection's own: a cursor of the caller's would not see them.
            if self._given is not None:
                return connection
            cursor = connection.cursor()
            for name, dataset in self._encrypted.items():
                cursor.register(name, dataset)
            return cursor

    def outline_memories(self, connection: duckdb.DuckDBPyConnection, hot: HotSnapshot) -> BothTiers:
        """Make the view ``memories`` over both tiers, for one connection alone, with no row of the hot store yet.

        Args:
            connection: one that :meth:`cursor` gave after the snapshot was taken: a memory that was purged in between
                is then at least in the archive.
            hot: the snapshot of the hot store.
        """
        tiers = self._tiers(connection, hot)
        connection.execute(f"{_MAKE_MEMORIES} {tiers.sql(_INCOMING, duplicates=False)}")
        connection.execute(f"CREATE OR REPLACE TEMPORARY VIEW projects AS {projects(self.columns)}")
        return tiers

    def _tiers(self, connection: duckdb.DuckDBPyConnection, hot: HotSnapshot) -> BothTiers:
        if self._types is None:  # with thousands of files, it takes its time
            self._types = _described(connection, "history")
        connection.register(_INCOMING, pa.Table.from_batches([], hot.schema))
        return BothTiers(self._types, _described(connection, _INCOMING), hot.projects(), self.stores)

    def columns_needed(self, connection: duckdb.DuckDBPyConnection, statement: str, parameters: object) -> set[str]:
        """Which of the hot store's columns a statement needs, as far as DuckDB's plan tells.

        Raises:
            duckdb.Error: the statement is wrong.
        """
        plan = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters).fetchall()
        found: set[str] = set()
        waiting = [*json.loads(plan[0][1])]
        while waiting:
            node = waiting.pop()
            waiting += node.get("children", [])
            if "ARROW_SCAN" in str(node.get("name")):
                projections = node.get("extra_info", {}).get("Projections", [])
                found |= {projections} if isinstance(projections, str) else set(projections)
        return found

    def rows_needed(self, statement: Statement, tiers: BothTiers, parameters: Parameters) -> RowFilter:
        """Which of the hot store's memories a statement can be about."""
        same = {name: type_ for name, type_ in tiers.hot.items() if tiers.columns.get(name) == type_}
        if self._given is None:
            return row_filter(statement, same, parameters)
        # A connection of the caller's may compare text by another collation, and give rows in another order.
        integers = {name: type_ for name, type_ in same.items() if type_ == "BIGINT"}
        return replace(row_filter(statement, integers, parameters), most=None)

    def fill_memories(
        self,
        connection: duckdb.DuckDBPyConnection,
        hot: HotSnapshot,
        tiers: BothTiers,
        needed: Collection[str],
        rows: RowFilter,
    ) -> None:
        """Put the hot memories into the view ``memories``.

        They are copied to a table that DuckDB moves to the disk where they don't fit into its memory.

        Args:
            connection: one with the outline of ``memories``.
            hot: the snapshot of the hot store.
            tiers: the outline.
            needed: the columns to read; a statement that needs another fails with ``NOT_READ``.
            rows: the memories that the statement can be about.
        """
        needed = {name for name in hot.schema.names if name in needed}
        if needed or self.files:  # to show each memory once takes their ids
            needed.add("id")
        schema = pa.schema([field for field in hot.schema if field.name in {"id", *needed}])
        duplicates = False
        if self.files and rows and not rows.by_id:  # one that is not read must still hide its copy in the archive
            _copy_first(connection, pa.schema([schema.field("id")]), hot.short_columns({"id"}), hot.batches({"id"}))
            duplicates = self._find_duplicates(connection, hot)
        ways: list[Iterable[pa.RecordBatch]] = [hot.filtered(needed, rows)] if rows else []
        if not rows.by_id:
            ways.insert(0, hot.short_columns(needed) if needed else ())
        _copy_first(connection, schema, *ways, hot.batches(needed))
        if self.files and (rows.by_id or not rows):
            duplicates = self._find_duplicates(connection, hot)
        source = hot_source(HOT, tiers.hot, schema.names)
        connection.execute(f"{_MAKE_MEMORIES} {tiers.sql(source, duplicates=duplicates)}")

    def _find_duplicates(self, connection: duckdb.DuckDBPyConnection, hot: HotSnapshot) -> bool:
        """Make the table of the hot memories that the archive holds too; whether there are any."""
        archived = f"(FROM history WHERE {self.stores.is_own})" if self.stores.several else "history"
        ids = connection.execute(f"SELECT id FROM {HOT} SEMI JOIN {archived} USING (id)").fetchall()
        connection.register(_INCOMING, hot.created(id_ for (id_,) in ids))
        connection.execute(f"CREATE OR REPLACE TEMPORARY TABLE {IN_BOTH} AS FROM {_INCOMING}")
        connection.unregister(_INCOMING)
        return bool(ids)

    def search_hot(self, hot: HotSnapshot, search: Search) -> list[dict[str, Any]]:
        """Find memories of the hot store, the most relevant first, as many as the search wants.

        SQLite picks those that may hold the words, the best of them are found by as few columns as it takes, and only
        these are read whole.
        """
        found = self._hot_rows(hot)
        best: list[dict[str, Any]] = []
        for table in _gathered(hot.matching(search.spellings, search.columns_ranked_by)):
            best = search.best([*best, *found(table, RANKED, search.sql)])
        rows = hot.memories([row["id"] for row in best], search.columns_given)
        return search.best(row for table in _gathered(rows) for row in found(table, search.found, search.sql))

    def hot_reader(self, hot: HotSnapshot, search: Search) -> Callable[[Sequence[int]], list[dict[str, Any]]]:
        """Make a function that gives hot memories by their ids, as far as a search's filters let them pass."""
        found = self._hot_rows(hot)

        def read(ids: Sequence[int]) -> list[dict[str, Any]]:
            tables = _gathered(hot.memories(ids, search.columns_given))
            return [
                row
                for table in tables
                for row in found(table, search.found, lambda source, _: search.sql_of(source, ids))
            ]

        return read

    def _hot_rows(self, hot: HotSnapshot) -> Callable[..., list[dict[str, Any]]]:
        """Make a function that asks a query, as a search makes it of a source and columns, about hot memories."""
        connection = self.cursor()
        tiers = self._tiers(connection, hot)

        def found(table: pa.Table, columns: Sequence[str], make_sql: MakeSql) -> list[dict[str, Any]]:
            connection.register(_INCOMING, table)
            source = tiers.hot_side(hot_source(_INCOMING, tiers.hot, table.column_names))
            sql, parameters = make_sql(f"({source})", columns)
            return [dict(zip(columns, row, strict=True)) for row in connection.execute(sql, parameters).fetchall()]

        return found

    def listing(self) -> Listing:
        """The files that the views read."""
        return Listing.readable(self.base, self.files, self.scratch_folder, self._keys, present=False)

    def scratch_folder(self) -> Path:
        """A private folder for temporary files, which goes with the database."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="vidurai-history-"))
            self._remove_scratch = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def _open(self, files: Sequence[ArchiveFile]) -> duckdb.DuckDBPyConnection:
        """Make the views; in a new database, unless the caller gave a connection.

        What DuckDB remembers of files that were replaced goes with the old database, and readers that still read
        from that keep it alive.
        """
        listing = Listing.readable(self.base, files, self.scratch_folder, self._keys, present=False)
        connection = self._given if self._given is not None else self._locked_in(listing)
        if self._skip_damaged:
            listing, self.left_out = without_damaged(connection, listing, self.manifests, self._intact)
            self.files = listing.files
        else:
            listing.require_keys()
        try:
            self._make_views(connection, listing)
        except duckdb.Error as error:
            if duckdb_errors.may_be_damage(str(error)):
                listing = Listing.readable(self.base, listing.files, self.scratch_folder, self._keys)
                if damaged := find_damaged(connection, listing):
                    raise ArchiveError(damage_message(listing, damaged), ADVICE + ASK_ON) from None
            raise
        if self._given is None:
            connection.execute("SET GLOBAL lock_configuration = true")
        return connection

    def _locked_in(self, listing: Listing) -> duckdb.DuckDBPyConnection:
        """Open a database that can read the archive and can't be talked into more."""
        folders, paths = listing.linked_targets()
        return connect(
            self._memory_limit,
            self._threads,
            self.scratch_folder(),
            self._keys,
            parquet_metadata_cache=True,
            python_enable_replacements=False,  # or SQL could read the caller's Python variables
            autoinstall_known_extensions=False,
            autoload_known_extensions=False,
            allow_community_extensions=False,
            allow_persistent_secrets=False,
            secret_directory=str(self.scratch_folder()),  # its default would tell where the user's home is
            allowed_directories=[listing.root, *folders],
            allowed_paths=paths,
            enable_external_access=False,
        )

    def _make_views(self, connection: duckdb.DuckDBPyConnection, listing: Listing) -> None:
        columns, superseded = self._cache.load(listing.files) or (None, None)
        if columns is None:
            columns = merged_columns(connection, listing, self.manifests)
        self.stores = self._find_stores()
        views = Views(listing, columns, self._register_encrypted(connection, listing), self.hidden, self.stores)
        self.columns, self._types = views.columns, None
        kind = "TEMPORARY" if self._given is not None else ""
        connection.execute(f"CREATE OR REPLACE {kind} MACRO salience_score{SALIENCE_SCORE}")
        fill_in = [f"CREATE OR REPLACE {kind} MACRO {macro}" for macro in views.file_macros(first_only=False)]
        if superseded is None:
            for statement in fill_in:
                connection.execute(statement)
            superseded = connection.execute(views.superseded_places()).fetchall()
            self._cache.save(listing.files, columns, superseded)
        if superseded:
            sql = "SELECT $root || unnest($files::VARCHAR[]) AS filename, unnest($places::BIGINT[]) AS place"
            files, places = (list(column) for column in zip(*superseded, strict=True))
            values = {"root": f"{listing.root}/", "files": files, "places": places}
            connection.execute(f"CREATE OR REPLACE {kind} TABLE {SUPERSEDED} AS {sql}", values)
        for macro in views.file_macros(first_only=True):
            connection.execute(f"CREATE OR REPLACE {kind} MACRO {macro}")
        history = views.history(duplicates=bool(superseded))
        connection.execute(f"CREATE OR REPLACE {kind} VIEW history AS {history}")
        connection.execute(f"CREATE OR REPLACE {kind} VIEW history_all AS {views.history_all()}")
        connection.execute(f"CREATE OR REPLACE {kind} VIEW memories AS {listed_memories(self.columns)}")
        connection.execute(f"CREATE OR REPLACE {kind} VIEW projects AS {projects(self.columns)}")
        for view, (name, text) in itertools.product(("history", "history_all"), COMMENTS.items()):
            connection.execute(f"COMMENT ON COLUMN {view}.{name} IS {quote_literal(text)}")
        for statement in fill_in:
            connection.execute(statement)
        if self._near is not None and self._given is None:
            connection.create_function(NEAREST, self._near, ["VARCHAR", "BIGINT"], NEAREST_TYPE)  # pyright: ignore
            connection.execute(f"CREATE MACRO {similar_memories(self.columns)}")

    def require_meaning(self) -> None:
        """Refuse to ask for similar memories where there are no vectors.

        Raises:
            SearchIndexError: there are none, or the model is not there; it says what to do.
            QueryError: the connection is the caller's, and has no such function.
        """
        if self._near is None or self._given is not None:
            raise QueryError("similar_memories() is only known to an analyst with a connection of its own")
        self._near("", 1)

    def _register_encrypted(self, connection: duckdb.DuckDBPyConnection, listing: Listing) -> dict[str, list[str]]:
        """Make tables of the encrypted files; gives the columns of each."""
        groups = group_by_schema(listing, [file for file in listing.files if file.key is not None], self.manifests)
        self._encrypted = {table_name(group): open_encrypted(listing, group) for group in groups}
        for name, dataset in self._encrypted.items():
            connection.register(name, dataset)
        return {name: dataset.schema.names for name, dataset in self._encrypted.items()}


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches as tables of bounded size, each of which is worth a query."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.nbytes for part in waiting) >= _WORTH_A_QUERY:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _copy_first(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, *ways: Iterable[pa.RecordBatch]) -> None:
    """Make the table of the hot memories in the first of several ways that can give them."""
    for way in ways:
        do = f"CREATE OR REPLACE TEMPORARY TABLE {HOT} AS"
        with contextlib.suppress(UnusualRowError):
            for batches in itertools.chain([()], ([batch] for batch in way)):
                connection.register(_INCOMING, pa.Table.from_batches(batches, schema))
                connection.execute(f"{do} FROM {_INCOMING}")
                do = f"INSERT INTO {HOT}"
            break
    connection.unregister(_INCOMING)


def _described(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in connection.execute(f"DESCRIBE {table}").fetchall()}
