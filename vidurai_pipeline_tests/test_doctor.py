"""What `doctor` finds beyond a sound store and a readable archive."""

import json
import os
import re
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest

from vidurai_pipeline.care.health import archive_proved
from vidurai_pipeline.cli.doctor import examine
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs import instance
from vidurai_pipeline.defs.instance import dagster_home, read_history
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.archives import flip, memory, write_file
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.dagster_runs import leave_run
from vidurai_pipeline_tests.support.stores import change, flush, insert


def findings(**environment: str) -> dict[str, dict[str, Any]]:
    found = json.loads(cli("doctor", "--format", "json", **environment).stdout)
    return {finding["check"]: finding for finding in found}


def test_memories_that_can_not_be_archived_are_named_with_the_reason(home: Path) -> None:
    assert findings()["rejected memories"]["status"] == "ok"
    ids = [insert(home / "vidurai.db", access_count="many") for _ in range(7)]
    found = findings()["rejected memories"]
    assert found["status"] == "warning"
    assert (
        f"7 memories can't be archived and stay in the hot store: memory {ids[0]}: access_count: text"
        in found["detail"]
    )
    assert "and 2 more" in found["detail"]


def test_the_space_that_a_vacuum_would_give_back(home: Path) -> None:
    db = home / "vidurai.db"
    change(db, "CREATE TABLE ballast (x)", "INSERT INTO ballast VALUES (zeroblob(50000000))", "DROP TABLE ballast")
    assert "would give back 5" in findings()["hot store space"]["detail"]


def test_a_log_that_a_reader_holds(home: Path) -> None:
    db = home / "vidurai.db"
    assert "hot store log" not in findings()
    with closing(sqlite3.connect(db)) as reader:
        reader.execute("PRAGMA journal_mode = wal")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memories").fetchone()
        change(db, "CREATE TABLE ballast (x)", "INSERT INTO ballast VALUES (zeroblob(3000000))")
        found = findings(VIDURAI_WAL_LIMIT="1MB")["hot store log"]
    assert found["status"] == "warning"
    assert "write-ahead log is 3 MB" in found["detail"]


@pytest.mark.parametrize("values", [{"pinned": 1}, {"salience": "CRITICAL"}])
def test_memories_that_vidurai_protects_are_not_archived_unseen(home: Path, values: dict[str, Any]) -> None:
    change(home / "vidurai.db", "UPDATE memories SET pinned = 0, salience = 'LOW' WHERE status = 'ARCHIVED'")
    assert "protected memories" not in findings()
    id_ = insert(home / "vidurai.db", **values)
    assert f"(ids {id_})" in findings()["protected memories"]["detail"]


def test_when_the_archive_was_last_proved(home: Path) -> None:
    assert findings()["proofs"]["detail"] == "there is no archived file to prove yet"
    flush(home / "vidurai.db")
    assert findings()["proofs"]["status"] == "ok"
    archive = Archive(home / "archive")
    (file,) = list_files(archive.root)
    entry = archive.manifests.entry(file.relative)
    assert entry
    archive.manifests.record(file.relative, replace(entry, proved="2026-01-01T00:00:00+00:00"))
    found = archive_proved(archive, days=30)
    assert found.status == "warning"
    assert "the oldest proof is of 2026-01-01" in found.detail
    assert "`vidurai-pipeline scrub`" in found.detail
    assert archive_proved(archive, days=100_000).status == "ok"


def test_files_that_were_never_proved(home: Path) -> None:
    path = write_file(home / "archive", [memory(1)])
    found = findings()["proofs"]
    assert found["status"] == "warning"
    assert path.name in found["detail"]
    cli("scrub")
    assert findings()["proofs"]["status"] == "ok"


def test_a_manifest_that_was_damaged_is_named_until_it_is_deleted(home: Path) -> None:
    flush(home / "vidurai.db")
    (manifest,) = (home / "archive").glob("year=*/month=*/.manifest.json")
    manifest.write_bytes(b"{}")
    assert findings()["archive"]["status"] == "failed"
    assert cli("scrub").returncode == 1
    assert findings()["archive"]["status"] == "ok"
    assert ".manifest.json.damaged" in findings()["manifests set aside"]["detail"]
    manifest.with_name(".manifest.json.damaged").unlink()
    assert "manifests set aside" not in findings()


def test_tombstones_that_were_damaged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(home / "vidurai.db", salience="NOISE", created_at="2020-01-01T00:00:00")
    flush(home / "vidurai.db")
    monkeypatch.setenv("VIDURAI_RETENTION", "NOISE=90d")
    assert cli("expire").returncode == 0
    assert findings()["archive"]["status"] == "ok"
    (path,) = (home / "archive" / ".tombstones").iterdir()
    flip(path)
    found = findings()["archive"]
    assert found["status"] == "failed"
    assert path.name in found["detail"]


