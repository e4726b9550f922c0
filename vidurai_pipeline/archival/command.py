"""What :class:`MemoryEraser` and :class:`MemoryRestorer` have in common."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline.settings import Settings, load_settings


class MemoryCommand:
    """Does something with memories that somebody chooses.

    Args:
        db_path: the hot store; default as the settings have it.
        archive_base: the archive's folder; default as the settings have it.
        settings: default what the environment says.
        progress: told how far the work is.
        archiver: used instead of the first two, as within a run of its own.
    """

    def __init__(
        self,
        db_path: Path | None = None,
        archive_base: Path | None = None,
        *,
        settings: Settings | None = None,
        progress: Progress | None = None,
        archiver: MemoryArchiver | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self._archiver = archiver or MemoryArchiver(db_path, archive_base, settings=self.settings, progress=progress)
        self._progress = progress or no_progress

    def _analyst(self) -> RepoAnalyst:
        return RepoAnalyst(self._archiver.archive.root, hot_store=self._archiver.store.path)


def select(
    analyst: RepoAnalyst, sql: str, condition: str, *, given: str | None = None, parameters: Sequence[str] = ()
) -> Iterator[tuple]:
    """Rows of a view that meet a condition.

    Args:
        analyst: asked.
        sql: what to select from which view, without the word SELECT.
        condition: what the rows meet, and after it perhaps their order.
        given: the part of it that a user wrote.
        parameters: of the condition.

    Raises:
        QueryError: what the user wrote is no condition. DuckDB takes a number such as 17 for true.
    """
    type_ = "'BOOLEAN'" if given is None else f"typeof({own_lines(given)})"
    _, rows = analyst.query_rows(f"SELECT {type_}, {sql} WHERE {condition}", parameters or None)
    for found, *row in rows:
        if found != "BOOLEAN":
            raise QueryError(f"the condition gives {found}, not true or false", "write a comparison, such as `id = 17`")
        yield tuple(row)


def own_lines(condition: str) -> str:
    """A user's condition in parentheses; a comment at its end hides nothing of ours."""
    return f"(\n{condition}\n)"
