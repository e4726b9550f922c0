"""Memories that are older than the rules allow leave the archive, once and for all; nothing else does."""

import errno
import shutil
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.retention import expire
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.errors import LockedError
from vidurai_pipeline.settings import RetentionRule
from vidurai_pipeline_tests.rl.dreams import dream, failed, generated, learned
from vidurai_pipeline_tests.support.archives import BASE, OWN, memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.stores import Store, change, flush, insert
from vidurai_pipeline_tests.support.tiers import hot_rows

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PROJECTS = OWN.append(pa.field("project_name", pa.string()))


def rules(*texts: str) -> list[RetentionRule]:
    return [RetentionRule.parse(text) for text in texts]


def days_ago(days: float) -> str:
    return (NOW - timedelta(days=days)).replace(tzinfo=None).isoformat()


def ids(archive: Archive) -> list[int]:
    return sorted(id_ for path in archive.files() for id_ in pq.read_table(path)["id"].to_pylist())


def tombstones(archive: Archive) -> list[dict[str, Any]]:
    return [
        row
        for file in archive.tombstones.files()
        for row in pq.read_table(pa.BufferReader((archive.root / file.relative).read_bytes())).to_pylist()
    ]


def expected(row: dict[str, Any], texts: Sequence[str]) -> str | None:
    """The rule by which a memory expires, worked out in plain Python."""
    column = {"project": "project_name", "event_type": "event_type"}
    fitting = []
    for text in texts:
        target, _, age = text.partition("=")
        kind, _, value = target.rpartition(":")
        if row.get(column.get(kind, "salience")) == value:
            fitting.append((int(age[:-1]) * {"d": 1, "w": 7, "y": 365}[age[-1]], text))
    try:
        created = datetime.fromisoformat(row["created_at"] or "")
    except ValueError:
        return None
    created = created if created.tzinfo else created.replace(tzinfo=UTC)
    days, text = max(fitting, key=lambda rule: rule[0], default=(0, None))
    return text if text is not None and not row["pinned"] and created <= NOW - timedelta(days=days) else None


TIMES = st.one_of(
    st.integers(0, 1000).map(days_ago),
    st.integers(0, 1000).map(lambda days: days_ago(days).replace("T", " ") + "+05:00"),
    st.sampled_from([None, "", "yesterday", "2026-13-45T00:00:00", "0000-00-00"]),
)
ROWS = st.builds(
    dict,
    salience=st.sampled_from(["NOISE", "LOW", "HIGH", None]),
    event_type=st.sampled_from(["chat", "file_edit", None]),
    project_name=st.sampled_from(["demo", "it's", None]),
    created_at=TIMES,
    pinned=st.sampled_from([0, 0, 0, 1, None]),
    outcome=st.sampled_from([-1, 0, 1, None]),
)
RULES = st.lists(
    st.tuples(
        st.sampled_from(["NOISE", "LOW", "CRITICAL", "project:demo", "project:it's", "event_type:chat"]),
        st.sampled_from(["1d", "30d", "26w", "1y", "2y"]),
    ),
    unique_by=lambda rule: rule[0],
    max_size=4,
).map(lambda found: ["=".join(rule) for rule in found])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=30), texts=RULES)
def test_random_rules(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], texts: list[str]) -> None:
    archive = Archive(tmp_path_factory.mktemp("archive"))
    memories = [memory(number, **row) for number, row in enumerate(rows)]
    for month, share in (("2026-03", memories[::3]), ("2026-04", memories[1::3]), ("2026-05", memories[2::3])):
        write_file(archive.root, share, schema=PROJECTS, month=month)
    why = {row["id"]: expected(row, texts) for row in memories}
    planned = expire(archive, rules(*texts), now=NOW, dry_run=True)
    assert (ids(archive), tombstones(archive)) == (sorted(why), [])
    done = expire(archive, rules(*texts), now=NOW)
    gone = {id_: rule for id_, rule in why.items() if rule is not None}
    assert ids(archive) == sorted(why.keys() - gone.keys())
    assert {row["id"]: row["reason"] for row in tombstones(archive)} == {
        id_: f"expired: {rule}" for id_, rule in gone.items()
    }
    assert done.rules == planned.rules == {text: list(gone.values()).count(text) for text in texts}
    assert done.expired == planned.expired == len(gone)
    assert archive.manifests.flaws(list_files(archive.root)) == []
    again = expire(archive, rules(*texts), now=NOW)
    assert (again.expired, again.months) == (0, [])


