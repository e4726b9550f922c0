"""What compaction costs, and what it saves: the same archive before and after, in one go.

    python -m benchmarks.compaction [--files 2850] [--rows-per-file 12] [--large 1000000] [--runs 5]

Makes an archive of small files in months that are over, times each command as a person would run it, compacts the
archive, and times them again. Then compacts one month of many rows, for its time, its memory and how long it locks the
archive. Prints tables, and writes results/compaction.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.history import RESULTS, WORDS, batch
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.hot.schema import SPECIFIED

COMMANDS = {
    "query": ("query", "SELECT count(*), avg(access_count) FROM history"),
    "query of one id": ("query", "SELECT gist FROM history WHERE id = 777"),
    "doctor": ("doctor",),
    "run with nothing to do": ("run",),
    "dream with nothing to do": ("dream",),
}


def make_archive(base: Path, files: int, rows: int, *, days: float, first: datetime) -> None:
    """Make an archive of made-up memories with its manifests."""
    random = np.random.default_rng(7)
    texts = pa.array([" ".join(random.choice(WORDS, random.integers(8, 80))) for _ in range(4_000)])
    gists = pa.array([" ".join(random.choice(WORDS, 8)) for _ in range(4_000)])
    schema = pa.schema([pa.field(name, type_) for name, type_ in SPECIFIED.items()])
    archive, entries = Archive(base), {}
    for number in range(files):
        moment = first + timedelta(days=days * number / files)
        path = archive.new_path(moment)
        with archive.writer(path, schema) as writer:
            ids = np.arange(number * rows, (number + 1) * rows) + 1
            writer.write(batch(random, ids, moment, (texts, gists)).cast(schema))
            writer.annotate({"vidurai_pipeline": "1", "vidurai_pipeline.timezone": "UTC"})
        writer.path.rename(path)
        entries[str(path.relative_to(base))] = archive.contents(path).entry()
    archive.manifests.update(entries)


def timed(home: Path, *command: str) -> tuple[float, float, str]:
    """Run a command on a folder of Vidurai's: seconds, its peak memory in MB, and what it printed."""
    environment = {**os.environ, "VIDURAI_HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "vidurai_pipeline", *command], env=environment, stdout=printed
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        printed.seek(0)
        peak = used.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)
        return time.monotonic() - began, peak, printed.read()


def measure(home: Path, runs: int) -> dict[str, float]:
    """Median seconds of each command, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(runs + 1):
        for name, command in COMMANDS.items():
            took, _, _ = timed(home, *command)
            if run:
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compacted(home: Path) -> dict[str, Any]:
    """Compact an archive; what its report says, seconds, and peak memory."""
    seconds, peak, printed = timed(home, "compact", "--format", "json")
    result = {name: value for name, value in json.loads(printed).items() if name != "months"}
    return {**result, "seconds": seconds, "peak_mb": peak}


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=110)
    table = Table("command", "seconds before", "seconds after")
    for name, seconds in result["before"].items():
        table.add_row(name, f"{seconds:.2f}", f"{result['after'][name]:.2f}")
    console.print(table)
    table = Table("compaction of", "files", "MB", "seconds", "peak MB", "lock s")
    for name in ("small", "large"):
        one = result[name]
        files = f"{one['files_before']:,} -> {one['files_after']:,}"
        size = f"{one['bytes_before'] / 1e6:.1f} -> {one['bytes_after'] / 1e6:.1f}"
        figures = (f"{one[figure]:.2f}" for figure in ("seconds", "peak_mb", "longest_hold"))
        table.add_row(name, files, size, *figures)
    console.print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2_850)
    parser.add_argument("--rows-per-file", type=int, default=12)
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the large month")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the archives are made; default a temporary folder")
    options = parser.parse_args()
    first = datetime(2024, 1, 1, 2, tzinfo=UTC)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="compaction-bench-", dir=options.folder) as name:
        home = Path(name) / "small"
        make_store(home / "vidurai.db", 0)
        make_archive(home / "archive", options.files, options.rows_per_file, days=365, first=first)
        result["before"] = measure(home, options.runs)
        result["small"] = compacted(home)
        result["after"] = measure(home, options.runs)
        home = Path(name) / "large"
        make_store(home / "vidurai.db", 0)
        make_archive(home / "archive", 60, options.large // 60, days=30, first=first)
        result["large"] = compacted(home)
    report(result)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    (RESULTS / "compaction.json").write_text(json.dumps({"machine": machine, **result}, indent=2))


if __name__ == "__main__":
    main()
