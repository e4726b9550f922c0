"""Kills a restoration before its calls into the file system or SQLite. Started by test_restoring.py.

    python -m vidurai_pipeline_tests.archival.restoring_driver STORE FOLDER FIRST STEP

STORE is flushed first. After each death the next flush runs undisturbed; then every memory must be in exactly one tier.
"""

import itertools
import json
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path

from vidurai_pipeline.archival.restorer import MemoryRestorer
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline_tests.archival.crash_driver import flush, prepare
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child
from vidurai_pipeline_tests.support.tiers import Row, cold_rows, hot_rows

#: What a restoration may change.
CHANGED = {"status", "expires_at"}


def unchanged(rows: list[Row]) -> Counter:
    """The rows without what a restoration may change."""
    return Counter(tuple(pair for pair in row if pair[0] not in CHANGED) for row in rows)


def restore(db: Path, archive: Path) -> None:
    MemoryRestorer(db, archive).restore(where="id % 3 = 0")


def check(before: Counter, db: Path, archive: Path) -> None:
    readable = unchanged([*hot_rows(db).values(), *cold_rows(archive)])
    assert set(readable) == set(before), "a memory was lost, or came out changed"
    assert Manifests(archive).flaws(list_files(archive)) == [], "a query would be refused"
    flush(db, archive)
    assert unchanged([*hot_rows(db).values(), *cold_rows(archive)]) == before, "not in exactly one tier"
    con = sqlite3.connect(db)
    assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (indexed,) = con.execute("SELECT count(*) FROM memories_fts").fetchone()
    assert (indexed,) == con.execute("SELECT count(*) FROM memories").fetchone()
    con.close()
    assert not list((archive / ".intents").glob("*")), "something is left to be done"
    assert not list(archive.rglob("*.part"))


def main(store: Path, folder: Path, first: int, step: int) -> dict:
    before = unchanged(list(hot_rows(store).values()))
    deaths, failures = 0, []
    for at in itertools.count(first, step):
        db, archive = prepare(store, folder / "work")
        run_child(lambda db=db, archive=archive: flush(db, archive))
        switch = KillSwitch(at)
        status = run_child(lambda db=db, archive=archive, switch=switch: (switch.install(), restore(db, archive)))
        died = os.WIFSIGNALED(status)
        deaths += died
        if not died and status:
            failures.append(f"call {at}: the restoration failed")
        if run_child(lambda db=db, archive=archive: check(before, db, archive)):
            failures.append(f"call {at}")
        if not died:
            return {"deaths": deaths, "failures": failures}
    raise AssertionError


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))  # noqa: T201
