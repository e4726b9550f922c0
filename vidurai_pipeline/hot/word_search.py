"""Words in the hot store, found by the store's own search index and, where that can't tell, by its columns."""

import sqlite3
from collections.abc import Sequence
from itertools import chain

_INDEX = "memories_fts"
#: What a hit counts in each of the search index's columns.
_WEIGHTS = {"gist": 4.0, "verbatim": 2.0, "tags": 1.0}
_NOT_INDEXED = 10_000


def ids_with_words(con: sqlite3.Connection, terms: Sequence[tuple[str, Sequence[str]]], most: int) -> list[int] | None:
    """The ids of the memories that answer best, and of some that may answer.

    Args:
        con: a connection to the hot store.
        terms: what is looked for: each as it was asked, and the words that it is made of.
        most: how many memories each way of looking gives.

    Returns:
        the ids, in no order; None if the store has no search index, or one that lacks too many memories.

    Raises:
        sqlite3.Error: the store can't be read.
    """
    columns = [name.lower() for (name,) in con.execute("SELECT name FROM pragma_table_info(?)", (_INDEX,))]
    if not {"memory_id", "gist"} <= set(columns):
        return None
    lacking = con.execute(
        f"SELECT id FROM memories WHERE id NOT IN (SELECT id FROM {_INDEX}_docsize) LIMIT ?", (_NOT_INDEXED,)
    ).fetchall()
    if len(lacking) == _NOT_INDEXED:
        return None
    searched = " ".join(name for name in _WEIGHTS if name in columns)
    weights = ", ".join(str(_WEIGHTS.get(name, 0.0)) for name in columns)
    match = f"SELECT memory_id FROM {_INDEX} WHERE {_INDEX} MATCH ? ORDER BY bm25({_INDEX}, {weights}) LIMIT ?"
    each = [f"({_phrase(asked)} * OR {_phrase(' '.join(words))} *)" for asked, words in terms]
    found: list[tuple[int]] = []
    for joined in dict.fromkeys([" AND ".join(each), " OR ".join(each)]):
        if len(found) < most:
            found += con.execute(match, (f"{{{searched}}} : ({joined})", most)).fetchall()
    return sorted({int(id_) for (id_,) in chain(found, lacking, _by_path(con, terms, most))})


def _by_path(con: sqlite3.Connection, terms: Sequence[tuple[str, Sequence[str]]], most: int) -> list[tuple[int]]:
    """The newest memories whose path holds the most words: the search index does not hold it."""
    if not con.execute("SELECT 1 FROM pragma_table_info('memories') WHERE name = 'file_path'").fetchall():
        return []
    hits = ["instr(lower(file_path), ?) > 0"] * len(terms)
    return con.execute(
        f"SELECT id FROM memories WHERE {' OR '.join(hits)} ORDER BY {' + '.join(hits)} DESC, id DESC LIMIT ?",
        [asked.lower() for asked, _ in terms] * 2 + [most],
    ).fetchall()


def _phrase(text: str) -> str:
    """A phrase as FTS5 reads it."""
    return '"' + text.replace('"', " ").replace("\0", " ") + '"'
