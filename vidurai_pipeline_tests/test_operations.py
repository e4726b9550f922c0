"""docs/operations.md: each failure is made, and the page's own commands are what puts it right."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import PublishReport
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.reference import run_reference
from vidurai_pipeline_tests.support.stores import QUICK
from vidurai_pipeline_tests.support.tiers import Row, assert_one_tier, cold_rows, hot_rows

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[1] / "docs/operations.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
Result = subprocess.CompletedProcess[str]


class Machine:
    """A user's home with a store, and a shell in which the page's commands run."""

    def __init__(self, home: Path, store: Path, programs: Path) -> None:
        self.home = home
        self.vidurai = home / ".vidurai"
        store.parent.rename(self.vidurai)
        self.db, self.archive = self.vidurai / "vidurai.db", self.vidurai / "archive"
        self.q_table = self.vidurai / "q_table.json"
        self.before = hot_rows(self.db)
        managers = home / "bin"
        managers.mkdir()
        # No service manager here: what it is told is noted.
        (managers / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {home}/systemctl\n')
        (managers / "systemctl").chmod(0o755)
        (home / ".config/vidurai-pipeline").mkdir(parents=True)
        self.environment = {
            "PATH": f"{managers}:{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "VIDURAI_HOME": str(self.vidurai),
            **QUICK,
        }

    def sh(self, script: str, **environment: object) -> Result:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env={**self.environment, **{name: str(value) for name, value in environment.items()}},
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )

    def follow(self, section: str, *blocks: int, **environment: object) -> str:
        """Run some of a section's blocks of commands, all by default; gives what they print."""
        found = re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
        done = self.sh("".join(found[n] for n in blocks or range(len(found))), **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def pipeline(self, *arguments: str) -> Result:
        """What leads to a failure, or looks at what became of it: in this process, which is quicker."""
        return cli(*arguments, **self.environment)

    def assert_well(self) -> None:
        assert_one_tier(self.before, self.db, self.archive)
        done = self.pipeline("doctor")
        assert done.returncode == 0, done.stdout


@pytest.fixture
def machine(sample_store: Callable[[str], Path], tmp_path: Path, programs: Path, dagster_home: Path) -> Machine:
    home = tmp_path / "user"
    home.mkdir()
    machine = Machine(home, sample_store("guardian"), programs)
    for name in ("history", "schedules"):  # Dagster's databases, which it takes a second to make
        shutil.copytree(dagster_home / name, machine.vidurai / "dagster" / name)
    return machine


@contextmanager
def younger_half_not_yet_archived(db: Path) -> Iterator[None]:
    """Let only the older half of the ARCHIVED memories wait, for a while."""
    with closing(sqlite3.connect(db)) as con:
        con.execute("CREATE TABLE later AS SELECT id FROM memories WHERE status = 'ARCHIVED' AND id > 1000")
        con.execute("UPDATE memories SET status = 'ACTIVE' WHERE id IN (SELECT id FROM later)")
        con.commit()
        yield
        con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE id IN (SELECT id FROM later)")
        con.execute("DROP TABLE later")
        con.commit()


def archive_half(machine: Machine) -> None:
    """Archive and purge the older half of what waits, and dream of it."""
    with younger_half_not_yet_archived(machine.db):
        for command in ("flush", "dream"):
            done = machine.pipeline(command)
            assert done.returncode == 0, done.stderr
    machine.before = hot_rows(machine.db)


def test_every_section_is_tested() -> None:
    source = Path(__file__).read_text()
    for section, text in SECTIONS.items():
        assert f'"{section}"' in source or "```sh" not in text, section


def test_bring_memories_back(machine: Machine) -> None:
    archive_half(machine)
    con = sqlite3.connect(machine.db)
    hot = con.execute("SELECT count(*) FROM memories").fetchone()[0]
    told = machine.follow("Bring memories back", 0)
    (now,) = con.execute("SELECT count(*) FROM memories").fetchone()
    con.close()
    assert f"restored: {now - hot}" in told
    archived = len(cold_rows(machine.archive))
    machine.db.rename(machine.home / "lost.db")
    machine.follow("Bring memories back", 1)
    assert len(hot_rows(machine.home / "rescued.db")) == archived == len(cold_rows(machine.archive))


def test_erase_memories_for_good(machine: Machine) -> None:
    with closing(sqlite3.connect(machine.db)) as con, con:
        con.execute("UPDATE memories SET verbatim = 'the password is hunter2' WHERE id = 3")
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTIONS["Erase memories for good"], re.MULTILINE | re.DOTALL)
    look, erase = block.splitlines()
    assert "memories: 1\n" in machine.sh(look).stdout
    assert machine.sh(erase).returncode == 2  # nobody can be asked
    assert 3 in hot_rows(machine.db)
    done = machine.sh(erase.replace("#", "--yes #"))
    assert done.returncode == 0, done.stderr
    assert 3 not in hot_rows(machine.db)