# Hot stores that come back from a backup


@pytest.fixture
def store(sample_store: Store) -> Path:
    """A store of memories with all kinds of values, all of which wait to be archived."""
    db = sample_store("guardian")
    change(db, "UPDATE memories SET status = 'ARCHIVED'")
    return db


def archive_of(store: Path) -> Archive:
    return Archive(store.parent / "archive")


def hot_ids(db: Path, where: str = "TRUE") -> list[int]:
    with closing(sqlite3.connect(db)) as con:
        return [id_ for (id_,) in con.execute(f"SELECT id FROM memories WHERE {where} ORDER BY id")]


EVERYTHING = ("CRITICAL=1d", "HIGH=1d", "MEDIUM=1d", "LOW=1d", "NOISE=1d")


@pytest.mark.fast
def test_a_restored_store_brings_nothing_back(store: Path) -> None:
    backup = store.with_name("backup.db")
    shutil.copy(store, backup)
    archive = archive_of(store)
    flush(store)
    done = expire(archive, rules("NOISE=1d", "LOW=1d"), now=NOW)
    kept = ids(archive)
    assert done.expired > 100
    assert kept

    store.with_name("vidurai.db-wal").unlink(missing_ok=True)
    shutil.copy(backup, store)
    planned = MemoryArchiver(store, archive.root).flush(dry_run=True)
    report = MemoryArchiver(store, archive.root).flush()
    assert report.tombstoned == done.expired == planned.tombstoned
    assert (report.archived, report.recovered) == (0, len(kept))
    assert planned.archived == len(kept)  # a dry run does not look which of them are in the archive already
    assert hot_ids(store) == []
    assert ids(archive) == kept
    assert any("expired" in note for note in report.notes)


@pytest.mark.parametrize(
    "change_of",
    ["verbatim = 'another'", "created_at = '2020-01-01T00:00:00'", "salience = 'HIGH'", "pinned = 1", "outcome = 5"],
)
def test_another_memory_of_the_same_id_is_archived(store: Path, change_of: str) -> None:
    backup = store.with_name("backup.db")
    shutil.copy(store, backup)
    flush(store)
    done = expire(archive_of(store), rules("NOISE=1d"), now=NOW)
    (id_, *others) = [row["id"] for row in tombstones(archive_of(store)) if row["created_at"]]
    store.with_name("vidurai.db-wal").unlink(missing_ok=True)
    shutil.copy(backup, store)
    change(store, f"UPDATE memories SET {change_of} WHERE id = {id_}", f"DELETE FROM memories WHERE id > {others[9]}")
    assert flush(store).tombstoned == 10
    assert ids(archive_of(store)).count(id_) == 1
    assert done.expired > 10


def test_what_still_lives_in_the_hot_store_is_left_alone(store: Path) -> None:
    backup = store.with_name("backup.db")
    shutil.copy(store, backup)
    flush(store)
    expire(archive_of(store), rules("NOISE=1d"), now=NOW)
    store.with_name("vidurai.db-wal").unlink(missing_ok=True)
    shutil.copy(backup, store)
    change(store, "UPDATE memories SET status = 'ACTIVE'")
    before = hot_rows(store)
    assert flush(store).tombstoned == 0
    assert hot_rows(store) == before


def test_a_restored_archive_file_loses_its_rows_again(store: Path) -> None:
    flush(store)
    archive = archive_of(store)
    backup = {path: path.read_bytes() for path in archive.files()}
    done = expire(archive, rules("NOISE=1d"), now=NOW)
    kept = ids(archive)
    for path in archive.files():
        path.unlink()
    for path, content in backup.items():
        path.write_bytes(content)
    assert set(ids(archive)) > set(kept)
    # Also when the rule is gone: what has expired is gone for good.
    again = expire(archive, (), now=NOW)
    assert (again.returned, again.expired) == (done.expired, 0)
    assert ids(archive) == kept


