"""Runs DuckDB's work in a thread of its own, so that Ctrl-C and the time limit stop it at once.

DuckDB's Python client looks for signals only between its tasks, which may be ten seconds apart.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import duckdb

from vidurai_pipeline.errors import QueryError

T = TypeVar("T")


class Runner:
    """Runs the steps of one query, which share its time limit."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, timeout: float | None) -> None:
        """Start with all of the time left.

        Args:
            connection: what to interrupt.
            timeout: seconds that the steps may take together; None for no limit.
        """
        self._connection = connection
        self._timeout = timeout
        self._left = timeout

    def run(self, step: Callable[[], T]) -> T:
        """Run one step and wait for it.

        Raises:
            QueryError: the time is up; the query was stopped.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="history") as pool:
            future = pool.submit(step)
            started = time.monotonic()
            try:
                done, _ = wait([future], self._left)
            except BaseException:  # Ctrl-C, mostly
                self._stop(future)
                raise
            if not done:
                self._stop(future)
                raise QueryError(
                    f"the query took longer than {self._timeout:g} s and was stopped: ask for less, such as one month "
                    "(WHERE year = 2024 AND month = 12), or allow more time"
                )
        if self._left is not None:
            self._left = max(0.0, self._left - (time.monotonic() - started))
        return future.result()

    def _stop(self, future: "Future[T]") -> None:
        # An interrupt that comes before the query has really started is lost, so one may not be enough.
        while not future.done():
            self._connection.interrupt()
            wait([future], 0.02)
