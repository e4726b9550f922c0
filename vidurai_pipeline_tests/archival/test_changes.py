"""The daemon goes on writing: what it changes between read and purge stays hot, as it is then."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.pending import Pending
from vidurai_pipeline.errors import ArchiveError, HotStoreError, VerificationError
from vidurai_pipeline_tests.support.archives import DATA
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows

Store = Callable[[str], Path]

CHANGES = {
    "bump": "UPDATE memories SET access_count = access_count + 1 WHERE id = ?",
    "mercy": "UPDATE memories SET status = 'ACTIVE' WHERE id = ?",
    "pin": "UPDATE memories SET pinned = 1, pin_reason = 'keep' WHERE id = ?",
    "aggregate": "UPDATE memories SET gist = gist || '!', occurrence_count = 9 WHERE id = ?",
    "rewrite": "UPDATE memories SET verbatim = 'new', created_at = '2030-01-01T00:00:00' WHERE id = ?",
    "null": "UPDATE memories SET file_path = NULL, tags = NULL, line_number = 5 WHERE id = ?",
    "blob": "UPDATE memories SET verbatim = CAST(verbatim AS BLOB) WHERE id = ?",
    "gist added": "INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'new', 'g')",
    "new column": "ALTER TABLE memories ADD COLUMN later TEXT DEFAULT 'x'",
}


def archived_ids(db: Path) -> list[int]:
    return sorted(hot_rows(db, "status = 'ARCHIVED'"))


def leaving_its_mark(archiver: MemoryArchiver) -> AbstractContextManager[object]:
    """As if the run died right after its purge, before it could remove its mark."""
    return mock.patch.object(archiver.archive.pending, "remove")


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("before", ["purge", "recovery"])
def test_what_changes_before_the_purge_stays_hot(sample_store: Store, what: str, before: str) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archiver = MemoryArchiver(db, archive)
    ids = archived_ids(db)
    changed = ids if what == "new column" else ids[3:30:5]
    with archiver.run("test"):
        archiver.publish()
        for id_ in changed[:1] if what == "new column" else changed:
            change(db, (CHANGES[what], (id_,) if "?" in CHANGES[what] else ()))
        now = hot_rows(db)
        if before == "purge":
            purge = archiver.purge()
            assert (purge.kept, purge.purged) == (len(changed), len(ids) - len(changed))
            assert set(hot_rows(db)) >= set(changed)
            assert_one_tier(now, db, archive)
    result = MemoryArchiver(db, archive).flush_archived_memories()
    if before == "recovery" and what != "blob":
        assert result.kept == len(changed)
    assert_one_tier(now, db, archive)
    assert list((archive / ".pending").iterdir()) == []


def test_a_change_inside_the_deleting_transactions_wait(sample_store: Store) -> None:
    """The rows were found equal, then the daemon wrote, then the lock was ours."""
    db = sample_store("guardian")
    archive = db.parent / "archive"
    archiver = MemoryArchiver(db, archive)
    ids = archived_ids(db)
    daemon = sqlite3.connect(db, isolation_level=None)
    begun = 0

    def write_first(statement: str) -> None:
        nonlocal begun
        begun += statement == "BEGIN IMMEDIATE"
        if statement == "BEGIN IMMEDIATE" and begun == 1:
            daemon.execute("UPDATE memories SET access_count = 77 WHERE id IN (?, ?)", (ids[0], ids[-1]))

    with archiver.run("test") as run:
        archiver.publish()
        run.con.set_trace_callback(write_first)
        purge = archiver.purge()
    daemon.close()
    assert begun > 1
    assert (purge.kept, purge.purged) == (2, len(ids) - 2)
    assert set(hot_rows(db, "status = 'ARCHIVED'")) == {ids[0], ids[-1]}
    assert not {dict(row)["id"] for row in cold_rows(archive)} & {ids[0], ids[-1]}


def test_what_the_daemon_deletes_before_the_purge_is_not_kept(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archiver = MemoryArchiver(db, archive)
    ids = archived_ids(db)
    with archiver.run("test"):
        archiver.publish()
        change(db, ("DELETE FROM memories WHERE id = ?", (ids[0],)))
        purge = archiver.purge()
    assert (purge.kept, purge.purged) == (1, len(ids) - 1)
    assert {dict(row)["id"] for row in cold_rows(archive)} == set(ids[1:])


def test_a_file_of_which_nothing_is_left_goes(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archiver = MemoryArchiver(db, archive)
    with archiver.run("test"):
        archiver.publish()
        change(db, "UPDATE memories SET status = 'ACTIVE' WHERE status = 'ARCHIVED'")
        purge = archiver.purge()
    assert purge.purged == 0
    assert list(archive.rglob("*.parquet")) == []


def test_a_new_memory_under_an_old_id_does_not_cost_the_archived_one(sample_store: Store) -> None:
    """A run dies after its purge; the id is given to a new memory before the next run finds the mark."""
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    archiver = MemoryArchiver(db, archive)
    before = hot_rows(db)
    ids = archived_ids(db)
    with leaving_its_mark(archiver):
        archiver.flush_archived_memories()
    change(
        db,
        (
            "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, status) "
            "VALUES (?, 1, 'another', 'chat', 'LOW', 'g', 'ACTIVE')",
            (ids[0],),
        ),
    )
    result = MemoryArchiver(db, archive).flush_archived_memories()
    assert (result, result.kept, result.purged) == (0, 0, 0)
    assert sorted(cold_rows(archive)) == sorted(before[id_] for id_ in ids)
    assert dict(hot_rows(db)[ids[0]])["verbatim"] == "another"


@pytest.mark.parametrize("born", [None, "CAST(x'ff' AS TEXT)"])
def test_in_doubt_the_archived_copy_stays(sample_store: Store, born: str | None) -> None:
    """After a death amid the purge, it can't be told whether the hot row is the same memory."""
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    change(db, "UPDATE memories SET created_at = NULL")
    before = hot_rows(db, "status = 'ARCHIVED'")
    archiver = MemoryArchiver(db, archive)
    with leaving_its_mark(archiver):
        archiver.flush_archived_memories()
    first = min(before)
    change(
        db,
        (
            "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, status, created_at) "
            f"VALUES (?, 1, 'another', 'chat', 'LOW', 'g', 'ACTIVE', {born or 'NULL'})",
            (first,),
        ),
    )
    result = MemoryArchiver(db, archive).flush_archived_memories()
    assert (result, result.kept) == (0, 0)
    assert Counter(cold_rows(archive)) == Counter(before.values())


