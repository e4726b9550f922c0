"""One row that can't be read, told from others or deleted is named, and does not keep the others."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import PurgeReport
from vidurai_pipeline.errors import HotStoreWarning, SchemaError
from vidurai_pipeline.hot.backlog import count_backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline_tests.support.stores import WAITING, archived, change, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

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
    assert result == WAITING["schema_v7"] + 1
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
        assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 4}]


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
    assert (result, result.purged, result.kept) == (WAITING["schema_v7"], WAITING["schema_v7"], 3)
    assert_one_tier(before, db, db.parent / "archive")
    assert sorted(hot_rows(db, "status = 'ARCHIVED'")) == held
    (note,) = result.notes
    assert "3 memories can't be deleted from the hot store, whose own triggers or foreign keys forbid it" in note
    assert note.endswith(", ".join(map(str, held)))


def small_store(
    folder: Path, columns: str = "", *, id_: str = "id INTEGER PRIMARY KEY", encoding: str = "UTF-8"
) -> Path:
    """A store of 20 ARCHIVED memories of few columns."""
    db = folder / "vidurai.db"
    change(
        db,
        f"PRAGMA encoding = '{encoding}'",
        f"CREATE TABLE memories ({id_}, verbatim TEXT, tags TEXT, project_id INTEGER, created_at TEXT, "
        f"status TEXT {columns})",
    )
    for number in range(1, 21):
        change(
            db,
            (
                "INSERT INTO memories (id, verbatim, tags, project_id, created_at, status) VALUES (?, ?, '[]', 1, 't', "
                "'ARCHIVED')",
                (number, f"memory {number}"),
            ),
        )
    return db


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_store_of_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    db = small_store(tmp_path, encoding=encoding)
    with pytest.raises(SchemaError, match=f"keeps its text as {encoding}, where Vidurai's stores keep UTF-8"):
        flush(db)


@pytest.mark.parametrize("bad", [{1}, {5}, {20}, set(range(1, 21))])
def test_it_may_be_the_first_row_that_cannot_be_read_or_every_one(tmp_path: Path, bad: set[int]) -> None:
    db = small_store(tmp_path)
    for id_ in bad:
        change(db, ("UPDATE memories SET tags = '{' WHERE id = ?", (id_,)))
    change(db, FIRST_TAG_AS_TEXT)
    result = flush(db)
    assert (result, {r.id for r in result.rejected}) == (20 - len(bad), bad)
    with RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst, pytest.warns(HotStoreWarning):
        assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 20}]


def test_a_memory_without_an_id_may_have_such_a_column_too(tmp_path: Path) -> None:
    db = small_store(tmp_path, id_="id INT PRIMARY KEY")
    change(db, "INSERT INTO memories (verbatim, tags, status) VALUES ('v', '{', 'ARCHIVED')", FIRST_TAG_AS_TEXT)
    result = flush(db)
    assert (result, [(r.id, r.column) for r in result.rejected]) == (20, [(None, "id")])


def test_a_gist_with_a_column_that_cannot_be_computed(tmp_path: Path) -> None:
    db = small_store(tmp_path)
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
        assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 20}]


@pytest.mark.parametrize("odd", ["zz", 9.3e18, None, b"\xff", -1e300])
def test_a_restored_store_with_an_odd_id_is_archived_once_and_counted(tmp_path: Path, odd: object) -> None:
    db = small_store(tmp_path, id_="id INT PRIMARY KEY")
    change(db, ("INSERT INTO memories (id, verbatim, status) VALUES (?, 'v', 'ARCHIVED')", (odd,)))
    backup = shutil.copy(db, tmp_path / "backup.db")
    assert flush(db) == 20
    for path in tmp_path.glob("vidurai.db*"):
        path.unlink()
    shutil.copy(backup, db)
    counted = count_backlog(HotStore(db))
    assert (counted.waiting, counted.total) == (21, 21)
    again = flush(db)
    assert (again, again.purged) == (0, 20)
    assert [r.id for r in again.rejected] == [odd if not isinstance(odd, bytes) else None]


@pytest.mark.parametrize(("columns", "kind"), [(494, "INT"), (494, "TEXT")])
def test_a_very_wide_table(tmp_path: Path, columns: int, kind: str) -> None:
    db = small_store(tmp_path, "".join(f", x{n} {kind}" for n in range(columns)))
    change(db, f"UPDATE memories SET x{columns - 1} = id")
    assert flush(db) == 20
    assert archived(db, 7)[f"x{columns - 1}"] == (7 if kind == "INT" else "7")


def test_a_table_that_is_too_wide_is_refused(tmp_path: Path) -> None:
    db = small_store(tmp_path, "".join(f", x{n} INT" for n in range(495)))
    with pytest.raises(SchemaError, match=r"has 501 columns in `memories`: with more than 500 it can't be read"):
        flush(db)


def test_a_key_of_two_columns_holds_only_what_it_refers_to(tmp_path: Path) -> None:
    db = small_store(tmp_path)
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


def test_an_index_without_sizes_is_cleaned_without_a_note(tmp_path: Path) -> None:
    db = small_store(tmp_path)
    change(
        db,
        "CREATE VIRTUAL TABLE memories_fts USING fts5(memory_id, verbatim, columnsize=0)",
        "INSERT INTO memories_fts (rowid, memory_id, verbatim) SELECT id, id, verbatim FROM memories",
    )
    result = flush(db)
    assert (result, result.notes) == (20, [])


def test_rows_that_refuse_do_not_make_the_lock_be_held_for_long(tmp_path: Path) -> None:
    """What fails at once took no time, which is no reason to try more at a time."""
    db = small_store(tmp_path)
    change(
        db,
        "INSERT INTO memories SELECT id + 20 * n, verbatim, tags, project_id, created_at, status FROM memories, "
        "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 200) SELECT n FROM c)",
        "CREATE TRIGGER refuses BEFORE DELETE ON memories WHEN old.id <= 2000 BEGIN SELECT RAISE(FAIL, 'no'); END",
    )
    sizes = []

    def noted(statement: str) -> None:
        if statement.startswith("DELETE FROM memories WHERE"):
            sizes.append(statement.count(",") + 1)

    with MemoryArchiver(db, tmp_path / "archive").run("test") as run:
        published, purge = run.begin(), PurgeReport()
        run.con.set_trace_callback(noted)
        run.flush(published, purge)
    assert (purge.purged, purge.kept) == (2_020, 2_000)
    refused = sizes[: next(n for n, size in enumerate(sizes) if sum(sizes[: n + 1]) >= 2_000)]
    assert max(refused) == sizes[0]
