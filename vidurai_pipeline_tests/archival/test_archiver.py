"""The protocol on real stores."""

import sqlite3
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival import run as run_module
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows

pytestmark = pytest.mark.fast

SPECIFIED = [
    ("id", pa.int64()),
    ("verbatim", pa.string()),
    ("gist", pa.string()),
    ("salience", pa.string()),
    ("created_at", pa.string()),
    ("expires_at", pa.string()),
    ("access_count", pa.int64()),
    ("outcome", pa.int64()),
    ("file_path", pa.string()),
    ("decay_reason", pa.string()),
    ("event_type", pa.string()),
    ("tags", pa.string()),
    ("project_id", pa.int64()),
    ("archived_at", pa.string()),
]

Store = Callable[[str], Path]


def dump(db: Path, query: str) -> list[tuple]:
    con = sqlite3.connect(db)
    try:
        return con.execute(query).fetchall()
    finally:
        con.close()


@pytest.mark.parametrize(("name", "archived", "left"), [("guardian", 1_148, 852), ("schema_v7", 71, 49)])
def test_moves_every_archived_memory_whole(sample_store: Store, name: str, archived: int, left: int) -> None:
    db = sample_store(name)
    archive = db.parent / "archive"
    before = hot_rows(db)
    waiting = hot_rows(db, "status = 'ARCHIVED'")
    others = dump(db, "SELECT * FROM memories WHERE status <> 'ARCHIVED' ORDER BY id")

    result = MemoryArchiver(db, archive).flush_archived_memories()

    assert result == archived
    assert f"{result}" == str(archived)
    assert (result.archived, result.purged, result.kept, result.rejected) == (archived, archived, 0, [])
    assert sorted(cold_rows(archive)) == sorted(waiting.values())
    assert dump(db, "SELECT * FROM memories ORDER BY id") == others
    assert dump(db, "SELECT count(*) FROM memories_fts") == [(left,)]
    assert dump(db, "SELECT memory_id FROM memories_fts EXCEPT SELECT id FROM memories") == []
    assert dump(db, "SELECT memory_id FROM audience_gists EXCEPT SELECT id FROM memories") == []
    assert dump(db, "PRAGMA integrity_check") == [("ok",)]
    assert dump(db, "INSERT INTO memories_fts(memories_fts) VALUES ('integrity-check')") == []
    assert_one_tier(before, db, archive)


