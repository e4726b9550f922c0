"""Triggers of the store: refused by name if they take rows along, and obeyed if they keep a memory."""

import sqlite3
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import PurgeReport
from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, Store, change, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

CASCADING = {
    "deletes or changes rows of `notes`": "ON memories BEGIN DELETE FROM notes WHERE memory = old.id",
    "deletes or changes rows of `memories`": "ON memories BEGIN DELETE FROM memories WHERE id % 7 = old.id % 7",
    "deletes or changes rows of `audience_gists`": "ON memories BEGIN UPDATE audience_gists SET gist = 'x' "
    "WHERE memory_id = old.id + 1",
    "puts back rows of `audience_gists`": "ON audience_gists BEGIN INSERT INTO audience_gists "
    "(memory_id, audience, gist) VALUES (old.memory_id, 'again', old.gist)",
    "keeps rows of `audience_gists`": "ON audience_gists BEGIN INSERT INTO notes VALUES (1, raise (IGNORE))",
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
        "CREATE TRIGGER gists AFTER DELETE ON audience_gists BEGIN INSERT INTO log SELECT old.memory_id; END",
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


def test_rows_that_refuse_do_not_make_the_lock_be_held_for_long(tmp_path: Path) -> None:
    """What fails at once took no time, which is no reason to try more at a time."""
    db = twenty_memories(tmp_path)
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
