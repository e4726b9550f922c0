"""Kills an expiry before every change to the file system, and checks what is left.

    python -m vidurai_pipeline_tests.care.retention_driver ARCHIVE FOLDER EVERY

Run as a process of its own: its children are forked while it has one thread only.
"""

import json
import os
import shutil
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.care.retention import expire
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.settings import RetentionRule
from vidurai_pipeline_tests.cold.rewriting_driver import rows, rows_apart
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child

NOW = datetime(2100, 1, 1, tzinfo=UTC)


def expire_noise(root: Path) -> None:
    expire(Archive(root), [RetentionRule.parse("NOISE=1d")], now=NOW)


def killed_at(number: int, root: Path) -> None:
    KillSwitch(number).install()
    expire_noise(root)


def tombstones(archive: Archive) -> Counter:
    """The ids of all tombstones."""
    return Counter(
        id_
        for file in archive.tombstones.files()
        for id_ in pq.read_table(pa.BufferReader((archive.root / file.relative).read_bytes()))["id"].to_pylist()
    )


def ids(found: Counter) -> Counter:
    return Counter(int(row.split("'id': ")[1].split(",")[0]) for row in found.elements())


def check(root: Path, before: Counter) -> None:
    archive = Archive(root)
    kept = Counter({row: count for row, count in before.items() if "'salience': 'NOISE'" not in row})
    left = rows(root)
    assert left <= before, "a row came twice, or out of nowhere"
    assert left >= kept, "a row left that no rule fits"
    assert archive.tombstones.damaged() == []
    assert set(ids(before - left)) <= set(tombstones(archive)), "a row left without a tombstone"
    assert archive.manifests.flaws(list_files(root)) == []
    expire_noise(root)
    assert rows(root) == kept, "after the next run"
    # A death between writing a month's file anew and removing the old one leaves both, until more are added.
    assert set(tombstones(archive)) == set(ids(before - kept))
    odd = [path for path in (*root.rglob("*"), *root.parent.iterdir()) if path.name.endswith((".next", ".part"))]
    assert not odd, odd


def main(source: Path, folder: Path, every: int) -> dict:
    before = rows_apart(source)
    deaths, number, failures = 0, 1, []
    while True:
        root = folder / "archive"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, root)
        status = run_child(lambda root=root, number=number: killed_at(number, root))
        if not os.WIFSIGNALED(status):
            if status:
                failures.append(f"call {number}: the expiry failed")
            break
        deaths += 1
        if run_child(lambda root=root: check(root, before)):
            failures.append(f"call {number}")
        number += every
    return {"deaths": deaths, "failures": failures}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
