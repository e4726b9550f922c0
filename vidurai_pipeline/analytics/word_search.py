"""A search by words over both tiers, as one ranking."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.question import Question, filter_queries, folded, make_index, microseconds
from vidurai_pipeline.analytics.search import Search
from vidurai_pipeline.analytics.word_index import StoreIndexes, documents
from vidurai_pipeline.cold.listing import ArchiveFile, quote_literal
from vidurai_pipeline.errors import SearchIndexError, SearchIndexWarning, plural
from vidurai_pipeline.hot.rows import light_array
from vidurai_pipeline.hot.view import HotSnapshot

#: Where the filters let few pass, no more hot memories than these are looked at.
_LOOKED_AT = 20_000
#: So many more hot memories are ranked than are given.
_RANKED = 20
_HEAP_BYTES = 15_000_000
Row = dict[str, Any]
#: By what an index knows a memory: its store, its id, and when it was created, in microseconds.
Identity = tuple[str | None, int | None, int | None]


class WordSearch:
    """Finds memories by the search index, and gives them as the archive and the hot store have them.

    Args:
        search: what to find.
        database: the archive's database.
        indexes: the search indexes of the archive.
        answer: runs a query about the archive.

    Attributes:
        question: the words, as the index understands them.
    """

    def __init__(
        self,
        search: Search,
        database: ArchiveDatabase,
        indexes: StoreIndexes,
        answer: Callable[[str, dict[str, object]], list[Row]],
    ) -> None:
        self._search = search
        self._database = database
        self._indexes = indexes
        self._answer = answer
        self._connection = database.cursor()
        self.question = Question(search.words, self._fold)
        if not self.question.terms:
            raise SearchIndexError("the question has no letters or digits", "search for it with `--mode exact`")

    def _fold(self, texts: Sequence[str]) -> list[str]:
        sql = f"SELECT {folded('text')} FROM (SELECT unnest($1::VARCHAR[]) AS text)"
        return [text for (text,) in self._connection.execute(sql, [texts]).fetchall()]

    def ranked(self, hot: HotSnapshot | None, *, cold: bool) -> list[Row]:
        """The memories that answer best, in order.

        Args:
            hot: the hot store, if it is to be searched.
            cold: whether to search the archive.

        Raises:
            SearchIndexError: the index can't be used.
        """
        with ThreadPoolExecutor(1) as pool:
            ways = None if hot is None else pool.submit(self._ways, hot)
            found, ranked = self._cold() if cold else ([], True)
            if hot is not None and ways is not None:
                found, ranked = self._with_hot(found, hot, ways.result()), False
        return found if ranked else self._rank(found)

    @property
    def _most(self) -> int:
        """How many hot memories to read: they are not ranked yet."""
        return self._search.limit and self._search.limit + _RANKED

    def _ways(self, hot: HotSnapshot) -> list[Iterable[int]] | None:
        """The ids of hot memories that may answer, by each way of looking; None if only reading them can tell."""
        project = self._search.filters.project
        if isinstance(project, str) and not project.isdecimal() and not self._search.project_ids:
            return []  # the hot store has no such project
        if any(term.unspaced for term in self.question.terms):
            return None
        terms = [(term.asked, term.words) for term in self.question.terms]
        ways = hot.with_words(terms, self._search.limit)
        return ways and [chain(list(islice(way, self._most)), way) for way in map(iter, ways)]

    def _cold(self) -> tuple[list[Row], bool]:
        """The archive's memories, and whether they are in order."""
        files: dict[str | None, list[ArchiveFile]] = {}
        for file in self._database.files:
            files.setdefault(file.store, []).append(file)
        scores: dict[Identity, float] = {}
        lacking: list[ArchiveFile] = []
        for store, those in (files or {None: []}).items():
            try:
                found, lag = self._by_index(store, those)
            except SearchIndexError:
                if len(files) < 2:
                    raise
                found, lag = {}, those
            scores |= found
            lacking += lag
        self._require_most(lacking)
        ids = sorted({int(id_) for _, id_, _ in scores if id_ is not None})
        rows = self._answer(*self._search.sql_of("history", ids)) if ids else []
        known = [row | {"score": round(scores[key], 3)} for row in rows if (key := identity(row)) in scores]
        if lacking:
            return self._unindexed(lacking, known), False
        # Scores of several indexes can't be compared.
        return self._search.best(row | {"tier": "cold"} for row in known), len({store for store, _, _ in scores}) < 2

    def _by_index(self, store: str | None, files: list[ArchiveFile]) -> tuple[dict[Identity, float], list[ArchiveFile]]:
        """The best memories of one store by its index, with their scores; and its files that the index lacks."""
        words = self._indexes.of_store(store)
        listed = {file.within_store(): file for file in files}
        lag = words.lag(listed, self._database.manifests.of_store(store))
        lacking = [listed[file] for file in lag.lacking]
        if len(files) == len(self._database.files):
            self._require_most(lacking)
        with words.errors():
            index = words.index
            project_ids = self._search.project_ids if store == self._database.stores.own else ()
            filters = filter_queries(index.schema, self._search.filters, project_ids, self._database.hidden)
            hits = self.question.best(index, self._search.limit, filters)
            addresses = [address for _, address in hits]
            searcher = index.searcher()
            ids = searcher.fast_field_values("id", addresses)
            created = searcher.fast_field_values("created", addresses)
        scores: dict[Identity, float] = {}
        for (score, _), id_, moment in zip(hits, ids, created, strict=True):
            known = [None if value is None else int(value) for value in (id_, moment)]
            scores.setdefault((store, known[0], known[1]), score)
        return scores, lacking

    def _require_most(self, lacking: list[ArchiveFile]) -> None:
        if len(lacking) > len(self._database.files) / 2:
            raise SearchIndexError(
                f"it lacks {len(lacking):,} of {plural(len(self._database.files), 'file')}",
                "run `vidurai-pipeline index` to update it",
            )

    def _unindexed(self, lacking: list[ArchiveFile], known: list[Row]) -> list[Row]:
        """Add what files hold that the index does not know."""
        warnings.warn(
            f"the search index lacks {len(lacking):,} of {plural(len(self._database.files), 'file')}, which were read "
            "instead; `vidurai-pipeline index` updates it",
            SearchIndexWarning,
            stacklevel=2,
        )
        names = ", ".join(quote_literal(str(self._database.base / file.relative)) for file in lacking)
        found = self._answer(*self._search.sql(f"(SELECT * FROM history_all WHERE filename IN ({names}))"))
        newer = {identity(row): row for row in [*found, *known]}
        return [row | {"tier": "cold"} for row in newer.values()]

    def _with_hot(self, cold: list[Row], hot: HotSnapshot, ways: list[Iterable[int]] | None) -> list[Row]:
        """Add the hot store's memories; one that is in both tiers for the moment counts as hot."""
        own = self._database.stores.own
        copies = hot.created(row["id"] for row in cold if row["id"] is not None and row.get("store") == own).to_pylist()
        both = {(copy["id"], copy["created_at"]) for copy in copies}
        if ways is None:
            rows = self._database.search_hot(hot, self._search)
        else:
            rows = self._first_hot(hot, [*ways, [id_ for id_, _ in both]])
        return [row for row in cold if row.get("store") != own or (row["id"], row["created_at"]) not in both] + [
            row | {"tier": "hot"} for row in rows
        ]

    def _first_hot(self, hot: HotSnapshot, ways: Iterable[Iterable[int]]) -> list[Row]:
        """The first hot memories of each way to find some that the filters let pass, as many of each as are wanted."""
        read = self._database.hot_reader(hot, self._search)
        rows: list[Row] = []
        seen: set[int] = set()
        for way in ways:
            ids, wanted = islice(way, max(_LOOKED_AT, self._most)), self._most
            portion = wanted
            while wanted > 0 and (part := list(islice(ids, portion))):
                found = read([id_ for id_ in dict.fromkeys(part) if id_ not in seen])
                seen.update(part)
                rows += found
                wanted -= len(found)
                portion *= 4
        return rows

    def _rank(self, rows: list[Row]) -> list[Row]:
        """The best of some memories, by an index of these alone."""
        texts = {"gist": "gist", "verbatim": "content", "file_path": "file_path", "tags": "tags"}
        columns = {name: light_array([row[key] for row in rows], pa.string()) for name, key in texts.items()}
        table = pa.table({"id": light_array(range(len(rows)), pa.int64()), **columns})
        index = make_index()
        writer = index.writer(_HEAP_BYTES, 1)
        for document in documents(self._connection, table):
            writer.add_json(document)
        writer.commit()
        index.reload()
        hits = self.question.best(index, self._search.limit)
        places = index.searcher().fast_field_values("id", [address for _, address in hits])
        scored: Iterable[Row] = (
            rows[int(place)] | {"score": round(score, 3)}
            for place, (score, _) in zip(places, hits, strict=True)
            if place is not None
        )
        return self._search.best(scored)


def identity(row: Row) -> Identity:
    """By what an index knows a memory."""
    moment = row["created_ts"]
    return row.get("store"), row["id"], None if moment is None else microseconds(moment)
