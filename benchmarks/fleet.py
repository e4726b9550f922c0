"""One Q-table from the experiences of many stores: how long it takes, and how much memory.

    python -m benchmarks.fleet [--experiences 100000000] [--stores 200]

The archives are made up, of no columns but those that learning reads. Each memory is another one, but texts are drawn
from some thousands, of a few to some ten thousand characters, so that the files stay small. They need about 12 bytes
for each experience, in the folder that TMPDIR names, and are deleted afterwards. The time includes the start of DuckDB,
but not the import of the libraries; memory is the process's peak. Prints a table, and writes results/fleet.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_FILE_ROWS = 50_000

LEARN = """
import json, resource, sys, time
import duckdb, numpy, pyarrow
from vidurai_pipeline.rl.fleet import learn_fleet
from vidurai_pipeline.settings import load_settings
began = time.monotonic()
report = learn_fleet(load_settings())
seconds = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({
    "experiences": report.experiences, "stores": len(report.stores), "states": report.states,
    "iterations": report.iterations, "residual": report.residual, "worse": len(report.worse),
    "seconds": seconds, "peak_mb": peak,
}))
"""


def make_archive(archive: Path, experiences: int, stores: int) -> None:
    """Write an archive with so many experiences of so many stores."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.004, 4_000), 8_000)
    lengths[::50] *= 8
    texts = pa.array([f"{n} {'x' * length}" for n, length in enumerate(lengths.tolist())])
    gists = pa.array([f"gist {n}" for n in range(500)])
    saliences = pa.array(["CRITICAL", "HIGH", "MEDIUM", "LOW", "NOISE"])
    times = pa.array([f"2026-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}" for n in range(3_600)])
    for store in range(stores):
        good = rng.uniform(0.4, 0.9)
        mine = experiences // stores + (store < experiences % stores)
        for number, first in enumerate(range(0, mine, _FILE_ROWS)):
            count = min(_FILE_ROWS, mine - first)
            night = f"2026-{number % 12 + 1:02}-{number // 12 % 28 + 1:02}T02:00:00.{number:06}"
            rows = pa.table(
                {
                    "id": pa.array(np.arange(first, first + count)),
                    "verbatim": texts.take(pa.array(rng.integers(len(texts), size=count))),
                    "gist": gists.take(pa.array(rng.integers(len(gists), size=count))),
                    "salience": saliences.take(pa.array(rng.choice(5, count, p=[0.05, 0.15, 0.4, 0.25, 0.15]))),
                    "created_at": times.take(pa.array(rng.integers(len(times), size=count))),
                    "outcome": pa.array(np.where(rng.random(count) < good, 1, -1)),
                    "archived_at": pa.repeat(night, count),
                }
            ).replace_schema_metadata({"vidurai_pipeline.timezone": "UTC"})
            path = archive / f"store=s{store:04}/year=2026/month={night[5:7]}/memories_{number:06}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path, compression="zstd")


def main() -> None:
    """Write the archive, learn from it in a process of its own, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--experiences", type=int, default=100_000_000)
    parser.add_argument("--stores", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vidurai-fleet-") as folder:
        home = Path(folder)
        began = time.monotonic()
        make_archive(home / "archive", arguments.experiences, arguments.stores)
        made = time.monotonic() - began
        size = sum(path.stat().st_size for path in home.rglob("*.parquet"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VIDURAI_")}
        done = subprocess.run(
            [sys.executable, "-c", LEARN],
            env=environment | {"VIDURAI_HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout) | {"archive_mb": round(size / 1e6), "cores": os.cpu_count()}
    table = Table("experiences", "stores", "archive", "seconds", "experiences/s", "peak", "states", "iterations")
    table.add_row(
        f"{found['experiences']:,}",
        f"{found['stores']:,}",
        f"{found['archive_mb']:,} MB",
        f"{found['seconds']:.1f}",
        f"{found['experiences'] / found['seconds']:,.0f}",
        f"{found['peak_mb']:,.0f} MB",
        f"{found['states']:,}",
        f"{found['iterations']:,}",
    )
    Console(width=110).print(
        table, f"written in {made:.0f} s; Python {platform.python_version()}, {platform.machine()}"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fleet.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
