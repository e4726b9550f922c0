"""A question in a person's own words, and how well a memory answers it.

Memories and questions become words by the same SQL and the same tokenizer: accents and case are folded, a name in
``camelCase`` or ``snake_case`` is the words it is made of, and so is a path; each character of a script without spaces
is a word. What was asked as one such name, or between quotation marks, is found as a phrase.
"""

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import tantivy
from tantivy import FieldType, Occur, Query

from vidurai_pipeline.analytics.search import READABLE_TAGS, SearchFilters, salience_scores, split_words
from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.hot.view import HiddenProjects

#: What a hit counts, by where it is. ``place`` holds tags and path.
WEIGHTS = {"gist": 4.0, "text": 2.0, "place": 1.0}
#: What a document is made of. A text in one of these columns is read as it is; other columns need not be there.
COLUMNS = frozenset(
    {
        *("id", "gist", "verbatim", "file_path", "tags", "created_at", "salience", "outcome"),
        *("project_id", "project_name", "project_path"),
    }
)
#: A memory in which all words occur has at least this score, twice this if they occur as they were asked.
STEP = 1_000.0
#: The share of the words that a memory must have to be an answer at all.
SOME = 1 / 3

_TOKENIZER = "words"
_LONGEST_WORD = 60
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_FIRST_OF_THESE = 0x0E00
_PART = re.compile(r'"([^"]*)"|(\S+)')
# Long enough that what follows, or one letter more or less, still means the same.
_PREFIX, _ONE_TYPO, _TWO_TYPOS = 3, 4, 8
# What so many memories hold was meant as it was asked; what is like it takes long to look up, and adds nothing.
_FREQUENT = 5_000
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about an and any are as at be been but by can could did do does for from had has have how i if in into is it
        its me my of on or our s should so t than that the their them then there these they this those to us was we were
        what when where which who whom whose why will with would you your
        """,
    )
)


def folded(text: str) -> str:
    """Make the SQL that parts and folds a text as the index does; case is left to the tokenizer."""
    # Most texts have no name to part, and to see that is much faster than to replace nothing.
    parts = (
        f"CASE WHEN regexp_matches({text}, '[a-z0-9][A-Z]|[A-Z][A-Z][a-z]') "
        rf"THEN regexp_replace({text}, '([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])', '\1\3 \2\4', 'g') ELSE {text} END"
    )
    spaced = rf"regexp_replace(strip_accents({parts}), '([{_NO_SPACES}])', ' \1 ', 'g')"
    return f"CASE WHEN strlen({text}) = length({text}) THEN {parts} ELSE {spaced} END"


def document_sql(source: str, columns: Collection[str], file: str) -> str:
    """Make the SQL that gives each memory as a document, in JSON.

    Args:
        source: what to read.
        columns: its columns.
        file: SQL for the key of the file that it is in.
    """

    def column(name: str, type_: str = "VARCHAR") -> str:
        return f"TRY_CAST({name} AS {type_})" if name in columns else f"NULL::{type_}"

    def known(value: str) -> str:
        return f"list_filter([{value}], lambda one: one IS NOT NULL)"

    fields = {
        "file": file,
        "id": known(column("id", "BIGINT")),
        "gist": folded("coalesce(gist, '')"),
        "text": folded("coalesce(verbatim, '')"),
        "place": folded("concat_ws(' ', file_path, readable_tags)"),
        "created": known(f"epoch_us({utc_timestamp('created_at')})"),
        "salience": known("salience_score(salience)"),
        "outcome": known(column("outcome", "BIGINT")),
        "project": "list_filter(['#' || project_id, lower(project_name), lower(project_path)], "
        "lambda one: one IS NOT NULL)",
    }
    texts = ("gist", "verbatim", "file_path", "tags", "created_at", "salience", "project_name", "project_path")
    inner = [f"{column(name)} AS {name}" for name in texts]
    inner += [f"{column(name, 'BIGINT')} AS {name}" for name in ("id", "outcome", "project_id")]
    values = ", ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f"SELECT to_json({{{values}}})::VARCHAR FROM "
        f"(SELECT *, {READABLE_TAGS} AS readable_tags FROM (SELECT {', '.join(inner)} FROM {source}))"
    )


def make_index(path: str | None = None) -> tantivy.Index:
    """Make an index, or open the one in a folder; without a folder, it is in memory.

    Raises:
        ValueError: it can't be opened.
    """
    builder = tantivy.SchemaBuilder()
    for name in WEIGHTS:
        builder.add_text_field(name, tokenizer_name=_TOKENIZER)
    for name in ("file", "project"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    for name in ("id", "created"):
        builder.add_integer_field(name, fast=True)
    for name in ("salience", "outcome"):
        builder.add_integer_field(name, indexed=True)
    index = tantivy.Index(builder.build(), path)
    index.register_tokenizer(_TOKENIZER, text_analyzer())
    return index


def text_analyzer() -> tantivy.TextAnalyzer:
    """What makes words of a text that was folded."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.remove_long(_LONGEST_WORD))
    return builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.ascii_fold()).build()