def test_a_file_that_was_healed_is_not_said_to_have_waited_for_its_purge(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_MIRROR", str(tmp_path / "mirror"))
    flush(home / "vidurai.db")
    (path,) = (home / "archive").glob("year=*/month=*/*.parquet")
    flip(path)
    assert cli("scrub", "--repair").returncode == 0
    assert "mirror" in findings()["files set aside"]["detail"]


def test_rows_whose_memory_is_nowhere(home: Path) -> None:
    db = home / "vidurai.db"
    change(db, "CREATE TABLE notes (memory_id INTEGER)")
    archived = insert(db)
    change(db, ("INSERT INTO notes VALUES (?)", (archived,)))
    flush(db)
    assert "notes" not in findings().get("orphans", {"detail": ""})["detail"]
    change(db, "INSERT INTO notes VALUES (987654)")
    assert "notes has rows of 1 memory that neither tier holds (ids 987654)" in findings()["orphans"]["detail"]


def test_files_of_a_wrong_clock(home: Path) -> None:
    flush(home / "vidurai.db")
    assert findings()["dates"]["status"] == "ok"
    write_file(home / "archive", [memory(1, archived_at="2130-01-01T02:00:00")], "memories_21300101_020000.parquet")
    found = findings()["dates"]
    assert found["status"] == "warning"
    assert "1 memory in 1 file are dated in the future (" in found["detail"]


def test_two_stores_in_one_folder(home: Path) -> None:
    assert "two stores" not in findings()
    (home / "memory.db").write_bytes((home / "vidurai.db").read_bytes())
    os.utime(home / "memory.db", (1, 1))
    assert findings()["two stores"]["status"] == "ok"
    os.utime(home / "memory.db", (4e9, 4e9))
    found = findings()["two stores"]
    assert found["status"] == "warning"
    assert f"set VIDURAI_DB={home / 'memory.db'}" in found["detail"]
    assert f"set VIDURAI_DB={home / 'memory.db'}" in cli("run").stderr


def test_a_nightly_run_that_is_too_long_ago(home: Path) -> None:
    assert findings()["last run"] == {
        "check": "last run",
        "status": "ok",
        "detail": "the nightly job has not run yet",
    }
    assert cli("run").returncode == 0
    assert findings()["last run"]["status"] == "ok"
    history = read_history(load_settings())
    assert history is not None
    assert history.succeeded is not None
    long_ago = replace(history, succeeded=history.succeeded - timedelta(hours=53))
    with mock.patch.object(instance, "read_history", return_value=long_ago):
        done = cli("doctor")
        assert (done.returncode, "53 hours ago: check that Dagster's daemon runs" in done.stdout) == (1, True)
        assert cli("doctor", VIDURAI_STALE_HOURS="60").returncode == 0


def set_up_hours_ago(hours: float) -> None:
    file = dagster_home(load_settings()) / "dagster.yaml"
    moment = time.time() - hours * 3600
    os.utime(file, (moment, moment))


def test_a_nightly_job_that_never_succeeded_while_memories_wait(home: Path) -> None:
    set_up_hours_ago(51)
    assert findings()["last run"]["status"] == "ok"
    set_up_hours_ago(53)
    done = cli("doctor")
    assert done.returncode == 1
    assert re.search(
        r"last run: the nightly job has not succeeded yet; Dagster was set up .*, 53 hours ago, and 1,148 memories "
        "wait: check that Dagster's daemon runs",
        done.stdout,
    )
    assert cli("doctor", VIDURAI_STALE_HOURS="60").returncode == 0


def test_a_nightly_job_that_had_nothing_to_do(home: Path) -> None:
    change(home / "vidurai.db", "DELETE FROM memories WHERE status = 'ARCHIVED'")
    set_up_hours_ago(1_000)
    assert findings()["last run"]["status"] == "ok"


def test_alerts_that_do_not_arrive(home: Path) -> None:
    assert cli("run").returncode == 0
    assert "alerts" not in findings(VIDURAI_ALERT_URLS="json://127.0.0.1:9")
    since = {"json": datetime(2026, 1, 2, 3, 4, tzinfo=UTC)}
    with mock.patch.object(instance, "undelivered", return_value=since):
        found = findings(VIDURAI_ALERT_URLS="json://127.0.0.1:9")["alerts"]
    assert found["status"] == "failed"
    assert found["detail"].startswith("no alert could be sent by json since 2026-01-0")


def test_the_zone_and_the_next_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Asia/Kolkata")
    monkeypatch.setenv("VIDURAI_SCHEDULE", "30 4 * * *")
    (found,) = [finding for finding in examine(load_settings()) if finding.check == "settings"]
    assert found.status == "ok"
    assert re.search(r"in the time zone Asia/Kolkata, next on \d{4}-\d\d-\d\d at 04:30", found.detail)


@pytest.mark.parametrize("zone", ["Europe/Belin", "CET-1CEST,M3.5.0,M10.5.0/3"])
def test_a_zone_that_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    (found,) = [finding for finding in examine(settings) if finding.check == "settings"]
    assert found.status == "warning"
    assert f"TZ={zone} is not the name of a time zone" in found.detail


def test_a_stuck_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.from_config(str(dagster_home(settings))) as instance:
        job = build_definitions(settings).resolve_job_def("maintenance")
        leave_run(instance, job, dg.DagsterRunStatus.STARTING)
    assert {f.status for f in examine(settings) if f.check == "unfinished runs"} == {"ok"}
    monkeypatch.setattr("vidurai_pipeline.defs.runs.LONGEST_SECONDS", dict.fromkeys(dg.DagsterRunStatus, -1.0))
    found = {finding.check: finding for finding in examine(settings)}
    assert found["unfinished runs"].status == "warning"
    assert "maintenance" in found["unfinished runs"].detail
