"""Foreign keys: the rows that go with a memory are archived, and what can't be archived holds its memory."""

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, Store, archived, change, flush, insert
from vidurai_pipeline_tests.support.tiers import hot_rows


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


def test_a_key_of_two_columns_holds_only_what_it_refers_to(tmp_path: Path) -> None:
    db = twenty_memories(tmp_path)
    change(
        db,
        "CREATE UNIQUE INDEX both ON memories (id, project_id)",
        "CREATE TABLE links (note TEXT, m INTEGER, p INTEGER, "
        "FOREIGN KEY (m, p) REFERENCES memories(id, project_id) ON DELETE CASCADE)",
        "INSERT INTO links VALUES ('n', 6, 1)",
    )
    result = flush(db)
    assert result == 19
    (rejected,) = result.rejected
    assert (rejected.id, rejected.reason) == (
        6,
        "still referred to by links.m, p, whose rows can't be archived with it",
    )


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