def test_leaves_tables_alone_that_do_not_belong_to_a_memory(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    query = "SELECT * FROM event_receipts ORDER BY receipt_id"
    before = dump(db, query)
    MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    assert before
    assert dump(db, query) == before


def test_second_run_changes_nothing(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    MemoryArchiver(db, archive).flush_archived_memories()
    files = {path: path.read_bytes() for path in archive.rglob("*.parquet")}
    content = dump(db, "SELECT * FROM memories")

    again = MemoryArchiver(db, archive).flush_archived_memories()

    assert (again, again.purged, again.files) == (0, 0, [])
    assert {path: path.read_bytes() for path in archive.rglob("*.parquet")} == files
    assert dump(db, "SELECT * FROM memories") == content


def test_layout_of_files_and_columns(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    began = datetime.now(UTC).replace(microsecond=0)
    result = MemoryArchiver(db, archive).flush_archived_memories()
    ended = datetime.now(UTC)

    (path,) = result.files
    moment = datetime.strptime(path.name, "memories_%Y%m%d_%H%M%S.parquet").replace(tzinfo=UTC)
    assert began <= moment <= ended
    assert path.parent == archive / f"year={moment:%Y}" / f"month={moment:%m}"
    schema = pq.read_schema(path)
    assert [(field.name, field.type) for field in schema][:14] == SPECIFIED
    table_columns = [name for (name,) in dump(db, "SELECT name FROM pragma_table_info('memories')")]
    ours = {"archived_at", "audience_gists", "project_name", "project_path"}
    assert set(table_columns) | ours == set(schema.names)
    metadata = pq.ParquetFile(path).metadata
    assert metadata.row_group(0).column(1).compression == "SNAPPY"
    (archived_at,) = set(pq.read_table(path, columns=["archived_at"])["archived_at"].to_pylist())
    assert datetime.fromisoformat(archived_at).replace(microsecond=0, tzinfo=UTC) == moment


def test_compression_is_a_setting(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    (path,) = MemoryArchiver(db, db.parent / "archive", compression="zstd").flush_archived_memories().files
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"


def test_files_are_private(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    MemoryArchiver(db, archive).flush_archived_memories()
    for path in [archive, *archive.rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_batches_of_the_same_second_do_not_collide(sample_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # noqa: ARG003
            return datetime(2024, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

    monkeypatch.setattr(run_module, "datetime", StoppedClock)
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    MemoryArchiver(db, archive).flush_archived_memories()
    con = sqlite3.connect(db)
    con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE status = 'PENDING_DECAY'")
    con.commit()
    con.close()
    changed = {**before, **hot_rows(db)}

    second = MemoryArchiver(db, archive, rows_per_file=50).flush_archived_memories()

    assert second == 109
    assert [path.name for path in second.files] == [f"memories_20241231_235959_{n:03d}.parquet" for n in (2, 3, 4)]
    assert_one_tier(changed, db, archive)


def test_a_large_batch_is_split_into_files(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    result = MemoryArchiver(db, archive, rows_per_file=500).flush_archived_memories()
    assert len(result.files) == 3
    assert_one_tier(before, db, archive)


def test_a_store_without_status_is_refused_and_left_alone(sample_store: Store) -> None:
    db = sample_store("pre_guardian")
    content = db.read_bytes()
    with pytest.raises(SchemaError, match=r"no column `status`.*schema version 4.*Guardian migration"):
        MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    assert db.read_bytes() == content
    assert list((db.parent / "archive").rglob("*.parquet")) == []


def test_dry_run_counts_and_changes_nothing(sample_store: Store) -> None:
    db = sample_store("guardian")
    content = db.read_bytes()
    result = MemoryArchiver(db, db.parent / "archive").flush_archived_memories(dry_run=True)
    assert (result, result.dry_run, result.purged, result.files) == (1_148, True, 0, [])
    assert db.read_bytes() == content
    assert not (db.parent / "archive").exists()


def test_backlog(sample_store: Store) -> None:
    backlog = MemoryArchiver(sample_store("guardian")).backlog()
    assert (backlog.waiting, backlog.total) == (1_148, 2_000)
    assert backlog.by_status == {"ACTIVE": 743, "ARCHIVED": 1_148, "PENDING_DECAY": 109}
    assert backlog.by_salience == {"LOW": 524, "NOISE": 298, "MEDIUM": 256, "HIGH": 55, "CRITICAL": 15}
    assert backlog.oldest == "2024-02-19T00:00:00"


def test_stats_of_the_specification(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archiver = MemoryArchiver(db, db.parent / "archive")
    (path,) = archiver.flush_archived_memories().files
    assert archiver.list_archive_files() == [path]
    stats = archiver.get_archive_stats()
    assert stats["total_files"] == 1
    assert stats["total_size_bytes"] == path.stat().st_size
    assert stats["partitions"] == {f"{path.parent.parent.name}/{path.parent.name}": 1}


def test_an_archive_that_cannot_be_listed_takes_new_memories_all_the_same(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    (archive / "year=2024/month=01").mkdir(parents=True)
    (archive / "year=2024/month=01/gone.parquet").symlink_to("/nowhere/at/all.parquet")
    report = MemoryArchiver(db, archive).flush()
    assert report.purged == report.archived == 71
    (note,) = report.notes
    assert "gone.parquet" in note


def test_hidden_files_of_others_are_left_alone(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    archive = db.parent / "archive"
    MemoryArchiver(db, archive).flush()
    others = [archive / name for name in (".download.part", ".notes.parquet.part", "year=2024/.rsync.x.part")]
    (archive / "year=2024").mkdir(exist_ok=True)
    for path in others:
        path.write_text("somebody's")
    MemoryArchiver(db, archive).flush()
    assert [path.read_text() for path in others] == ["somebody's"] * 3
