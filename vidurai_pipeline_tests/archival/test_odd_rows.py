"""Rows and schemas that nobody expects: kept exactly, or left hot with a reason while the rest goes on."""

import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.support.stores import WAITING, Store, archived, change, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("access_count", "many", "text where the column holds integer"),
        ("access_count", 2.5, "a real where the column holds integer"),
        ("line_number", b"\x00\x01", "a blob where the column holds integer"),
        ("outcome", "1x", "text where the column holds integer"),
        ("verbatim", b"\xff\xfe", "a blob where the column holds text"),
        ("gist", "{CAST(x'61ff62' AS TEXT)}", "text that is not valid UTF-8"),
        ("tags", "{CAST(x'eda080' AS TEXT)}", "text that is not valid UTF-8"),
        ("verbatim", "{CAST(x'c0af' AS TEXT)}", "text that is not valid UTF-8"),
        ("created_at", 1_700_000_000, "an integer where the column holds text"),
        ("pinned_at", 1.5, "a real where the column holds text"),
    ],
)
def test_what_parquet_cannot_hold_stays_hot_and_is_named(
    sample_store: Store, column: str, value: Any, reason: str
) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db, **{column: value})
    first, last = insert(db), insert(db)

    result = flush(db)

    assert [(r.id, r.column, r.reason) for r in result.rejected] == [(id_, column, reason)]
    assert result == WAITING["schema_v7"] + 2
    con = sqlite3.connect(db)
    con.text_factory = bytes
    assert con.execute("SELECT id, status FROM memories WHERE status = 'ARCHIVED'").fetchall() == [(id_, b"ARCHIVED")]
    con.close()
    assert {row["id"] for row in pq.read_table(db.parent / "archive").to_pylist()} >= {first, last}
    assert flush(db) == 0


def test_bad_text_in_many_rows(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    bad = [insert(db, verbatim="{CAST(x'ff' AS TEXT)}") for _ in range(3)]
    good = [insert(db) for _ in range(200)]
    bad += [insert(db, gist="{CAST(x'ff' AS TEXT)}") for _ in range(130)]
    good += [insert(db) for _ in range(3)]
    result = flush(db)
    assert [r.id for r in result.rejected] == bad
    assert result == WAITING["schema_v7"] + len(good)


@pytest.mark.parametrize(
    "values",
    [
        {"verbatim": "NUL \x00 inside\x00"},
        {"verbatim": "", "gist": "", "tags": ""},
        {"tags": None, "file_path": None, "expires_at": None},
        {"created_at": "0001-01-01T00:00:00", "expires_at": "9999-12-31T23:59:59.999999"},
        {"id": 2**63 - 1},
        {"id": -(2**63)},
        {"id": -5},
        {"id": 0},
        {"access_count": 2**63 - 1, "line_number": -(2**63)},
        {"verbatim": "🧠 \U0010ffff \ufeff \u2028 日本語 'quote' \"double\" \\ \r\n\t"},
        {"verbatim": "x" * 50_000_000},
        {"outcome": 7, "salience": "unheard of", "event_type": ""},
    ],
    ids=",".join,
)
def test_rare_values_are_kept_exactly(sample_store: Store, values: dict[str, Any]) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db, **values)
    before = hot_rows(db)
    result = flush(db)
    assert (result, result.rejected) == (WAITING["schema_v7"] + 1, [])
    assert {name: archived(db, id_)[name] for name in values} == values
    assert_one_tier(before, db, db.parent / "archive")