@dataclass(frozen=True)
class Term:
    """A word of a question, or a phrase.

    Attributes:
        asked: as it was asked.
        words: the words that it is made of, in order.
        quoted: whether it is to be found as it stands, and nowhere else.
    """

    asked: str
    words: tuple[str, ...]
    quoted: bool = False

    @property
    def unspaced(self) -> bool:
        """Whether it has characters of a script without spaces."""
        return any(len(word) == 1 and ord(word) >= _FIRST_OF_THESE for word in self.words)


class Question:
    """A question, as the index understands it.

    Args:
        words: the question. What stands between quotation marks is a phrase.
        fold: does for texts what :func:`folded` does.

    Attributes:
        terms: what is to be found; nothing, where no letter or digit was asked for.

    Raises:
        QueryError: there is no word, or there are too many.
    """

    def __init__(self, words: str, fold: Callable[[Sequence[str]], list[str]]) -> None:
        split_words(words)
        analyzer = text_analyzer()
        parts = [(text, bool(part[1])) for part in _PART.finditer(words) if (text := part[1] or part[2])]
        found = [
            Term(text, tuple(analyzer.analyze(plain)), quoted)
            for (text, quoted), plain in zip(parts, fold([text for text, _ in parts]), strict=True)
        ]
        found = list(dict.fromkeys(term for term in found if term.words))
        telling = [term for term in found if term.quoted or not _SMALL_WORDS.issuperset(term.words)]
        self.terms = telling or found

    @property
    def marks(self) -> str:
        """The words to mark where they are found."""
        return " ".join(dict.fromkeys(word for term in self.terms for word in (*term.asked.split(), *term.words)))

    def best(
        self, index: tantivy.Index, limit: int, filters: Sequence[Query] = ()
    ) -> list[tuple[float, tantivy.DocAddress]]:
        """The documents that answer best, each with its score.

        All words as they were asked come first, then all words with other endings and with typos, then some words.
        """
        searcher = index.searcher()
        matching = _Matching(index.schema, searcher)
        limit = min(limit, searcher.num_docs)  # tantivy makes room for as many as it is asked for
        exact = [matching.exactly(term) for term in self.terms]
        roughly = [matching.roughly(term) for term in self.terms]
        ways: list[tuple[float, list[Query], int]] = [
            (2 * STEP, exact, len(exact)),
            (STEP, roughly, len(roughly)),
            (0.0, roughly, math.ceil(len(roughly) * SOME)),
        ]
        found: dict[tuple[int, int], tuple[float, tantivy.DocAddress]] = {}
        for base, parts, least in ways:
            if len(found) >= limit:
                break
            must = [(Occur.Must, one) for one in filters]
            must += [(Occur.Must, part) for part, term in zip(parts, self.terms, strict=True) if term.quoted or base]
            if not base:
                any_of = Query.boolean_query([(Occur.Should, part) for part in parts], least)
                must.append((Occur.Must, any_of))
            for score, address in searcher.search(Query.boolean_query(must), limit, count=False).hits:
                key = (address.segment_ord, address.doc)
                found.setdefault(key, (base + min(score, STEP - 1), address))
        return sorted(found.values(), key=lambda hit: hit[0], reverse=True)[:limit]


