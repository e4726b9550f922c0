"""Each archived memory tells its project's name and path: the number means nothing once the store is gone."""

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.hot.comparison import compare
from vidurai_pipeline.hot.rows import read_archived
from vidurai_pipeline.hot.sql import snapshot
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline_tests.support.stores import WAITING, Store, archived, change, flush, insert


def test_name_and_path_are_archived_with_the_memory(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    projects = {id_: told for id_, *told in con.execute("SELECT id, name, path FROM projects")}
    con.close()
    result = flush(db)
    assert result == WAITING["schema_v7"]
    rows = pq.read_table(result.files[0]).to_pylist()
    assert {(row["project_id"], row["project_name"], row["project_path"]) for row in rows} <= {
        (id_, *told) for id_, told in projects.items()
    }
    assert pq.read_schema(result.files[0]).names[-2:] == ["project_name", "project_path"]


@pytest.mark.parametrize(
    ("name", "told"), [("CAST(x'ff' AS TEXT)", None), ("x'00ff'", None), ("'日本 ''x'''", "日本 'x'"), ("''", "")]
)
def test_a_name_that_is_no_text_keeps_no_memory_hot(sample_store: Store, name: str, told: str | None) -> None:
    db = sample_store("schema_v7")
    change(db, f"INSERT INTO projects (id, path, name) VALUES (99, '/a/path', {name})")
    known, unknown = insert(db, project_id=99), insert(db, project_id=1_000)
    assert flush(db) == WAITING["schema_v7"] + 2
    row = archived(db, known)
    assert (row["project_name"], row["project_path"]) == (told, "/a/path")
    row = archived(db, unknown)
    assert (row["project_id"], row["project_name"], row["project_path"]) == (1_000, None, None)


def test_a_project_renamed_before_the_purge_keeps_no_memory_hot(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archiver = MemoryArchiver(db, db.parent / "archive")
    with archiver.run("test"):
        archiver.publish()
        change(db, "UPDATE projects SET name = 'another', path = path || '/moved'")
        assert archiver.verify().passed
        purge = archiver.purge()
    assert (purge.purged, purge.kept) == (WAITING["schema_v7"], 0)


@pytest.mark.parametrize("field", ["project_name", "project_path"])
def test_a_copy_that_tells_another_project_is_found_before_it_is_published(sample_store: Store, field: str) -> None:
    store = HotStore(sample_store("schema_v7"))
    con = store.connect()
    schema = store.schema(con)
    with snapshot(con):
        (batch,) = read_archived(con, schema)
        good = batch.record_batch(schema, "2026-01-01T02:00:00.000000")
        rows = good.to_pylist()
        rows[5][field] = "another"
        bad = type(good).from_pylist(rows, good.schema)
        assert compare(con, schema, good, projects=True).differing == {}
        assert compare(con, schema, bad, projects=True).differing.keys() == {batch.ids[5]}
        assert compare(con, schema, bad).differing == {}
    con.close()


@pytest.mark.parametrize(
    "projects", [None, "projects (id INTEGER PRIMARY KEY, title TEXT)", "projects (id TEXT, name TEXT, path TEXT)"]
)
def test_a_store_that_tells_no_projects_writes_none(tmp_path: Path, projects: str | None) -> None:
    db = tmp_path / "vidurai.db"
    change(
        db,
        "CREATE TABLE memories (id INTEGER PRIMARY KEY, verbatim TEXT, project_id INTEGER, status TEXT)",
        "INSERT INTO memories VALUES (1, 'v', 1, 'ARCHIVED')",
        *([f"CREATE TABLE {projects}"] if projects else []),
    )
    result = flush(db)
    assert result == 1
    assert not {"project_name", "project_path"} & set(pq.read_schema(result.files[0]).names)


def test_a_memory_has_columns_of_these_names_already(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "ALTER TABLE memories ADD COLUMN project_name TEXT DEFAULT 'own'")
    id_ = insert(db)
    flush(db)
    row = archived(db, id_)
    assert row["memories_project_name"] == "own"
    assert row["project_name"] not in {None, "own"}
