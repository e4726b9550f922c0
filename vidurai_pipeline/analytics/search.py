"""What a search can be asked for, and the search without an index (``exact``): all words must occur, as plain text.

Words are matched by RE2 without regard to case, which folds every script's letters one by one (so a Greek sigma finds
its final form, but ``ss`` does not find ``ß``), and is faster in DuckDB than lowering the text first. Each word is
escaped and bound as a parameter.
"""

import contextlib
import datetime as dt
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.errors import QueryError

SALIENCES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "NOISE")
HIT = ("«", "»")
"""What stands before and after each hit in a snippet."""

TIMES = "7d, 2w, today, yesterday, 2026, 2026-11, 2026-11-27 or 2026-11-27T08:30"
"""Examples of the times that a search takes."""

_SNIPPET = 160
_LAST_MONTH = 10_000 * 12
#: No answer has more memories than these.
MOST = 2**31 - 1
_MOST_WORDS, _LONGEST = 32, 1_000
_LONGEST_ID = 19
_AGO = re.compile(r"(\d{1,6}) ?(h|hours?|d|days?|w|weeks?)( ago)?", re.ASCII)
_PERIOD = re.compile(r"(\d{4})(?:-(\d{2}))?", re.ASCII)
_RE2_SPECIAL = re.compile(r"[!-/:-@\[-`{-~]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Vidurai stores tags as JSON, and writes what isn't ASCII as \uXXXX.
_READ_TAGS = "coalesce(array_to_string(try_cast(try_cast(tags AS JSON) AS VARCHAR[]), ' '), tags)"
# To read it is slow, so it is done only where it matters: for an escape, and for a word that the JSON around the tags
# might hold.
READABLE_TAGS = rf"CASE WHEN contains(tags, '\') THEN {_READ_TAGS} ELSE tags END"
_AROUND_TAGS = frozenset('[]",')

Moment = str | dt.date | dt.datetime
Tier = Literal["hot", "cold", "all"]
#: How a search finds: by the search index's words, by its vectors, by reading every memory, or by what there is.
Mode = Literal["auto", "words", "meaning", "exact"]


_COLUMNS = (
    "id",
    "content",
    "gist",
    "salience",
    "outcome",
    "project_id",
    "project_name",
    "file_path",
    "event_type",
    "tags",
    "created_at",
    "archived_at",
    "score",
)


#: The columns that decide about a memory's place among the others that a search found.
RANKED = ("id", "created_at", "created_ts", "score")


def result_columns(tier: Tier, *, several_stores: bool = False) -> list[str]:
    """The names of what a search gives for each memory."""
    first = ["store", _COLUMNS[0]] if several_stores else [_COLUMNS[0]]
    return [*first, "snippet", *_COLUMNS[1:], *(["tier"] if tier != "cold" else [])]


@dataclass(frozen=True)
class SearchFilters:
    """Which memories a search looks at; see :meth:`RepoAnalyst.search_archive`."""

    project: int | str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    salience: str | Sequence[str] | None = None
    outcome: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a filter."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class Search:
    """A search for words.

    Args:
        words: what to find, words apart by white space.
        limit: the most memories to give.
        filters: which memories it looks at.
        project_ids: the ids, in the own store, of the projects that are meant, as far as they are known by another way.
        is_own: the condition that a memory is of the own store.
        several_stores: whether the memories are of several stores.

    Raises:
        QueryError: there is no word, or a filter's value can't be.
    """

    words: str
    limit: int
    filters: SearchFilters
    project_ids: Sequence[int] = ()
    is_own: str = "true"
    several_stores: bool = False

    #: The columns of a memory that a search gives, or makes what it gives of.
    columns_given = frozenset({*_COLUMNS, "verbatim"})

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise QueryError(f"the limit can't be negative: {self.limit}")
        self.sql("history")

    @property
    def found(self) -> tuple[str, ...]:
        """The columns of what the query of the search finds."""
        return (*_COLUMNS, "created_ts", *(["store"] if self.several_stores else []))

    @property
    def columns_ranked_by(self) -> set[str]:
        """The columns of a memory by which a search picks and ranks."""
        filters = self.filters
        wanted = {"project_id": filters.project, "salience": filters.salience, "outcome": filters.outcome}
        asked_for = {name for name, value in wanted.items() if value is not None}
        return {"id", "created_at", "verbatim", "gist", "file_path", "tags", *asked_for}

    @property
    def spellings(self) -> list[list[str]]:
        """The words, each as Unicode may spell it."""
        return [spellings(word) for word in split_words(self.words)]

    def sql(self, source: str, columns: Sequence[str] | None = None) -> tuple[str, dict[str, object]]:
        """Make the query that finds the words, and its parameters.

        The score counts where each word occurs: 4 in the gist, 2 more as a whole word of it, 2 in the path, 2 in the
        tags.

        Args:
            source: what to search: a view, or a subquery with its columns.
            columns: what to give; by default :attr:`found`.
        """
        parameters: dict[str, object] = {"most": self.limit}
        conditions: list[str] = []
        scores: list[str] = []
        # The longest word is the rarest, as a rule, and what it rules out need not be searched for the others.
        for number, term in enumerate(sorted(split_words(self.words), key=len, reverse=True)):
            word, whole = f"word_{number}", f"whole_{number}"
            parameters[word] = pattern(term)
            parameters[whole] = rf"(?:^|[^\pL\pN_])(?:{parameters[word]})(?:$|[^\pL\pN_])"
            tags = f"({READABLE_TAGS if _AROUND_TAGS.isdisjoint(term) else _READ_TAGS})"
            # One look at all of a memory's texts; no word has a line break.
            conditions.append(_matches(f"concat_ws(chr(10), gist, file_path, {tags}, verbatim)", word))
            # Where the whole text has the word adds nothing.
            weights = {_matches("gist", word): 4, _matches("file_path", word): 2, _matches(tags, word): 2}
            weights[_matches("gist", whole)] = 2
            scores += [f"{weight} * coalesce({hit}, false)::INTEGER" for hit, weight in weights.items()]
        conditions += self._conditions(parameters)
        sql = f"""
            SELECT {_selected(columns or self.found, " + ".join(scores))} FROM {source} WHERE {" AND ".join(conditions)}
            ORDER BY score DESC, created_ts DESC NULLS LAST, created_at DESC NULLS LAST, id DESC NULLS LAST
            LIMIT $most
        """
        return sql, parameters

    def sql_of(self, source: str, ids: Iterable[int]) -> tuple[str, dict[str, object]]:
        """Make the query that gives memories, as far as the filters let them pass, and its parameters."""
        parameters: dict[str, object] = {"ids": list(ids)}
        conditions = ["id IN (SELECT unnest($ids::BIGINT[]))", *self._conditions(parameters)]
        return f"SELECT {_selected(self.found, '0')} FROM {source} WHERE {' AND '.join(conditions)}", parameters

    def ids(self, source: str) -> tuple[str, dict[str, object]]:
        """Make the query that gives the ids of all memories that the filters let pass, and its parameters."""
        parameters: dict[str, object] = {}
        conditions = ["id IS NOT NULL", *self._conditions(parameters)]
        store = ", store" if self.several_stores else ""
        return f"SELECT id{store} FROM {source} WHERE {' AND '.join(conditions)}", parameters

    def _conditions(self, parameters: dict[str, object]) -> list[str]:
        """The conditions of the filters; their values are added to the parameters."""
        filters, project = self.filters, "project_id = $project"
        wanted = filters.project
        if isinstance(wanted, str) and wanted.isdecimal() and len(wanted) <= _LONGEST_ID:
            wanted = int(wanted)
        elif isinstance(wanted, str):
            ids = ", ".join(map(str, self.project_ids)) or "NULL"
            project = "(lower($project) IN (lower(project_name), lower(project_path)) "
            project += f"OR project_id IN ({ids}) AND {self.is_own})"
        known: dict[str, tuple[str, object]] = {
            "project": (project, wanted),
            "since": ("created_ts >= $since", filters.since),
            "until": ("created_ts < $until", filters.until),
            "salience": ("list_contains($salience, salience_score)", salience_scores(filters.salience)),
            "outcome": ("outcome = $outcome", filters.outcome),
        }
        asked = {name: found for name, found in known.items() if found[1] is not None}
        parameters |= {name: value for name, (_, value) in asked.items()}
        return [condition for condition, _ in asked.values()]

    def best(self, found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The best of what several queries found, in order."""

        def rank(row: dict[str, Any]) -> tuple[Any, ...]:
            moment, id_ = row["created_ts"] or dt.datetime.min, row["id"]
            return row["score"], moment, row["created_at"] or "", id_ is not None, id_ or 0

        return sorted(found, key=rank, reverse=True)[: self.limit]


def _selected(columns: Sequence[str], score: str) -> str:
    own = {
        "content": "verbatim AS content",
        "score": f"{score} AS score",
        # The view's own column would be made of every memory, before the words are looked for.
        "created_ts": f"{utc_timestamp('created_at')} AS created_ts",
    }
    return ", ".join(own.get(name, name) for name in columns)


def _matches(field: str, parameter: str) -> str:
    return f"regexp_matches({field}, ${parameter}, 'i')"


def split_words(words: str) -> list[str]:
    """Split at white space and drop repeated words.

    Raises:
        QueryError: there is no word, there are too many, or one is no text.
    """
    terms = list(dict.fromkeys(words.split()))
    if not terms:
        raise QueryError("give at least one word to search for")
    if len(terms) > _MOST_WORDS or len(words) > _LONGEST:
        raise QueryError(f"search for at most {_MOST_WORDS} words and {_LONGEST} characters")
    try:
        words.encode()
    except UnicodeEncodeError:
        raise QueryError("the words hold characters that no text can hold") from None
    return terms


def spellings(word: str) -> list[str]:
    """A word in the two ways in which Unicode may spell it (``é`` as one character or two)."""
    return [*dict.fromkeys((word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)))]


def pattern(word: str) -> str:
    """Escape a word for RE2, in all its spellings."""
    return "|".join(map(_escape, spellings(word)))


def _escape(text: str) -> str:
    text = _RE2_SPECIAL.sub(lambda found: "\\" + found.group(), text)
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def read_moment(name: str, value: Moment | None, *, end: bool = False) -> dt.datetime | None:
    """Read a time as people write it: see :data:`TIMES`. Vidurai writes UTC without saying so, and so may they.

    Args:
        name: what it is called in an error.
        value: the time. ``7d`` is seven days before now; ``today`` and ``yesterday`` are days of the local time zone.
        end: whether a month, a year, ``today`` or ``yesterday`` stands for its end, not for its beginning.

    Returns:
        the time in UTC, without its zone.

    Raises:
        QueryError: it is no time of the years 1 to 9999.
    """
    if value is None:
        return None
    try:
        moment = _read_text(value.strip().lower(), end=end) if isinstance(value, str) else value
        if not isinstance(moment, dt.datetime):
            return dt.datetime.combine(moment, dt.time())
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except OverflowError:
        raise QueryError(f"{name} is not within the years 1 to 9999 in UTC: {value}") from None
    except ValueError:
        raise QueryError(f"{name} can't be read as a time: {value!r}", f"write it like {TIMES}") from None


def _read_text(text: str, *, end: bool) -> dt.datetime:
    if text in {"today", "yesterday"}:
        day = dt.date.today() - dt.timedelta(days=text == "yesterday") + dt.timedelta(days=end)
        return dt.datetime.combine(day, dt.time()).astimezone()
    if ago := _AGO.fullmatch(text):
        unit = {"h": "hours", "d": "days", "w": "weeks"}[ago[2][0]]
        return dt.datetime.now(dt.UTC) - dt.timedelta(**{unit: int(ago[1])})
    if period := _PERIOD.fullmatch(text):
        year, month = int(period[1]), int(period[2] or 1)
        start = dt.datetime(year, month, 1)
        if not end:
            return start
        months = year * 12 + month - 1 + (1 if period[2] else 12)
        return start.replace(year=months // 12, month=months % 12 + 1) if months < _LAST_MONTH else dt.datetime.max
    return dt.datetime.fromisoformat(text.upper())


def salience_scores(salience: str | Sequence[str] | None) -> list[int] | None:
    """The levels of a filter as numbers, CRITICAL 5 to NOISE 1; None where it has none."""
    if salience is None:
        return None
    wanted = [level.strip().upper() for level in ([salience] if isinstance(salience, str) else salience)]
    if unknown := [level for level in wanted if level not in SALIENCES]:
        raise QueryError(f"there is no salience {unknown[0]!r}", f"use {', '.join(SALIENCES)}")
    return [len(SALIENCES) - SALIENCES.index(level) for level in wanted]


def readable_texts(row: Mapping[str, object]) -> list[object]:
    """Give a memory's texts in the order in which they are worth showing, its tags as they read."""
    tags = row["tags"]
    if isinstance(tags, str):
        with contextlib.suppress(ValueError, RecursionError):
            decoded = json.loads(tags)
            tags = ", ".join(map(str, decoded)) if isinstance(decoded, list) else tags
    return [row["content"], row["gist"], row["file_path"], tags]


def snippet(fields: Iterable[object], words: str) -> str:
    """Cut the text around the first hit out of the first field that has one, on one line, with each hit marked."""
    texts = [" ".join(str(field).split()) for field in fields if field]
    expression = re.compile("|".join(f"(?:{pattern(word)})" for word in split_words(words)), re.IGNORECASE)
    for text in texts:
        if found := expression.search(text):
            start = max(0, found.start() - _SNIPPET // 3)
            end = max(found.end(), start + _SNIPPET)
            marked = expression.sub(lambda hit: f"{HIT[0]}{hit.group()}{HIT[1]}", text[start:end])
            return f"{'…' if start else ''}{marked}{'…' if end < len(text) else ''}"
    # RE2 and Python fold a few rare letters differently: then nothing can be marked.
    return next((text[:_SNIPPET] + ("…" if len(text) > _SNIPPET else "") for text in texts), "")
