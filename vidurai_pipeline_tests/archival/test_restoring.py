"""Archived memories come back whole, once, and stay."""

import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline import MemoryArchiver, MemoryRestorer
from vidurai_pipeline.archival.restoring import RestoreReport
from vidurai_pipeline.cold import generation
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.errors import ArchiveError, ConfigError, QueryError
from vidurai_pipeline.hot.restoring import RestoreOptions
from vidurai_pipeline_tests.archival.restoring_driver import unchanged
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.reference import run_reference
from vidurai_pipeline_tests.support.stores import Store, archived, change, flush
from vidurai_pipeline_tests.support.tiers import cold_rows, hot_rows


def restore(db: Path, *ids: int, options: RestoreOptions | None = None) -> RestoreReport:
    return MemoryRestorer(db, db.parent / "archive").restore(ids, options=options)


def ask(db: Path, sql: str) -> list[tuple]:
    con = sqlite3.connect(db)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


@pytest.fixture
def db(sample_store: Store) -> Path:
    """A store whose ARCHIVED memories are in the archive."""
    path = sample_store("guardian")
    flush(path, rows_per_file=300)
    return path


def cold_ids(db: Path) -> list[int]:
    return sorted(dict(row)["id"] for row in cold_rows(db.parent / "archive"))


@pytest.mark.fast
def test_a_memory_comes_back_whole(sample_store: Store) -> None:
    db = sample_store("guardian")
    before = hot_rows(db)
    flush(db)
    id_ = next(id_ for id_ in cold_ids(db) if dict(before[id_])["audience_gists"] != "[]")
    report = restore(db, id_, options=RestoreOptions(keep_expiry=True))
    assert (report.restored, report.refused, report.files) == (1, [], 1)
    assert dict(hot_rows(db)[id_]) == dict(before[id_]) | {"status": "ACTIVE"}
    assert id_ not in cold_ids(db)
    assert ask(db, f"SELECT memory_id, gist, verbatim, tags FROM memories_fts WHERE memory_id = {id_}") == ask(
        db, f"SELECT id, gist, verbatim, tags FROM memories WHERE id = {id_}"
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.integers(1, 2_100), min_size=1, max_size=400))
def test_any_memories_come_back_and_nothing_else_moves(sample_store: Store, chosen: set[int]) -> None:
    db = sample_store("guardian")
    shutil.rmtree(db.parent / "archive", ignore_errors=True)
    before = hot_rows(db)
    flush(db, rows_per_file=300)
    cold = set(cold_ids(db))
    report = restore(db, *chosen)
    assert report.restored == len(cold & chosen)
    assert report.already_hot == len(chosen & before.keys() - cold)
    assert [refusal.id for refusal in report.refused] == sorted(chosen - before.keys())
    assert set(cold_ids(db)) == cold - chosen
    rows = [*hot_rows(db).values(), *cold_rows(db.parent / "archive")]
    assert unchanged(rows) == unchanged(list(before.values()))
    assert flush(db) == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(1, 11), (1, 50, "into")])
