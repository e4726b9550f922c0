"""Runs DuckDB's work in a thread of its own, so that Ctrl-C and the time limit stop it at once.

DuckDB's Python client looks for signals only between its tasks, which may be ten seconds apart. And DuckDB heeds an
interrupt only between its own steps: one that makes a text of gigabytes can't be stopped, only be left behind.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

import duckdb

from vidurai_pipeline.errors import QueryError

T = TypeVar("T")

_GRACE = 5.0
"""Seconds that an interrupted query is waited for."""


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

    def on(self, connection: duckdb.DuckDBPyConnection) -> "Runner":
        """A runner of steps on another connection, with the time that is left."""
        other = Runner(connection, self._timeout)
        other._left = self._left
        return other

    def run(self, step: Callable[[], T]) -> T:
        """Run one step and wait for it.

        Raises:
            QueryError: the time is up; the query was stopped.
        """
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(step())
            except BaseException as error:
                future.set_exception(error)

        started = time.monotonic()
        # Of the pool's threads, Python waits for each before it ends.
        threading.Thread(target=work, name="history", daemon=True).start()
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
        deadline = time.monotonic() + _GRACE
        while not future.done() and time.monotonic() < deadline:
            self._connection.interrupt()
            wait([future], 0.02)
