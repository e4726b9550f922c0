"""Columns that SQLite computes, and can't compute for some rows: those rows are named, the others go on."""

import sqlite3
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreWarning
from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, Store, change, flush, insert
from vidurai_pipeline_tests.support.tiers import hot_rows

FIRST_TAG = "ALTER TABLE memories ADD COLUMN tag GENERATED ALWAYS AS (json_extract(tags, '$[0]')) VIRTUAL"
FIRST_TAG_AS_TEXT = FIRST_TAG.replace("tag GEN", "tag TEXT GEN")


@pytest.mark.parametrize("column", [FIRST_TAG, FIRST_TAG_AS_TEXT])
@pytest.mark.parametrize("how_many", [1, 30])
def test_a_column_that_cannot_be_computed_for_some_rows(sample_store: Store, column: str, how_many: int) -> None:
    db = sample_store("schema_v7")
    bad = [insert(db, tags="no JSON, but S3CRET") for _ in range(how_many)]
    insert(db, tags='["first", "second"]')
    change(db, column)
    result = flush(db)
    assert result == WAITING["schema_v7"] + 1
    assert [(r.id, r.column) for r in result.rejected] == [(id_, "tag") for id_ in bad]
    assert "can't be computed" in result.rejected[0].reason
    assert "S3CRET" not in str(result.rejected)
    change(db, "UPDATE memories SET tags = '[]' WHERE status = 'ARCHIVED'")
    before = hot_rows(db)
    assert flush(db) == how_many
    assert set(before) - set(hot_rows(db)) == set(bad)


@pytest.mark.parametrize("bad", [{1}, {5}, {20}, set(range(1, 21))])
def test_it_may_be_the_first_row_that_cannot_be_read_or_every_one(tmp_path: Path, bad: set[int]) -> None:
    db = twenty_memories(tmp_path)
    for id_ in bad:
        change(db, ("UPDATE memories SET tags = '{' WHERE id = ?", (id_,)))
    change(db, FIRST_TAG_AS_TEXT)
    result = flush(db)
    assert (result, {r.id for r in result.rejected}) == (20 - len(bad), bad)
    with RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst, pytest.warns(HotStoreWarning):
        assert analyst.query_archive("SELECT count(*) AS n, count(tag) AS tags FROM memories") == [{"n": 20, "tags": 0}]


def test_a_column_that_can_no_longer_be_computed_when_it_is_purged(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    change(db, FIRST_TAG_AS_TEXT)
    archiver = MemoryArchiver(db, archive)
    ids = sorted(hot_rows(db, "status = 'ARCHIVED'"))
    with archiver.run("test"):
        archiver.publish()
        # SQLite computes the column when it writes a row, so this takes the column's absence.
        change(
            db,
            "ALTER TABLE memories DROP COLUMN tag",
            ("UPDATE memories SET tags = '[' WHERE id IN (?, ?)", (ids[5], ids[40])),
            FIRST_TAG_AS_TEXT,
        )
        purge = archiver.purge()
    assert (purge.purged, purge.kept) == (WAITING["schema_v7"] - 2, 2)
    con = sqlite3.connect(db)
    left = [id_ for (id_,) in con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED'")]
    con.close()
    assert left == [ids[5], ids[40]]


def test_the_view_of_both_tiers_shows_a_row_whose_column_cannot_be_computed(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    bad = insert(db, tags="no JSON")
    change(db, FIRST_TAG_AS_TEXT)
    with (
        RepoAnalyst(db.parent / "archive", hot_store=db) as analyst,
        pytest.warns(HotStoreWarning, match=f"{bad}: tag"),
    ):
        rows = analyst.query_archive("SELECT verbatim, tag FROM memories WHERE id = ?", [bad])
    assert rows == [{"verbatim": "v", "tag": None}]


def test_a_memory_without_an_id_may_have_such_a_column_too(tmp_path: Path) -> None:
    db = twenty_memories(tmp_path, id_="id INT PRIMARY KEY")
    change(db, "INSERT INTO memories (verbatim, tags, status) VALUES ('v', '{', 'ARCHIVED')", FIRST_TAG_AS_TEXT)
    result = flush(db)
    assert (result, [(r.id, r.column) for r in result.rejected]) == (20, [(None, "id")])


def test_a_gist_with_a_column_that_cannot_be_computed(tmp_path: Path) -> None:
    db = twenty_memories(tmp_path)
    change(
        db,
        "CREATE TABLE audience_gists (memory_id INTEGER REFERENCES memories(id) ON DELETE CASCADE, gist TEXT)",
        "INSERT INTO audience_gists VALUES (3, '{}'), (4, '{bad')",
        "ALTER TABLE audience_gists ADD COLUMN j TEXT AS (json(gist)) VIRTUAL",
    )
    result = flush(db)
    assert (result, [(r.id, r.column) for r in result.rejected]) == (19, [(4, "audience_gists")])
    with (
        RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst,
        pytest.warns(HotStoreWarning, match="memory 4: audience_gists"),
    ):
        assert analyst.query_archive("SELECT count(*) AS n, count(audience_gists) AS g FROM memories") == [
            {"n": 20, "g": 20}
        ]
