"""One question to the archive, from its text to its answer: prepared, run, tried once more, or explained."""

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from functools import partial
from typing import Any, Protocol, TypeVar

import duckdb

from vidurai_pipeline.analytics import duckdb_errors, sandbox
from vidurai_pipeline.analytics.damage import ADVICE, ASK_ON, damage_message, find_damaged
from vidurai_pipeline.analytics.database import CHANGES, ArchiveDatabase
from vidurai_pipeline.analytics.pushdown import Parameters, needed_files
from vidurai_pipeline.analytics.views import NOT_READ
from vidurai_pipeline.cold.listing import ArchiveFile
from vidurai_pipeline.errors import ArchiveError, HotStoreWarning, PipelineError, QueryError, QueryTimeoutError
from vidurai_pipeline.hot.view import HotSnapshot, HotView

T = TypeVar("T")


class Interruptible(Protocol):
    """What works in another thread, and can be told to stop."""

    def interrupt(self) -> None:
        """Stop at the next occasion."""


class TimeLimit:
    """Runs DuckDB's work so that Ctrl-C and the time limit stop it at once.

    DuckDB's Python client looks for signals only between its tasks, which may be ten seconds apart. And DuckDB heeds
    an interrupt only between its own steps: one that makes a text of gigabytes can't be stopped, only be left behind.

    Args:
        seconds: what the steps may take together; None for no limit.
        grace: seconds that an interrupted step is waited for.
    """

    def __init__(self, seconds: float | None, grace: float = 5.0) -> None:
        self._seconds = self._left = seconds
        self._grace = grace
        self._interrupted: Future[Any] = Future()

    def interrupt(self) -> None:
        """End what runs, and all that is to run yet, with a QueryError."""
        with contextlib.suppress(InvalidStateError):
            self._interrupted.set_result(None)

    def run(self, source: Interruptible, step: Callable[[], T]) -> T:
        """Run one step in a thread of its own and wait for it.

        Raises:
            QueryTimeoutError: the time is up; the step was stopped.
            QueryError: it was interrupted.
        """
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(step())
            except BaseException as error:
                future.set_exception(error)

        started = time.monotonic()
        # Of the pool's threads, Python waits for each before it ends.
        threading.Thread(target=work, name="history", daemon=True).start()
        try:
            done, _ = wait([future, self._interrupted], self._left, FIRST_COMPLETED)
        except BaseException:  # Ctrl-C, mostly
            self._stop(source, future)
            raise
        if not done:
            self._stop(source, future)
            raise QueryTimeoutError(
                f"the query took longer than {self._seconds:g} s and was stopped",
                "ask for less, such as one month (WHERE year = 2024 AND month = 12), or allow more time",
            )
        if self._interrupted in done:
            self._stop(source, future)
            raise QueryError("the query was stopped")
        if self._left is not None:
            self._left = max(0.0, self._left - (time.monotonic() - started))
        return future.result()

    def _stop(self, source: Interruptible, future: "Future[T]") -> None:
        # An interrupt that comes before the query has really started is lost, so one may not be enough.
        deadline = time.monotonic() + self._grace
        while not future.done() and time.monotonic() < deadline:
            source.interrupt()
            wait([future], 0.02)


