"""RepoAnalyst: SQL and search over everything ever archived.

It gives four views. ``history`` is the archive, each memory once, in its newest version; ``history_all`` is every
stored copy with its file. Both have the columns of every file, ``content`` (the memory's text), ``year`` and ``month``,
which pick the files to read, and typed companions of times and salience (:data:`views.COMPANIONS`). ``memories`` is
``history`` and what is still in the hot store, each memory once, with its ``tier``; of hot rows, ``archived_at``,
``year`` and ``month`` are NULL. ``projects`` counts them by project. The hot store is read, in one snapshot, by each
query that names one of these two, and by no other; of it, the columns are read that the query needs.

Where several stores share the archive, the views show the memories of all of them, with a column ``store``. Of the hot
stores, only the own one is read.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args
from weakref import WeakSet

import duckdb
import pyarrow as pa

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.execution import Parameters, Query, TimeLimit, unique_names, warn_of
from vidurai_pipeline.analytics.question import moment
from vidurai_pipeline.analytics.search import (
    MOST,
    Mode,
    Moment,
    Search,
    SearchFilters,
    Tier,
    read_moment,
    readable_texts,
    result_columns,
    snippet,
)
from vidurai_pipeline.analytics.searcher import Indexes, Searcher, ids_by_store
from vidurai_pipeline.analytics.views import Stores
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import list_all_stores, store_roots
from vidurai_pipeline.cold.manifest import Flaw
from vidurai_pipeline.cold.mirror import open_root
from vidurai_pipeline.errors import (
    ConfigError,
    QueryError,
    SearchIndexError,
    SearchIndexWarning,
    refuse_to_run,
    some_of,
)
from vidurai_pipeline.hot.view import HotView
from vidurai_pipeline.settings import load_settings, store_in

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and only one method needs it

_BATCH = _MOST_SIMILAR = 10_000
_LONGEST = 31_536_000  # a year: waiting takes no larger number
_TRAINING = """
    SELECT id, verbatim, gist, salience, outcome, access_count, created_at, archived_at, file_path, event_type
    FROM history
    WHERE outcome IS NOT NULL AND outcome != 0
    ORDER BY archived_ts DESC NULLS LAST, archived_at DESC NULLS LAST, id DESC
    LIMIT ?
"""
_TOTALS = """
    SELECT
        count(*) AS total_memories,
        count(*) FILTER (outcome = 1) AS positive_outcomes,
        count(*) FILTER (outcome = -1) AS negative_outcomes,
        avg(salience_score) AS avg_salience,
        coalesce(min_by(created_at, created_ts), min(created_at)) AS oldest_memory,
        coalesce(max_by(archived_at, archived_ts), max(archived_at)) AS newest_archive
    FROM history
"""
_MONTHS = """
    SELECT coalesce(printf('%d-%02d', year, month), strftime(archived_ts, '%Y-%m'), 'unknown') AS key,
        count(*) AS memories
    FROM history GROUP BY ALL ORDER BY key
"""
_SALIENCES = """
    SELECT coalesce(upper(trim(salience)), 'unknown') AS key, count(*) AS memories
    FROM history GROUP BY ALL ORDER BY any_value(salience_score) DESC NULLS LAST, key
"""
_OUTCOMES = """
    SELECT CASE outcome WHEN 1 THEN 'positive' WHEN 0 THEN 'neutral' WHEN -1 THEN 'negative' ELSE 'unknown' END AS key,
        count(*) AS memories
    FROM history GROUP BY ALL ORDER BY key DESC
