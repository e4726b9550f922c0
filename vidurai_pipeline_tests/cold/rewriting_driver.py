"""Kills a rewriting of a month before every change to the file system, and checks what is left.

Run as a process of its own: its children are forked while it has one thread only.
"""

import json
import os
import shutil
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc

from vidurai_pipeline.care.compaction import compact
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.deaths import KillSwitch, run_child
from vidurai_pipeline_tests.support.encrypted import open_file


def rows(root: Path) -> Counter:
    """All rows, as a plain pattern of another tool finds them."""
    found: Counter = Counter()
    for path in root.glob("**/*.parquet"):
        with open_file(path) as file:
            found.update(map(repr, file.read(use_threads=False).to_pylist()))
    return found


def rewrite(root: Path, *, without: int | None) -> None:
    archive = Archive(root, keys=KeyRing(load_settings().archive_key_file))
    if sys.argv[3] == "compact":
        # Portion by portion.
        report = compact(archive, pause=0, rows_per_file=1_000, now=datetime(2999, 1, 1, tzinfo=UTC))
        assert report.sound, report
        return
    with archive.lock("test"):
        archive.sweep()
        files = list_files(root)
        folder = files[0].relative.rpartition("/")[0]
        leave_out = None if without is None else lambda table: pc.equal(table["id"], without)  # pyright: ignore[reportAttributeAccessIssue]
        rewrite_folder(archive, folder, files, rows_per_file=400, bytes_per_file=1 << 30, leave_out=leave_out)


def killed_at(number: int, root: Path, without: int | None) -> None:
    KillSwitch(number).install()
    rewrite(root, without=without)


def check(root: Path, before: Counter, after: Counter) -> None:
    assert rows(root) in (before, after), "right after the death"
    archive = Archive(root, keys=KeyRing(load_settings().archive_key_file))
    with archive.lock("test"):
        archive.sweep()
    assert rows(root) in (before, after), "after the sweep"
    assert (flaws := archive.manifests.flaws(list_files(root))) == [], flaws
    odd = [path for path in (*root.rglob("*"), *root.parent.iterdir()) if path.name.endswith((".next", ".part"))]
    assert not odd, odd
    rewrite(root, without=int(sys.argv[3]) if before != after else None)
    assert rows(root) == after, "after the next run"


def main(source: Path, folder: Path, without: int | None, every: int) -> dict:
    before = rows_apart(source)
    after = Counter({row: n for row, n in before.items() if without is None or f"'id': {without}," not in row})
    deaths, number, failures = 0, 1, []
    while True:
        root = folder / "archive"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, root)
        status = run_child(lambda root=root, number=number: killed_at(number, root, without))
        if not os.WIFSIGNALED(status):
            if status:
                failures.append(f"call {number}: the rewriting failed")
            break
        deaths += 1
        if run_child(lambda root=root: check(root, before, after)):
            failures.append(f"call {number}")
        number += every
    return {"deaths": deaths, "failures": failures}


def rows_apart(root: Path) -> Counter:
    """The rows, read in a child: reading starts threads, and this process must have none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(writer, "w") as answer:
            json.dump(rows(root), answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = Counter(json.load(answer))
    os.waitpid(pid, 0)
    return found


if __name__ == "__main__":
    leave_out = None if sys.argv[3] in {"-", "compact"} else int(sys.argv[3])
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), leave_out, int(sys.argv[4]))))
