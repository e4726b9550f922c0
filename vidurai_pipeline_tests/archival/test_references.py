"""Foreign keys and triggers of the store: what goes along is archived, what can't be holds its memory."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.support.stores import WAITING, archived, change, flush, insert
from vidurai_pipeline_tests.support.tiers import hot_rows

Store = Callable[[str], Path]


def test_a_row_that_another_table_holds_on_to_is_rejected(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    held, parent = insert(db), insert(db)
    change(
        db,
        "CREATE TABLE citations (id INTEGER PRIMARY KEY, memory_id INTEGER REFERENCES memories(id))",
        ("INSERT INTO citations VALUES (1, ?)", (held,)),
        "ALTER TABLE memories ADD COLUMN parent INTEGER REFERENCES memories(id) ON DELETE CASCADE DEFAULT NULL",
        ("UPDATE memories SET parent = ? WHERE status = 'ACTIVE' AND id < 20", (parent,)),
    )
    active = hot_rows(db, "status = 'ACTIVE'")
    result = flush(db)
    assert [r.id for r in result.rejected] == [held, parent]
    assert "citations.memory_id" in result.rejected[0].reason
    assert hot_rows(db, "status = 'ACTIVE'") == active
    assert result == WAITING["schema_v7"]


CASCADING = {
    "deletes or changes rows of `notes`": "ON memories BEGIN DELETE FROM notes WHERE memory = old.id",
    "deletes or changes rows of `memories`": "ON memories BEGIN DELETE FROM memories WHERE id % 7 = old.id % 7",
    "deletes or changes rows of `audience_gists`": "ON memories BEGIN UPDATE audience_gists SET gist = 'x' "
    "WHERE memory_id = old.id + 1",
    "puts back rows of `audience_gists`": "ON audience_gists BEGIN INSERT INTO audience_gists "
    "(memory_id, audience, gist) VALUES (old.memory_id, 'again', old.gist)",
    "keeps rows of `audience_gists`": "ON audience_gists BEGIN SELECT raise (IGNORE)",
}


@pytest.mark.parametrize("what", CASCADING)
def test_a_trigger_that_does_more_than_note_a_deletion_is_refused_by_name(sample_store: Store, what: str) -> None:
    db = sample_store("schema_v7")
    change(
        db,
        "CREATE TABLE notes (memory INTEGER, note TEXT)",
        f"CREATE TRIGGER cascading AFTER DELETE {CASCADING[what]}; END",
    )
    before = hot_rows(db)
    with pytest.raises(SchemaError, match=f"trigger `cascading` that {what}"):
        flush(db)
    assert hot_rows(db) == before
    assert not list((db.parent / "archive").rglob("*.parquet"))


@pytest.mark.parametrize("event", ["INSERT", "UPDATE"])
def test_a_trigger_that_skips_other_changes_of_a_child_table_is_no_obstacle(sample_store: Store, event: str) -> None:
    db = sample_store("schema_v7")
    change(db, f"CREATE TRIGGER picky BEFORE {event} ON audience_gists BEGIN SELECT RAISE(IGNORE); END")
    assert flush(db) == WAITING["schema_v7"]


def test_a_trigger_that_only_keeps_a_log_is_no_obstacle(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(
        db,
        "CREATE TABLE log (memory INTEGER)",
        "CREATE TRIGGER logged AFTER DELETE ON memories BEGIN INSERT INTO log VALUES (old.id); "
        "UPDATE projects SET last_active = 'now' WHERE id = old.project_id; END",
        "CREATE TRIGGER gists AFTER DELETE ON audience_gists BEGIN INSERT INTO log VALUES (old.memory_id); END",
    )
    con = sqlite3.connect(db)
    owned = "FROM audience_gists WHERE memory_id IN (SELECT id FROM memories WHERE status = 'ARCHIVED')"
    (gists,) = con.execute(f"SELECT count(*) {owned}").fetchone()
    assert flush(db) == WAITING["schema_v7"]
    assert con.execute("SELECT count(*) FROM log").fetchone() == (WAITING["schema_v7"] + gists,)
    con.close()


def test_a_trigger_that_can_never_run_is_noticed_before_anything_is_written(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "CREATE TRIGGER bad AFTER DELETE ON memories BEGIN SELECT no_such_function(old.id); END")
    with pytest.raises(SchemaError, match="lets no memory be deleted"):
        flush(db)
    assert not list((db.parent / "archive").rglob("*.parquet"))


@pytest.mark.parametrize(
    "table",
    [
        "links (note TEXT, to_id INTEGER REFERENCES memories(id) ON DELETE CASCADE, "
        "from_id INTEGER REFERENCES memories(id) ON DELETE CASCADE)",
        "links (note TEXT, from_id INTEGER REFERENCES memories(id) ON DELETE CASCADE, "
        "to_id INTEGER REFERENCES memories(id) ON DELETE CASCADE)",
        "links (note TEXT, from_id TEXT REFERENCES memories(id) ON DELETE CASCADE)",
        "links (note TEXT, from_id REFERENCES memories(id) ON DELETE CASCADE)",
        "links (from_id INTEGER PRIMARY KEY REFERENCES memories(id) ON DELETE CASCADE)",
    ],
)
def test_rows_that_a_cascade_would_take_along_unarchived_hold_their_memory(sample_store: Store, table: str) -> None:
    db = sample_store("schema_v7")
    held = insert(db)
    change(db, f"CREATE TABLE {table}", ("INSERT INTO links (from_id) VALUES (?)", (str(held),)))
    result = flush(db)
    assert [r.id for r in result.rejected] == [held]
    assert result == WAITING["schema_v7"]
    con = sqlite3.connect(db)
    assert con.execute("SELECT count(*) FROM links").fetchone() == (1,)
    con.close()


def test_a_cascade_by_another_column_holds_the_memory(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    held = insert(db, line_number=987_654)
    change(
        db,
        "UPDATE memories SET line_number = NULL WHERE line_number < 987654",
        "CREATE UNIQUE INDEX lines ON memories (line_number)",
        "CREATE TABLE marks (note TEXT, line INTEGER REFERENCES memories(line_number) ON DELETE CASCADE)",
        "INSERT INTO marks VALUES ('n', 987654)",
    )
    assert [r.id for r in flush(db).rejected] == [held]


def test_rows_that_a_cascade_takes_along_are_archived(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db)
    change(
        db,
        "CREATE TABLE votes (voter TEXT, memory INTEGER REFERENCES memories(id) ON DELETE CASCADE, weight REAL)",
        ("INSERT INTO votes VALUES ('a', ?, 0.5), ('b', ?, NULL), ('c', 3, 1.0)", (id_, id_)),
    )
    flush(db)
    assert archived(db, id_)["votes"] == [{"voter": "a", "weight": 0.5}, {"voter": "b", "weight": None}]
    assert {row["id"]: row["votes"] for row in pq.read_table(db.parent / "archive").to_pylist()}.keys() >= {id_}
    con = sqlite3.connect(db)
    assert con.execute("SELECT count(*) FROM votes WHERE memory = ?", (id_,)).fetchone() == (0,)
    con.close()
