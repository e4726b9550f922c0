"""A purged memory's text leaves the search index, whatever becomes of that index in the meantime."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline.hot.search_index import SearchIndex
from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, change, flush
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

Store = Callable[[str], Path]

FEW_ROWS = 20
REBUILD = (
    "DROP TABLE IF EXISTS memories_fts",
    "CREATE VIRTUAL TABLE memories_fts USING fts5(verbatim, gist, tags, memory_id UNINDEXED)",
)
FILL = (
    "INSERT INTO memories_fts (rowid, memory_id, verbatim, gist, tags) "
    "SELECT id + {shift}, id, verbatim, gist, tags FROM memories ORDER BY id DESC"
)
STORE = (
    "INSERT INTO memories (project_id, verbatim, event_type, salience, gist, status) "
    "VALUES (1, 'late', 'chat', 'LOW', 'g', 'ARCHIVED')",
    "INSERT INTO memories_fts (memory_id, verbatim, gist) SELECT max(id), 'late', 'g' FROM memories",
)


def indexed(db: Path) -> list[int]:
    con = sqlite3.connect(db)
    con.execute("INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")
    ids = sorted(int(id_) for (id_,) in con.execute("SELECT memory_id FROM memories_fts"))
    con.close()
    return ids


class Meanwhile:
    """Does something once, at a certain stage, when the first memories have been purged."""

    def __init__(self, stage: str, *actions: Callable[[], None]) -> None:
        self._stage = stage
        self._actions = actions
        self._purged = 0

    def __call__(self, stage: str, done: int, _total: int) -> None:
        if stage == "purging":
            self._purged = done
        if stage == self._stage and self._purged:
            for action in self._actions:
                action()
            self._actions = ()


@pytest.mark.parametrize("shift", [0, 1, 1000, -3])
@pytest.mark.parametrize("stage", ["archiving", "purging"])
@pytest.mark.parametrize("at_first", ["as it was", "none"])
@pytest.mark.parametrize("transactions", [1, 2])
def test_an_index_made_anew_during_a_flush(
    sample_store: Store, shift: int, stage: str, at_first: str, transactions: int
) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    if at_first == "none":
        change(db, "DROP TABLE memories_fts")
    before = hot_rows(db)
    fill = FILL.format(shift=shift)
    meanwhile = (
        [lambda: change(db, *REBUILD, fill)]
        if transactions == 1
        else [lambda: change(db, *REBUILD), lambda: change(db, fill)]
    )
    MemoryArchiver(db, archive, rows_per_file=FEW_ROWS, progress=Meanwhile(stage, *meanwhile)).flush_archived_memories()
    assert_one_tier(before, db, archive)
    assert indexed(db) == sorted(hot_rows(db))


def test_a_memory_stored_and_archived_during_a_flush(sample_store: Store) -> None:
    """Its index row came after the index was looked at, under another rowid than its id."""
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    change(db, "UPDATE sqlite_sequence SET seq = seq + 5 WHERE name = 'memories'")
    progress = Meanwhile("archiving", lambda: change(db, *STORE))
    archived = MemoryArchiver(db, archive, rows_per_file=FEW_ROWS, progress=progress).flush_archived_memories()
    assert archived == 72
    assert indexed(db) == sorted(hot_rows(db))


def test_what_a_run_that_died_left_in_the_index_goes_with_the_next(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    change(db, "DELETE FROM memories_fts", FILL.format(shift=1000))
    before = hot_rows(db)
    with (
        mock.patch.object(SearchIndex, "scan"),  # as if the rows had come behind it
        mock.patch.object(Purger, "finish", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        MemoryArchiver(db, archive).flush_archived_memories()
    assert len(indexed(db)) == len(before) > len(hot_rows(db))
    MemoryArchiver(db, archive).flush_archived_memories()
    assert_one_tier(before, db, archive)
    assert indexed(db) == sorted(hot_rows(db))


def test_a_new_memory_under_a_purged_id_stays_findable(sample_store: Store) -> None:
    """A store without AUTOINCREMENT gives the highest id again."""
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    highest = max(hot_rows(db, "status = 'ARCHIVED'"))
    store_anew = (
        f"INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist) "
        f"VALUES ({highest}, 1, 'new', 'chat', 'LOW', 'g')",
        f"INSERT INTO memories_fts (memory_id, verbatim) VALUES ({highest}, 'new')",
    )
    progress = Meanwhile("purging", lambda: change(db, *store_anew))
    MemoryArchiver(db, archive, progress=progress).flush_archived_memories()
    assert hot_rows(db)[highest]
    assert indexed(db) == sorted(hot_rows(db))


@pytest.mark.parametrize("options", ["content=''", "content='memories', content_rowid='id'"])
def test_a_search_index_without_content_is_left_to_its_triggers(sample_store: Store, options: str) -> None:
    db = sample_store("schema_v7")
    change(
        db,
        "DROP TABLE memories_fts",
        f"CREATE VIRTUAL TABLE memories_fts USING fts5(gist, verbatim, tags, {options})",
        "CREATE TRIGGER unindex AFTER DELETE ON memories BEGIN INSERT INTO memories_fts "
        "(memories_fts, rowid, gist, verbatim, tags) VALUES ('delete', old.id, old.gist, old.verbatim, old.tags); END",
        "INSERT INTO memories_fts (rowid, gist, verbatim, tags) SELECT id, gist, verbatim, tags FROM memories",
    )
    before = hot_rows(db)
    assert flush(db) == WAITING["schema_v7"]
    assert_one_tier(before, db, db.parent / "archive")
    change(db, "INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")


@pytest.mark.parametrize("shift", [1, 7, -3])
def test_search_index_rows_are_found_wherever_they_stand(sample_store: Store, shift: int) -> None:
    """Their rowid is the memory's id only as long as every memory got one, in order."""
    db = sample_store("schema_v7")
    change(
        db,
        "CREATE TABLE f AS SELECT rowid AS r, memory_id, gist, verbatim, tags FROM memories_fts",
        "DELETE FROM memories_fts",
        f"INSERT INTO memories_fts (rowid, memory_id, gist, verbatim, tags) "
        f"SELECT r + {shift}, memory_id, gist, verbatim, tags FROM f",
        # A memory that is indexed twice, and one that is not at all.
        "INSERT INTO memories_fts (memory_id, gist, verbatim, tags) "
        "SELECT memory_id, gist, verbatim, tags FROM f LIMIT 9",
        "DELETE FROM memories_fts WHERE memory_id = 20",
        "DROP TABLE f",
    )
    flush(db)
    con = sqlite3.connect(db)
    ids = {id_ for (id_,) in con.execute("SELECT id FROM memories")}
    indexed = [id_ for (id_,) in con.execute("SELECT memory_id FROM memories_fts")]
    con.close()
    assert set(indexed) == ids - {20}


def test_an_index_without_sizes_is_cleaned_without_a_note(tmp_path: Path) -> None:
    db = twenty_memories(tmp_path)
    change(
        db,
        "CREATE VIRTUAL TABLE memories_fts USING fts5(memory_id, verbatim, columnsize=0)",
        "INSERT INTO memories_fts (rowid, memory_id, verbatim) SELECT id, id, verbatim FROM memories",
    )
    result = flush(db)
    assert (result, result.notes) == (20, [])
