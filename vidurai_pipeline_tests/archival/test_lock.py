"""Two at once: one goes first, and the other one says who that is."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import LockedError
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

Store = Callable[[str], Path]

HOLDER = """
import os, sys, time
from pathlib import Path
from vidurai_pipeline.cold.archive import Archive
with Archive(Path(sys.argv[1])).lock("a long run"):
    print(os.getpid(), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def held(programs: Path, archive: Path, seconds: float = 60) -> Iterator[int]:
    """Another process holds the lock; gives its id."""
    command = [programs / "python", "-c", HOLDER, str(archive), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        pid = int(holder.stdout.readline())
        yield pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cli(programs: Path, db: Path, *arguments: str, timeout: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [programs / "vidurai-pipeline", *arguments],
        env={**os.environ, "VIDURAI_HOME": str(db.parent), "VIDURAI_LOCK_TIMEOUT": str(timeout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("command", ["flush", "run", "dream"])
def test_says_who_is_at_work(sample_store: Store, programs: Path, command: str) -> None:
    db = sample_store("schema_v7")
    with held(programs, db.parent / "archive") as holder:
        done = cli(programs, db, command, timeout=0.1)
        output, errors = done.communicate()
    assert done.returncode == 1
    assert f"process {holder} on " in errors
    assert "(a long run), since 20" in errors
    assert "Traceback" not in output + errors


def test_waits_for_the_other(sample_store: Store, programs: Path) -> None:
    db = sample_store("schema_v7")
    with held(programs, db.parent / "archive", 1):
        assert MemoryArchiver(db, db.parent / "archive", lock_timeout=60).flush_archived_memories() == 71


def test_a_dead_holder_is_no_obstacle(sample_store: Store, programs: Path) -> None:
    db = sample_store("schema_v7")
    with held(programs, db.parent / "archive"):
        pass  # killed, while it holds the lock
    assert (db.parent / "archive" / ".lock.json").exists()
    assert MemoryArchiver(db, db.parent / "archive", lock_timeout=0).flush_archived_memories() == 71
    assert not (db.parent / "archive" / ".lock.json").exists()


def test_many_at_once(sample_store: Store, programs: Path) -> None:
    db = sample_store("guardian")
    before = hot_rows(db)
    commands = ["flush", "flush", "run", "dream", "flush"]
    started = [cli(programs, db, command, "--format", "json", timeout=120) for command in commands]
    reports = []
    for command, process in zip(commands, started, strict=True):
        output, errors = process.communicate()
        assert process.returncode == 0, (command, errors)
        reports.append(json.loads(output))
    assert sum(report.get("archived", 0) for report in reports) == 1_148
    assert_one_tier(before, db, db.parent / "archive")


def test_held_twice_by_the_same_run(programs: Path, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    with archive.lock("outer"):
        with archive.lock("inner"):
            pass
        holder = json.loads((tmp_path / "archive" / ".lock.json").read_text())
        assert (holder["pid"], holder["purpose"]) == (os.getpid(), "outer")
        done = subprocess.run(
            [programs / "python", "-c", HOLDER, str(tmp_path / "archive"), "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert LockedError.__name__ in done.stderr


def test_an_unsigned_lock_is_a_lock_all_the_same(sample_store: Store, programs: Path) -> None:
    db = sample_store("schema_v7")
    with held(programs, db.parent / "archive"):
        (db.parent / "archive" / ".lock.json").write_text("{half writ")
        began = time.monotonic()
        with pytest.raises(LockedError, match="another process"):
            MemoryArchiver(db, db.parent / "archive", lock_timeout=0.3).flush_archived_memories()
        assert time.monotonic() - began >= 0.3


def test_threads_of_one_process_exclude_each_other(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    together = threading.Barrier(4)

    def flush() -> int:
        together.wait()
        return MemoryArchiver(db, archive, rows_per_file=40, lock_timeout=60).flush_archived_memories()

    with ThreadPoolExecutor(4) as threads:
        flushes = [threads.submit(flush) for _ in range(4)]
    assert sorted(done.result() for done in flushes) == [0, 0, 0, 1_148]
    assert_one_tier(before, db, archive)


def test_a_thread_is_told_of_the_run_in_another(sample_store: Store) -> None:
    db = sample_store("guardian")
    archive = Archive(db.parent / "archive")
    with archive.lock("the first"), ThreadPoolExecutor(1) as other:
        flush = other.submit(MemoryArchiver(db, archive.root, lock_timeout=0).flush_archived_memories)
        with pytest.raises(LockedError, match=rf"process {os.getpid()} on .* \(the first\)"):
            flush.result()
