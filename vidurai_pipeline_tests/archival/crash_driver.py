"""Runs a flush in a child process that dies by SIGKILL, over and over. Started by test_crash.py.

    python -m vidurai_pipeline_tests.archival.crash_driver points STORE FOLDER
    python -m vidurai_pipeline_tests.archival.crash_driver points-apart STORE FOLDER FIRST STEP
    python -m vidurai_pipeline_tests.archival.crash_driver random STORE FOLDER SEED ROUNDS
    python -m vidurai_pipeline_tests.archival.crash_driver apart STORE FOLDER SEED ROUNDS   (two processes a flush)
    python -m vidurai_pipeline_tests.archival.crash_driver serve   (one death for each line of stdin; see serve())

After each death the next flush runs undisturbed; then every memory must be in exactly one tier. Prints one JSON
object: how many deaths there were, and after which of them something was wrong; what it was goes to stderr.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline.cold.mirror import NOTE
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child, start_child
from vidurai_pipeline_tests.support.encrypted import open_file
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows, parquet_files

ROWS_PER_FILE = 40


def flush(db: Path, archive: Path) -> None:
    MemoryArchiver(db, archive, rows_per_file=ROWS_PER_FILE).flush_archived_memories()


def prepare(store: Path, folder: Path) -> tuple[Path, Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Path(shutil.copy(store, folder / "vidurai.db")), folder / "archive"


def flushed(store: Path, folder: Path) -> tuple[Path, Path]:
    """As :func:`prepare`, and what waits has been flushed: for the first time by a child, from then on copied."""
    kept = folder.with_name("flushed")
    if not kept.exists():
        db, archive = prepare(store, folder)
        assert run_child(lambda: flush(db, archive)) == 0
        folder.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    return folder / "vidurai.db", folder / "archive"


def check(before: dict, db: Path, archive: Path) -> None:
    """What must hold right after the death, and after the run that follows it."""
    for path in archive.rglob("*.parquet"):
        with open_file(path) as file:
            file.read()
    readable = set(hot_rows(db).values()) | set(cold_rows(archive))
    assert readable == set(before.values()), "a memory was lost, or came out changed"
    assert Manifests(archive).flaws(list_files(archive)) == [], "a query would be refused"
    flush(db, archive)
    assert_one_tier(before, db, archive)
    if mirror := os.environ.get("VIDURAI_MIRROR"):
        assert parquet_files(Path(mirror)) == parquet_files(archive)
    con = sqlite3.connect(db)
    assert con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone() == (0,)
    assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert (
        con.execute("SELECT count(*) FROM memories_fts").fetchone()
        == con.execute("SELECT count(*) FROM memories").fetchone()
    )
    con.close()
    odd = [path for path in archive.rglob("*") if path.name.endswith((".part", ".json", ".damaged", ".next"))]
    leftovers = [path for path in odd if path.name not in {MANIFEST, NOTE}]
    assert not leftovers, leftovers
    files, manifests = list_files(archive), Manifests(archive)
    assert manifests.flaws(files) == []
    assert [
        file for file in files if (entry := manifests.entry(file.relative)) is None or not entry.same_file(file)
    ] == []


def main(mode: str, store: Path, folder: Path, seed: int = 0, rounds: int = 0) -> dict:
    before = hot_rows(store)
    deaths: Counter[str] = Counter()
    failures: list[str] = []

    def run(db: Path, archive: Path) -> None:
        if mode.endswith("apart"):
            Run.rows_worth_a_process = 0  # in this child: the run that follows a death starts no second process
        flush(db, archive)

    def attempt(name: str, kill: Callable[[Path, Path], int]) -> bool:
        db, archive = prepare(store, folder / "work")
        status = os.waitpid(kill(db, archive), 0)[1]
        died = os.WIFSIGNALED(status)
        deaths[name if died else "survived"] += 1
        if run_child(lambda: check(before, db, archive)):
            failures.append(name)
        return died

    if mode.startswith("points"):
        # Every change, or with two processes, whose second one takes half a second to start, every few changes.
        for at in itertools.count(seed or 1, rounds or 1):
            switch = KillSwitch(at)

            def kill(db: Path, archive: Path, switch: KillSwitch = switch) -> int:
                return start_child(lambda: (switch.install(), run(db, archive)))

            if not attempt(f"call {at}", kill):
                break
    else:
        db, archive = prepare(store, folder / "work")
        began = time.monotonic()
        run_child(lambda: run(db, archive))
        duration = time.monotonic() - began
        dice = random.Random(seed)
        for _ in range(rounds):

            def kill_later(db: Path, archive: Path, delay: float = dice.uniform(0, duration)) -> int:
                pid = start_child(lambda: run(db, archive))
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                return pid

            # However busy the machine is: aim so that most die, and some only just.
            duration *= 1.1 if attempt("random", kill_later) else 0.8
    return {"deaths": sum(n for name, n in deaths.items() if name != "survived"), "failures": failures}


def serve() -> None:
    """Take a step of the archival protocol that dies at a call, for each line ``[db, archive, step, call]``.

    For tests whose own process has too many threads to be forked.
    """
    for line in sys.stdin:
        db, archive, step, call = json.loads(line)

        def die(db: str = db, archive: str = archive, step: str = step, call: int = call) -> None:
            KillSwitch(call).install()
            getattr(MemoryArchiver(Path(db), Path(archive), rows_per_file=7), step)()

        run_child(die)
        print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments == ["serve"]:
        sys.exit(serve())
    report = main(arguments[0], Path(arguments[1]), Path(arguments[2]), *map(int, arguments[3:]))
    print(json.dumps(report))  # noqa: T201
