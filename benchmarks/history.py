"""Questions to the archive beside plain DuckDB and the reference implementation: the same files, in one go, in turn.

    python -m benchmarks.history [--rows 3000000] [--files 730] [--runs 5] [--folder DIR]

Three contestants, each in a process of its own, asked one after the other, question by question:

reference   the public vidurai package's RepoAnalyst
plain       DuckDB's read_parquet over the same files
ours        RepoAnalyst as it comes: its memory limit, its views without duplicates, its check of each statement

The search is compared with two bare scans of its columns: one that tests them with ILIKE, and one that only reads them.
Opening is measured on an archive of 5,000 files, for the first time and again. The archives are made once and kept in
the folder. Prints tables, and writes results/history.json. Python of the reference: VIDURAI_REFERENCE_PYTHON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.hot.schema import SPECIFIED

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIRST_DAY = datetime(2023, 1, 1, 2, tzinfo=UTC)
WORDS = [
    "parser",
    "token",
    "cache",
    "retry",
    "deadline",
    "socket",
    "thread",
    "schema",
    "migration",
    "index",
    "query",
    "buffer",
    "config",
    "test",
    "build",
    "deploy",
    "session",
    "cursor",
    "widget",
    "layout",
    "render",
    "signal",
    "queue",
    "worker",
    "lock",
    "commit",
    "branch",
    "merge",
    "review",
    "style",
    "lint",
    "module",
]
RARE = "zeitgeber"

AGGREGATES = {
    "count": "SELECT count(*) FROM history",
    "outcomes": """
        SELECT count(*), sum(CASE WHEN outcome = 1 THEN 1 ELSE 0 END), sum(CASE WHEN outcome = -1 THEN 1 ELSE 0 END),
            avg(access_count), min(created_at), max(archived_at) FROM history
    """,
    "by salience": "SELECT salience, count(*), avg(access_count) FROM history GROUP BY salience",
    "by month": "SELECT year::INT, month::INT, count(*), sum(outcome) FROM history GROUP BY ALL",
    "paths": "SELECT count(DISTINCT file_path), max(strlen(gist)) FROM history WHERE project_id < 5",
    "training": """
        SELECT id, verbatim, salience, outcome FROM history WHERE outcome IS NOT NULL AND outcome != 0
        ORDER BY archived_at DESC, id DESC LIMIT 1000
    """,
}
MONTH = "SELECT count(*), avg(strlen(verbatim)), max(gist) FROM history WHERE year = 2024 AND month = 2"
_FIELDS = ("verbatim", "gist", "file_path", "tags")
READ = f"SELECT {', '.join(f'sum(strlen({field}))' for field in _FIELDS)} FROM history"


def scan(words: str) -> str:
    """The search as one would write it by hand."""
    tests = [f"({' OR '.join(f'''{field} ILIKE '%{word}%' ''' for field in _FIELDS)})" for word in words.split()]
    return f"SELECT count(*) FROM history WHERE {' AND '.join(tests)}"


SEARCHES = {"rare word": RARE, "two words": "retry zeit"}


def make_archive(base: Path, rows: int, files: int) -> Path:
    """Make an archive of made-up memories, one file a day, unless it is there already."""
    done = base / ".complete"
    if done.exists():
        return base
    shutil.rmtree(base, ignore_errors=True)
    random = np.random.default_rng(7)
    texts = pa.array([" ".join(random.choice(WORDS, random.integers(8, 80))) for _ in range(4_000)])
    gists = pa.array([" ".join(random.choice(WORDS, 8)) for _ in range(4_000)])
    schema = pa.schema([pa.field(name, type_) for name, type_ in SPECIFIED.items()])
    archive = Archive(base)
    for number, ids in enumerate(np.array_split(np.arange(1, rows + 1), files)):
        moment = FIRST_DAY + timedelta(days=730 * number / files)
        path = archive.new_path(moment)
        with archive.writer(path, schema) as writer:
            writer.write(batch(random, ids, moment, (texts, gists)).cast(schema))
        writer.path.rename(path)
    done.touch()
    return base


def batch(
    random: np.random.Generator, ids: np.ndarray, moment: datetime, pools: tuple[pa.Array, pa.Array]
) -> pa.RecordBatch:
    """Made-up memories with these ids, archived at a moment."""
    rows = len(ids)
    texts, gists = pools

    def pick(values: Sequence[str] | pa.Array) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(random.integers(0, len(values), rows)))

    def joined(*parts: Any) -> pa.Array:
        return pc.binary_join_element_wise(*parts, " ")  # pyright: ignore[reportAttributeAccessIssue]

    mark = pa.array(np.where(random.random(rows) < 1e-4, f"the {RARE} again", "done"))
    columns = {
        "id": pa.array(ids),
        "verbatim": joined(pick(texts), mark, pa.array(ids).cast(pa.string())),
        "gist": joined(pick(gists), pa.array(ids).cast(pa.string())),
        "salience": pick(["CRITICAL", "HIGH", "MEDIUM", "LOW", "LOW", "NOISE"]),
        "created_at": pick([(moment - timedelta(minutes=n * 37)).replace(tzinfo=None).isoformat() for n in range(900)]),
        "access_count": pa.array(random.integers(0, 30, rows)),
        "outcome": pa.array(random.choice([-1, 0, 0, 0, 1], rows)),
        "file_path": pick([f"src/{one}/{other}.py" for one in WORDS for other in WORDS]),
        "event_type": pick(["file_edit", "error", "chat"]),
        "tags": pick([f'["{word}"]' for word in WORDS]),
        "project_id": pa.array(random.integers(1, 20, rows)),
        "archived_at": pa.array([moment.replace(tzinfo=None).isoformat()] * rows),
    }
    return pa.record_batch({name: columns.get(name, pa.nulls(rows)) for name in SPECIFIED})


class Worker:
    """A contestant's process."""

    def __init__(self, who: str, base: Path, cache: Path) -> None:
        python = os.environ["VIDURAI_REFERENCE_PYTHON"] if who == "reference" else sys.executable
        command = [python, str(ROOT / "benchmarks" / "history_worker.py"), who, str(base)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": "" if who == "reference" else str(ROOT)},
        )
        self.opened = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, question: str) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compare(base: Path, contestants: list[str], runs: int, cache: Path) -> dict[str, Any]:
    """Ask everyone everything, in turn, after one round that does not count."""
    questions = {name: dict.fromkeys(contestants, sql) for name, sql in {**AGGREGATES, "one month": MONTH}.items()}
    for name, words in SEARCHES.items():
        questions[f"search: {name}"] = {"plain": scan(words), "ours": f"search {words}"}
        if "reference" in contestants:
            questions[f"search: {name}"]["reference"] = scan(words)
    questions["only reading"] = {"plain": READ}
    workers = {who: Worker(who, base, cache) for who in contestants}
    seconds: dict[str, dict[str, list[float]]] = {name: {who: [] for who in asked} for name, asked in questions.items()}
    peaks: dict[str, float] = {}
    try:
        for run in range(runs + 1):
            for name, asked in questions.items():
                answers = {who: workers[who].ask(asked[who]) for who in sorted(asked, reverse=bool(run % 2))}
                expected = answers["plain"]["rows"]
                for who, answer in answers.items():
                    if answer["rows"] != expected:
                        raise SystemExit(f"{who} answers {name} otherwise than plain DuckDB does")
                    peaks[who] = max(peaks.get(who, 0.0), answer["peak_mb"])
                    if run:
                        seconds[name][who].append(answer["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    return {"seconds": seconds, "peak_mb": peaks}


def opening(base: Path, contestants: list[str], runs: int, folder: Path) -> dict[str, list[float]]:
    """Seconds to open an archive in a new process; of ours also with nothing in the cache."""
    times: dict[str, list[float]] = {}
    for run in range(runs):
        for who in [*contestants, "ours, first time"]:
            cache = folder / (f"cache-{run}" if who == "ours, first time" else "cache")
            worker = Worker(who.partition(",")[0], base, cache)
            if run or who == "ours, first time":
                times.setdefault(who, []).append(worker.opened["seconds"])
            worker.close()
    return times


def report(result: dict[str, Any], contestants: list[str]) -> None:
    """Print medians, and the medians of the ratios within each round."""
    console = Console(width=110)
    table = Table("question", *[f"{who} s" for who in contestants], "ours / plain", "ours / reference")
    for name, times in result["seconds"].items():
        cells = [f"{statistics.median(times[who]):.3f}" if who in times else "" for who in contestants]
        table.add_row(name, *cells, ratio(times, "plain"), ratio(times, "reference"))
    for name in SEARCHES:
        ours = result["seconds"][f"search: {name}"]["ours"]
        times = {"ours": ours, "plain": result["seconds"]["only reading"]["plain"]}
        table.add_row(f"search: {name}, beside only reading", *["" for _ in contestants], ratio(times, "plain"), "")
    table.add_row("peak memory, MB", *[f"{result['peak_mb'][who]:.0f}" for who in contestants], "", "")
    console.print(table)
    table = Table("opening 5,000 files", "seconds")
    for who, times in result["opening"].items():
        table.add_row(who, f"{statistics.median(times):.3f}")
    console.print(table)


def ratio(times: dict[str, list[float]], other: str) -> str:
    """The median of the ratios of ours to another, run by run."""
    if "ours" not in times or other not in times:
        return ""
    return f"{statistics.median(a / b for a, b in zip(times['ours'], times[other], strict=True)):.2f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--files", type=int, default=730)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the archives are made and kept")
    parser.add_argument("--contestants", nargs="+", default=["reference", "plain", "ours"])
    options = parser.parse_args()
    if not {"plain", "ours"} <= set(options.contestants):
        parser.error("plain and ours are what it is about")
    base = make_archive(options.folder / f"history-{options.rows}-{options.files}", options.rows, options.files)
    many = make_archive(options.folder / "history-many-files", 100_000, 5_000)
    with tempfile.TemporaryDirectory(prefix="history-bench-") as name:
        result = compare(base, options.contestants, options.runs, Path(name) / "cache")
        result["opening"] = opening(many, options.contestants, options.runs, Path(name))
    report(result, options.contestants)
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    content = {"machine": machine, "rows": options.rows, "files": options.files, **result}
    (RESULTS / "history.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
