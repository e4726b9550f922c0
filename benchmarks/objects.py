"""What an archive in an object store costs in requests and bytes, beside one in a folder.

    python -m benchmarks.objects [--memories 20000] [--nights 5]

Runs SeaweedFS on this machine. Each night archives its share of the memories, and then there is a night with nothing to
do. Then another machine, with nothing of the archive there, asks about another month, about all, and once more.
"""

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.storage import Traffic
from vidurai_pipeline.cold.working_copy import traffic_of
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support import object_store


def ask() -> None:
    """A question that reads a column of each file."""
    with RepoAnalyst() as analyst:
        analyst.query_archive("SELECT count(*), avg(length(verbatim)) FROM history")


def ask_about_a_month() -> None:
    """A question that another month than that of the files is enough for."""
    with RepoAnalyst() as analyst:
        analyst.query_archive("SELECT count(verbatim) FROM history WHERE year = 2020 AND month = 1")


def measure(name: str, work: Callable[[], object], table: Table) -> None:
    """Add a line on how long something takes, and what it asks of the object store."""
    root = load_settings().archive_root
    before, began = traffic_of(root), time.perf_counter()
    work()
    seconds, asked = time.perf_counter() - began, traffic_of(root).since(before)
    table.add_row(name, f"{seconds:.2f}", *(f"{count:,}" for count in asked.values()))


def night(db: Path, number: int, nights: int) -> None:
    """Archive the memories of a night."""
    with sqlite3.connect(db) as con:
        con.execute("UPDATE memories SET status = iif(id % ? = ?, 'ARCHIVED', 'ACTIVE')", (nights, number))
    con.close()
    MemoryArchiver().flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=20_000)
    parser.add_argument("--nights", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, object_store.object_store(Path(folder)) as port:
        os.environ.update(object_store.environment(port))
        for archive in (str(Path(folder, "archive")), f"s3://{object_store.BUCKET}/archive"):
            table = Table(
                "", "seconds", *Traffic.__dataclass_fields__, title="object store" if "://" in archive else "folder"
            )
            home = Path(tempfile.mkdtemp(dir=folder))
            os.environ.update(VIDURAI_ARCHIVE=archive, VIDURAI_HOME=str(home))
            make_store(home / "vidurai.db", options.memories)
            for number in range(options.nights):
                work = partial(night, home / "vidurai.db", number, options.nights)
                measure(f"night {number + 1}", work, table)
            measure("a night with nothing to do", lambda: MemoryArchiver().flush(), table)
            os.environ["VIDURAI_HOME"] = tempfile.mkdtemp(dir=folder)
            measure("another machine asks about one month", ask_about_a_month, table)
            measure("and about all", ask, table)
            measure("and asks again", ask, table)
            Console(width=140).print(table)


if __name__ == "__main__":
    main()
