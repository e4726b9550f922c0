"""Kills an erasure before its changes to the file system or SQLite. Started by test_erasing.py.

    python -m vidurai_pipeline_tests.archival.erasing_driver STORE FOLDER FIRST STEP

STORE is flushed first. After each death the next flush runs undisturbed; then the erased memories must be gone, and
every other memory must be in exactly one tier.
"""

import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path

from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline_tests.archival.crash_driver import flush, flushed
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child
from vidurai_pipeline_tests.support.tiers import cold_rows, hot_rows


def check(others: Counter, db: Path, archive: Path, begun: bool) -> None:
    assert Manifests(archive).flaws(list_files(archive)) == [], "a query would be refused"
    flush(db, archive)
    rows = Counter([*hot_rows(db).values(), *cold_rows(archive)])
    assert not others - rows, "another memory was lost"
    if begun:
        assert rows == others, "an erased memory is left"
        assert MemoryEraser(db, archive).history(), "the erasure was not recorded"
    assert not list((archive / ".intents").glob("*")), "something is left to be done"
    assert not list(archive.rglob("*.part"))


def main(store: Path, folder: Path, first: int, step: int) -> dict:
    others = Counter(row for id_, row in hot_rows(store).items() if id_ % 3)
    deaths, failures = 0, []
    for at in itertools.count(first, step):
        db, archive = flushed(store, folder / "work")
        switch = KillSwitch(at)
        eraser = MemoryEraser(db, archive)
        status = run_child(lambda switch=switch, eraser=eraser: (switch.install(), eraser.erase(where="id % 3 = 0")))
        died = os.WIFSIGNALED(status)
        deaths += died
        if not died and status:
            failures.append(f"change {at}: the erasure failed")
        begun = not died or any((archive / ".intents").glob("*.json"))
        if run_child(lambda db=db, archive=archive, begun=begun: check(others, db, archive, begun)):
            failures.append(f"change {at}")
        if not died:
            return {"deaths": deaths, "failures": failures}
    raise AssertionError


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))  # noqa: T201
