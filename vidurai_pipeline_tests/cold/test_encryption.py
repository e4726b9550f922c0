"""Archived files are encrypted: who has no key reads nothing of them, who has it notices no difference."""

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from vidurai_pipeline.analytics.connection import connect
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.care.rekey import rekey
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import KeyRing, add_key
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import HotStoreError, MissingKeyError, PipelineError, QueryError
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.cold import rewriting_driver
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.encrypted import CANARY, hold_canary
from vidurai_pipeline_tests.support.stores import Store, change, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def archive_in(home: Path) -> Archive:
    return open_archive(load_settings().model_copy(update={"archive": home / "archive"}))


@pytest.mark.fast
@pytest.mark.parametrize("encrypted", [True, False])
def test_no_byte_of_a_memory_is_below_the_archive(
    home: Path, cache: Path, encrypted: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if encrypted:
        request.getfixturevalue("key_file")
    monkeypatch.setattr(Run, "rows_worth_a_process", 0)
    insert(home / "vidurai.db", verbatim=f"said {CANARY}", gist=CANARY, tags=f'["{CANARY}"]', file_path=CANARY)
    assert cli("flush").returncode == 0
    found = loads(cli("query", f"SELECT verbatim FROM history WHERE gist = '{CANARY}'", "--format", "json"))
    assert found == [{"verbatim": f"said {CANARY}"}]
    files = list_files(home / "archive")
    assert all((file.key is not None) is encrypted for file in files)
    assert bool(hold_canary(home / "archive")) is not encrypted
    assert hold_canary(cache) == []


QUESTIONS = (
    "SELECT * EXCLUDE (archived_at, archived_ts) FROM history ORDER BY id",
    "SELECT id, audience_gists FROM history WHERE len(audience_gists) > 0 ORDER BY id",
    "SELECT count(*), max(verbatim) FROM history WHERE year > 2000 AND month <= 12",
    "SELECT id FROM history WHERE salience_score >= 4 AND created_ts > '2024-02-01' ORDER BY id",
    "SELECT salience, avg(salience_score), count(*) FROM history GROUP BY ALL ORDER BY ALL",
    "SELECT id FROM history WHERE id BETWEEN 300 AND 320 AND verbatim LIKE '%e%' ORDER BY id",
    "SELECT id, tier FROM memories ORDER BY ALL",
    "SELECT count(*) FROM history_all",
    "SELECT * FROM projects ORDER BY id",
    "SELECT id FROM history WHERE outcome = 1 ORDER BY created_ts, id LIMIT 20",
    "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'history' ORDER BY column_index",
)


@pytest.fixture
def two_homes(
    sample_store: Store, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The same memories archived in three runs: all in plain files; and plain, under one key, under another."""
    homes = []
    for name in ("plain", "mixed"):
        db = sample_store("guardian").rename(tmp_path / f"{name}.db")
        home = tmp_path / name
        home.mkdir()
        db = db.rename(home / "vidurai.db")
        change(db, "UPDATE memories SET status = 'ARCHIVED' WHERE status = 'ACTIVE' AND pinned = 0")
        ids = sorted(hot_rows(db, "status = 'ARCHIVED'"))
        monkeypatch.setenv("VIDURAI_HOME", str(home))
        for third in range(3):
            within = f"id IN {tuple(ids[third::3])}"
            change(db, f"UPDATE memories SET status = 'ARCHIVED' WHERE {within}")
            change(db, f"UPDATE memories SET status = 'DORMANT' WHERE status = 'ARCHIVED' AND NOT {within}")
            if name == "mixed" and third == 2:
                add_key(key_file)
            with monkeypatch.context() as here:
                if name == "plain" or third == 0:
                    here.delenv("VIDURAI_ARCHIVE_KEY_FILE")
                flush(db)
        homes.append(home)
    assert len({file.key for file in list_files(homes[1] / "archive")}) == 3
    return homes[0], homes[1]


def answers(home: Path) -> list[Any]:
    with RepoAnalyst(home / "archive") as analyst:
        found: list[Any] = [analyst.query_archive(question) for question in QUESTIONS]
        found.append([row["id"] for row in analyst.search_archive("error")])
        found.append([row["snippet"] for row in analyst.search_archive("error", 5, since="2024-01", salience="LOW")])
        found.append(analyst.query_df(QUESTIONS[0]).to_dict())
        found.append(analyst.query_arrow(QUESTIONS[0]).read_all().to_pylist())
        stats = analyst.get_memory_stats()
        found.append({name: stats[name] for name in stats if name not in {"bytes", "newest_archive"}})
    return found


def test_a_mixed_archive_answers_as_a_plain_one(two_homes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, mixed = two_homes
    assert sorted(cold_rows(mixed / "archive"), key=repr) == sorted(cold_rows(plain / "archive"), key=repr)
    for one, other in zip(answers(mixed), answers(plain), strict=True):
        assert repr(one) == repr(other)
    learned = []
    for home in two_homes:
        monkeypatch.setenv("VIDURAI_HOME", str(home))
        report = loads(cli("dream", "--format", "json"))
        learned.append([report[name] for name in ("episodes", "total_reward")])
        findings = {one["check"]: one["status"] for one in json.loads(cli("doctor", "--format", "json").stdout)}
        assert {findings[name] for name in ("archive", "one tier", "duplicates", "dates")} == {"ok"}
        assert loads(cli("scrub", "--all", "--format", "json"))["intact"] == 3
    assert learned[0] == learned[1]


def test_rekey_leaves_no_file_that_needs_an_older_key(two_homes: tuple[Path, Path], key_file: Path) -> None:
    home = two_homes[1]
    archive = archive_in(home)
    before, rows = answers(home), rewriting_driver.rows(archive.root)
    old, newest = archive.keys.keys
    assert rekey(archive, dry_run=True).files == 2
    assert {file.key for file in list_files(archive.root)} == {None, old, newest}
    report = rekey(archive)
    assert (report.files, report.left, report.keys_in_use) == (2, {}, [newest])
    assert rewriting_driver.rows(archive.root) == rows
    key_file.write_text(key_file.read_text().splitlines()[-1] + "\n")
    assert repr(answers(home)) == repr(before)
    assert archive.manifests.flaws(list_files(archive.root)) == []
    assert rekey(archive).files == 0


def test_a_rewritten_file_of_vidurais_keeps_its_local_time(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(tmp_path))
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Pacific/Auckland")
    for id_ in range(30):
        write_file(tmp_path / "archive", [memory(id_, outcome=1)], f"memories_{id_:02d}.parquet", month="2024-12")
    loads(cli("dream", "--format", "json"))
    before = json.loads((tmp_path / "q_table.json").read_text())
    assert loads(cli("rekey", "--format", "json"))["files"] == 30
    (tmp_path / "q_table.json").unlink()
    loads(cli("dream", "--format", "json"))
    after = json.loads((tmp_path / "q_table.json").read_text())
    volatile = {"updated_at", "created_at", "saved_at", "last_updated", "timestamp"}
    assert {k: v for k, v in after.items() if k not in volatile} == {
        k: v for k, v in before.items() if k not in volatile
    }


def test_a_copy_that_a_newer_one_supersedes(tmp_path: Path, key_file: Path) -> None:
    """Whichever of the two is encrypted, or both."""
    root = tmp_path / "archive"
    write_file(root, [memory(1, gist="old"), memory(2)], "memories_20240101_000000.parquet", month="2024-01")
    write_file(root, [memory(3)], "memories_20240102_000000.parquet", month="2024-01")
    archive = Archive(root, keys=KeyRing(key_file))
    rekey(archive)
    newer = memory(1, gist="new", archived_at="2025-02-01T00:00:00")
    write_file(root, [newer, newer], "memories_20250201_000000.parquet", month="2025-02")
    for _ in range(2):
        with RepoAnalyst(root) as analyst:
            rows = analyst.query_archive("SELECT id, gist FROM history ORDER BY id")
            assert [row["id"] for row in rows if row["id"] != 1] == [2, 3]
            assert {row["gist"] for row in rows if row["id"] == 1} == {"new"}
            assert analyst.query_archive("SELECT count(*) AS n FROM history_all") == [{"n": 5}]
        rekey(archive)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def swapped(path: Path) -> None:
    other = path.with_name("other")
    add_key(other)
    path.write_text(f"{path.read_text().split()[0]} {other.read_text().split()[1]}\n")


def replaced(path: Path) -> None:
    path.unlink()
    add_key(path)


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), "can't be read"),
    "empty": (lambda path: path.write_text(""), "holds no key"),
    "truncated": (truncated, "line 1 is damaged"),
    "of another id": (swapped, "line 1 is damaged"),
    "another key": (replaced, "encrypted with the key"),
    "open to others": (lambda path: path.chmod(0o640), "other users"),
    "no text": (lambda path: path.write_bytes(b"\xff\x00 \xfe"), "line 1 is damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    "not set": (lambda _: os.environ.pop("VIDURAI_ARCHIVE_KEY_FILE"), "VIDURAI_ARCHIVE_KEY_FILE is not set"),
}
ASKING = (("query", "SELECT max(verbatim) FROM history"), ("search", "error"), ("dream",), ("doctor",), ("show", "1"))


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_key_that_is_not_there_is_one_clear_line(
    home: Path, key_file: Path, defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("flush").returncode == 0
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    keys = [key_file.read_text().split()[1]]
    spoil, said = DEFECTS[defect]
    monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(key_file))  # to be put back at the end
    spoil(key_file)
    if key_file.is_file() and defect not in {"no text", "empty"}:
        keys.append(key_file.read_text().split()[1])
    hot, cold = (
        hot_rows(home / "vidurai.db"),
        {path: path.read_bytes() for path in (home / "archive").rglob("*.parquet")},
    )
    for command in (*ASKING, *([("flush",)] if defect != "another key" else [])):
        done = cli(*command)
        assert done.returncode in {1, 2}, command
        told = done.stdout if command == ("doctor",) else done.stderr
        assert said in told, (command, told)
        if command != ("doctor",):
            assert done.stderr.count("\n") == 1
        assert not [key for key in keys if key in done.stdout + done.stderr or key[:12] in done.stdout + done.stderr]
    assert hot_rows(home / "vidurai.db") == hot
    assert {path: path.read_bytes() for path in (home / "archive").rglob("*.parquet")} == cold
    assert not list((home / "archive").rglob("*.damaged*"))


def test_with_another_key_a_flush_goes_on_and_old_files_stay_as_they_are(home: Path, key_file: Path) -> None:
    assert cli("flush").returncode == 0
    replaced(key_file)
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED' WHERE pinned = 0")
    assert cli("flush").returncode == 0
    done = cli("query", "SELECT count(*) AS n FROM history", "--skip-damaged", "--format", "json")
    assert done.returncode == 3
    assert "its key" in done.stderr
    with pytest.raises(MissingKeyError):
        rekey(archive_in(home))


def test_a_pending_file_whose_key_is_missing_is_not_taken_for_damaged(home: Path, key_file: Path) -> None:
    before = hot_rows(home / "vidurai.db")
    with mock.patch.object(Purger, "purge", side_effect=HotStoreError("busy")):
        assert cli("flush").returncode == 1
    hidden = key_file.rename(key_file.with_name("hidden"))
    add_key(key_file)
    assert "encrypted with the key" in cli("flush").stderr
    assert not list((home / "archive").rglob("*.damaged*"))
    hidden.replace(key_file)
    assert cli("flush").returncode == 0
    assert_one_tier(before, home / "vidurai.db", home / "archive")


def test_the_documented_way_to_read_a_file(home: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("flush").returncode == 0
    (path,) = (home / "archive").rglob("*.parquet")
    page = (Path(__file__).parents[2] / "docs" / "archive-format.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?create_decryption_properties.*?)^```", page, re.MULTILINE | re.DOTALL)
    code = code.replace("memories_20261127_020003.key-1f3a9c07.parquet", path.name)
    code = code.replace("1f3a9c07", KeyRing(key_file).newest or "").replace("archive.key", str(key_file))
    monkeypatch.chdir(path.parent)
    read: dict[str, Any] = {}
    exec(code, read)
    assert Counter(map(repr, read["table"].to_pylist())) == rewriting_driver.rows(home / "archive")


def test_a_file_that_lost_its_name(home: Path, key_file: Path) -> None:
    assert cli("flush").returncode == 0
    (path,) = (home / "archive").rglob("*.parquet")
    path.rename(path.with_name("memories_20260101_000000.parquet"))
    (home / "archive" / ".manifest.json").unlink()
    path.with_name(".manifest.json").unlink()
    assert "its name names no key" in cli("query", "SELECT max(verbatim) FROM history").stderr


def test_damage_to_an_encrypted_file_is_named_and_shows_no_text(home: Path, key_file: Path) -> None:
    insert(home / "vidurai.db", verbatim=CANARY * 20)
    assert cli("flush").returncode == 0
    (path,) = (home / "archive").rglob("*.parquet")
    whole = path.read_bytes()
    for manifest in (path.with_name(".manifest.json"), home / "archive" / ".manifest.json"):
        manifest.unlink()
    for place in (len(whole) // 5, len(whole) // 3, len(whole) // 2, len(whole) - 200, len(whole) - 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        done = cli("query", "SELECT max(hash(COLUMNS(*))) FROM history_all")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), (place, done.stderr)
        assert path.name in done.stderr
        assert CANARY not in done.stderr


SPYING = (
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM duckdb_columns()",
    "SELECT * FROM duckdb_functions()",
    "EXPLAIN ANALYZE SELECT max(verbatim) FROM history",
    "SELECT current_query(), current_setting('temp_file_encryption')",
    "FROM read_text('{key_file}')",
    "FROM '{key_file}'",
    "SELECT getenv('VIDURAI_ARCHIVE_KEY_FILE')",
    "FROM duckdb_secrets()",
    "FROM duckdb_logs()",
    "PRAGMA add_parquet_key('x', 'y')",
    "SELECT CAST(verbatim AS INTEGER) FROM history",
    "FROM arrow_scan(1, 2, 3)",
)


@pytest.mark.parametrize("sql", SPYING)
def test_no_statement_reads_the_key(home: Path, key_file: Path, sql: str) -> None:
    assert cli("flush").returncode == 0
    (key,) = KeyRing(key_file).keys.values()
    with RepoAnalyst() as analyst:
        try:
            seen = repr(analyst.query_archive(sql.format(key_file=key_file)))
        except QueryError as error:
            seen = str(error)
    for secret in (base64.b64encode(key).decode(), key.hex(), repr(key), key_file.read_text()):
        assert secret not in seen
    assert base64.b64encode(key).decode() not in repr(vars(analyst)) + repr(load_settings())


def test_what_duckdb_spills_is_encrypted(tmp_path: Path, key_file: Path) -> None:
    for keys, found in ((None, True), (KeyRing(key_file), False)):
        scratch = tmp_path / str(found)
        scratch.mkdir()
        with connect("100MB", 1, scratch, keys) as con:
            con.execute("SET preserve_insertion_order = false")
            con.execute(
                f"SELECT i, repeat('{CANARY}' || i, 9) AS t FROM range(900000) r(i) ORDER BY hash(t)"
            ).fetchone()
            spilled = list((scratch / "spill").iterdir())
            assert spilled
            assert bool(hold_canary(scratch)) is found


def test_new_keys_are_made_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "VIDURAI_ARCHIVE_KEY_FILE is not set" in cli("new-key").stderr
    path = tmp_path / "new" / "archive.key"
    monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(path))
    made = [json.loads(cli("new-key", "--format", "json").stdout)["key"] for _ in range(3)]
    assert path.stat().st_mode & 0o777 == 0o600
    ring = KeyRing(path)
    assert (list(ring.keys), ring.newest) == (made, made[-1])
    assert len(set(ring.keys.values())) == 3
    path.write_text("not a key\n")
    with pytest.raises(MissingKeyError, match="line 1 is damaged"):
        add_key(path)
    assert path.read_text() == "not a key\n"


def test_the_key_file_does_not_lie_in_the_archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (home / "archive" / "key", home / "vidurai.db"):
        monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(place))
        with pytest.raises(PipelineError, match="VIDURAI_ARCHIVE_KEY_FILE"):
            load_settings()


@pytest.mark.slow
def test_killed_at_some_calls_with_a_key(sample_store: Store, programs: Path, tmp_path: Path, key_file: Path) -> None:
    assert drive(programs, "archival.crash_driver", "random", sample_store("schema_v7"), tmp_path, 7, 6)


@pytest.mark.slow
def test_a_rekeying_killed_at_some_calls(home: Path, programs: Path, tmp_path: Path, key_file: Path) -> None:
    flush(home / "vidurai.db")
    add_key(key_file)
    assert drive(programs, "cold.rewriting_driver", home / "archive", tmp_path / "work", "-", 17) > 1
