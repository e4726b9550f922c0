"""Learning beside the reference implementation: from Parquet to a saved table, in one go, in turn.

    python -m benchmarks.dream [--rows 100000 1000000] [--runs 3] [--no-reference]

Two contestants, each in a process of its own, on the same archive and from an empty table:

reference   the public vidurai package's DreamCycle, told to take all experiences at once
ours        DreamCycle().run(), with the gate, the note on progress and the synced write

The archive is made up: texts of some hundred characters, now and then of many thousands, in files of 50,000 rows. Each
time includes the start of DuckDB, but not the import of the libraries. The reference learns slowly, so it gets the
newest experiences only, as many as ``--reference-rows`` says; what counts is experiences per second.
Prints a table, and writes results/dream.json. Python of the reference: VIDURAI_REFERENCE_PYTHON, as `make bench` sets
it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_FILE_ROWS = 50_000

REFERENCE = """
import json, resource, sys, time
from pathlib import Path
from loguru import logger
logger.remove()
import duckdb, pandas
from vidurai.core.rl.dreamer import DreamCycle
from vidurai.core import rl_agent_v2
dream = DreamCycle(max_episodes=int(sys.argv[1]))
began = time.monotonic()
stats = dream.run()
seconds = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"experiences": stats["episodes"], "seconds": seconds, "peak_mb": peak}))
"""

OURS = """
import json, resource, sys, time
from pathlib import Path
import duckdb, numpy, pyarrow
from vidurai_pipeline.rl.dreamer import DreamCycle
dream = DreamCycle()
began = time.monotonic()
stats = dream.run()
seconds = time.monotonic() - began
assert stats["success"], stats["error"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"experiences": stats["episodes"], "seconds": seconds, "peak_mb": peak}))
"""


def make_archive(archive: Path, experiences: int) -> None:
    """Write an archive with so many experiences, in month after month."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "cache", "is", "stale", "after", "a", "deploy", "fix", "import", "error", "in", "parser"])
    lengths = np.minimum(rng.geometric(0.02, 2_000), 8_000)
    lengths[::50] *= 40
    texts = pa.array([" ".join(rng.choice(words, length)) for length in lengths])
    gists = pa.array([" ".join(rng.choice(words, 6)) for _ in range(500)])
    saliences = pa.array(["CRITICAL", "HIGH", "MEDIUM", "LOW", "NOISE"])
    for number, first in enumerate(range(0, experiences, _FILE_ROWS)):
        count = min(_FILE_ROWS, experiences - first)
        year, month = 2020 + number // 12 % 6, number % 12 + 1
        night = f"{year}-{month:02}-{1 + number // 72:02}T02:00:00."
        ids = np.arange(first, first + count)
        empty = pa.nulls(count, pa.string())
        rows = pa.table(
            {
                "id": pa.array(ids),
                # No two texts are the same, or Parquet would store each of them once.
                "verbatim": pc.binary_join_element_wise(  # pyright: ignore[reportAttributeAccessIssue]
                    pa.array(ids).cast(pa.string()), texts.take(pa.array(rng.integers(len(texts), size=count))), " "
                ),
                "gist": gists.take(pa.array(rng.integers(len(gists), size=count))),
                "salience": saliences.take(pa.array(rng.choice(5, count, p=[0.05, 0.15, 0.4, 0.25, 0.15]))),
                "created_at": pa.array([f"{year - 1}-01-01T00:00:00.{n:06}" for n in range(count)]),
                "expires_at": empty,
                "access_count": pa.array(rng.integers(5, size=count)),
                "outcome": pa.array(rng.choice([1, -1], count)),
                "file_path": empty,
                "decay_reason": empty,
                "event_type": empty,
                "tags": empty,
                "project_id": pa.array(np.ones(count, np.int64)),
                "archived_at": pa.array([f"{night}{n:06}" for n in range(count)]),
            }
        )
        path = archive / f"year={year}" / f"month={month:02}" / f"memories_{number:06}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path, compression="snappy")


def run_once(who: str, home: Path, reference_rows: int) -> dict[str, Any]:
    """One run from an empty table."""
    vidurai = home / ".vidurai"
    for leftover in vidurai.glob("q_table*"):
        leftover.unlink()
    command = (
        [os.environ["VIDURAI_REFERENCE_PYTHON"], "-c", REFERENCE, str(reference_rows)]
        if who == "reference"
        else [sys.executable, "-c", OURS]
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIDURAI_")}
    environment.update(HOME=str(home), VIDURAI_HOME=str(vidurai))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--reference-rows", type=int, default=20_000)
    parser.add_argument("--no-reference", action="store_true")
    options = parser.parse_args()
    contestants = ["ours"] if options.no_reference else ["reference", "ours"]
    table = Table("archive", "who", "experiences", "seconds", "experiences/s", "times the reference", "peak MB")
    report = []
    for rows in options.rows:
        measured: dict[str, list[dict[str, Any]]] = {who: [] for who in contestants}
        with tempfile.TemporaryDirectory(prefix="dream-bench-") as name:
            make_archive(Path(name) / ".vidurai" / "archive", rows)
            for _ in range(options.runs):
                for who in contestants:
                    measured[who].append(run_once(who, Path(name), min(rows, options.reference_rows)))
        speeds = {
            who: statistics.median(run["experiences"] / run["seconds"] for run in runs)
            for who, runs in measured.items()
        }
        report.append({"rows": rows, "experiences_per_second": speeds, "measured": measured})
        for who, runs in measured.items():
            table.add_row(
                f"{rows:,}",
                who,
                f"{runs[0]['experiences']:,}",
                f"{statistics.median(run['seconds'] for run in runs):.2f}",
                f"{speeds[who]:,.0f}",
                f"{speeds[who] / speeds['reference']:.1f}" if "reference" in speeds else "-",
                f"{max(run['peak_mb'] for run in runs):.0f}",
            )
    Console(width=110).print(table)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    (RESULTS / "dream.json").write_text(json.dumps({"machine": machine, "results": report}, indent=2))


if __name__ == "__main__":
    main()
