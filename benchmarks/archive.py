"""Archival beside the reference implementation: the same stores, in one go, in turn.

    python -m benchmarks.archive [--rows 10000 100000 300000] [--runs 3] [--against CHECKOUT]

Contestants:

reference   the public vidurai package's MemoryArchiver: select, write, delete; no verification
bare        the same three steps with this project's parts
full        the whole service: read back and compare, clean the search index and the gists, sync to the disk
upkeep      full, and afterwards merge the search index, so that it takes less space (by --contestants)
earlier ... the same, by the code of another checkout of this project (by --against)

Each run gets a fresh copy of the store, in a process of its own. A prober in a third process asks for the write lock
all the time, to see how long a writer would have had to wait. Memory is the largest proportional set size seen: pages
that the contestant's own processes share count once. Prints a table, and writes results/archive.json.
Python of the reference: VIDURAI_REFERENCE_PYTHON, as `make bench` sets it.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from vidurai_pipeline.hot.sample_store import make_store

RESULTS = Path(__file__).parent / "results"

REFERENCE = """
import json, sys, time
from pathlib import Path
from loguru import logger
logger.remove()
from vidurai.core.archival.archiver import MemoryArchiver
import pandas, pyarrow.parquet
began = time.monotonic()
rows = MemoryArchiver(Path(sys.argv[1]), Path(sys.argv[2])).flush_archived_memories()
seconds = time.monotonic() - began
print(json.dumps({"rows": rows, "seconds": seconds}))
"""

PROBER = """
import json, sqlite3, sys, time
con = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
print("ready", flush=True)
waits, began = [], None
import select
while not select.select([sys.stdin], [], [], 0.0005)[0]:
    try:
        con.execute("BEGIN IMMEDIATE")
        con.execute("ROLLBACK")
        if began is not None:
            waits.append(time.monotonic() - began)
        began = None
    except sqlite3.OperationalError:
        began = began or time.monotonic()
print(json.dumps(max(waits, default=0.0)))
"""


def memory(process: psutil.Process) -> float:
    """The proportional set size of a process and its children, in MB."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return sum(each.memory_full_info().pss for each in [process, *process.children()]) / 1024**2
    return 0.0


def run_once(who: str, store: Path, folder: Path, against: Path | None) -> dict[str, Any]:
    """One run on a fresh copy of a store."""
    db, archive = folder / "vidurai.db", folder / "archive"
    shutil.rmtree(archive, ignore_errors=True)
    for leftover in folder.glob("vidurai.db*"):
        leftover.unlink()
    shutil.copy(store, db)
    os.sync()
    command = (
        [os.environ["VIDURAI_REFERENCE_PYTHON"], "-c", REFERENCE, str(db), str(archive)]
        if who == "reference"
        else [
            sys.executable,
            "-m",
            "benchmarks.archive_contestant",
            who.removeprefix("earlier "),
            str(db),
            str(archive),
        ]
    )
    # The contestant imports the package from the folder that it starts in.
    checkout = against if who.startswith("earlier ") else Path(__file__).parents[1]
    prober = subprocess.Popen(
        [sys.executable, "-c", PROBER, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert prober.stdout is not None
    prober.stdout.readline()
    environment = {**os.environ, "HOME": str(folder)}
    contestant = psutil.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)
    peak = 0.0
    while contestant.poll() is None:
        peak = max(peak, memory(contestant))
        time.sleep(0.05)
    output, _ = contestant.communicate()
    if contestant.returncode:
        raise SystemExit(f"{who} failed")
    longest, _ = prober.communicate("stop\n")
    with contextlib.closing(sqlite3.connect(db)) as con:
        # The reference archives more than SQLite's 250,000 bound values, and then can't delete them.
        (left,) = con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone()
    measured = json.loads(output.splitlines()[-1])
    return {**measured, "peak_mb": peak, "left": left, "longest_wait_ms": json.loads(longest) * 1000}


def compare(rows: int, runs: int, contestants: list[str], against: Path | None) -> dict[str, Any]:
    """All contestants in turn on one store; medians."""
    with tempfile.TemporaryDirectory(prefix="archive-bench-") as name:
        folder = Path(name)
        store = folder / "original.db"
        made = make_store(store, round(rows / 0.9), archived_share=0.9)
        measured: dict[str, list[dict[str, Any]]] = {who: [] for who in contestants}
        for _ in range(runs):
            for who in contestants:
                measured[who].append(run_once(who, store, folder, against))
    medians = {
        who: {name: statistics.median(run[name] for run in each) for name in each[0]} for who, each in measured.items()
    }
    return {"rows": made.by_status["ARCHIVED"], "runs": runs, "medians": medians, "measured": measured}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", default=["reference", "bare", "full"])
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    options = parser.parse_args()
    if options.against:
        options.contestants += [f"earlier {who}" for who in options.contestants if who != "reference"]
    if "reference" in options.contestants and not os.environ.get("VIDURAI_REFERENCE_PYTHON"):
        parser.error("set VIDURAI_REFERENCE_PYTHON, run `make bench`, or leave the reference out by --contestants")
    beside = "reference" if "reference" in options.contestants else options.contestants[-1]
    table = Table("rows", "who", "seconds", "rows/s", f"times {beside}", "not purged", "peak MB", "longest wait ms")
    report = []
    for rows in options.rows:
        result = compare(rows, options.runs, options.contestants, options.against)
        report.append(result)
        measure = result["medians"][beside]["seconds"]
        for who, figures in result["medians"].items():
            table.add_row(
                f"{result['rows']:,}",
                who,
                f"{figures['seconds']:.2f}",
                f"{figures['rows'] / figures['seconds']:,.0f}",
                f"{measure / figures['seconds']:.2f}",
                f"{figures['left']:,.0f}",
                f"{figures['peak_mb']:.0f}",
                f"{figures['longest_wait_ms']:.0f}",
            )
    Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    (RESULTS / "archive.json").write_text(json.dumps({"machine": machine, "results": report}, indent=2))


if __name__ == "__main__":
    main()