def test_a_past_month_is_compacted_after_all(machine: Machine) -> None:
    archive_half(machine)
    before = cold_rows(machine.archive)
    machine.follow("A past month can't be compacted")
    assert cold_rows(machine.archive) == before


def test_a_killed_run(machine: Machine) -> None:
    environment = {**machine.environment}
    for seconds in (2.0, 3.5):
        run = subprocess.Popen(
            [sys.executable, "-m", "vidurai_pipeline", "run"], env=environment, stdout=subprocess.DEVNULL
        )
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
        run.wait()
    machine.follow("A run was killed")
    machine.assert_well()


def test_a_new_damaged_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    archiver = MemoryArchiver(machine.db, machine.archive)
    with archiver.run("test"):
        batch: PublishReport = archiver.publish()
    os.truncate(batch.files[0].path, batch.files[0].bytes // 2)
    out = machine.follow("A new file is damaged", 0)
    assert ".damaged" in out.splitlines()[-1]
    machine.follow("A new file is damaged", 1)
    assert not list(machine.archive.rglob("*.damaged*"))
    machine.assert_well()


def test_an_old_damaged_file(machine: Machine) -> None:
    machine.pipeline("flush")
    (path,) = machine.archive.rglob("*.parquet")
    file, backup = path.relative_to(machine.archive), machine.home / "backup"
    shutil.copytree(machine.archive, backup / "archive")
    os.truncate(path, 1_000)
    found = machine.pipeline("doctor")
    assert (found.returncode, str(path) in found.stdout) == (1, True)
    machine.follow("An old file is damaged or gone", 0, BACKUP=backup, FILE=file)
    machine.assert_well()
    os.truncate(path, 1_000)
    ask = ("query", "SELECT count(*) AS n FROM history", "--format", "json")
    assert machine.pipeline(*ask).returncode == 1
    rest = machine.pipeline(*ask, "--skip-damaged")
    assert rest.returncode == 3
    assert "1,148 memories" in rest.stderr
    machine.follow("An old file is damaged or gone", 1, FILE=file)
    with RepoAnalyst(machine.archive) as analyst:
        assert analyst.query_archive("SELECT count(*) AS n FROM history") in ([], [{"n": 0}])
    assert machine.pipeline("dream").returncode == 0


def test_healing_from_the_mirror(machine: Machine) -> None:
    machine.environment["VIDURAI_MIRROR"] = str(machine.home / "disk/mirror")
    machine.pipeline("flush")
    (path,) = machine.archive.rglob("*.parquet")
    os.truncate(path, 1_000)
    machine.follow("Heal the archive from its mirror")
    machine.assert_well()


def test_a_mirror_that_is_gone(machine: Machine) -> None:
    machine.environment["VIDURAI_MIRROR"] = str(machine.home / "mirror")
    archive_half(machine)
    (machine.home / "mirror").rename(machine.home / "unplugged")
    assert machine.pipeline("run").returncode == 1
    assert hot_rows(machine.db) == machine.before
    (machine.home / "unplugged").rename(machine.home / "mirror")
    machine.follow("The mirror can't be used")
    assert machine.pipeline("doctor").returncode == 0


def test_an_expiry_by_mistake(machine: Machine) -> None:
    machine.pipeline("flush")
    (path,) = machine.archive.rglob("*.parquet")
    shutil.copytree(machine.archive, machine.home / "backup/archive")
    before = set(cold_rows(machine.archive))
    assert machine.sh("VIDURAI_RETENTION=NOISE=1d vidurai-pipeline expire").returncode == 0
    assert set(cold_rows(machine.archive)) < before
    month = path.parent.relative_to(machine.archive)
    machine.follow("Memories expired by mistake", BACKUP=machine.home / "backup", MONTH=month)
    assert set(cold_rows(machine.archive)) == before
    ask = ("query", "SELECT count(*) AS n FROM history", "--format", "json")
    assert json.loads(machine.pipeline(*ask).stdout) == [{"n": len(before)}]
    assert machine.pipeline("expire").returncode == 0
    assert set(cold_rows(machine.archive)) == before
    assert machine.pipeline("doctor").returncode == 0


def test_a_damaged_manifest(machine: Machine) -> None:
    machine.pipeline("flush")
    (manifest,) = machine.archive.glob("year=*/month=*/.manifest.json")
    os.truncate(manifest, 100)
    ask = ("query", "SELECT count(*) AS n FROM history")
    assert "scrub" in machine.pipeline(*ask).stderr
    machine.follow("A manifest is damaged")
    assert machine.pipeline(*ask).returncode == 0
    machine.follow("No file was proved for long")
    assert not list(machine.archive.rglob("*.damaged"))
    machine.assert_well()


def test_a_full_disk(machine: Machine) -> None:
    # A limit on the size of files, in KiB: as when the disk has no room for more.
    full = machine.sh(f"ulimit -f 20; trap '' XFSZ; {sys.executable} -m vidurai_pipeline flush")
    assert full.returncode == 1
    assert full.stderr.startswith("error: ")
    assert hot_rows(machine.db) == machine.before
    assert not list(machine.archive.rglob("*.part"))
    machine.follow("The disk is full")
    machine.assert_well()


def test_a_busy_store(machine: Machine) -> None:
    with closing(sqlite3.connect(machine.db, isolation_level=None, check_same_thread=False)) as con:
        con.execute("BEGIN IMMEDIATE")
        busy = machine.sh("vidurai-pipeline flush", VIDURAI_BUSY_TIMEOUT=0.2)
        assert busy.returncode == 1
        assert "busy for more than" in busy.stderr
        threading.Timer(8, lambda: con.execute("ROLLBACK")).start()
        machine.follow("The store is busy")
    machine.assert_well()


def test_a_damaged_q_table(machine: Machine) -> None:
    archive_half(machine)
    machine.pipeline("run")
    learned = json.loads(machine.q_table.read_text())["q_table"]
    for block in (0, 1):
        machine.q_table.write_text("{")
        broken = machine.pipeline("dream")
        assert broken.returncode == 1
        assert "put q_table.state.json from beside it in its place" in broken.stderr
        assert list(machine.vidurai.glob("q_table.json.damaged-*"))
        machine.follow("The Q-table is damaged", block)
        assert json.loads(machine.q_table.read_text())["q_table"] == learned


@pytest.mark.parametrize("damage", ["two revisions", "garbage"])
def test_a_broken_dagster_home(machine: Machine, damage: str) -> None:
    machine.pipeline("home")
    runs = machine.vidurai / "dagster/history/runs.db"
    if damage == "garbage":
        runs.write_bytes(b"garbage" * 4_096)
    else:
        with closing(sqlite3.connect(runs)) as con:
            con.execute("INSERT INTO alembic_version VALUES ('567bc23fd1ac')")
            con.commit()
    (machine.vidurai / "dagster/dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    broken = machine.pipeline("run")
    assert broken.returncode == 2
    assert len(broken.stderr.splitlines()) == 1
    assert "move the folder away" in broken.stderr
    machine.follow("Dagster's home is broken")
    assert (machine.vidurai / "dagster/dagster.yaml").read_text() == "telemetry:\n  enabled: false\n"
    assert "start vidurai-pipeline-daemon" in (machine.home / "systemctl").read_text()
    assert machine.pipeline("run").returncode == 0
    machine.assert_well()


@pytest.mark.parametrize("text", ["a: [", "nonsense: 1"])
def test_dagsters_settings_with_a_slip_are_one_readable_line(machine: Machine, text: str) -> None:
    machine.pipeline("home")
    (machine.vidurai / "dagster/dagster.yaml").write_text(text)
    done = machine.pipeline("home")
    assert done.returncode == 2
    assert "dagster.yaml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_moving_the_archive(machine: Machine) -> None:
    archive_half(machine)
    new = machine.home / "disk/archive"
    machine.follow("Move the archive to another disk", NEW=new)
    settings = (machine.home / ".config/vidurai-pipeline/environment").read_text()
    assert settings == f'VIDURAI_ARCHIVE="{new}"\n'
    machine.environment["VIDURAI_ARCHIVE"] = str(new)
    assert machine.pipeline("run").returncode == 0
    assert not machine.archive.exists()
    with RepoAnalyst(new) as analyst:
        assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 1_148}]


