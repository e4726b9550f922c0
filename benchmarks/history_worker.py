"""One contestant of `benchmarks.history`, in a process of its own: answers requests, one JSON object a line.

Only the standard library is imported here, and what the contestant itself needs: the reference runs it in its own
environment.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Ask = Callable[[str], list]


def plain(base: str) -> Ask:
    """DuckDB's own reader over the same files."""
    import duckdb  # noqa: PLC0415

    con = duckdb.connect()
    con.execute(f"CREATE VIEW history AS SELECT * FROM read_parquet('{base}/**/*.parquet')")
    return lambda sql: con.execute(sql).fetchall()


def reference(base: str) -> Ask:
    """The public vidurai package's analyst."""
    from loguru import logger  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    logger.remove()
    from vidurai.core.analytics.engine import RepoAnalyst  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    analyst = RepoAnalyst(Path(base))
    return lambda sql: [tuple(row.values()) for row in analyst.query_archive(sql)]


def ours(base: str) -> Ask:
    """This project's analyst; its search where a request begins with the word."""
    from vidurai_pipeline.analytics.engine import RepoAnalyst  # noqa: PLC0415

    analyst = RepoAnalyst(Path(base))

    def ask(sql: str) -> list:
        if sql.startswith("search "):
            return [(len(analyst.search_archive(sql.removeprefix("search "), 1_000_000)),)]
        return [tuple(row.values()) for row in analyst.query_archive(sql)]

    return ask


def settle(value: object) -> object:
    """A value that is the same whoever computed it: the last digits of an average depend on the threads."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Import, open, answer."""
    who, base = sys.argv[1:]
    open_ = {"plain": plain, "reference": reference, "ours": ours}[who]
    __import__("vidurai_pipeline.analytics.engine" if who == "ours" else "duckdb")
    if who == "reference":
        __import__("vidurai.core.analytics.engine")
    began = time.perf_counter()
    ask = open_(base)
    ask("SELECT 1")
    answer: dict[str, object] = {"seconds": time.perf_counter() - began}
    out = os.fdopen(os.dup(1), "w")
    while True:
        answer["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out.write(json.dumps(answer) + "\n")
        out.flush()
        if not (line := sys.stdin.readline()):
            return
        began = time.perf_counter()
        rows = ask(json.loads(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "rows": sorted([settle(value) for value in row] for row in rows[:5_000])}


if __name__ == "__main__":
    main()