def test_killed_before_calls_into_file_system_or_sqlite(
    sample_store: Store, programs: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    assert drive(programs, "archival.restoring_driver", sample_store("schema_v7"), tmp_path, *arguments) > 5


def test_an_expired_memory_no_longer_expires(db: Path) -> None:
    """Vidurai hides what has expired, and deletes it when it cleans up."""
    id_ = next(dict(row)["id"] for row in cold_rows(db.parent / "archive") if (dict(row)["expires_at"] or "9") < "2026")
    assert restore(db, id_).unexpired == 1
    assert ask(db, f"SELECT expires_at FROM memories WHERE id = {id_}") == [(None,)]


def test_restored_memories_are_left_alone_for_a_while(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = cold_ids(db)[:3]
    restore(db, *ids)
    change(db, f"UPDATE memories SET status = 'ARCHIVED' WHERE id IN ({ids[0]}, {ids[1]})")
    archiver = MemoryArchiver(db, db.parent / "archive")
    assert archiver.backlog().waiting == 0
    assert archiver.flush().archived == 0
    clock = Mock(wraps=datetime)
    clock.now.return_value = datetime.now(UTC) + timedelta(days=31)
    monkeypatch.setattr("vidurai_pipeline.archival.run.datetime", clock)
    assert archiver.flush().archived == 2


def test_a_memory_that_waits_for_archival_is_active_again(sample_store: Store) -> None:
    db = sample_store("guardian")
    (id_,) = ask(db, "SELECT min(id) FROM memories WHERE status = 'ARCHIVED'")[0]
    report = restore(db, id_)
    assert (report.restored, report.already_hot) == (0, 1)
    flush(db)
    assert ask(db, f"SELECT status FROM memories WHERE id = {id_}") == [("ACTIVE",)]


def test_all_versions_leave_the_archive(db: Path) -> None:
    id_ = cold_ids(db)[0]
    restore(db, id_)
    (db.parent / "archive/.restored.json").unlink()
    change(db, f"UPDATE memories SET status = 'ARCHIVED', gist = 'newer' WHERE id = {id_}")
    con = sqlite3.connect(db)
    row = con.execute(f"SELECT * FROM memories WHERE id = {id_}").fetchone()
    flush(db)
    con.execute(f"INSERT INTO memories VALUES ({', '.join('?' * len(row))})", row)
    con.execute("UPDATE memories SET gist = 'newest' WHERE id = ?", (id_,))
    con.commit()
    con.close()
    flush(db)
    assert cold_ids(db).count(id_) == 2
    restore(db, id_)
    assert cold_ids(db).count(id_) == 0
    assert ask(db, f"SELECT gist FROM memories WHERE id = {id_}") == [("newest",)]


@pytest.mark.parametrize(
    ("statement", "reason", "option"),
    [
        ("INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist) "
         "VALUES ({id}, 1, 'x', 'chat', 'LOW', 'x')", "its id belongs to another memory", None),
        ("DELETE FROM memories WHERE project_id = {project}; DELETE FROM projects WHERE id = {project}",
         "project is no longer", "make_projects"),
        ("ALTER TABLE memories DROP COLUMN decay_reason", "no column `decay_reason`", "drop_columns"),
        ("DROP TABLE audience_gists", "no table `audience_gists`", "drop_columns"),
        ("CREATE TRIGGER no BEFORE INSERT ON memories BEGIN SELECT raise(ABORT, 'not now'); END", "not now", None),
        ("CREATE TRIGGER other AFTER INSERT ON memories BEGIN UPDATE memories SET gist = 'x' WHERE id = new.id; END",
         "does not keep `gist`", None),
    ],
)  # fmt: skip
def test_what_cannot_come_back_is_refused_by_name_and_stays(
    db: Path, statement: str, reason: str, option: str | None
) -> None:
    id_ = next(
        dict(row)["id"]
        for row in cold_rows(db.parent / "archive")
        if dict(row)["audience_gists"] != "[]" and dict(row)["decay_reason"]
    )
    before = archived(db, id_)
    con = sqlite3.connect(db)
    con.executescript(statement.format(id=id_, project=before["project_id"]))
    con.close()
    report = restore(db, id_)
    assert report.restored == 0
    assert [refusal.id for refusal in report.refused] == [id_]
    assert reason in report.refused[0].reason
    assert archived(db, id_) == before
    assert ask(db, f"SELECT count(*) FROM memories WHERE id = {id_} AND verbatim <> 'x'") == [(0,)]
    if option:
        assert restore(db, id_, options=RestoreOptions(**{option: True})).restored == 1
        assert id_ not in cold_ids(db)


def test_a_project_made_anew_has_its_name_and_path(db: Path) -> None:
    id_ = cold_ids(db)[0]
    copy = archived(db, id_)
    change(
        db,
        f"DELETE FROM memories WHERE project_id = {copy['project_id']}",
        f"DELETE FROM projects WHERE id = {copy['project_id']}",
    )
    assert restore(db, id_, options=RestoreOptions(make_projects=True)).restored == 1
    assert ask(db, f"SELECT name, path FROM projects WHERE id = {copy['project_id']}") == [
        (copy["project_name"], copy["project_path"])
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_memory_does_not_come_back_to_another_project(db: Path, *, elsewhere: bool) -> None:
    id_ = cold_ids(db)[0]
    copy = archived(db, id_)
    change(db, ("UPDATE projects SET name = 'other', path = '/other' WHERE id = ?", (copy["project_id"],)))
    if elsewhere:
        change(db, ("INSERT INTO projects (name, path) VALUES ('x', ?)", (copy["project_path"],)))
    (refusal,) = restore(db, id_).refused
    assert "belongs to another project" in refusal.reason
    assert archived(db, id_) == copy
    assert restore(db, id_, options=RestoreOptions(make_projects=True)).restored == 1
    assert ask(
        db, f"SELECT p.path FROM memories AS m JOIN projects AS p ON p.id = m.project_id WHERE m.id = {id_}"
    ) == [(copy["project_path"],)]


@pytest.mark.parametrize("column", ["name", "path"])
def test_a_project_that_was_moved_or_renamed_is_the_same(db: Path, column: str) -> None:
    id_ = cold_ids(db)[0]
    change(db, (f"UPDATE projects SET {column} = '/new' WHERE id = ?", (archived(db, id_)["project_id"],)))
    assert restore(db, id_).restored == 1


def test_a_new_store_from_the_archive_alone(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("guardian")
    waiting = hot_rows(db, "status = 'ARCHIVED'")
    flush(db)
    archive = db.parent / "archive"
    files = list_files(archive)
    db.unlink()
    report = MemoryRestorer(db, archive).restore_into(tmp_path / "new.db", where="true")
    assert (report.restored, report.refused) == (len(waiting), [])
    assert unchanged(list(hot_rows(tmp_path / "new.db").values())) == unchanged(list(waiting.values()))
    assert list_files(archive) == files
    with pytest.raises(ConfigError, match="exists already"):
        MemoryRestorer(db, archive).restore_into(tmp_path / "new.db", where="true")
    found = run_reference(SEARCH, tmp_path / "new.db", home=tmp_path)
    assert found["count"] == len(waiting)
    assert found["hit"] in waiting


def test_a_new_store_has_what_waited_for_its_purge(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("guardian")
    waiting = hot_rows(db, "status = 'ARCHIVED'")
    archiver = MemoryArchiver(db, db.parent / "archive")
    archiver.publish()
    db.unlink()
    report = MemoryRestorer(db, db.parent / "archive").restore_into(tmp_path / "new.db", where="true")
    assert (report.restored, report.refused) == (len(waiting), [])
    assert unchanged(list(hot_rows(tmp_path / "new.db").values())) == unchanged(list(waiting.values()))


def test_a_new_store_is_not_made_within_the_archive(db: Path) -> None:
    place = db.parent / "archive" / "new.db"
    with pytest.raises(ConfigError, match="lies in the archive"):
        MemoryRestorer(db, db.parent / "archive").restore_into(place, where="true")
    assert not place.exists()


SEARCH = """
import json, re, sys
from pathlib import Path
from vidurai.storage.database import MemoryDatabase, SalienceLevel
db = MemoryDatabase(Path(sys.argv[1]))
connection = db.get_connection_for_reading()
(count,) = connection.execute("SELECT count(*) FROM memories WHERE status = 'ACTIVE'").fetchone()
row = connection.execute("SELECT m.id, m.gist, p.path FROM memories m JOIN projects p ON p.id = m.project_id "
    "WHERE m.gist GLOB '[A-Za-z]*'").fetchone()
word = re.findall("[a-z]{4,}", row["gist"].lower())[0]
hits = db.recall_memories(row["path"], query=word, min_salience=SalienceLevel.NOISE, limit=5)
print(json.dumps({"count": count, "hit": hits[0]["id"]}))
"""


def test_where_is_read_in_the_sandbox(db: Path) -> None:
    for where in ("id = (SELECT count(*) FROM read_text('/etc/passwd'))", "nothing > 1", "1) --", ""):
        with pytest.raises(QueryError):
            MemoryRestorer(db, db.parent / "archive").restore(where=where)
    with pytest.raises(ConfigError, match="name memories"):
        restore(db)


def test_a_file_system_that_cannot_exchange_folders(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    before = hot_rows(db)
    monkeypatch.setattr(generation, "exchange", refused)
    with pytest.raises(ArchiveError, match="can't exchange two folders"):
        restore(db, cold_ids(db)[0])
    assert hot_rows(db) == before
    assert flush(db) == 0


def test_doctor_names_an_unfinished_restoration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = home / "vidurai.db"
    flush(db)
    id_ = cold_ids(db)[0]

    def full(*_: object, **__: object) -> None:
        raise ArchiveError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("vidurai_pipeline.archival.restoring.rewrite_folder", full)
        with pytest.raises(ArchiveError):
            restore(db, id_)
    assert "unfinished restoration: 1 memory" in cli("doctor").stdout
    assert flush(db).notes == ["finished a restoration that was cut short: 1 memory"]
    assert "unfinished restoration" not in cli("doctor").stdout
    assert id_ not in cold_ids(db)


def test_a_copy_that_was_archived_anew_outlives_an_unfinished_restoration(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive can't be rewritten for so long that the memory is archived again meanwhile."""
    monkeypatch.setenv("VIDURAI_RESTORE_GRACE_DAYS", "0")
    id_ = cold_ids(db)[0]

    def full(*_: object, **__: object) -> None:
        raise ArchiveError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("vidurai_pipeline.archival.restoring.rewrite_folder", full)
        with pytest.raises(ArchiveError):
            restore(db, id_)
        change(db, f"UPDATE memories SET status = 'ARCHIVED', gist = 'newer' WHERE id = {id_}")
        assert flush(db) == 1
    flush(db)
    assert id_ not in hot_rows(db)
    assert "newer" in [dict(row)["gist"] for row in cold_rows(db.parent / "archive") if dict(row)["id"] == id_]
    assert not list((db.parent / "archive/.intents").iterdir())


def test_what_was_removed_for_good_is_not_restored_from_a_backup(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, archive = home / "vidurai.db", home / "archive"
    change(db, "UPDATE memories SET created_at = '2020-01-01 00:00:00' WHERE salience = 'NOISE'")
    flush(db)
    noise = [dict(row)["id"] for row in cold_rows(archive) if dict(row)["salience"] == "NOISE"]
    (file,) = list_files(archive)
    kept = (archive / file.relative).read_bytes()
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=52w")
    assert cli("expire").returncode == 0
    (archive / file.relative).write_bytes(kept)
    report = restore(db, *noise)
    assert (report.restored, sorted(refusal.id for refusal in report.refused)) == (0, sorted(noise))
    assert not hot_rows(db).keys() & set(noise)


def test_the_command(home: Path) -> None:
    flush(home / "vidurai.db")
    ids = cold_ids(home / "vidurai.db")
    one = loads(cli("restore", "--id", str(ids[0]), "--dry-run", "--format", "json"))
    assert (one["restored"], one["dry_run"]) == (1, True)
    unasked = cli("restore", "--id", str(ids[0]))
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert "--yes" in unasked.stderr
    assert cold_ids(home / "vidurai.db") == ids
    done = cli("restore", "--id", str(ids[0]), "--id", "987654321", "--yes", "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["restored"], report["already_hot"], report["files"]) == (1, 0, 1)
    assert report["refused"] == [{"id": 987654321, "reason": "no such memory in either tier"}]
    assert cli("restore", "--yes").returncode == 2


def test_the_job(settings: object, instance: object, home: Path) -> None:
    from vidurai_pipeline.definitions import build_definitions  # noqa: PLC0415
    from vidurai_pipeline.settings import load_settings  # noqa: PLC0415

    flush(home / "vidurai.db")
    id_ = cold_ids(home / "vidurai.db")[0]
    job = build_definitions(load_settings()).resolve_job_def("restore")
    for dry_run in (True, False):
        config = {"ops": {"restore_memories": {"config": {"ids": [id_], "dry_run": dry_run}}}}
        assert job.execute_in_process(run_config=config, instance=instance).success  # pyright: ignore[reportArgumentType]
        assert (id_ in cold_ids(home / "vidurai.db")) is dry_run
