"""Stores of other columns and tables than Vidurai's own: archived whole, or refused by name."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, Store, archived, change, flush
from vidurai_pipeline_tests.support.tiers import cold_rows, hot_rows


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
            name: value
            for name, value in expected.items()
            if name not in {"audience_gists", "project_name", "project_path"}
        }


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


def test_a_view_in_place_of_the_table_is_refused(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "ALTER TABLE memories RENAME TO hidden", "CREATE VIEW memories AS SELECT * FROM hidden")
    with pytest.raises(SchemaError, match="`memories` is a view, not a table"):
        flush(db)


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_store_of_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    db = twenty_memories(tmp_path, encoding=encoding)
    with pytest.raises(SchemaError, match=f"keeps its text as {encoding}, where Vidurai's stores keep UTF-8"):
        flush(db)
    with pytest.raises(SchemaError, match="UTF-8"):
        RepoAnalyst(tmp_path / "archive", hot_store=db).query_archive("FROM memories")


@pytest.mark.parametrize("id_", ["id INT PRIMARY KEY", "id PRIMARY KEY", "id INTEGER", "id INTEGER PRIMARY KEY DESC"])
def test_ids_that_may_be_no_integers_are_refused(tmp_path: Path, id_: str) -> None:
    with pytest.raises(SchemaError, match=r"`memories\.id` is not an INTEGER PRIMARY KEY, as Vidurai's is"):
        flush(twenty_memories(tmp_path, id_=id_))


@pytest.mark.parametrize("table", ["memories", "audience_gists"])
def test_a_column_that_sqlite_computes_is_refused_by_name_and_does_not_hinder_readers(
    tmp_path: Path, table: str
) -> None:
    db = twenty_memories(tmp_path)
    change(
        db,
        "CREATE TABLE audience_gists (memory_id INTEGER, gist TEXT)",
        f"ALTER TABLE {table} ADD COLUMN first_tag TEXT AS (json_extract('{{', '$[0]')) VIRTUAL",
    )
    with pytest.raises(SchemaError, match=f"has a column `first_tag` in `{table}` that SQLite computes"):
        flush(db)
    with RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst:
        assert analyst.query_archive("SELECT count(verbatim) AS n FROM memories") == [{"n": 20}]


@pytest.mark.parametrize(("columns", "kind"), [(494, "INT"), (494, "TEXT")])
def test_a_very_wide_table(tmp_path: Path, columns: int, kind: str) -> None:
    db = twenty_memories(tmp_path, "".join(f", x{n} {kind}" for n in range(columns)))
    change(db, f"UPDATE memories SET x{columns - 1} = id")
    assert flush(db) == 20
    assert archived(db, 7)[f"x{columns - 1}"] == (7 if kind == "INT" else "7")


def test_a_table_that_is_too_wide_is_refused(tmp_path: Path) -> None:
    db = twenty_memories(tmp_path, "".join(f", x{n} INT" for n in range(495)))
    with pytest.raises(SchemaError, match=r"has 501 columns in `memories`: with more than 500 it can't be read"):
        flush(db)
