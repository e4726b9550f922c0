"""How long questions to both tiers take, and how much memory, beside another checkout's code.

    python -m benchmarks.both_tiers [--rows 1000000] [--against CHECKOUT]

Each question is asked in a fresh process, which is what the command line costs; `start` is a question that reads
nothing, and stands for what the interpreter, the imports and the opening of the archive take. The ratio is the other
checkout's time, without its start, to ours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.hot.sample_store import make_store

QUESTIONS = {
    "start": "analyst.query_archive('SELECT 1')",
    "salience by count": "analyst.query_archive('SELECT salience, count(*) FROM memories GROUP BY 1')",
    "count": "analyst.query_archive('SELECT count(*) FROM memories')",
    "newest": "analyst.query_archive('SELECT max(created_at) FROM memories')",
    "one by its id": "analyst.query_archive('SELECT * FROM memories WHERE id = ?', [900_000])",
    "some by their ids": "analyst.query_archive('SELECT * FROM memories WHERE id IN (7, 400_000, 900_000)')",
    "any ten": "analyst.query_archive('SELECT * FROM memories LIMIT 10')",
    "search": "analyst.search_archive('pytest', tier='all')",
    "search, nothing found": "analyst.search_archive('nothing-like-this', tier='all')",
}
_ASK = """
import json, resource, time
began = time.perf_counter()
from vidurai_pipeline.analytics.engine import RepoAnalyst
with RepoAnalyst() as analyst:
    {question}
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([time.perf_counter() - began, kilobytes / 1000]))
"""


def ask(code: Path, home: Path, question: str, times: int) -> tuple[float, float]:
    """The shortest time, in seconds, and the most memory, in MB."""
    environment = {**os.environ, "VIDURAI_HOME": str(home.absolute())}
    command = [sys.executable, "-c", _ASK.format(question=question)]
    runs = [subprocess.run(command, cwd=code, env=environment, capture_output=True, check=True) for _ in range(times)]
    seconds, megabytes = zip(*(json.loads(run.stdout) for run in runs), strict=True)
    return min(seconds), max(megabytes)


def main() -> None:
    """Make the tiers, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--home", type=Path, help="a home that has both tiers already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = arguments.home or Path(folder)
        if arguments.home is None:
            make_store(home / "vidurai.db", arguments.rows)
            MemoryArchiver(home / "vidurai.db", home / "archive").flush_archived_memories()
        ours = Path(__file__).parents[1]
        codes = [ours, arguments.against] if arguments.against else [ours]
        starts: list[float] = []
        for name, question in QUESTIONS.items():
            measured = [ask(code, home, question, arguments.times) for code in codes]
            starts = starts or [seconds for seconds, _ in measured]
            line = "  ".join(f"{seconds:7.2f} s {megabytes:6.0f} MB" for seconds, megabytes in measured)
            beside = [max(0.001, seconds - start) for (seconds, _), start in zip(measured, starts, strict=True)]
            ratio = f"  x {beside[1] / beside[0]:.1f}" if len(beside) > 1 and name != "start" else ""
            print(f"{name:<24}{line}  {beside[0]:6.2f} s beside start{ratio}")


if __name__ == "__main__":
    main()
