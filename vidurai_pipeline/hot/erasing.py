"""Delete memories from the hot store so that none of their bytes stay in its files.

What SQLite deletes stays in the search index's older segments, in free pages and in the log. So content is overwritten
when it is deleted, the search index is merged, the log is cut off, and, where a memory's text is still found in the
file, the file is written anew.
"""

import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import WriteTransaction, is_busy, json_ids, quote_identifier, tolerant_text
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.hot.upkeep import Upkeep, checkpoint, lacks_room, merge_search_index

#: A memory: its id and its ``created_at``.
Born = tuple[int, str | None]

_AT_ONCE = 64
_WORD = re.compile(r"[^\W_]+")
#: How many words of a memory are looked up to find the rarest, how many pieces are made, and how long they are. A piece
#: that two pages of the store share is not found, so one does not do.
_LOOKED_UP, _EACH, _LENGTH = 8, 2, 64
#: Shorter texts may stand anywhere.
_SHORTEST = 12
#: The columns of text that pieces are taken from.
TEXTS = ("verbatim", "gist", "tags", "file_path", "pin_reason", "decay_reason")


@dataclass
class HotErasure:
    """What became of some memories in the hot store.

    Attributes:
        rows: how many rows went, by table.
        held: ids of memories that the store's own rules (a trigger, a foreign key) don't let go.
        reasons: what stays in the store's files, and why.
        longest_hold: the longest time that a transaction held the write lock, in seconds.
    """

    rows: Counter[str] = field(default_factory=Counter)
    held: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    longest_hold: float = 0.0


