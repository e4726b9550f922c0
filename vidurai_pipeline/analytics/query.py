"""One question to the archive while it is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from vidurai_pipeline.analytics.runner import Runner
from vidurai_pipeline.analytics.sandbox import Statement

Parameters = Sequence[object] | Mapping[str, object] | None


@dataclass(slots=True)
class Query:
    """A statement that runs, where, and what stops it.

    Attributes:
        columns: those of the view ``memories``, if the statement names it.
        about_nothing: whether there is nothing yet that it could read.
    """

    statement: Statement
    parameters: Parameters
    connection: duckdb.DuckDBPyConnection
    runner: Runner
    columns: Sequence[str] = ()
    about_nothing: bool = False

    def refusal(self, connection: duckdb.DuckDBPyConnection) -> str | None:
        """Say why DuckDB refuses the statement as such, or None if it would begin to read rows.

        Its message for the bare statement points at the place, which the one for a relation doesn't.
        """
        try:
            connection.execute(f"EXPLAIN {self.statement.body}", self.parameters).fetchall()
        except duckdb.Error:
            try:
                connection.execute(self.statement.body, self.parameters)
            except duckdb.Error as error:
                return str(error)
        return None


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
