"""Erased memories are gone from every file, do not come back, and nothing else changes."""

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidurai_pipeline import DreamCycle, MemoryArchiver, MemoryEraser, MemoryRestorer
from vidurai_pipeline.archival.erasing import EraseReport
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.tombstones import SCHEMA, Tombstones
from vidurai_pipeline.errors import ConfigError, HotStoreError, QueryError
from vidurai_pipeline.hot.erasing import HotEraser
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.reference import reference_python
from vidurai_pipeline_tests.support.stores import Store, archived, change, changing, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows

CANARY = "zyxocanary"


def erase(db: Path, *ids: int, where: str | None = None, match: str | None = None) -> EraseReport:
    return MemoryEraser(db, db.parent / "archive").erase(ids, where, match)


def left_in_files(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text; Parquet files are decoded too."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith("-shm"):
            content = path.read_bytes()
            if ".parquet" in path.name and content[:4] == b"PAR1":
                content += repr(pq.read_table(path).to_pylist()).encode()
            if text.encode() in content:
                found.append(str(path.relative_to(folder)))
    return found


def canary(db: Path, **columns: object) -> int:
    """Store a memory with a word of its own in each of its texts, its gists and the search index."""
    id_ = insert(db, verbatim=f"first {CANARY}verbatim words", gist=f"{CANARY}gist", tags=f'["{CANARY}tag"]', **columns)
    with changing(db) as con:
        con.execute("INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'x', ?)", (id_, f"{CANARY}aud"))
        con.execute(
            "INSERT INTO memories_fts (rowid, memory_id, gist, verbatim, tags) "
            "SELECT id, id, gist, verbatim, tags FROM memories WHERE id = ?",
            (id_,),
        )
    return id_


@pytest.fixture
def db(sample_store: Store) -> Path:
    return sample_store("guardian")


@pytest.mark.fast
@pytest.mark.parametrize("status", ["ACTIVE", "ARCHIVED", "PENDING_DECAY", "cold"])
def test_nothing_of_a_memory_is_left_in_any_file(db: Path, status: str) -> None:
    id_ = canary(db, status=status.replace("cold", "ARCHIVED"), expires_at="2099-01-01")
    if status == "cold":
        flush(db)
    hot, cold = hot_rows(db), cold_rows(db.parent / "archive")
    report = erase(db, id_)
    assert report.success, report.places
    assert report.erased == 1
    assert report.proved > 0
    assert left_in_files(db.parent, CANARY) == []
    hot.pop(id_, None)
    assert hot_rows(db) == hot
    assert cold_rows(db.parent / "archive") == [row for row in cold if dict(row)["id"] != id_]


def test_words_of_a_memory_that_was_purged_long_ago_leave_the_search_index(db: Path) -> None:
    id_ = canary(db)
    flush(db)
    assert left_in_files(db.parent, CANARY)
    assert erase(db, id_, *(canary(db, status="ACTIVE") for _ in range(3))).success
    assert left_in_files(db.parent, CANARY) == []


def test_every_version_goes(db: Path) -> None:
    id_ = canary(db)
    flush(db)
    MemoryRestorer(db, db.parent / "archive").restore([id_])
    (db.parent / "archive/.restored.json").unlink()
    old = [row for row in cold_rows(db.parent / "archive") if dict(row)["id"] == id_]
    assert old == []
    change(db, ("UPDATE memories SET status = 'ARCHIVED', gist = ? WHERE id = ?", (f"{CANARY}new", id_)))
    with sqlite3.connect(db) as con:
        row = con.execute("SELECT * FROM memories WHERE id = ?", (id_,)).fetchone()
    con.close()
    flush(db)
    change(
        db,
        (f"INSERT INTO memories VALUES ({', '.join('?' * len(row))})", row),
        ("UPDATE memories SET gist = ? WHERE id = ?", (f"{CANARY}newest", id_)),
    )
    flush(db)
    assert erase(db, id_).success
    assert left_in_files(db.parent, CANARY) == []


def test_a_receipt_stays_without_its_payload(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    id_ = canary(db)
    receipt = "INSERT INTO event_receipts (receipt_id, event_type, payload_hash, payload_json, status, memory_id, "
    change(db, (f"{receipt}received_at) VALUES ('r', 'x', 'h', ?, 'processed', ?, 1)", (f'"{CANARY}"', id_)))
    report = erase(db, id_)
    assert report.success, report.places
    with sqlite3.connect(db) as con:
        found = con.execute("SELECT payload_json, memory_id FROM event_receipts WHERE receipt_id = 'r'").fetchall()
    con.close()
    assert found == [("{}", id_)]
    assert left_in_files(db.parent, CANARY) == []


def test_gists_that_are_not_utf_8_go_with_their_memory(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    id_ = canary(db)
    change(db, f"INSERT INTO audience_gists (memory_id, audience, gist) VALUES ({id_}, 'ai', CAST(x'ff' AS TEXT))")
    report = erase(db, id_)
    assert report.success, report.places
    assert [place.found for place in report.places if place.place == "hot store: audience_gists"] == [2]


def test_text_in_free_pages_is_overwritten(db: Path) -> None:
    id_ = canary(db, status="ACTIVE", file_path=f"{CANARY} {'x' * 9_000}")
    with changing(db) as con:
        con.execute("PRAGMA secure_delete = OFF").fetchone()
        con.execute("CREATE TABLE other (text)")
        text = f"first {CANARY}verbatim words"
        con.executemany("INSERT INTO other VALUES (?)", [(text + "y" * 300,)] * 20_000)
        con.commit()
        con.execute("DROP TABLE other")
    assert left_in_files(db.parent, "yyyyyyyy")
    report = erase(db, id_)
    assert report.success, report.places
    assert {place.place: place.how for place in report.places}["hot store: free pages and log"] == "written anew"
    assert left_in_files(db.parent, CANARY) == []


def test_text_in_files_and_tables_of_others_is_named_and_left(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(db.parent))
    id_ = canary(db, status="ACTIVE")
    change(db, "CREATE TABLE capsules (content)", ("INSERT INTO capsules VALUES (?)", (f"a {CANARY}verbatim b",)))
    (db.parent / "daemon.log").write_text(f"stored: {CANARY}verbatim")
    report = erase(db, id_)
    left = {place.place: place.how for place in report.places if place.left}
    assert set(left) == {"hot store: capsules", "other files"}
    assert str(db.parent / "daemon.log") in left["other files"]
    assert not report.success
    assert CANARY not in json.dumps(report.to_dict())


@pytest.mark.parametrize("kind", ["gz", "parquet", "json in sqlite"])
def test_text_in_files_that_hold_it_in_another_form_is_named(home: Path, kind: str) -> None:
    id_ = insert(home / "vidurai.db", status="ACTIVE", verbatim=f'he said "{CANARY} is \u00e9t\u00e9"')
    text, path = f'he said "{CANARY} is \u00e9t\u00e9"', home / f"other.{kind[-7:]}"
    if kind == "gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "parquet":
        pq.write_table(pa.table({"event": [[{"text": text}]]}), path, compression="zstd")
    else:
        change(path, "CREATE TABLE runs (body)", ("INSERT INTO runs VALUES (?)", (json.dumps(text),)))
    (place,) = [place for place in erase(home / "vidurai.db", id_).places if place.left]
    assert (place.place, str(path) in place.how) == ("other files", True)


def test_of_many_memories_a_sample_is_searched_for(db: Path) -> None:
    with changing(db) as con:
        con.executemany(
            "INSERT INTO memories (project_id, verbatim, event_type, salience, gist) VALUES (1, ?, 'many', 'LOW', 'g')",
            [(f"something about {word}{CANARY}",) for word in range(250)],
        )
    report = erase(db, where="event_type = 'many'")
    assert (report.erased, report.success) == (250, True)
    assert 50 <= report.searched <= 100
    assert report.proved >= report.searched


def test_an_erasure_that_died_is_proved_by_what_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = home / "vidurai.db"
    id_ = canary(db, status="ACTIVE")
    (home / "daemon.log").write_text(f"stored: {CANARY}verbatim")

    def full(*_: object) -> None:
        raise HotStoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(HotEraser, "clean", full)
        with pytest.raises(HotStoreError):
            erase(db, id_)
    assert id_ not in hot_rows(db)
    (intent,) = (home / "archive/.intents").iterdir()
    assert CANARY not in intent.read_text()
    (note,) = flush(db).notes
    assert "finished an erasure that was cut short: 1 memory" in note
    assert "daemon.log" in note
    (home / "daemon.log").unlink()
    assert left_in_files(home, CANARY) == []


def test_an_encrypted_archive(home: Path, key_file: Path) -> None:
    db, archive = home / "vidurai.db", home / "archive"
    id_ = canary(db)
    flush(db)
    cold = cold_rows(archive)
    report = erase(db, id_)
    assert (report.success, report.searched) == (True, 1), report.places
    assert cold_rows(archive) == [row for row in cold if dict(row)["id"] != id_]
    assert all(key_file.read_text().split()[0] in path.name for path in archive.rglob("*.parquet"))
    assert left_in_files(home, CANARY) == []


@hypothesis.settings(
    max_examples=4, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@given(chosen=st.sets(st.integers(1, 2_100), min_size=1, max_size=400))
def test_any_memories_go_and_nothing_else_moves(sample_store: Store, chosen: set[int]) -> None:
    db = sample_store("guardian")
    shutil.rmtree(db.parent / "archive", ignore_errors=True)
    before = hot_rows(db)
    flush(db, rows_per_file=300)
    report = erase(db, *chosen)
    assert [refusal.id for refusal in report.refused] == sorted(chosen - before.keys())
    assert not any(place.left for place in report.places)
    assert_one_tier({id_: row for id_, row in before.items() if id_ not in chosen}, db, db.parent / "archive")


DAEMON = """
import json, select, sys
from pathlib import Path
from vidurai.storage.database import MemoryDatabase, SalienceLevel
db, stored = MemoryDatabase(Path(sys.argv[1])), {}
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    text = f"daemon text {len(stored)}"
    stored[db.store_memory("/p", text, "a gist", SalienceLevel.LOW, "chat")] = text
db.write_queue.join()
print(json.dumps(stored))
"""


@pytest.mark.processes
def test_beside_the_daemon_and_another_flush(home: Path, programs: Path) -> None:
    db = home / "vidurai.db"
    before = hot_rows(db)
    environment = {**os.environ, "HOME": str(home.parent)}
    daemon = subprocess.Popen(
        [reference_python(), "-c", DAEMON, str(db)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert daemon.stdout is not None
    while daemon.stdout.readline() != "ready\n":
        pass
    other = subprocess.Popen([programs / "vidurai-pipeline", "flush"], env=environment)
    report = MemoryEraser(settings=load_settings().model_copy(update={"lock_timeout": 60})).erase(
        where="id <= 2000 AND id % 3 = 0"
    )
    stored = json.loads(daemon.communicate("stop\n")[0].splitlines()[-1])
    assert other.wait() == 0
    assert not any(place.left for place in report.places if place.place != "hot store: what is deleted")
    with sqlite3.connect(db) as con:
        texts = dict(con.execute("SELECT id, verbatim FROM memories WHERE verbatim LIKE 'daemon text %'"))
    con.close()
    assert texts == {int(id_): text for id_, text in stored.items()}
    change(db, "DELETE FROM memories WHERE verbatim LIKE 'daemon text %'")
    flush(db)
    assert_one_tier({id_: row for id_, row in before.items() if id_ % 3}, db, home / "archive")


def test_text_that_other_memories_have_too_counts_for_nothing(db: Path) -> None:
    one, other = canary(db, status="ACTIVE"), canary(db, status="ACTIVE")
    report = erase(db, one)
    assert report.success, report.places
    assert other in hot_rows(db)


def test_mirrors_damaged_files_and_half_written_ones(home: Path, mirror_folder: Path) -> None:
    db, archive = home / "vidurai.db", home / "archive"
    id_ = canary(db)
    flush(db)
    cli("index")
    cli("secrets")
    (path,) = [p for p in archive.rglob("*.parquet") if id_ in pq.read_table(p, columns=["id"])["id"].to_pylist()]
    rows = pq.read_table(path).num_rows
    shutil.copy(path, f"{path}.damaged")
    shutil.copy(path, path.with_name(f".{path.name}.0123abcd.part"))
    (archive.parent / ".archive.0123abcd.next" / "year=2026").mkdir(parents=True)
    report = erase(db, id_)
    assert report.success, report.places
    assert left_in_files(home, CANARY) == left_in_files(mirror_folder, CANARY) == []
    assert pq.read_table(f"{path}.damaged").num_rows == rows - 1
    Path(f"{path}.damaged").write_bytes(b"no Parquet")
    report = erase(db, id_)
    assert [place.place for place in report.places if place.left] == ["files kept aside"]


@pytest.mark.parametrize("status", ["ACTIVE", "ARCHIVED"])
def test_a_restored_backup_brings_nothing_back(db: Path, status: str) -> None:
    id_ = canary(db, status=status)
    shutil.copy(db, db.with_suffix(".backup"))
    erase(db, id_)
    hot = hot_rows(db)
    shutil.move(db.with_suffix(".backup"), db)
    report = MemoryArchiver(db, db.parent / "archive").flush()
    assert report.tombstoned == 1
    assert "1 memory had been erased, came back and were purged again" in report.notes
    assert id_ not in hot_rows(db)
    assert {**hot_rows(db), **{dict(row)["id"]: row for row in cold_rows(db.parent / "archive")}}.keys() == hot.keys()


@pytest.mark.parametrize("scrubbed", [False, True])
def test_a_restored_backup_of_the_archive_brings_nothing_back(db: Path, *, scrubbed: bool) -> None:
    id_ = canary(db)
    flush(db)
    root = db.parent / "archive"
    backup = db.parent.parent / "backup"
    shutil.copytree(root, backup)
    assert erase(db, id_).success
    cold = cold_rows(root)
    for path in backup.rglob("*.parquet"):
        shutil.copy2(path, root / path.relative_to(backup))
    if scrubbed:
        scrub(Archive(root))
    report = MemoryArchiver(db, root).flush()
    assert "1 memory had been erased, came back with a file and were removed again" in report.notes
    assert left_in_files(db.parent, CANARY) == []
    assert set(map(repr, cold_rows(root))) == set(map(repr, cold))


def test_what_an_erased_memory_taught_does_not_come_back_with_an_older_file(tmp_path: Path) -> None:
    tombstones = Tombstones(tmp_path)
    taught = {"archived_at": "2026-01-01", "outcome": "1", "salience": "HIGH", "characters": 9}
    known = {"id": 1, "created_at": "2025", "digest": b"x", "removed_at": "2026", "reason": "expired: all=1d"}
    tombstones.add(pa.Table.from_pylist([{**known, "experience": taught}], SCHEMA), utc=True)
    (file,) = tombstones.folder.iterdir()
    before = file.read_bytes()
    tombstones.erase({(1, "2025")})
    file.write_bytes(before)
    tombstones.sweep()
    assert [(row["reason"], row["experience"]) for row in tombstones.of([1]).to_pylist()] == [("erased", None)]


def test_another_memory_with_the_id_of_an_erased_one_is_left_alone(db: Path) -> None:
    id_ = canary(db, status="ACTIVE", created_at="2026-01-01T00:00:00")
    erase(db, id_)
    insert(db, id=id_, status="ACTIVE", created_at="2026-02-02T00:00:00")
    flush(db)
    assert id_ in hot_rows(db)


def test_tombstones_and_the_record_hold_no_text(db: Path) -> None:
    id_ = canary(db, outcome=1)
    flush(db)
    eraser = MemoryEraser(db, db.parent / "archive")
    eraser.erase(match=f"{CANARY}verbatim")
    table = Tombstones(db.parent / "archive").of([id_])
    (record,) = table.to_pylist()
    assert (record["reason"], record["experience"]) == ("erased", None)
    (entry,) = eraser.history()
    assert (entry.memories, entry.chosen, entry.left) == (1, "words", 0)
    assert left_in_files(db.parent, CANARY) == []


@pytest.mark.parametrize("command", [True, False])
def test_the_q_table_forgets(home: Path, command: bool) -> None:
    db, archive = home / "vidurai.db", home / "archive"
    id_ = canary(db, outcome=1, salience="CRITICAL")
    flush(db)
    DreamCycle().dream()
    if command:
        places = loads(cli("erase", "--id", str(id_), "--yes", "--format", "json"))["places"]
        assert {place["place"]: place["how"] for place in places}["Q-table"] == "learned anew without them"
    else:
        report = erase(db, id_)
        assert {place.place: place.how for place in report.places}["Q-table"] == "the next dream learns it anew"
        assert DreamCycle().dream().rebuilt
    assert not DreamCycle().dream().rebuilt
    forgetful = (home / "q_table.json").read_bytes()
    (home / "q_table.json").unlink()
    DreamCycle(archive).dream(rebuild=True)
    assert json.loads(forgetful)["q_table"] == json.loads((home / "q_table.json").read_bytes())["q_table"]


def test_a_q_table_that_another_program_taught_too_is_left_and_said_so(home: Path) -> None:
    db, table = home / "vidurai.db", home / "q_table.json"
    id_ = canary(db, outcome=1, salience="CRITICAL")
    flush(db)
    DreamCycle().dream()
    contents = json.loads(table.read_bytes())
    contents["q_table"]["9|9|9|9|9|9"] = {"do_nothing": 0.5}
    table.write_text(json.dumps(contents))
    done = cli("erase", "--id", str(id_), "--yes", "--format", "json")
    assert done.returncode == 1
    (left,) = [place for place in json.loads(done.stdout)["places"] if place["left"]]
    assert left["place"] == "Q-table"
    assert "dream --rebuild" in left["how"]
    assert "erased since" in (DreamCycle().dream().notice or "")
    assert json.loads(table.read_bytes())["q_table"] == contents["q_table"]


@pytest.mark.parametrize("words", ['"quoted"; DROP TABLE memories; --', "o'Кана́рейка 金糸雀", "100%_done"])
def test_words_of_any_kind(db: Path, words: str) -> None:
    id_ = insert(db, verbatim=f"begin {words} end", status="ACTIVE")
    hot = hot_rows(db)
    report = erase(db, match=words)
    assert (report.erased, report.success) == (1, True), report.places
    del hot[id_]
    assert hot_rows(db) == hot


def test_words_that_are_nearly_the_same_are_not_meant(home: Path) -> None:
    db = home / "vidurai.db"
    ids = [insert(db, verbatim=f"the {word} of the release") for word in ("zyxocanary", "zyxocanarys", "zyxocanera")]
    flush(db)
    cli("index")
    hot, cold = hot_rows(db), cold_rows(home / "archive")
    assert erase(db, match="release ZYXOCANARYS").erased == 1
    assert hot_rows(db) == hot
    assert cold_rows(home / "archive") == [row for row in cold if dict(row)["id"] != ids[1]]


def test_what_cannot_be_chosen(db: Path) -> None:
    for unknown in (987_654_321, -(10**30), 10**30):
        assert [refusal.id for refusal in erase(db, unknown).refused] == [unknown]
    with pytest.raises(ConfigError, match="name memories"):
        erase(db)
    for where in ("1) --", "nothing > 1", "id = (SELECT count(*) FROM read_text('/etc/passwd'))"):
        with pytest.raises(QueryError):
            erase(db, where=where)
    id_ = canary(db, created_at="2026-01-01T00:00:00")
    flush(db)
    insert(db, id=id_, created_at="2026-02-02T00:00:00", status="ACTIVE")
    (refusal,) = erase(db, id_).refused
    assert "several memories had this id" in refusal.reason
    assert erase(db, where=f"id = {id_} AND created_at LIKE '2026-01%'").success
    assert id_ in hot_rows(db)


@pytest.mark.parametrize("where", ["17", "id", "'true'", "CASE WHEN true THEN id END"])
def test_what_is_no_condition_chooses_nothing(db: Path, where: str) -> None:
    hot = hot_rows(db)
    with pytest.raises(QueryError, match="not true or false"):
        erase(db, where=where)
    with pytest.raises(QueryError, match="not true or false"):
        MemoryRestorer(db, db.parent / "archive").restore(where=where)
    assert hot_rows(db) == hot


@pytest.mark.parametrize("status", ["ACTIVE", "ARCHIVED"])
def test_words_of_a_memory_are_found_wherever_it_has_them(db: Path, status: str) -> None:
    id_ = canary(db, status=status, pin_reason=f"{CANARY}pin", decay_reason=f"{CANARY}decay")
    flush(db)
    for place in ("verbatim", "gist", "tag", "aud", "pin", "decay"):
        found = MemoryEraser(db, db.parent / "archive").erase(match=CANARY + place, dry_run=True)
        assert found.erased == 1, place
    assert erase(db, match=f"{CANARY}aud").success
    assert id_ not in hot_rows(db)
    assert left_in_files(db.parent, CANARY) == []


def test_a_memory_that_the_store_keeps_is_reported(db: Path) -> None:
    id_ = canary(db, status="ACTIVE")
    change(db, "CREATE TABLE notes (memory_id INTEGER REFERENCES memories (id))")
    change(db, ("INSERT INTO notes VALUES (?)", (id_,)))
    report = erase(db, id_)
    assert next(place.place for place in report.places if place.left) == "hot store: memories"
    assert id_ in hot_rows(db)


@pytest.mark.slow
def test_killed_before_changes(sample_store: Store, programs: Path, tmp_path: Path) -> None:
    assert drive(programs, "archival.erasing_driver", sample_store("schema_v7"), tmp_path, 5, 90) >= 2


def test_the_command(home: Path) -> None:
    db = home / "vidurai.db"
    id_ = canary(db)
    flush(db)
    dry = loads(cli("erase", "--match", f"{CANARY}gist", "--dry-run", "--format", "json"))
    assert (dry["erased"], dry["dry_run"]) == (1, True)
    assert archived(db, id_)
    unasked = cli("erase", "--id", str(id_))
    assert (unasked.returncode, unasked.stdout) == (2, "")
    assert cli("erase", "--yes").returncode == 2
    done = loads(cli("erase", "--id", str(id_), "--yes", "--format", "json"))
    assert done["erased"] == 1
    assert all(place.keys() == {"place", "found", "left", "how"} for place in done["places"])
    (entry,) = loads(cli("erase", "--history", "--format", "json"))
    assert entry.keys() == {"at", "memories", "chosen", "left"}
    failed = cli("erase", "--id", "987654321", "--yes")
    assert failed.returncode == 1
    assert "refused: memory 987654321" in failed.stderr


def test_the_job(settings: object, instance: object, home: Path) -> None:
    from vidurai_pipeline.definitions import build_definitions  # noqa: PLC0415

    id_ = canary(home / "vidurai.db", status="ACTIVE")
    job = build_definitions(load_settings()).resolve_job_def("erase")
    for dry_run in (True, False):
        config = {"ops": {"erase_memories": {"config": {"ids": [id_], "dry_run": dry_run}}}}
        assert job.execute_in_process(run_config=config, instance=instance).success  # pyright: ignore[reportArgumentType]
        assert (id_ in hot_rows(home / "vidurai.db")) is dry_run