def test_damaged_tombstones_stop_no_flush(store: Path) -> None:
    flush(store)
    archive = archive_of(store)
    expire(archive, rules("NOISE=1d"), now=NOW)
    (file,) = archive.tombstones.files()
    path = archive.root / file.relative
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [flaw.file for flaw in archive.tombstones.damaged()] == [file.relative]
    insert(store)
    report = MemoryArchiver(store, archive.root).flush()
    assert report.archived == 1
    assert any("damaged" in note for note in report.notes)
    assert "damaged" in failed(archive.root, store.with_name("q_table.json"))


# What was learned


@pytest.mark.parametrize("local", [False, True])
def test_the_archive_teaches_the_same_after_an_expiry(
    tmp_path: Path, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    rows = [row | {"created_at": days_ago(row["id"]), "gist": "é🧠", "event_type": "chat"} for row in generated(1, 400)]
    rows[7] |= {"outcome": 7}
    rows[8] |= {"archived_at": "some day", "outcome": 1}
    archive, untouched = Archive(tmp_path / "archive"), tmp_path / "untouched"
    for root in (archive.root, untouched):
        for month, first in (("2024-10", 0), ("2024-11", 200)):
            schema = BASE if local else BASE.with_metadata({"vidurai_pipeline.timezone": "UTC"})
            write_file(root, rows[first : first + 200], month=month, schema=schema)
        # Two copies of one memory, as Vidurai's own archiver may leave them.
        write_file(root, [rows[3] | {"archived_at": "2024-12-01T02:00:00"}], month="2024-12")
    table = tmp_path / "q_table.json"
    expected = dream(untouched, tmp_path / "expected.json")
    dream(archive.root, table)
    before = learned(table)
    expire(archive, rules("event_type:chat=1d"), now=NOW)
    assert ids(archive) == []
    assert dream(archive.root, table)["episodes"] == 0
    assert learned(table) == before
    again = dream(archive.root, table, rebuild=True)
    assert learned(table) == before == learned(tmp_path / "expected.json")
    assert (again["episodes"], again["skipped"]) == (expected["episodes"], expected["skipped"])
    fresh = tmp_path / "fresh.json"
    dream(archive.root, fresh)
    assert learned(fresh) == before


def test_what_was_not_learned_yet_is_learned_after_it_expired(tmp_path: Path) -> None:
    rows = [row | {"event_type": "chat"} for row in generated(1, 200)]
    for root in (tmp_path / "archive", tmp_path / "untouched"):
        write_file(root, rows)
    expire(Archive(tmp_path / "archive"), rules("event_type:chat=1d"), now=NOW)
    dream(tmp_path / "archive", tmp_path / "one.json")
    dream(tmp_path / "untouched", tmp_path / "other.json")
    assert learned(tmp_path / "one.json") == learned(tmp_path / "other.json") != {}


def test_tombstones_hold_no_text(store: Path) -> None:
    flush(store)
    archive = archive_of(store)
    texts = {row["verbatim"] for path in archive.files() for row in pq.read_table(path).to_pylist()}
    expire(archive, rules(*EVERYTHING), now=NOW)
    kept = b"".join((archive.root / file.relative).read_bytes() for file in archive.tombstones.files())
    assert kept
    assert not [text for text in texts if len(text) > 5 and text.encode() in kept]
    assert not [path for path in archive.root.glob("**/*.parquet") if ".tombstones" in str(path)]


# What goes wrong on the way


@pytest.mark.slow
def test_an_expiry_is_killed_before_every_change(programs: Path, tmp_path: Path) -> None:
    for month, first in (("2026-01", 0), ("2026-02", 20)):
        for start in (first, first + 10):
            rows = [memory(n, salience="NOISE" if n % 3 else "LOW") for n in range(start, start + 10)]
            write_file(tmp_path / "home/archive", rows, f"memories_20260101_0000{start}.parquet", month=month)
    assert drive(programs, "care.retention_driver", "expire", tmp_path / "home", tmp_path / "work", 9) > 5


@pytest.mark.slow
def test_the_flush_of_a_restored_store_is_killed_before_every_change(
    store: Path, programs: Path, tmp_path: Path
) -> None:
    change(store, "DELETE FROM memories WHERE id > 40")
    backup = tmp_path / "backup.db"
    shutil.copy(store, backup)
    flush(store)
    assert expire(archive_of(store), rules("NOISE=1d"), now=NOW).expired
    for path in store.parent.glob("vidurai.db*"):
        path.unlink()
    shutil.copy(backup, store)
    assert drive(programs, "care.retention_driver", "flush", store.parent, tmp_path / "work", 4) > 5


def test_a_damaged_month_stops_no_other(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    for month, first in (("2026-01", 0), ("2026-02", 10), ("2026-03", 20)):
        write_file(archive.root, [memory(first + n, salience="NOISE") for n in range(5)], month=month)
        write_file(
            archive.root, [memory(first + n) for n in range(5, 8)], "memories_20260101_000000.parquet", month=month
        )
    with archive.lock("test"):
        for file in list_files(archive.root):
            archive.manifests.record(file.relative, archive.contents(archive.root / file.relative).entry())
    path = archive.root / "year=2026/month=02/memories_20241215_020000.parquet"
    write_file(archive.root, [memory(10 + n, salience="NOISE", verbatim="other") for n in range(5)], month="2026-02")
    content = path.read_bytes()
    done = expire(archive, rules("NOISE=1d"), now=NOW)
    (problem,) = done.problems
    assert problem.startswith("year=2026/month=02: ")
    assert "damaged" in problem
    assert done.expired == done.rules["NOISE=1d"] == 10
    assert path.read_bytes() == content
    assert set(ids(archive)) == {5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 25, 26, 27}


def test_a_full_disk_changes_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush(store)
    archive = archive_of(store)
    before = ids(archive)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for target in ("vidurai_pipeline.cold.tombstones.durable_write", "vidurai_pipeline.cold.generation.exchange"):
        with monkeypatch.context() as here:
            here.setattr(target, full)
            done = expire(archive, rules("NOISE=1d"), now=NOW)
        assert (done.expired, ids(archive)) == (0, before)
        assert "free some space" in done.problems[0]
    assert expire(archive, rules("NOISE=1d"), now=NOW).expired == len(before) - len(ids(archive)) > 0


def test_beside_a_flush(store: Path) -> None:
    flush(store)
    archive = archive_of(store)
    with archive.lock("flush"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(LockedError):
            pool.submit(expire, archive, rules("NOISE=1d"), now=NOW).result()
        assert pool.submit(expire, archive, rules("NOISE=1d"), now=NOW, dry_run=True).result().expired
    assert tombstones(archive) == []


def test_the_command(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(store.parent))
    assert "everything is kept" in cli("expire").stdout
    flush(store)
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=1d, project:nobody=1d")
    planned = loads(cli("expire", "--dry-run", "--format", "json"))
    before = ids(archive_of(store))
    assert planned["rules"] == {"NOISE=1d": planned["expired"], "project:nobody=1d": 0}
    assert "dry run" in cli("expire", "--dry-run").stdout
    assert ids(archive_of(store)) == before
    done = loads(cli("expire", "--format", "json"))
    assert done == planned | {"dry_run": False, "bytes_freed": done["bytes_freed"]}
    assert len(ids(archive_of(store))) == len(before) - done["expired"]
    path = archive_of(store).files()[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    broken = cli("expire")
    assert broken.returncode == 1
    assert broken.stderr.startswith("error: year=")
    assert broken.stderr.count("\n") == 1


def test_a_file_of_another_program_is_named(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    write_file(archive.root, [memory(1, salience="NOISE")])
    (archive.root / "other").mkdir()
    pq.write_table(pa.table({"a": [1]}), archive.root / "other/other.parquet")
    done = expire(archive, rules("NOISE=1d"), now=NOW)
    (problem,) = done.problems
    assert "other.parquet has no column id" in problem
    assert done.expired == 1