class HotEraser:
    """Erases memories, whatever their status, by a writing connection."""

    def __init__(self, store: HotStore, con: sqlite3.Connection, purger: Purger) -> None:
        self._store = store
        self._con = con
        self._purger = purger

    @contextlib.contextmanager
    def _overwriting(self) -> Iterator[None]:
        """Within: what is deleted is overwritten with zeros."""
        (before,) = self._con.execute("PRAGMA secure_delete").fetchone()
        self._con.execute("PRAGMA secure_delete = ON").fetchone()
        try:
            yield
        finally:
            self._con.execute(f"PRAGMA secure_delete = {before}").fetchone()

    def pieces(self, memories: Collection[Born]) -> Iterator[tuple[Born, list[str]]]:
        """Those of some memories that are in the store, each with a few pieces of its text."""
        schema = self._store.schema(self._con)
        names = [column.name for column in schema.columns if column.field in TEXTS]
        sql = f"SELECT {', '.join(map(quote_identifier, names))} FROM memories WHERE id = ?"
        with tolerant_text(self._con):
            for id_, born in self._present(memories):
                row = self._con.execute(sql, (id_,)).fetchone()
                texts = [*row]
                for child in schema.child_tables:
                    names = ("", *(column.name for column in child.columns))
                    rows = self._con.execute(child.select, (json_ids([id_]),)).fetchall()
                    texts += [
                        value for found in rows for name, value in zip(names, found, strict=True) if name in TEXTS
                    ]
                texts = [text for text in texts if isinstance(text, str)]
                yield (id_, born), self.pieces_of(texts, hot=True)

    def erase(self, memories: Collection[Born]) -> HotErasure:
        """Delete memories with all that belongs to them, in short transactions."""
        done, schema = HotErasure(), self._store.schema(self._con)
        done.rows.update(dict.fromkeys(("memories", *(child.table for child in schema.child_tables)), 0))
        present = [id_ for id_, _ in self._present(memories)]
        with self._overwriting():
            for first in range(0, len(present), _AT_ONCE):
                portion = present[first : first + _AT_ONCE]
                if not self._delete(portion, memories, schema, done):
                    done.held += [id_ for id_ in portion if not self._delete([id_], memories, schema, done)]
            self._blank_receipts(memories, done)
        if schema.unreadable_vectors:
            ids = json_ids(id_ for id_, _ in memories)
            sql = "SELECT count(*) FROM vec_memories_rowids WHERE rowid IN (SELECT value FROM json_each(?))"
            if (left := self._con.execute(sql, (ids,)).fetchone()[0]) > 0:
                done.reasons.append(f"{left} of their vectors: the store {schema.unreadable_vectors}")
        return done

    def _present(self, memories: Collection[Born]) -> list[Born]:
        """Those memories that are in the store; not others that were given their ids."""
        with tolerant_text(self._con):
            rows = self._con.execute(
                "SELECT id, CAST(created_at AS TEXT) FROM memories WHERE id IN (SELECT value FROM json_each(?))",
                (json_ids(id_ for id_, _ in memories),),
            ).fetchall()
        return [row for row in rows if row in memories]

    def _delete(self, ids: Sequence[int], memories: Collection[Born], schema: StoreSchema, done: HotErasure) -> bool:
        counts: dict[str, int] = {}
        with WriteTransaction(self._con) as transaction:
            # The lock is held from here: nobody gives an id to another memory.
            ids = sorted(set(ids).intersection(id_ for id_, _ in self._present(memories)))
            for child in schema.child_tables:
                (counts[child.table],) = self._con.execute(
                    f"SELECT count(*) FROM ({child.select})", (json_ids(ids),)
                ).fetchone()
            try:
                deleted = self._purger.delete(ids)
            except sqlite3.IntegrityError:
                deleted = False
            if not deleted:
                transaction.undo()
        done.longest_hold = max(done.longest_hold, transaction.seconds)
        time.sleep(transaction.seconds)
        if deleted:
            done.rows.update({"memories": len(ids), **counts})
        return deleted

    def _blank_receipts(self, memories: Collection[Born], done: HotErasure) -> None:
        """Empty the payloads of the events that made the memories; with its receipt, no event is taken twice."""
        columns = {name for (name,) in self._con.execute("SELECT name FROM pragma_table_info('event_receipts')")}
        if not {"memory_id", "payload_json"} <= columns:
            return
        with WriteTransaction(self._con):
            # An id that another memory has by now is that one's.
            changed = self._con.execute(
                "UPDATE event_receipts SET payload_json = '{}' WHERE payload_json <> '{}' "
                "AND memory_id IN (SELECT value FROM json_each(?)) AND memory_id NOT IN (SELECT id FROM memories)",
                (json_ids(id_ for id_, _ in memories),),
            )
        done.rows["event_receipts"] += changed.rowcount

    def clean(self, log_limit: int, done: HotErasure) -> None:
        """Merge the search index, and cut the log off."""
        with self._overwriting():
            upkeep = Upkeep()
            merged = not self._store.schema(self._con).search_index or merge_search_index(self._con, log_limit, upkeep)
        done.longest_hold = max(done.longest_hold, upkeep.longest_hold)
        if not merged:
            done.reasons.append("its search index: merging it takes longer; erase again")
        if not checkpoint(self._con, self._store.busy_timeout):
            done.reasons.append("its log: another program reads the store; end what it does, and erase again")

    def rewrite(self) -> str | None:
        """Write the store's file anew, without what is deleted; gives the reason if it can't be done."""
        used = self._store.size(self._con).used_bytes
        if lack := lacks_room(self._store, used):
            return f"the store must be vacuumed: {lack}"
        try:
            self._con.execute("VACUUM")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            return "the store must be vacuumed, and another program uses it: stop Vidurai, and erase again"
        if not checkpoint(self._con, self._store.busy_timeout):
            return "another program reads the store: end what it does, and erase again"
        return None

    def pieces_of(self, texts: Sequence[str], *, hot: bool = False) -> list[str]:
        """A few pieces of a memory's texts that others are not likely to have; ``hot``: it is in the store."""
        words = [
            (word, text)
            for text in texts
            if len(text) >= _SHORTEST
            for word in _WORD.findall(text)
            if len(word) <= _LENGTH
        ]
        longest = sorted(dict(words).items(), key=lambda found: -len(found[0]))[:_LOOKED_UP]
        rarest = sorted((max(0, self._frequency(word) - hot), -len(word), word, text) for word, text in longest)[:_EACH]
        return [_piece(text, word, alone=frequency == 0) for frequency, _, word, text in rarest]

    def _frequency(self, word: str) -> int:
        """How many memories have a word, by the search index; 0 without one."""
        if not self._store.schema(self._con).search_index:
            return 0
        self._con.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS temp.search_words USING fts5vocab('main', 'memories_fts', 'row')"
        )
        found = self._con.execute("SELECT doc FROM temp.search_words WHERE term = ?", (word.lower(),)).fetchone()
        return found[0] if found else 0

    def tables_with(self, text: str) -> list[str]:
        """The tables of Vidurai's that have a text in a row; those of memories alone, if they have it."""
        columns: dict[str, list[str]] = {}
        for table, column in self._con.execute(
            "SELECT t.name, c.name FROM sqlite_master AS t, pragma_table_xinfo(t.name) AS c WHERE t.type = 'table' "
            "AND t.sql NOT LIKE 'CREATE VIRTUAL%' AND t.name NOT GLOB '*_fts_*' ORDER BY t.name <> 'memories', 1"
        ):
            columns.setdefault(table, []).append(quote_identifier(column))
        texts = [column.name for column in self._store.schema(self._con).columns if column.field in TEXTS]
        if self._holds("memories", map(quote_identifier, texts), text):  # which most often ends it
            return ["memories"]
        owned = {"memories", *(child.table for child in self._store.schema(self._con).child_tables)}
        found = []
        for table, names in columns.items():
            if self._holds(table, names, text):
                if table in owned:
                    return ["memories"]
                found.append(table)
        return found

    def _holds(self, table: str, columns: Iterable[str], text: str) -> bool:
        anywhere = " OR ".join(f"instr(CAST({name} AS TEXT), ?1)" for name in columns)
        sql = f"SELECT 1 FROM {quote_identifier(table)} WHERE {anywhere} LIMIT 1"
        return self._con.execute(sql, (text,)).fetchone() is not None


def _piece(text: str, word: str, *, alone: bool) -> str:
    """A piece of a text around a word; the word itself, if no other memory has it and it is of an unusual kind."""
    if alone and (len(word) >= 16 or (len(word) >= 10 and not word.isalpha())):
        return word
    length = _LENGTH // 2 if alone else _LENGTH
    first = max(0, text.index(word) + len(word) // 2 - length // 2)
    return text[first : first + length]
