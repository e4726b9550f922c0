"""Kills an expiry, or the flush after a backup's return, before every change, and checks what is left.

    python -m vidurai_pipeline_tests.care.retention_driver expire HOME FOLDER EVERY
    python -m vidurai_pipeline_tests.care.retention_driver flush HOME FOLDER EVERY

HOME holds the archive, and for the flush a hot store whose memories are all archived already, or have expired.

Run as a process of its own: its children are forked while it has one thread only.
"""

import itertools
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.retention import expire
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.settings import RetentionRule
from vidurai_pipeline_tests.cold.rewriting_driver import rows, rows_apart
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child

NOW = datetime(2100, 1, 1, tzinfo=UTC)


def expire_noise(root: Path) -> None:
    expire(Archive(root), [RetentionRule.parse("NOISE=1d")], now=NOW)


def flush(root: Path) -> None:
    MemoryArchiver(root.parent / "vidurai.db", root).flush()


def tombstones(archive: Archive) -> Counter:
    """The ids of all tombstones."""
    return Counter(
        id_
        for file in archive.tombstones.files()
        for id_ in pq.read_table(pa.BufferReader((archive.root / file.relative).read_bytes()))["id"].to_pylist()
    )


def ids(found: Counter) -> Counter:
    return Counter(int(row.split("'id': ")[1].split(",")[0]) for row in found.elements())


def check_flush(root: Path, before: Counter) -> None:
    assert rows(root) == before
    flush(root)
    assert rows(root) == before
    with closing(sqlite3.connect(root.parent / "vidurai.db")) as con:
        assert con.execute("SELECT count(*) FROM memories").fetchone() == (0,)
        assert con.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def check_expiry(root: Path, before: Counter) -> None:
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
    assert tombstones(archive) == ids(before - kept)
    odd = [path for path in (*root.rglob("*"), *root.parent.iterdir()) if path.name.endswith((".next", ".part"))]
    assert not odd, odd


def main(mode: str, source: Path, folder: Path, every: int) -> dict:
    work, check = {"expire": (expire_noise, check_expiry), "flush": (flush, check_flush)}[mode]
    before = rows_apart(source / "archive")
    root = folder / "archive"

    def die(number: int) -> None:
        KillSwitch(number).install()
        work(root)

    deaths, failures = 0, []
    for number in itertools.count(1, every):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        status = run_child(lambda number=number: die(number))
        if not os.WIFSIGNALED(status):
            if status:
                failures.append(f"call {number}: it failed")
            break
        deaths += 1
        if run_child(lambda: check(root, before)):
            failures.append(f"call {number}")
    return {"deaths": deaths, "failures": failures}


if __name__ == "__main__":
    mode, source, folder, every = sys.argv[1:]
    sys.stdout.write(json.dumps(main(mode, Path(source), Path(folder), int(every))))
