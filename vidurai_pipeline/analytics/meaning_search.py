"""A search by meaning over both tiers, and how its ranking and that of the words become one."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.embeddings import EmbeddingModel
from vidurai_pipeline.analytics.search import Search
from vidurai_pipeline.analytics.vector_index import StoreVectors
from vidurai_pipeline.analytics.word_search import Identity, Row, identity
from vidurai_pipeline.errors import SearchIndexError, SearchIndexWarning
from vidurai_pipeline.hot.view import HotSnapshot

#: A memory must be at least so similar to a question to stand among those that its words found.
SIMILAR = 0.3
#: What a place in a ranking counts: 1 / (this + place).
_RANK = 60
#: More are looked up than are asked for: some have left the archive since they were embedded.
_SPARE = 20


class MeaningSearch:
    """Finds memories whose vectors are near to the question's, and gives them as the tiers have them.

    Args:
        search: what to find.
        database: the archive's database.
        indexes: the vector indexes of the archive.
        model: embeds the question.
        answer: runs a query about the archive.
    """

    def __init__(
        self,
        search: Search,
        database: ArchiveDatabase,
        indexes: StoreVectors,
        model: EmbeddingModel,
        answer: Callable[[str, dict[str, object]], list[Row]],
    ) -> None:
        self._search = search
        self._database = database
        self._indexes = indexes
        self._model = model
        self._answer = answer
        self._vector = model.embed([search.words])[0]

    def ranked(self, hot: HotSnapshot | None, *, cold: bool, only: bool) -> list[Row]:
        """The nearest memories, in order; the score is the cosine of the angle.

        Args:
            hot: the hot store, if it is to be searched; of it, memories with a vector that Vidurai stored are found.
            cold: whether to search the archive.
            only: whether there is no other ranking beside this one, so that what it lacks must be told.

        Raises:
            SearchIndexError: the archive has no vectors, or they can't be read, and the hot store has none either.
        """
        near = None if hot is None else self._near_hot(hot)
        try:
            found = self._cold() if cold else []
        except SearchIndexError as error:
            if near is None or not only:
                raise
            warnings.warn(f"the archive was not searched by meaning: {error}", SearchIndexWarning, stacklevel=2)
            found = []
        if hot is not None and near is not None:
            found = self._with_hot(found, hot, near)
        elif hot is not None and only and not hot.missing:
            warnings.warn(
                "memories that are still hot were not searched by meaning: the hot store has no vectors that this "
                "Python can read",
                SearchIndexWarning,
                stacklevel=2,
            )
        return sorted(found, key=lambda row: -row["score"])[: self._search.limit]

    def _cold(self) -> list[Row]:
        among: dict[str | None, np.ndarray] | None = None
        if self._search.filters.any or self._database.hidden is not None:
            among = ids_by_store(self._answer(*self._search.ids("history")))
        most = self._search.limit + _SPARE
        hits = self._indexes.nearest(self._vector, most, self._model.digest, self._database.files, among)
        scores: dict[Identity, float] = {(hit.store, hit.id, hit.created): hit.similarity for hit in hits}
        rows = self._answer(*self._search.sql_of("history", sorted({hit.id for hit in hits}))) if hits else []
        return [
            row | {"score": round(scores[key], 3), "tier": "cold"} for row in rows if (key := identity(row)) in scores
        ]

    def _near_hot(self, hot: HotSnapshot) -> dict[int, float] | None:
        most = self._search.limit * (20 if self._search.filters.any else 1) + _SPARE
        return hot.nearest(self._vector.tobytes(), most) if self._model.is_vidurais else None

    def _with_hot(self, cold: list[Row], hot: HotSnapshot, near: dict[int, float]) -> list[Row]:
        """Add the hot store's memories; one that is in both tiers for the moment counts as hot."""
        rows = self._database.hot_reader(hot, self._search)(sorted(near))
        waiting = [row | {"score": round(near[row["id"]], 3), "tier": "hot"} for row in rows]
        own = self._database.stores.own
        both = {(own, row["id"], row["created_at"]) for row in waiting}
        return [row for row in cold if (row.get("store"), row["id"], row["created_at"]) not in both] + waiting


def ids_by_store(rows: Sequence[Row]) -> dict[str | None, np.ndarray]:
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


def deeper(search: Search, least: int = 50) -> Search:
    """The same search for more memories: what is at place 40 of both rankings may be the best of all."""
    return replace(search, limit=max(least, search.limit))
