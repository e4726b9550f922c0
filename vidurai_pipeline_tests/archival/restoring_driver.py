"""Kills a restoration before its calls into the file system or SQLite. Started by test_restoring.py.

    python -m vidurai_pipeline_tests.archival.restoring_driver STORE FOLDER FIRST STEP [into]

STORE is flushed first. After each death the next flush runs undisturbed; then every memory must be in exactly one tier.
With ``into`` a new store is made of the archive; after a death there must be none, or a whole one, and none is in the
way of the next.
"""

import itertools
import json
import os
import sqlite3
import sys
from collections import Counter
from pathlib import Path

from vidurai_pipeline.archival.restorer import MemoryRestorer
from vidurai_pipeline.archival.restoring import RestoreReport
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline_tests.archival.crash_driver import flush, flushed
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


def into(db: Path, archive: Path) -> RestoreReport:
    return MemoryRestorer(db, archive).restore_into(db.with_name("new.db"), where="true")


def check_new(archived: Counter, db: Path, archive: Path) -> None:
    new = db.with_name("new.db")
    if not new.exists():
        into(db, archive)
    assert unchanged(list(hot_rows(new).values())) == archived
    assert unchanged(cold_rows(archive)) == archived, "the archive was changed"
    assert list_files(archive)


def main(store: Path, folder: Path, first: int, step: int, mode: str = "") -> dict:
    archived = unchanged(list(hot_rows(store, "status = 'ARCHIVED'").values()))
    before = unchanged(list(hot_rows(store).values()))
    deaths, failures = 0, []
    for at in itertools.count(first, step):
        db, archive = flushed(store, folder / "work")
        switch = KillSwitch(at)
        work = into if mode else restore
        status = run_child(
            lambda db=db, archive=archive, switch=switch, work=work: (switch.install(), work(db, archive))
        )
        died = os.WIFSIGNALED(status)
        deaths += died
        if not died and status:
            failures.append(f"call {at}: the restoration failed")
        expected, verify = (archived, check_new) if mode else (before, check)
        if run_child(lambda db=db, archive=archive, expected=expected, verify=verify: verify(expected, db, archive)):
            failures.append(f"call {at}")
        if not died:
            return {"deaths": deaths, "failures": failures}
    raise AssertionError


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])))  # noqa: T201