def test_a_busy_store_is_waited_for_and_then_named(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    writer = sqlite3.connect(db, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    before = hot_rows(db)
    with pytest.raises(HotStoreError, match=r"busy for more than 0\.2 s.*VIDURAI_BUSY_TIMEOUT"):
        MemoryArchiver(db, db.parent / "archive", busy_timeout=0.2).flush_archived_memories()
    writer.execute("ROLLBACK")
    writer.close()
    assert_one_tier(before, db, db.parent / "archive")


def test_a_store_that_gets_busy_during_the_purge(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    writer = sqlite3.connect(db, isolation_level=None)
    archiver = MemoryArchiver(db, archive, busy_timeout=0.2)
    with archiver.run("test"):
        archiver.publish()
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(HotStoreError, match="busy"):
            archiver.purge()
    writer.execute("ROLLBACK")
    writer.close()
    result = MemoryArchiver(db, archive).flush_archived_memories()
    assert (result, result.recovered) == (0, 1_148)
    assert_one_tier(before, db, archive)


def test_a_purge_that_is_taken_up_again_alone(sample_store: Store) -> None:
    """Dagster's "re-execute from failure": only the purge runs again, after it was interrupted half-way."""
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    archiver = MemoryArchiver(db, archive)
    commits = 0

    def stop_half_way(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"
        if commits == 3:
            run.con.interrupt()

    with archiver.run("test") as run:
        archiver.publish()
        run.con.set_trace_callback(stop_half_way)
        with pytest.raises(HotStoreError, match="interrupted"):
            archiver.purge()
    left = len(hot_rows(db, "status = 'ARCHIVED'"))
    assert 0 < left < 1_148
    with archiver.run("test"):
        purge = archiver.purge()
    assert (purge.purged, purge.kept) == (left, 0)
    assert_one_tier(before, db, archive)


def test_a_store_restored_from_a_backup_is_not_archived_twice(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    saved = db.read_bytes()
    MemoryArchiver(db, archive, rows_per_file=500).flush_archived_memories()
    db.write_bytes(saved)
    change(db, "UPDATE memories SET gist = 'changed since' WHERE id = (SELECT min(id) FROM memories)")
    before = hot_rows(db)
    result = MemoryArchiver(db, archive).flush_archived_memories()
    assert (result, result.purged, result.kept) == (1, 1_148, 0)
    assert hot_rows(db, "status = 'ARCHIVED'") == {}
    cold = cold_rows(archive)
    assert len(cold) == len(set(cold)) == 1_149
    assert {row for row in before.values() if dict(row)["status"] == "ARCHIVED"} <= set(cold)


def test_another_stores_pending_copy_is_no_reason_to_purge(sample_store: Store, tmp_path: Path) -> None:
    """Two copies of a store share an archive. What the first one published but withdraws later must not be all there
    is left of the second one's memory."""
    first, archive = sample_store("schema_v7"), tmp_path / "archive"
    second = Path(shutil.copy(first, tmp_path / "second.db"))
    ids = archived_ids(first)
    archiver = MemoryArchiver(first, archive)
    with archiver.run("test"):
        archiver.publish()
    assert MemoryArchiver(second, archive).flush_archived_memories() == len(ids)
    change(first, ("UPDATE memories SET status = 'ACTIVE', verbatim = 'another' WHERE id = ?", (ids[0],)))
    assert MemoryArchiver(first, archive).flush_archived_memories().kept == 1
    assert {dict(row)["id"] for row in cold_rows(archive)} == set(ids)


def test_what_an_older_tool_archived_in_part_is_archived_whole(sample_store: Store) -> None:
    """The reference writes 14 columns; a row that it archived but could not purge has more."""
    db = sample_store("guardian")
    archive = db.parent / "archive"
    shutil.copytree(DATA / "reference_archive", archive)
    before = hot_rows(db, "status = 'ARCHIVED'")
    result = MemoryArchiver(db, archive).flush_archived_memories()
    assert result == 1_148
    assert set(before.values()) <= set(cold_rows(archive))


class TestDamagedFiles:
    """A published file is not what was written any more, before its memories were purged."""

    def assert_put_right(self, before: dict, db: Path, how: str) -> None:
        """Nothing was purged, and the next run archives it all, without a person."""
        assert hot_rows(db) == before
        result = MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
        assert (result, result.purged, result.problems) == (1_148, 1_148, [])
        assert len(result.notes) == (0 if how == "removed" else 1)
        assert_one_tier(before, db, db.parent / "archive")

    def damage(self, path: Path, how: str) -> None:
        match how:
            case "truncated":
                path.write_bytes(path.read_bytes()[:-100])
            case "emptied":
                path.write_bytes(b"")
            case "flipped":
                content = bytearray(path.read_bytes())
                content[len(content) // 3] ^= 0xFF
                path.write_bytes(content)
            case "removed":
                path.unlink()
            case "replaced":
                table = pq.read_table(path)
                pq.write_table(table.slice(0, 5), path)

    @pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "removed", "replaced"])
    def test_stops_the_purge_and_is_put_right_by_the_next_run(self, sample_store: Store, how: str) -> None:
        db = sample_store("guardian")
        archive = db.parent / "archive"
        before = hot_rows(db)
        archiver = MemoryArchiver(db, archive)
        with archiver.run("test"):
            (file,) = archiver.publish().files
            self.damage(file.path, how)
            found = archiver.verify()
            assert not found.passed
            assert str(file.path) in found.problems[0]
            if how == "removed":
                assert archiver.purge().purged == 0
            else:
                with pytest.raises(VerificationError, match="nothing of it was purged"):
                    archiver.purge()
        self.assert_put_right(before, db, how)

    @pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "removed", "replaced"])
    def test_right_before_its_purge_is_put_right_by_the_next_run(self, sample_store: Store, how: str) -> None:
        """Within one flush: nothing was purged yet, so nothing needs a person."""
        db = sample_store("guardian")
        archive = db.parent / "archive"
        before = hot_rows(db)
        archiver = MemoryArchiver(db, archive)
        publish = archiver.archive.publish

        def publish_and_damage(hidden: Path, path: Path, mark: Pending) -> None:
            publish(hidden, path, mark)
            self.damage(path, how)

        with (
            mock.patch.object(archiver.archive, "publish", publish_and_damage),
            pytest.raises(VerificationError if how != "removed" else ArchiveError),
        ):
            archiver.flush_archived_memories()
        self.assert_put_right(before, db, how)

    def test_that_held_the_only_copy_and_is_gone_is_reported(self, sample_store: Store) -> None:
        db = sample_store("schema_v7")
        archiver = MemoryArchiver(db, db.parent / "archive")
        with leaving_its_mark(archiver):
            (path,) = archiver.flush_archived_memories().files
        path.unlink()
        (problem,) = MemoryArchiver(db, db.parent / "archive").flush_archived_memories().problems
        assert f"{path}: the file is gone" in problem

    def test_that_may_hold_the_only_copy_is_left_and_reported(self, sample_store: Store) -> None:
        db = sample_store("guardian")
        archive = db.parent / "archive"
        archiver = MemoryArchiver(db, archive)
        with leaving_its_mark(archiver):
            (path,) = archiver.flush_archived_memories().files
        self.damage(path, "truncated")
        change(db, "UPDATE memories SET status = 'ARCHIVED' WHERE status = 'PENDING_DECAY'")
        result = MemoryArchiver(db, archive).flush_archived_memories()
        assert result == 109
        (problem,) = result.problems
        assert str(path) in problem
        assert "had been purged already" in problem
        assert path.exists()
        assert MemoryArchiver(db, archive).flush_archived_memories().problems == []


@pytest.mark.parametrize(
    "column", ["id", "verbatim", "access_count", "archived_at", "tags", "audience_gists", "status"]
)
def test_every_altered_value_is_caught(sample_store: Store, column: str) -> None:
    db = sample_store("schema_v7")
    archiver = MemoryArchiver(db, db.parent / "archive")
    with archiver.run("test"):
        (file,) = archiver.publish().files
        table = pq.read_table(file.path)
        rows = table.to_pylist()
        row = next(row for row in rows if row[column])
        value = row[column]
        row[column] = (
            value[:-1] if isinstance(value, list) else value + 1_000_000 if isinstance(value, int) else value + " "
        )
        pq.write_table(type(table).from_pylist(rows, table.schema), file.path)
        found = archiver.verify()
    assert not found.passed
    assert "altered after it was written" in found.problems[0]
    if column not in {"id", "archived_at"}:
        assert f"memory {row['id']}: {column}" in found.problems[0]
