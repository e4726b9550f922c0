"""Words in the hot store, found by the store's own search index and, where that can't tell, by its columns."""

import heapq
import itertools
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

_INDEX = "memories_fts"
_SEARCHED = ("gist", "verbatim", "tags")
_NOT_INDEXED = 10_000
_FREQUENT = 500
_BY_PATH = 5_000
#: Where there are more ways to leave words out, any of the words will do.
_COMBINATIONS = 60
#: A store of more different paths has them read in one go.
_PATHS = 20_000
#: A word of a question: as it was asked, and the words that it is made of.
Asked = tuple[str, Sequence[str]]


def ids_with_words(con: sqlite3.Connection, terms: Sequence[Asked], most: int) -> list[Iterable[int]] | None:
    """The ids of the memories that may answer, by each way of looking for them, the best first.

    The connection is read on as the ids are asked for. None if the store has no search index, or one that lacks too
    many memories.

    Raises:
        sqlite3.Error: the store can't be read.
    """
    columns = [name.lower() for (name,) in con.execute("SELECT name FROM pragma_table_info(?)", (_INDEX,))]
    if not {"memory_id", "gist"} <= set(columns):
        return None
    lacking = _not_indexed(con)
    if len(lacking) == _NOT_INDEXED:
        return None
    each = [" OR ".join(_like(con, text) for text in dict.fromkeys((asked, " ".join(words)))) for asked, words in terms]
    searched = " ".join(name for name in _SEARCHED if name in columns)
    return [_with_most(con, searched, each), _by_path(con, terms, max(most, _BY_PATH)), lacking]


def _with_most(con: sqlite3.Connection, searched: str, each: Sequence[str]) -> Iterator[int]:
    """The memories with all words in the gist, those with all words, then those with half and a third of them.

    To rank many hits takes long, so the newest come first; the caller ranks those that it takes.
    """
    for share in (1, 1 / 2, 1 / 3):
        size = math.ceil(len(each) * share)
        few = math.comb(len(each), size) <= _COMBINATIONS
        parts = itertools.combinations(each, size) if few else ([one] for one in each)
        expression = " OR ".join(f"({' AND '.join(f'({one})' for one in part)})" for part in parts)
        for fields in ("gist", searched) if size == len(each) else (searched,):
            hits = con.execute(
                f"SELECT memory_id FROM {_INDEX} WHERE {_INDEX} MATCH ? ORDER BY rowid DESC",
                (f"{{{fields}}} : ({expression})",),
            )
            yield from (int(id_) for (id_,) in hits)
        if not few:
            break


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


def _like(con: sqlite3.Connection, text: str) -> str:
    """A phrase as FTS5 reads it, which may end amid a word unless it is frequent: that would take long."""
    phrase = '"' + text.replace('"', " ").replace("\0", " ") + '"'
    sql = f"SELECT rowid FROM {_INDEX} WHERE {_INDEX} MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?"
    return phrase if con.execute(sql, (phrase, _FREQUENT)).fetchall() else f"{phrase} *"