def test_columns_of_any_name_and_type(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(
        db,
        "ALTER TABLE memories ADD COLUMN archived_at TEXT DEFAULT 'mine'",
        "ALTER TABLE memories ADD COLUMN year INTEGER DEFAULT 1999",
        "ALTER TABLE memories ADD COLUMN Month TEXT DEFAULT 'may'",
        "ALTER TABLE memories ADD COLUMN content TEXT DEFAULT 'c'",
        "ALTER TABLE memories ADD COLUMN memories_content TEXT DEFAULT 'cc'",
        'ALTER TABLE memories ADD COLUMN "with space" REAL DEFAULT 0.1',
        'ALTER TABLE memories ADD COLUMN "qu""ote\'s" TEXT DEFAULT \'q\'',
        'ALTER TABLE memories ADD COLUMN "स्मृति" TEXT',
        "ALTER TABLE memories ADD COLUMN embedding BLOB DEFAULT x'00ff'",
        "ALTER TABLE memories ADD COLUMN untyped DEFAULT 5",
        "ALTER TABLE memories ADD COLUMN empty_untyped",
        "ALTER TABLE memories ADD COLUMN doubled INTEGER AS (access_count * 2) VIRTUAL",
    )
    before = {id_: dict(row) for id_, row in hot_rows(db, "status = 'ARCHIVED'").items()}

    result = flush(db)

    assert (result, result.rejected) == (WAITING["schema_v7"], [])
    (path,) = result.files
    fields = {field.name: field for field in pq.read_schema(path)}
    assert {field.name.casefold() for field in fields.values()} == set(map(str.casefold, fields))
    original = {
        name: field.metadata[b"sqlite_column"].decode()
        for name, field in fields.items()
        if field.metadata and b"sqlite_column" in field.metadata
    }
    assert {name: original[name] for name in original if name != original[name]} == {
        "memories_archived_at": "archived_at",
        "memories_year": "year",
        "memories_Month": "Month",
        "memories_memories_content": "content",
    }
    for row in pq.read_table(path).to_pylist():
        expected = before[row["id"]]
        assert {original[name]: row[name] for name in original} == {
            name: value for name, value in expected.items() if name != "audience_gists"
        }


def test_a_mixed_column_keeps_its_commonest_type(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "ALTER TABLE memories ADD COLUMN mood DEFAULT 'calm'", "UPDATE memories SET mood = 3 WHERE id % 10 = 0")
    odd = [id_ for id_, row in hot_rows(db, "status = 'ARCHIVED'").items() if dict(row)["mood"] == 3]
    result = flush(db)
    assert odd
    assert [r.id for r in result.rejected] == odd
    assert result == WAITING["schema_v7"] - len(odd)


def test_a_column_that_holds_another_type_each_night(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    flush(db)
    change(db, "ALTER TABLE memories ADD COLUMN score NUMERIC")
    values = {1.5: "1.5", b"\x00\xff": r"\x00\xFF", "n/a": "n/a", 7: "7"}
    ids = []
    for value in values:
        ids.append(insert(db, score=value))
        assert flush(db) == 1
        assert archived(db, ids[-1])["score"] == value
    with RepoAnalyst(db.parent / "archive", hot_store=db) as analyst:
        for view in ("history", "history_all", "memories"):
            rows = analyst.query_archive(f"SELECT id, score FROM {view} WHERE score IS NOT NULL ORDER BY id")
            assert [(row["id"], row["score"]) for row in rows] == list(zip(ids, values.values(), strict=True))


def test_a_table_without_rowid(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    (sql,) = con.execute("SELECT sql FROM sqlite_master WHERE name = 'memories'").fetchone()
    con.executescript(
        "PRAGMA foreign_keys = OFF; CREATE TABLE kept AS SELECT * FROM memories; DROP TABLE memories;"
        + sql.replace("AUTOINCREMENT", "")
        + " WITHOUT ROWID; INSERT INTO memories SELECT * FROM kept; DROP TABLE kept;"
        "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, status) "
        "VALUES ('text id', 1, 'v', 'chat', 'LOW', 'g', 'ARCHIVED')"
    )
    con.close()
    before = hot_rows(db)
    result = flush(db)
    assert result == WAITING["schema_v7"]
    assert [(r.id, r.column) for r in result.rejected] == [("text id", "id")]
    assert_one_tier(before, db, db.parent / "archive")


def test_a_view_in_place_of_the_table_is_refused(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "ALTER TABLE memories RENAME TO hidden", "CREATE VIEW memories AS SELECT * FROM hidden")
    with pytest.raises(SchemaError, match="`memories` is a view, not a table"):
        flush(db)


@pytest.mark.parametrize("what", ["IGNORE", "ABORT, 'no'", "ROLLBACK, 'no'"])
def test_a_trigger_that_forbids_deletion_keeps_the_row_whole(sample_store: Store, what: str) -> None:
    db = sample_store("schema_v7")
    guarded = insert(db)
    change(
        db,
        ("INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'ai', 'g')", (guarded,)),
        f"CREATE TRIGGER guard BEFORE DELETE ON memories WHEN old.id = {guarded} BEGIN SELECT RAISE({what}); END",
    )
    before = hot_rows(db)
    result = flush(db)
    assert (result, result.purged, result.kept) == (WAITING["schema_v7"], WAITING["schema_v7"], 1)
    assert hot_rows(db, "status = 'ARCHIVED'") == {guarded: before[guarded]}
    assert_one_tier(before, db, db.parent / "archive")


def test_a_trigger_that_puts_the_row_back(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    stubborn = insert(db)
    change(
        db,
        f"CREATE TRIGGER back AFTER DELETE ON memories WHEN old.id = {stubborn} BEGIN INSERT INTO memories "
        "(id, project_id, verbatim, event_type, salience, gist) VALUES (old.id, 1, 'again', 'chat', 'LOW', 'g'); END",
    )
    before = hot_rows(db)
    result = flush(db)
    assert (result, result.kept) == (WAITING["schema_v7"], 1)
    assert_one_tier(before, db, db.parent / "archive")


def test_tables_and_columns_named_like_ours(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(
        db,
        "ALTER TABLE memories ADD COLUMN year INTEGER DEFAULT 1",
        "ALTER TABLE memories ADD COLUMN memories_year INTEGER DEFAULT 2",
        "ALTER TABLE memories ADD COLUMN memories_memories_year INTEGER DEFAULT 3",
        "CREATE TABLE tags (memory INTEGER REFERENCES memories(id) ON DELETE CASCADE, tag TEXT)",
        "INSERT INTO tags SELECT id, 'a tag' FROM memories",
    )
    result = flush(db)
    assert (result, result.rejected) == (WAITING["schema_v7"], [])
    row = pq.read_table(result.files[0]).to_pylist()[0]
    assert row["tags_rows"] == [{"tag": "a tag"}]
    assert sorted(value for name, value in row.items() if name.endswith("year")) == [1, 2, 3]


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


def test_a_gist_that_parquet_cannot_hold_keeps_its_memory_hot(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db)
    change(
        db,
        ("INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'ai', CAST(x'ff' AS TEXT))", (id_,)),
    )
    result = flush(db)
    assert [(r.id, r.column) for r in result.rejected] == [(id_, "audience_gists.gist")]
    assert result == WAITING["schema_v7"]


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


def test_a_store_without_search_index_and_gists(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "DROP TABLE memories_fts", "DROP TABLE audience_gists")
    assert flush(db) == WAITING["schema_v7"]
    assert len(cold_rows(db.parent / "archive")) == WAITING["schema_v7"]


def test_a_store_with_few_columns(tmp_path: Path) -> None:
    db = tmp_path / "vidurai.db"
    change(
        db,
        "CREATE TABLE memories (id INTEGER PRIMARY KEY, Verbatim TEXT, STATUS TEXT)",
        "INSERT INTO memories VALUES (1, 'kept', 'ARCHIVED'), (2, 'hot', 'ACTIVE')",
    )
    assert flush(db) == 1
    row = archived(db, 1)
    assert (row["verbatim"], row["gist"], row["outcome"], row["STATUS"]) == ("kept", None, None, "ARCHIVED")