def contents(db: Path, archive: Path) -> set[Row]:
    return set(hot_rows(db).values()) | set(cold_rows(archive))


def test_a_backup_while_memories_move_has_them_all(machine: Machine) -> None:
    archive_half(machine)
    everything = contents(machine.db, machine.archive)
    (block,) = re.findall(r"^```sh\n(umask 077\n.*?)^```", SECTIONS["Back up, and restore"], re.M | re.S)
    store_first, archive_last = block.split("cp -a", 1)
    done = machine.sh(f"{store_first}\nvidurai-pipeline run\ncp -a{archive_last}", BACKUP=machine.home / "backup")
    assert done.returncode == 0, done.stderr
    assert contents(machine.home / "backup/vidurai.db", machine.home / "backup/archive") == everything


def test_a_backup_is_private(machine: Machine) -> None:
    archive_half(machine)
    backup = machine.home / "backup"
    backup.mkdir(mode=0o755)
    machine.db.chmod(0o600)
    machine.follow("Back up, and restore", 0, BACKUP=backup)
    assert (backup / "vidurai.db").exists()
    for path in (backup, *backup.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_restoring_a_backup(machine: Machine) -> None:
    backup = machine.home / "backup"
    archive_half(machine)
    everything = contents(machine.db, machine.archive)
    machine.follow("Back up, and restore", 0, BACKUP=backup)
    assert machine.pipeline("run").returncode == 0
    machine.db.write_bytes(b"not a database any more")
    machine.follow("Back up, and restore", 1, BACKUP=backup)
    assert contents(machine.db, machine.archive) == everything
    copies = Counter(cold_rows(machine.archive))
    assert max(copies.values()) == 1
    assert not set(hot_rows(machine.db).values()) & set(copies)

    # One that the backup has; of a file that was written after it, doctor says that it is gone.
    kept = next((backup / "archive").rglob("*.parquet")).relative_to(backup / "archive")
    (machine.archive / kept).unlink()
    assert machine.pipeline("doctor").returncode == 1
    assert contents(machine.db, machine.archive) != everything
    machine.follow("Back up, and restore", 2, BACKUP=backup)
    assert contents(machine.db, machine.archive) == everything
    assert set(cold_rows(backup / "archive")) <= set(cold_rows(machine.archive))


LOOP = """
import json, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # as when it is not installed
from vidurai.core.archival import MemoryArchiver
from vidurai.core.rl import DreamCycle
print(json.dumps([MemoryArchiver().flush_archived_memories(), DreamCycle().run()["episodes"]]))
"""


def test_taking_over_from_the_built_in_loop(machine: Machine) -> None:
    """One round of the loop in Vidurai's own words, then another without the packages that the page removes."""
    with younger_half_not_yet_archived(machine.db):
        archived, episodes = run_reference(LOOP, home=machine.home)
    assert archived > 0
    assert episodes > 0
    theirs = {path: path.read_bytes() for path in machine.archive.rglob("*.parquet")}
    hot, table = hot_rows(machine.db), machine.q_table.read_bytes()

    removed = re.findall(r"pip uninstall --yes (.*)", SECTIONS["Take over from Vidurai's built-in loop"])[0].split()
    assert run_reference(LOOP, *removed, home=machine.home) == [0, 0]
    assert hot_rows(machine.db) == hot
    assert machine.q_table.read_bytes() == table

    machine.follow("Take over from Vidurai's built-in loop", 1)
    assert {path: path.read_bytes() for path in theirs} == theirs
    with RepoAnalyst(machine.archive) as analyst:
        assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 1_148}]
    new = [path for path in machine.archive.rglob("*.parquet") if path not in theirs]
    assert sum(pq.read_metadata(path).num_rows for path in new) == 1_148 - archived
    assert machine.pipeline("dream", "--rebuild").returncode == 0


def test_other_stores_share_the_archive(machine: Machine) -> None:
    machine.pipeline("flush")
    assert "alice" in machine.follow("Let other stores share the archive")
    assert [path.name for path in machine.archive.iterdir()] == ["store=alice"]
    assert_one_tier(machine.before, machine.db, machine.archive / "store=alice")
