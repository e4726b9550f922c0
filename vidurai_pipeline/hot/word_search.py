"""Words in the hot store, found by the store's own search index and, where that can't tell, by its columns."""

import heapq
import itertools
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence

from vidurai_pipeline.hot.sql import json_ids

_INDEX = "memories_fts"
#: What a hit counts in each of the search index's columns.
_WEIGHTS = {"gist": 4.0, "verbatim": 2.0, "tags": 1.0}
_NOT_INDEXED = 10_000
#: Of more memories than these that have the words, the newest are ranked: to rank takes a microsecond for each.
_RANKED = 5_000
_AT_ONCE = 50
#: A store of more different paths has them read in one go.
_PATHS = 20_000
#: A word of a question: as it was asked, and the words that it is made of.
Asked = tuple[str, Sequence[str]]


def ids_with_words(con: sqlite3.Connection, terms: Sequence[Asked], most: int) -> list[Iterable[int]] | None:
    """The ids of the memories that may answer, by each way of looking for them.

    Args:
        con: a connection to the hot store, which is read on as the ids are asked for.
        terms: what is looked for.
        most: how many memories are wanted.

    Returns:
        for each way ids, the best first; None if the store has no search index, or one that lacks too many memories.

    Raises:
        sqlite3.Error: the store can't be read.
    """
    columns = [name.lower() for (name,) in con.execute("SELECT name FROM pragma_table_info(?)", (_INDEX,))]
    if not {"memory_id", "gist"} <= set(columns):
        return None
    lacking = _not_indexed(con)
    if len(lacking) == _NOT_INDEXED:
        return None
    each = [
        " OR ".join(f"{_phrase(text)} *" for text in dict.fromkeys((asked, " ".join(words)))) for asked, words in terms
    ]
    joined = dict.fromkeys((" AND ".join(f"({one})" for one in each), " OR ".join(f"({one})" for one in each)))
    most = min(max(most, _RANKED), sys.maxsize)
    ranked = itertools.chain.from_iterable(_ranked(con, columns, one, most) for one in joined)
    return [ranked, _by_path(con, terms, most), lacking]


def _not_indexed(con: sqlite3.Connection) -> list[int]:
    if _extent(con, "memories") == _extent(con, f"{_INDEX}_docsize"):
        return []
    lacking = con.execute(
        f"SELECT id FROM memories WHERE id NOT IN (SELECT id FROM {_INDEX}_docsize) ORDER BY id DESC LIMIT ?",
        (_NOT_INDEXED,),
    )
    return [id_ for (id_,) in lacking]


def _extent(con: sqlite3.Connection, table: str) -> tuple[object, object]:
    # Two subqueries, each of which SQLite has a short way for.
    return con.execute(f"SELECT (SELECT count(*) FROM {table}), (SELECT max(id) FROM {table})").fetchone()


def _ranked(con: sqlite3.Connection, columns: Sequence[str], expression: str, most: int) -> Iterator[int]:
    """The memories that fit an expression of the search index, the best first."""
    searched = " ".join(name for name in _WEIGHTS if name in columns)
    weights = ", ".join(str(_WEIGHTS.get(name, 0.0)) for name in columns)
    hits = con.execute(
        f"SELECT bm25({_INDEX}, {weights}), rowid FROM {_INDEX} WHERE {_INDEX} MATCH ? ORDER BY rowid DESC LIMIT ?",
        (f"{{{searched}}} : ({expression})", most),
    ).fetchall()
    places = [rowid for _, rowid in sorted(hits)]
    for first in range(0, len(places), _AT_ONCE):
        yield from (
            int(id_)
            for (id_,) in con.execute(
                f"SELECT memory_id FROM json_each(?) AS hit CROSS JOIN {_INDEX} ON {_INDEX}.rowid = hit.value",
                (json_ids(places[first : first + _AT_ONCE]),),
            )
        )


def _by_path(con: sqlite3.Connection, terms: Sequence[Asked], most: int) -> list[int]:
    """The newest memories whose path holds the most words: the search index does not hold it."""
    if not con.execute("SELECT 1 FROM pragma_table_info('memories') WHERE name = 'file_path'").fetchall():
        return []
    wanted = [(asked.lower(), [word.lower() for word in words]) for asked, words in terms]
    best: dict[int, list[str]] = {}
    for path in _paths(con):
        lower = path.lower()
        hits = sum(asked in lower or all(word in lower for word in words) for asked, words in wanted)
        if hits:
            best.setdefault(hits, []).append(path)
    ids: list[int] = []
    for hits in heapq.nlargest(len(best), best):
        ids += [
            id_
            for (id_,) in con.execute(
                "SELECT id FROM memories WHERE file_path IN (SELECT value FROM json_each(?)) ORDER BY +id DESC LIMIT ?",
                (json.dumps(best[hits]), most),
            )
        ]
        if len(ids) >= most:
            break
    return ids


def _paths(con: sqlite3.Connection) -> list[str]:
    """The different paths of the memories; by the store's index of them, where it has one, in steps."""
    indexed = con.execute(
        "SELECT 1 FROM pragma_index_list('memories') AS l, pragma_index_info(l.name) AS i "
        "WHERE i.seqno = 0 AND lower(i.name) = 'file_path' AND NOT l.partial"
    ).fetchall()
    if indexed:
        paths = con.execute(
            "WITH RECURSIVE path(name) AS (SELECT min(file_path) FROM memories UNION ALL "
            "SELECT (SELECT min(file_path) FROM memories WHERE file_path > name) FROM path WHERE name IS NOT NULL) "
            "SELECT name FROM path WHERE typeof(name) = 'text' LIMIT ?",
            (_PATHS,),
        ).fetchall()
        if len(paths) < _PATHS:
            return [path for (path,) in paths]
    return [path for (path,) in con.execute("SELECT DISTINCT file_path FROM memories WHERE typeof(file_path) = 'text'")]


def _phrase(text: str) -> str:
    """A phrase as FTS5 reads it."""
    return '"' + text.replace('"', " ").replace("\0", " ") + '"'