"""


class RepoAnalyst:
    """Answers questions about the cold archive, and can be handed to anyone who asks.

    A statement can read the views and nothing else: no other file, no network, no setting. Each query sees the files
    that are there when it starts. The analyst may be shared by threads; each query has a cursor of its own.

    On a connection of the caller's (``connection=``), the views are temporary ones, made anew by each query that
    finds the archive changed. Memory, threads and what else its SQL may do remain the caller's affair; only one thread
    at a time may then use the analyst, and answers are held in memory.
    """

    def __init__(
        self,
        archive_base: Path | None = None,
        *,
        hot_store: Path | None = None,
        connection: duckdb.DuckDBPyConnection | None = None,
        memory_limit: str | None = None,
        threads: int | None = None,
        timeout: float | None = None,
        skip_damaged: bool = False,
        exclude_projects: Sequence[str] = (),
        store: str | None = None,
    ) -> None:
        """Set up; the archive is first looked at when the first query comes.

        Args:
            archive_base: the archive's folder; default from the settings, where several stores may share it.
            hot_store: the SQLite file that ``memories`` shows beside the archive; it need not exist. Default from the
                settings, or for another archive than theirs the store beside it.
            connection: a connection to make the views in, at once; default one of the analyst's own.
            memory_limit: the most memory DuckDB may use, such as ``1GB``; default from the settings.
            threads: DuckDB's threads; default from the settings.
            timeout: seconds that a query may take; default no limit.
            skip_damaged: answer without the damaged files of the archive, with an ``ArchiveWarning`` that says what
                is missing. All files are read for that before the first answer. By default they are an error.
            exclude_projects: names, paths or ids of projects whose memories no answer shows or counts. SQL can then ask
                nothing but the views, and takes longer: each query reads the whole archive.
            store: of the stores that share the archive, read this one alone, whatever the state of the others.

        Raises:
            ConfigError: a setting or an argument is wrong.
            ArchiveError: the archive can't be read (only with a connection).
        """
        settings = load_settings()
        if connection is not None and (memory_limit is not None or threads is not None):
            raise ConfigError("memory_limit and threads can't be set on a connection that is passed in")
        if connection is not None and exclude_projects:
            raise ConfigError("exclude_projects can't be set on a connection that is passed in")
        if timeout is not None and not 0 < timeout <= _LONGEST:
            raise ConfigError(f"timeout must be more than 0 seconds and at most {_LONGEST:,}: {timeout}")
        self.archive_base = (archive_base or open_root(settings)).expanduser().absolute()
        self._only, self._own = store, settings.store_name if self.archive_base == settings.archive_root else None
        if store is not None and store not in (*store_roots(self.archive_base), self._own):
            there = some_of([*store_roots(self.archive_base)])
            hint = f"there are those of {there}" if there else "set VIDURAI_STORE_NAME to give a store a name"
            raise ConfigError(f"{self.archive_base} has no archive of a store {store!r}", hint)
        self._timeout = timeout
        self._keys = KeyRing(settings.archive_key_file)
        self._indexes = Indexes(self.archive_base, settings.embed_model)
        if hot_store is None and self.archive_base not in (settings.archive_root, settings.archive_path):
            hot_store = store_in(self.archive_base.parent)
        hot_store = (hot_store or settings.db_path).expanduser().absolute()
        self._hot = HotView(hot_store, settings.busy_timeout, exclude_projects)
        self._database = ArchiveDatabase(
            self.archive_base,
            connection,
            memory_limit or settings.memory_limit,
            threads or settings.threads,
            self._keys,
            skip_damaged=skip_damaged,
            hidden=self._hot.hidden,
            find_stores=lambda: self.stores,
            only_store=store,
            near=self._near,
        )
        self._running: WeakSet[TimeLimit] = WeakSet()
        if connection is not None:
            self._database.cursor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database and its temporary files; a later query opens them again."""
        self._database.close()

    def interrupt(self) -> None:
        """Stop the queries that run, from another thread; each ends with a QueryError."""
        for limit in list(self._running):
            limit.interrupt()

    def is_empty(self) -> bool:
        """Whether nothing has been archived yet."""
        return not list_all_stores(self.archive_base, self._only)

    @property
    def has_index(self) -> bool:
        """Whether the archive has a search index, whole or not."""
        return self._indexes.have_words()

    @property
    def left_out(self) -> list[Flaw]:
        """The damaged and missing files that the last answer went without; see ``skip_damaged``."""
        return self._database.left_out

    # -- questions ----------------------------------------------------------------------------------------------

    def query_archive(self, sql: str, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Run one statement over the views ``history``, ``history_all``, ``memories`` and ``projects``.

        The answer to any valid statement about an empty archive is ``[]``, as Vidurai specifies, unless it names
        ``memories`` and there is a hot store; a statement that is wrong is wrong there too. Of columns with the same
        name, the second is called ``name_1``.

        Args:
            sql: one statement that reads. ``AVG(salience)`` averages the levels' numbers, CRITICAL 5 to NOISE 1.
            parameters: values for ``?`` (a sequence) or ``$name`` (a mapping).

        Raises:
            QueryError: the statement is wrong, may not run here, or takes more time or memory than it may.
            ArchiveError: the archive, or a file in it, can't be read.
            HotStoreError: the statement names ``memories``, and the hot store is busy, damaged, or none of memories.

        Warns:
            HotStoreWarning: there is no hot store, or a value in it can't be shown as it is.
        """
        return self._query(sql, parameters).rows()

    def query_arrow(self, sql: str, parameters: Parameters = None) -> pa.RecordBatchReader:
        """Run one statement and read its answer in batches, while it runs.

        It takes and raises what :meth:`query_archive` does, the latter also while the batches are read. An empty
        archive's views are empty tables here: a count is one row with 0.
        """

        def fetch(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
            answer = connection.sql(text, params=parameters)
            # On a connection that others use, the next query would end this one.
            reader = (
                answer.to_arrow_table().to_reader(_BATCH) if self._database.shared else answer.to_arrow_reader(_BATCH)
            )
            # The first rows are read here, where the query begins anew if files are rewritten meanwhile.
            first = next(reader, None)
            return reader.schema, itertools.chain([] if first is None else [first], reader)

        query = self._query(sql, parameters)
        schema, read = query.run(fetch)

        def batches() -> Iterator[pa.RecordBatch]:
            # The query holds the connection that the reader reads from.
            while (batch := query.read(lambda: next(read, None))) is not None:
                yield batch

        return pa.RecordBatchReader.from_batches(schema, batches())

    def query_rows(self, sql: str, parameters: Parameters = None) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Run one statement and read its answer row by row, while it runs.

        It takes and raises what :meth:`query_archive` does, the latter also while the rows are read, which are never
        all in memory.

        Returns:
            the columns' names, each once, and the rows.
        """

        def fetch(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[list[str], Iterator[list[tuple]]]:
            result = connection.execute(text, parameters)
            names = unique_names([column[0] for column in result.description or ()])
            if self._database.shared:  # the next query would end this one
                return names, iter([result.fetchall()])
            # The first rows are read here, where the query begins anew if files are rewritten meanwhile.
            first = result.fetchmany(_BATCH)
            return names, itertools.chain([first], iter(lambda: result.fetchmany(_BATCH), []))

        query = self._query(sql, parameters)
        names, batches = query.run(fetch)

        def rows() -> Iterator[tuple[Any, ...]]:
            while batch := query.read(lambda: next(batches, [])):
                yield from batch

        return names, iter(()) if query.about_nothing else rows()

    def query_df(self, sql: str, parameters: Parameters = None) -> "pd.DataFrame":
        """Run one statement, as :meth:`query_archive` does, and give a DataFrame.

        An empty archive's views are empty tables here.
        """
        return self._query(sql, parameters).run(lambda connection, text: connection.sql(text, params=parameters).df())

    def search_archive(
        self,
        words: str,
        limit: int = 50,
        *,
        project: int | str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        salience: str | Sequence[str] | None = None,
        outcome: int | None = None,
        tier: Tier = "cold",
        mode: Mode = "auto",
    ) -> list[dict[str, Any]]:
        """Find the memories that answer a question: in their text, gist, tags or path.

        By the search index, those with all words come first, then those with words that are nearly the same, then those
        with some of the words. A question's small words don't count, and words between quotation marks are found as
        they stand. Without the index, all words must occur, as plain text, whatever their case and script.

        Args:
            words: what to find, words apart by white space.
            limit: the most memories to give.
            project: only memories of the project with this id, name or path.
            since: only memories created at this time or later: a date, a datetime or text such as ``2026-11-27T08:30``
                (all in UTC where they name no zone), ``2026-11``, ``2026``, ``7d`` (seven days ago), ``2w``, ``today``
                or ``yesterday`` (in the local time zone).
            until: only memories created before this time, or before the end of this month, year, ``today`` or
                ``yesterday``.
            salience: only memories of this level, or one of these.
            outcome: only memories with this outcome.
            tier: where to look: in the archive (``cold``), in the hot store (``hot``) or in both (``all``).
            mode: how to look: by the search index (``words``), by reading every memory (``exact``), or by the index
                where there is one that can be used (``auto``).

        Returns:
            for each memory its columns, ``snippet`` (the text around the first hit, hits marked) and ``score``;
            and its ``tier``, unless only the archive was searched. A score by the index is 2000 or more where all words
            occur as they were asked, and 1000 or more where all occur nearly so. Scores of different searches, or
            modes, can't be compared.

        Raises:
            QueryError: there is no word, or a filter's value can't be.
            SearchIndexError: by ``words``, there is no search index that can be used.
            ArchiveError: the archive, or a file in it, can't be read.
            HotStoreError: the hot store is busy, damaged, or none of memories.

        Warns:
            HotStoreWarning: as for :meth:`query_archive`; in ``all`` tiers, a store that does not exist is no news.
            SearchIndexWarning: the index is damaged or behind, and files were read instead.
        """
        for name, value, known in (("tier", tier, get_args(Tier)), ("mode", mode, get_args(Mode))):
            if value not in known:
                raise QueryError(f"there is no {name} {value!r}", f"use {', '.join(known)}")
        if isinstance(project, str):
            project = project.strip().rstrip("/") or "/"
        ids = self._hot.project_ids(project) if isinstance(project, str) else []
        begin, end = read_moment("since", since), read_moment("until", until, end=True)
        if begin is not None and end is not None and begin >= end:
            raise QueryError(f"nothing is since {since} and until {until}", "since must be the earlier time")
        filters = SearchFilters(project, begin, end, salience, outcome)
        stores = self.stores
        search = Search(words, min(limit, MOST), filters, ids, stores.is_own, stores.several)
        if tier == "hot" and not stores.hot:
            raise QueryError(f"the hot store of {self._only!r} is not the one of this machine", "search its archive")
        rows, marks = self._search(search, tier, mode)
        found = [{"snippet": snippet(readable_texts(row), marks), **row} for row in rows]
        return [{name: row[name] for name in self.search_columns(tier)} for row in found]

    def search_columns(self, tier: Tier) -> list[str]:
        """The names of what a search gives for each memory; ``store`` where several stores share the archive."""
        return result_columns(tier, several_stores=self.stores.several)

    def unknown_project(self, project: int | str) -> str | None:
        """Say that no memory is of a project, and which names are like its name; None if there is such a project."""
        rows = self.query_archive("SELECT DISTINCT project_id, project_name, project_path FROM history")
        values = [value for row in rows for value in row.values()]
        if not self._hot.hides:
            with self._hot.snapshot(self._database.scratch_folder()) as hot:
                values += itertools.chain.from_iterable(hot.projects())
        known = {str(value).rstrip("/"): None for value in values if value is not None}
        wanted = str(project).strip().rstrip("/").lower()
        names = {name.lower(): name for name in known}
        if wanted in names:
            return None
        paths = {name.rpartition("/")[2].lower(): name for name in known if "/" in name}
        similar = [(paths | names)[name] for name in get_close_matches(wanted, [*names, *paths])]
        advice = f"; did you mean {', '.join(dict.fromkeys(similar))}?" if similar else ""
        return f"there is no memory of a project {project!r}{advice}"

    def _search(self, search: Search, tier: Tier, mode: Mode) -> tuple[list[dict[str, Any]], str]:
        """What a search finds, and the words to mark in it."""
        with contextlib.ExitStack() as stack:
            database, hot = self._database, None
            if tier == "hot":  # damaged files of the archive are no matter then
                database = stack.enter_context(contextlib.closing(self._database.without_archive()))
            if tier == "hot" or (tier == "all" and self.stores.hot and self._hot.exists()):
                hot = stack.enter_context(self._hot.snapshot(self._database.scratch_folder()))
            searcher = Searcher(search, database, self._indexes, hot, cold=tier != "hot", query=self._query)
            found = None
            if mode != "exact" and not (mode == "auto" and self._keys.path):  # an encrypted archive has no index
                try:
                    found = searcher.by_index(mode)
                except SearchIndexError as error:
                    if mode != "auto":
                        raise
                    # No index can help with a question without letters or digits.
                    if self.has_index and any(map(str.isalnum, search.words)):
                        warnings.warn(f"the archive was read without its search index: {error}", SearchIndexWarning, 3)
            found = found or (searcher.exact(), search.words)
            if hot is not None:
                warn_of(hot)
        return found

    @property
    def stores(self) -> Stores:
        """The stores that share the archive now."""
        several = bool(self._own or self._only or store_roots(self.archive_base))
        return Stores(several, self._own, hot=self._only in (None, self._own))

    def memory(self, id_: int) -> list[dict[str, Any]]:
        """Give a memory whole, from whichever tier, the newest version first, with its ``tier`` and its ``file``.

        More than one memory may have had this id, in other stores or at other times.
        """
        sql = "SELECT * FROM memories WHERE id = ? ORDER BY tier DESC, archived_ts DESC, created_ts DESC"
        rows = self.query_archive(sql, [id_])
        key = ["created_at", *self._database.stores.columns]
        places = self.query_archive(
            f"SELECT {', '.join(key)}, max_by(filename, coalesce(archived_ts, TIMESTAMP '0001-01-01')) AS file "
            "FROM history_all WHERE id = ? GROUP BY ALL",
            [id_],
        )
        files = {tuple(row[name] for name in key): row["file"] for row in places}
        hot = str(self._hot.path)
        return [
            row | {"file": hot if row["tier"] == "hot" else files.get(tuple(row[name] for name in key))} for row in rows
        ]

    def get_training_data(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Give the memories with an outcome, newest first, for learning; at most so many."""
        return self.query_archive(_TRAINING, [limit])

    def get_memory_stats(self) -> dict[str, Any]:
        """Give the archive's numbers; each memory counts once, ``files`` and ``bytes`` are what is stored."""
        totals = self.query_archive(_TOTALS)
        stats: dict[str, Any] = {
            "total_memories": 0,
            "positive_outcomes": 0,
            "negative_outcomes": 0,
            "avg_salience": 0,
            "oldest_memory": None,
            "newest_archive": None,
            "archive_empty": not totals,
            **(totals[0] if totals else {}),
        }
        files = self._database.files
        stats["files"], stats["bytes"] = len(files), sum(file.size for file in files)
        for name, sql in (("by_month", _MONTHS), ("by_salience", _SALIENCES), ("by_outcome", _OUTCOMES)):
            stats[name] = {row["key"]: row["memories"] for row in self.query_archive(sql)}
        return stats

    def _near(self, text: str, count: int) -> list[dict[str, Any]]:
        among = None
        if self._database.hidden is not None:  # what is hidden must not take the place of others, and so be noticed
            columns = ", ".join(["id", *self.stores.columns])
            among = ids_by_store(self.query_archive(f"SELECT {columns} FROM history WHERE id IS NOT NULL"))
        hits = self._indexes.nearest(text, max(0, min(count, _MOST_SIMILAR)), self._database.files, among)
        created = [None if hit.created is None else moment(hit.created) for hit in hits]
        return [
            {"store": hit.store} | hit._asdict() | {"created": time} for hit, time in zip(hits, created, strict=True)
        ]

    def _query(self, sql: str, parameters: Parameters) -> Query:
        limit = TimeLimit(self._timeout)
        self._running.add(limit)
        return Query(self._database, self._hot, sql, parameters, limit)


if __name__ == "__main__":
    refuse_to_run("`vidurai-pipeline query SQL`, `vidurai-pipeline search WORDS`, or `vidurai-pipeline stats`")