class _Matching:
    """Makes the queries for one term."""

    def __init__(self, schema: tantivy.Schema, searcher: tantivy.Searcher) -> None:
        self._schema = schema
        self._searcher = searcher

    def exactly(self, term: Term) -> Query:
        """The term as it was asked, in any field; the best field counts most."""
        if len(term.words) == 1:
            return self._in_fields(lambda field: Query.term_query(self._schema, field, term.words[0]))
        return self._in_fields(lambda field: Query.phrase_query(self._schema, field, list(term.words)))

    def roughly(self, term: Term) -> Query:
        """The term, or what is nearly the same and counts less."""
        exact = self.exactly(term)
        if term.quoted:
            return exact
        if len(term.words) == 1:
            return Query.disjunction_max_query([exact, *self._nearly(term.words[0])])
        each = [
            Query.disjunction_max_query([self.exactly(Term(word, (word,))), *self._nearly(word)]) for word in term.words
        ]
        apart = Query.boolean_query([(Occur.Must, one) for one in each])
        ways = [exact, Query.boost_query(apart, 0.3)]
        if len(term.words) > 2:
            pairs = [self.exactly(Term("", pair)) for pair in zip(term.words, term.words[1:], strict=False)]
            some = Query.boolean_query([(Occur.Should, pair) for pair in pairs], math.ceil(len(pairs) / 2))
            ways.append(Query.boost_query(some, 0.3))
        return Query.disjunction_max_query(ways)

    def _nearly(self, word: str) -> list[Query]:
        """Words that begin with a word, and such that differ from it by a letter or two; none for a frequent word."""
        ways: list[Query] = []
        if any(self._searcher.doc_freq(field, word) >= _FREQUENT for field in WEIGHTS):
            return ways
        if len(word) >= _PREFIX:
            ways.append(self._like(word, 0, 0.5, prefix=True))
        if len(word) >= _ONE_TYPO and not word.isdecimal():
            ways.append(self._like(word, 2 if len(word) >= _TWO_TYPOS else 1, 0.25))
        return ways

    def _like(self, word: str, distance: int, weight: float, *, prefix: bool = False) -> Query:
        return Query.boost_query(
            self._in_fields(lambda field: Query.fuzzy_term_query(self._schema, field, word, distance, True, prefix)),
            weight,
        )

    @staticmethod
    def _in_fields(make: Callable[[str], Query]) -> Query:
        return Query.disjunction_max_query(
            [Query.boost_query(make(field), weight) for field, weight in WEIGHTS.items()], 0.3
        )


def filter_queries(
    schema: tantivy.Schema, filters: SearchFilters, project_ids: Sequence[int], hidden: HiddenProjects | None
) -> list[Query]:
    """Make the queries that hold for the memories that a search looks at, without a part in their score."""
    found: list[Query] = []
    if hidden is not None:  # the views leave them out; this makes room for others
        names = [unicodedata.normalize("NFC", name).lower().rstrip("/") for name in hidden.names]
        theirs = Query.term_set_query(schema, "project", [*names, *(f"#{id_}" for id_ in hidden.ids)])
        found.append(Query.boolean_query([(Occur.Must, Query.all_query()), (Occur.MustNot, theirs)]))
    if filters.project is not None:
        wanted = str(filters.project).lower()
        ids = [wanted] if wanted.isdecimal() else map(str, project_ids)
        names = [] if wanted.isdecimal() else [wanted]
        found.append(Query.term_set_query(schema, "project", [*names, *(f"#{one}" for one in ids)]))
    if filters.since is not None or filters.until is not None:
        begin, end = microseconds(filters.since or dt.datetime.min), microseconds(filters.until or dt.datetime.max)
        found.append(Query.range_query(schema, "created", FieldType.Integer, begin, end, True, False))
    if (levels := salience_scores(filters.salience)) is not None:
        found.append(Query.term_set_query(schema, "salience", levels))
    if filters.outcome is not None:
        found.append(Query.term_query(schema, "outcome", filters.outcome))
    return [Query.const_score_query(query, 0.0) for query in found]


def microseconds(moment: dt.datetime) -> int:
    """A moment as the index holds it."""
    return (moment - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


def moment(microseconds: int) -> dt.datetime:
    """The moment that the index holds."""
    return dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=microseconds)
