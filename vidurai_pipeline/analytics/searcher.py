"""One search over both tiers, as one ranking: by words, by meaning, by both, or by reading every memory."""

import datetime as dt
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.embeddings import EmbeddingModel, load_model
from vidurai_pipeline.analytics.execution import Parameters, Query
from vidurai_pipeline.analytics.question import Question, filter_queries, folded, make_index, microseconds
from vidurai_pipeline.analytics.search import Mode, Search
from vidurai_pipeline.analytics.vector_index import Hit, VectorIndex
from vidurai_pipeline.analytics.word_index import WordIndex, documents
from vidurai_pipeline.cold.listing import ArchiveFile, quote_literal, store_root, store_roots
from vidurai_pipeline.errors import SearchIndexError, SearchIndexWarning, plural
from vidurai_pipeline.hot.rows import light_array
from vidurai_pipeline.hot.view import HotSnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Where the filters let few pass, no more hot memories than these are looked at.
_LOOKED_AT = 20_000
#: More are looked up than are given: hot memories are not ranked yet, and some have left the archive since they were
#: embedded.
_SPARE = 20
#: Where a search is by words and by meaning: what is at place 40 of both rankings may be the best of all.
_DEEP = 50
_HEAP_BYTES = 15_000_000
#: A memory must be at least so similar to a question to stand among those that its words found.
SIMILAR = 0.3
#: What a place in a ranking counts: 1 / (this + place).
_RANK = 60
Row = dict[str, Any]
#: By what an index knows a memory: its store, its id, and when it was created, in microseconds.
Identity = tuple[str | None, int | None, int | None]


class Indexes:
    """The search indexes of an archive and of the stores that share its folder; none of them need exist.

    Attributes:
        words: gives the index of words of a store; of None, that of what lies in the folder without a store.
        vectors: gives its vectors.
    """

    def __init__(self, base: Path, embed_model: str | None) -> None:
        self._base, self._embed_model = base, embed_model
        self.words: Callable[[str | None], WordIndex] = cache(lambda store: WordIndex(store_root(base, store)))
        self.vectors: Callable[[str | None], VectorIndex] = cache(lambda store: VectorIndex(store_root(base, store)))

    def have_words(self) -> bool:
        """Whether there is an index of words, whole or not."""
        return any(self.words(store).present() for store in (None, *store_roots(self._base)))

    def have_vectors(self) -> bool:
        """Whether there are any vectors."""
        return any(self.vectors(store).exists() for store in (None, *store_roots(self._base)))

    def model(self) -> EmbeddingModel:
        """What embeds questions; see :func:`load_model`."""
        return load_model(self._embed_model)

    def nearest(
        self,
        question: "str | NDArray[np.float32]",
        count: int,
        files: Iterable[ArchiveFile],
        among: "Mapping[str | None, NDArray[np.int64]] | None" = None,
    ) -> list[Hit]:
        """The memories nearest to a text or its vector, the nearest first.

        Raises:
            SearchIndexError: there are no vectors of this model, or they can't be read.
        """
        model = self.model()
        vector = model.embed([question])[0] if isinstance(question, str) else question
        stores = {file.store for file in files} or {None}
        asked = [store for store in stores if len(stores) == 1 or self.vectors(store).exists()]
        found: list[Hit] = []
        for store in asked or [None]:
            ids = None if among is None else among.get(store, np.empty(0, np.int64))
            hits = self.vectors(store).nearest(vector, count, model.digest, ids)
            found += [hit._replace(store=store) for hit in hits]
        return sorted(found, key=lambda hit: -hit.similarity)[:count]


