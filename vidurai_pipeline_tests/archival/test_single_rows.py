"""One row that can't be read, told from others or deleted is named, and does not keep the others."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreWarning
from vidurai_pipeline_tests.archival.test_odd_rows import WAITING, change, flush, insert
from vidurai_pipeline_tests.archival.tiers import assert_one_tier, hot_rows

Store = Callable[[str], Path]

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
    assert result == WAITING + 1
    assert [(r.id, r.column) for r in result.rejected] == [(id_, "tag") for id_ in bad]
    assert "can't be computed" in result.rejected[0].reason
    assert "S3CRET" not in str(result.rejected)
    change(db, "UPDATE memories SET tags = '[]' WHERE status = 'ARCHIVED'")
    before = hot_rows(db)
    assert flush(db) == how_many
    assert set(before) - set(hot_rows(db)) == set(bad)


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
    assert (purge.purged, purge.kept) == (WAITING - 2, 2)
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


ODD_IDS = ["NULL", "'abc'", "''", "x'00ff'", "CAST(x'ff' AS TEXT)", "1.5", "-1e300", "1e300"]


@pytest.mark.parametrize("verbatim", ["'v'", "CAST(x'ff' AS TEXT)"])
@pytest.mark.parametrize("declaration", ["id INT PRIMARY KEY", "id INT PRIMARY KEY NOT NULL", "id PRIMARY KEY"])
@pytest.mark.parametrize("rowid", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("rows_per_file", [2, 50_000])
def test_ids_that_are_no_integers(
    tmp_path: Path, verbatim: str, declaration: str, rowid: str, rows_per_file: int
) -> None:
    db = tmp_path / "vidurai.db"
    change(db, f"CREATE TABLE memories ({declaration}, verbatim TEXT, status TEXT){rowid}")
    odd = ODD_IDS if not rowid and "NOT" not in declaration else ODD_IDS[1:]
    for id_ in (*odd, *odd[:1] * (odd[0] == "NULL")):
        change(db, f"INSERT INTO memories VALUES ({id_}, {verbatim}, 'ARCHIVED')")
    change(db, "INSERT INTO memories VALUES (-9223372036854775808, 'v', 'ARCHIVED'), (7, 'v', 'ARCHIVED')")
    change(db, "INSERT INTO memories VALUES (2, 'v', 'ARCHIVED'), (9223372036854775807, 'v', 'ARCHIVED')")
    result = MemoryArchiver(db, tmp_path / "archive", rows_per_file=rows_per_file).flush_archived_memories()
    assert result == 4
    assert len(result.rejected) == len(odd) + (odd[0] == "NULL")
    assert {r.column for r in result.rejected} == {"id"}
    with (
        RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst,
        pytest.warns(HotStoreWarning),
    ):
        assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 4 + len(result.rejected)}]


FAILING = {
    "overflow": "SELECT abs(-9223372036854775808) FROM metadata WHERE old.verbatim = 'held'",
    "json": "SELECT json_extract(old.tags, '$') FROM metadata",
    "mismatch": "UPDATE projects SET id = 'x' WHERE old.verbatim = 'held'",
    "too big": "INSERT INTO metadata (key, value) SELECT old.id, zeroblob(2000000000) WHERE old.verbatim = 'held'",
    "raised": "SELECT RAISE(ROLLBACK, 'no') WHERE old.verbatim = 'held'",
}


@pytest.mark.parametrize("what", FAILING)
def test_a_trigger_that_fails_for_some_rows_keeps_those_alone(sample_store: Store, what: str) -> None:
    db = sample_store("schema_v7")
    held = [insert(db, verbatim="held", tags="[") for _ in range(3)]
    change(db, f"CREATE TRIGGER failing AFTER DELETE ON memories BEGIN {FAILING[what]}; END")
    before = hot_rows(db)
    result = flush(db)
    assert (result, result.purged, result.kept) == (WAITING, WAITING, 3)
    assert_one_tier(before, db, db.parent / "archive")
    assert sorted(hot_rows(db, "status = 'ARCHIVED'")) == held
    (note,) = result.notes
    assert "3 memories can't be deleted from the hot store, whose own triggers or foreign keys forbid it" in note
    assert note.endswith(", ".join(map(str, held)))