class Query:
    """A statement on its way to an answer.

    Attributes:
        parameters: its values.
        about_nothing: whether there is nothing yet that it could read.
    """

    def __init__(
        self,
        database: ArchiveDatabase,
        hot: HotView,
        sql: str,
        parameters: Parameters,
        limit: TimeLimit,
    ) -> None:
        self.about_nothing = False
        self._database = database
        self._hot = hot
        self._sql = sql
        self.parameters = parameters
        self._limit = limit
        self._statement: sandbox.Statement | None = None
        #: Says which files the statement can be about.
        self._needed: Callable[[ArchiveFile], bool] = lambda _: False
        self._whole = False
        self._changes = 0
        self._connection: duckdb.DuckDBPyConnection
        #: The columns of the view ``memories``, once it has been made for this statement.
        self._columns: Sequence[str] = ()

    def run(self, fetch: Callable[[duckdb.DuckDBPyConnection, str], T]) -> T:
        """Run the statement; again, over what is there now, if a file was withdrawn while it ran.

        Raises:
            QueryError: the statement is wrong, may not run here, or takes more time or memory than it may.
            HotStoreError: the hot store, which the statement needs, can't be read.
        """
        while True:
            try:
                self._connection = self._database.cursor(self._needed)
                if self._statement is None:
                    self._statement = sandbox.check(self._connection, self._sql, views_only=self._hot.hides)
                    self._needed = needed_files(self._statement, self.parameters)
                    if self._database.lacks(self._needed):
                        continue
                if sandbox.asks_for_similar(self._statement):
                    self._database.require_meaning()
                self.about_nothing = not self._database.files
                if sandbox.reads_hot_store(self._statement):
                    self._show_memories(self._statement)
                return self._limit.run(self._connection, partial(fetch, self._connection, self._statement.sql))
            except (OSError, ValueError, duckdb.Error) as error:  # Arrow's own errors are among them
                if not self._is_worth_another_attempt(error):
                    raise self._explained(error) from None

    def rows(self) -> list[dict[str, Any]]:
        """Run the statement; see :meth:`run`. There are no rows where there is nothing yet that it could read."""

        def fetch(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[list[str], list[tuple[Any, ...]]]:
            rows = connection.execute(text, self.parameters).fetchall()
            return unique_names([column[0] for column in connection.description or ()]), rows

        names, rows = self.run(fetch)
        return [] if self.about_nothing else [dict(zip(names, row, strict=True)) for row in rows]

    def _is_worth_another_attempt(self, error: Exception) -> bool:
        """Whether a file was withdrawn while the statement ran, or it needs more of the hot store than was read."""
        if not self._whole and self._columns and NOT_READ in str(error):
            self._whole = True
            return True
        if duckdb_errors.may_be_damage(str(error)) and self._database.lacks(lambda _: True):
            self._needed = lambda _: True
            return True
        if self._changes == CHANGES or not duckdb_errors.names_a_file(str(error)) or not self._database.changed():
            return False
        self._changes += 1
        return True

    def read(self, step: Callable[[], T], source: Interruptible | None = None) -> T:
        """Read a further part of the answer.

        Args:
            step: the work.
            source: what it works on; default the connection that the statement runs on.
        """
        try:
            return self._limit.run(source or self._connection, step)
        except (OSError, ValueError, duckdb.Error) as error:
            if duckdb_errors.names_a_file(str(error)) and self._database.changed():
                raise ArchiveError("files were rewritten while the answer was read", "ask once more") from None
            raise self._explained(error) from None

    def _show_memories(self, statement: sandbox.Statement) -> None:
        """Make the view of both tiers, of which the hot one is read as far as the statement needs it."""
        database = self._database
        with self._hot.snapshot(database.scratch_folder()) as hot:
            # Listed after the snapshot: what a purge moves in between is in both, and shown once.
            connection = self._connection = database.cursor()
            tiers = database.outline_memories(connection, hot)
            self._columns = list(tiers.columns)
            needed = tiers.hot if self._whole else database.columns_needed(connection, statement.body, self.parameters)
            rows = database.rows_needed(statement, tiers, self.parameters)
            self._limit.run(connection, lambda: database.fill_memories(connection, hot, tiers, needed, rows))
            self.about_nothing = not database.files and hot.missing
            warn_of(hot)

    def _explained(self, error: Exception) -> PipelineError:
        """Make the error that the user reads."""
        message = str(error)
        if isinstance(error, (duckdb.InternalException, duckdb.FatalException)):
            self._database.forget()
        listing = self._database.listing()
        if self._statement is None:  # it is no SQL
            return duckdb_errors.explain(message, listing=listing, bound=False)
        if duckdb_errors.may_be_damage(message):
            connection, listing = self._database.cursor(), self._database.listing()
            # As far as the query's time and memory allow to look.
            with contextlib.suppress(QueryError, duckdb.InterruptException, duckdb.OutOfMemoryException):
                if damaged := self._limit.run(connection, lambda: find_damaged(connection, listing)):
                    return ArchiveError(damage_message(listing, damaged), ADVICE + ASK_ON)
        refusal = self._refusal(self._statement) if duckdb_errors.about_the_statement(message) else None
        return duckdb_errors.explain(
            refusal or message,
            listing=listing,
            columns=self._columns or self._database.columns,
            sql=self._statement.sql,
            bound=refusal is None,
            quotes_at_will=self._statement.quotes_at_will,
        )

    def _refusal(self, statement: sandbox.Statement) -> str | None:
        """Say why DuckDB refuses the statement as such, or None if it would begin to read rows.

        Its message for the bare statement points at the place, which the one for a relation doesn't.
        """
        # A view of the session's own is in no other session; of any other, an answer may still be read there.
        connection = self._connection if self._columns else self._database.cursor(self._needed)
        try:
            connection.execute(f"EXPLAIN {statement.body}", self.parameters).fetchall()
        except duckdb.Error:
            try:
                connection.execute(statement.body, self.parameters)
            except duckdb.Error as error:
                return str(error)
        return None


def warn_of(hot: HotSnapshot) -> None:
    """Warn of what can't be shown of a hot store that was read."""
    for note in hot.notes():
        warnings.warn(note, HotStoreWarning, stacklevel=2)


def unique_names(names: Sequence[str]) -> list[str]:
    """Columns' names, each once: the second ``name`` is called ``name_1``."""
    unique: dict[str, None] = {}
    numbers: dict[str, int] = {}
    for name in names:
        candidate = name
        while candidate in unique:
            numbers[name] = numbers.get(name, 0) + 1
            candidate = f"{name}_{numbers[name]}"
        unique[candidate] = None
    return list(unique)