class Searcher:
    """A search, by any of its modes. Memories are given as the archive and the hot store have them, with their tier."""

    def __init__(
        self,
        search: Search,
        database: ArchiveDatabase,
        indexes: Indexes,
        hot: HotSnapshot | None,
        *,
        cold: bool,
        query: Callable[[str, Parameters], Query],
    ) -> None:
        self._search, self._database, self._indexes = search, database, indexes
        self._hot, self._cold, self._query = hot, cold, query

    def exact(self) -> list[Row]:
        """The memories in which all words occur, found by reading both tiers at the same time."""
        search, cold = self._search, self._query(*self._search.sql("history"))
        if self._hot is None:
            return [row | {"tier": "cold"} for row in cold.rows()]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._database.search_hot, self._hot, search)
            try:
                if self._database.shared:  # a connection that is shared can't do both at once
                    cold.read(ahead.result, self._hot)
                archived = cold.rows() if self._cold else []
                waiting = cold.read(ahead.result, self._hot)
            finally:
                self._hot.interrupt()
        if self._copies(archived):
            # Memories that are in both tiers for the moment are sorted out by the view, which takes its time.
            return self._query(*search.sql("memories", [*search.found, "tier"])).rows()
        return search.best([row | {"tier": "hot"} for row in waiting] + [row | {"tier": "cold"} for row in archived])

    def by_index(self, mode: Mode) -> tuple[list[Row], str]:
        """The memories that answer best by words, by meaning or by what there is; and the words to mark in them.

        Raises:
            SearchIndexError: the index can't be used.
        """
        search, model = self._search, None
        if mode == "meaning" or (mode == "auto" and self._cold and self._indexes.have_vectors()):
            try:
                model = self._indexes.model()
            except SearchIndexError as error:
                if mode == "meaning":
                    raise
                warnings.warn(f"the search was by words alone: {error}", SearchIndexWarning, stacklevel=2)
        if mode == "meaning" and model is not None:
            return self._by_meaning(model, only=True), search.words
        if model is None:
            return self._by_words(), self._question.marks
        deep, near = copy(self), list[Row]()
        deep._search = replace(search, limit=max(_DEEP, search.limit))
        rows = deep._by_words()
        try:
            near = deep._by_meaning(model, only=False)
        except SearchIndexError as error:
            warnings.warn(f"the search was by words alone: {error}", SearchIndexWarning, stacklevel=2)
        return fused(rows, near, search.limit), deep._question.marks

    def _copies(self, rows: Iterable[Row]) -> set[tuple[int, str | None]]:
        """The ids and ``created_at`` of archived memories that are in the hot store too for the moment."""
        own = [row for row in rows if row["id"] is not None and row.get("store") == self._database.stores.own]
        if self._hot is None or not own:
            return set()
        hot = self._hot.created(row["id"] for row in own).to_pylist()
        return {(row["id"], row["created_at"]) for row in own} & {(copy["id"], copy["created_at"]) for copy in hot}

    def _both(self, cold: list[Row], hot: list[Row], copies: Iterable[tuple[int, str | None]] = ()) -> list[Row]:
        """The memories of both tiers; one that is in both for the moment counts as hot."""
        twice = {*copies, *((row["id"], row["created_at"]) for row in hot)}
        own = self._database.stores.own
        once = [row for row in cold if row.get("store") != own or (row["id"], row["created_at"]) not in twice]
        return once + [row | {"tier": "hot"} for row in hot]

    # -- by words -----------------------------------------------------------------------------------------------

    @cached_property
    def _connection(self) -> Any:
        return self._database.cursor()

    @cached_property
    def _question(self) -> Question:
        def fold(texts: Sequence[str]) -> list[str]:
            sql = f"SELECT {folded('text')} FROM (SELECT unnest($1::VARCHAR[]) AS text)"
            return [text for (text,) in self._connection.execute(sql, [texts]).fetchall()]

        question = Question(self._search.words, fold)
        if not question.terms:
            raise SearchIndexError("the question has no letters or digits", "search for it with `--mode exact`")
        return question

    def _by_words(self) -> list[Row]:
        hot, question = self._hot, self._question
        with ThreadPoolExecutor(1) as pool:
            ways = None if hot is None else pool.submit(self._ways, hot, question)
            found, ranked = self._archived_by_words(question) if self._cold else ([], True)
            if hot is None or ways is None:
                return found if ranked else self._rank(found)
            copies = self._copies(found)
            if (ids := ways.result()) is None:
                waiting = self._database.search_hot(hot, self._search)
            else:
                waiting = self._first_hot(hot, [*ids, [id_ for id_, _ in copies]])
            return self._rank(self._both(found, waiting, copies))

    @property
    def _most(self) -> int:
        """How many hot memories to read: they are not ranked yet."""
        return self._search.limit and self._search.limit + _SPARE

    def _ways(self, hot: HotSnapshot, question: Question) -> list[Iterable[int]] | None:
        """The ids of hot memories that may answer, by each way of looking; None if only reading them can tell."""
        project = self._search.filters.project
        if isinstance(project, str) and not project.isdecimal() and not self._search.project_ids:
            return []  # the hot store has no such project
        if any(term.unspaced for term in question.terms):
            return None
        ways = hot.with_words([(term.asked, term.words) for term in question.terms], self._search.limit)
        return ways and [chain(list(islice(way, self._most)), way) for way in map(iter, ways)]

    def _archived_by_words(self, question: Question) -> tuple[list[Row], bool]:
        """The archive's memories, and whether they are in order."""
        files: dict[str | None, list[ArchiveFile]] = {}
        for file in self._database.files:
            files.setdefault(file.store, []).append(file)
        scores: dict[Identity, float] = {}
        lacking: list[ArchiveFile] = []
        for store, those in (files or {None: []}).items():
            try:
                found, lag = self._by_index_of(store, those, question)
            except SearchIndexError:
                if len(files) < 2:
                    raise
                found, lag = {}, those
            scores |= found
            lacking += lag
        self._require_most(lacking)
        known = self._scored(scores)
        if lacking:
            return self._with_unindexed(lacking, known), False
        # Scores of several indexes can't be compared.
        return self._search.best(known), len({store for store, _, _ in scores}) < 2

    def _by_index_of(
        self, store: str | None, files: list[ArchiveFile], question: Question
    ) -> tuple[dict[Identity, float], list[ArchiveFile]]:
        """The best memories of one store by its index, with their scores; and its files that the index lacks."""
        words = self._indexes.words(store)
        listed = {file.within_store(): file for file in files}
        lag = words.lag(listed, self._database.manifests.of_store(store))
        lacking = [listed[file] for file in lag.lacking]
        if len(files) == len(self._database.files):
            self._require_most(lacking)
        with words.errors():
            index = words.index
            project_ids = self._search.project_ids if store == self._database.stores.own else ()
            filters = filter_queries(index.schema, self._search.filters, project_ids, self._database.hidden)
            hits = question.best(index, self._search.limit, filters)
            addresses = [address for _, address in hits]
            searcher = index.searcher()
            ids = searcher.fast_field_values("id", addresses)
            created = searcher.fast_field_values("created", addresses)
        scores: dict[Identity, float] = {}
        for (score, _), id_, moment in zip(hits, ids, created, strict=True):
            known = [None if value is None else int(value) for value in (id_, moment)]
            scores.setdefault((store, known[0], known[1]), score)
        return scores, lacking

    def _scored(self, scores: Mapping[Identity, float]) -> list[Row]:
        """The archived memories that an index found, as far as they are there and the filters let them pass."""
        ids = sorted({id_ for _, id_, _ in scores if id_ is not None})
        rows = self._query(*self._search.sql_of("history", ids)).rows() if ids else []
        return [
            row | {"score": round(scores[key], 3), "tier": "cold"} for row in rows if (key := _identity(row)) in scores
        ]

    def _require_most(self, lacking: list[ArchiveFile]) -> None:
        if len(lacking) > len(self._database.files) / 2:
            raise SearchIndexError(
                f"it lacks {len(lacking):,} of {plural(len(self._database.files), 'file')}",
                "run `vidurai-pipeline index` to update it",
            )

    def _with_unindexed(self, lacking: list[ArchiveFile], known: list[Row]) -> list[Row]:
        """Add what files hold that the index does not know."""
        warnings.warn(
            f"the search index lacks {len(lacking):,} of {plural(len(self._database.files), 'file')}, which were read "
            "instead; `vidurai-pipeline index` updates it",
            SearchIndexWarning,
            stacklevel=2,
        )
        names = ", ".join(quote_literal(str(self._database.base / file.relative)) for file in lacking)
        found = self._query(*self._search.sql(f"(SELECT * FROM history_all WHERE filename IN ({names}))")).rows()
        return list({_identity(row): row | {"tier": "cold"} for row in [*found, *known]}.values())

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
        hits = self._question.best(index, self._search.limit)
        places = index.searcher().fast_field_values("id", [address for _, address in hits])
        scored: Iterable[Row] = (
            rows[int(place)] | {"score": round(score, 3)}
            for place, (score, _) in zip(places, hits, strict=True)
            if place is not None
        )
        return self._search.best(scored)

    # -- by meaning ---------------------------------------------------------------------------------------------

    def _by_meaning(self, model: EmbeddingModel, *, only: bool) -> list[Row]:
        """The nearest memories, in order; the score is the cosine of the angle.

        Args:
            model: embeds the question.
            only: whether there is no other ranking beside this one, so that what it lacks must be told.
        """
        search, hot = self._search, self._hot
        vector = model.embed([search.words])[0]
        near = None
        if hot is not None and model.is_vidurais:
            near = hot.nearest(vector.tobytes(), search.limit * (20 if search.filters.any else 1) + _SPARE)
        try:
            found = self._archived_by_meaning(vector) if self._cold else []
        except SearchIndexError as error:
            if near is None or not only:
                raise
            warnings.warn(f"the archive was not searched by meaning: {error}", SearchIndexWarning, stacklevel=2)
            found = []
        if hot is not None and near is not None:
            waiting = self._database.hot_reader(hot, search)(sorted(near))
            found = self._both(found, [row | {"score": round(near[row["id"]], 3)} for row in waiting])
        elif hot is not None and only and not hot.missing:
            warnings.warn(
                "memories that are still hot were not searched by meaning: the hot store has no vectors that this "
                "Python can read",
                SearchIndexWarning,
                stacklevel=2,
            )
        return sorted(found, key=lambda row: -row["score"])[: search.limit]

    def _archived_by_meaning(self, vector: "NDArray[np.float32]") -> list[Row]:
        search, database, among = self._search, self._database, None
        database.cursor()  # from then on it knows the files, whose stores are asked, and what is hidden
        if search.filters.any or database.hidden is not None:
            among = ids_by_store(self._query(*search.ids("history")).rows())
        hits = self._indexes.nearest(vector, search.limit + _SPARE, database.files, among)
        return self._scored({(hit.store, hit.id, hit.created): hit.similarity for hit in hits})


def _identity(row: Row) -> Identity:
    moment: dt.datetime | None = row["created_ts"]
    return row.get("store"), row["id"], None if moment is None else microseconds(moment)


def ids_by_store(rows: Sequence[Row]) -> "dict[str | None, NDArray[np.int64]]":
    """The ids of memories, by their stores."""
    ids: dict[str | None, list[int]] = {}
    for row in rows:
        ids.setdefault(row.get("store"), []).append(row["id"])
    return {store: np.array(those, np.int64) for store, those in ids.items()}


def fused(words: Sequence[Row], meaning: Sequence[Row], limit: int) -> list[Row]:
    """One ranking of two, by reciprocal ranks; the score is their sum, at most 1."""
    rows: dict[Any, Row] = {}
    scores: dict[Any, float] = {}
    near = [row for row in meaning if row["score"] >= SIMILAR]
    for ranking in (words, near):
        for place, row in enumerate(ranking):
            key = (row.get("store"), row["id"], row["created_at"])
            rows.setdefault(key, row)
            scores[key] = scores.get(key, 0.0) + _RANK / 2 / (_RANK + place)
    best = sorted(rows, key=lambda key: -scores[key])[:limit]
    return [rows[key] | {"score": round(scores[key], 3)} for key in best]
