"""What :class:`MemoryEraser` and :class:`MemoryRestorer` have in common."""

from pathlib import Path

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import Progress, no_progress
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
