"""The archival protocol: Select, Write, Verify, Purge.

Each step can be taken alone, by another process too, since what a step hands to the next stands on the disk:

1. ``publish``: read ARCHIVED memories in one snapshot for each file, write the file beside its place, sync it, read
   it back and compare every column with the same snapshot, mark it as pending, give it its name.
2. ``verify``: read the pending files back and compare them with the hot store once more.
3. ``purge``: delete each memory that still equals its archived copy, in short transactions; take the copies of
   those that have changed out of the archive again; remove the mark.

A run that dies at any point leaves every memory in the hot store, in a published file, or in both, and in the last
case a mark from which the next run's ``publish`` goes on.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from vidurai_pipeline.archival.erasing import finish_erasures
from vidurai_pipeline.archival.report import (
    ArchivedCount,
    FlushReport,
    PublishReport,
    PurgeReport,
    Verification,
)
from vidurai_pipeline.archival.restoring import finish_restorations
from vidurai_pipeline.archival.returned import read_tombstoned, remove_returned
from vidurai_pipeline.archival.run import Run, left_alone
from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import refuse_to_run
from vidurai_pipeline.hot.backlog import Backlog, read_backlog
from vidurai_pipeline.hot.rows import read_archived
from vidurai_pipeline.hot.sql import snapshot
from vidurai_pipeline.hot.store import HotStore, StoreSize
from vidurai_pipeline.hot.upkeep import Upkeep
from vidurai_pipeline.settings import Settings, Vacuum, load_settings


class ArchiverOptions(TypedDict, total=False):
    """The settings that an archiver may be given one by one; each is described in :class:`Settings`."""

    compression: str
    rows_per_file: int
    busy_timeout: float
    lock_timeout: float
    wal_limit: int
    vacuum: Vacuum
    vacuum_share: float


class MemoryArchiver:
    """Moves ARCHIVED memories from the hot store to the cold archive.

    Args:
        db_path: the hot store; default as the settings have it.
        archive_base: the archive's folder; default as the settings have it.
        settings: default what the environment says.
        progress: told how far the work is.
        **options: settings by name, such as ``rows_per_file=10_000``.

    Example:
        >>> report = MemoryArchiver(db_path, archive_base).flush()  # doctest: +SKIP
        >>> print(f"Archived {report.archived} memories, kept {report.kept}")  # doctest: +SKIP
    """

    def __init__(
        self,
        db_path: Path | None = None,
        archive_base: Path | None = None,
        *,
        settings: Settings | None = None,
        progress: Progress | None = None,
        **options: Unpack[ArchiverOptions],
    ) -> None:
        settings = settings or load_settings()
        self.settings = settings.model_copy(update={k: v for k, v in options.items() if v is not None})
        self.store = HotStore(db_path or settings.db_path, self.settings.busy_timeout)
        self.archive = open_archive(self.settings, archive_base)
        self._progress = progress or no_progress
        self._run: Run | None = None

    # The whole protocol

    def flush(self, *, dry_run: bool = False, upkeep: bool = True) -> FlushReport:
        """Archive and purge everything that is ARCHIVED.

        Of 20,000 memories or more, another process writes and compares the next file while this one purges.

        Args:
            dry_run: read and check all rows, but write and delete nothing.
            upkeep: see to it afterwards that the hot store stays small; see :meth:`keep_small`.

        Raises:
            LockedError: another run is at work.
            HotStoreError, ArchiveError: something failed; no memory is lost, and the next run goes on from there.
        """
        if dry_run:
            return self._dry_run()
        before = self.archive.traffic
        with self.run("flush") as run:
            published, purge = run.begin(), PurgeReport()
            run.flush(published, purge)
            if upkeep:
                purge.notes += run.keep_small(
                    purge.purged + published.recovered.purged + published.recovered.tombstoned
                ).notes
        report = FlushReport.of(published, purge)
        if self.archive.working_copy is not None:
            report = replace(report, object_store=self.archive.traffic.since(before))
        return report

    def flush_archived_memories(self, *, dry_run: bool = False, upkeep: bool = True) -> ArchivedCount:
        """The specification's form of :meth:`flush`: the number of memories archived, which carries the report."""
        report = self.flush(dry_run=dry_run, upkeep=upkeep)
        count = ArchivedCount(report.archived)
        count.report = report
        return count

    def _dry_run(self) -> FlushReport:
        with contextlib.closing(self.store.connect()) as con:
            schema = self.store.schema(con)
            rows, rejected = 0, []
            with self.store.errors(), snapshot(con):
                tombstoned = sum(part.num_rows for part in read_tombstoned(con, schema, self.archive.tombstones))
                for part in read_archived(con, schema):
                    rows += len(part.ids)
                    rejected += part.rejected
        published = PublishReport(schema.arrow_schema, rejected=rejected)
        report = FlushReport.of(published, PurgeReport(tombstoned=tombstoned))
        return replace(report, archived=rows - tombstoned, dry_run=True)

    @contextlib.contextmanager
    def run(self, purpose: str) -> Iterator[Run]:
        """Hold the archive's lock and one connection to the hot store over several steps.

        Args:
            purpose: what the run does, told to those who wait.

        Raises:
            LockedError: another run is at work.
        """
        if self._run is None:
            self.store.require()
        with self.archive.lock(purpose, self.settings.lock_timeout):
            if self._run is not None:
                yield self._run
                return
            run = Run(self.store, self.archive, self.settings, self._progress, resume=_resume)
            with contextlib.closing(run):
                self._run = run
                try:
                    yield run
                finally:
                    self._run = None

    # The steps, each a run of its own unless one is open

    def publish(self) -> PublishReport:
        """Write all ARCHIVED memories to new files; see :meth:`Run.publish`."""
        with self.run("publish") as run:
            return run.publish()

    def verify(self) -> Verification:
        """Compare the files that wait to be purged with the hot store; see :meth:`Run.verify`."""
        with self.run("verify") as run:
            return run.verify()

    def purge(self) -> PurgeReport:
        """Purge the memories of those files; see :meth:`Run.purge`."""
        with self.run("purge") as run:
            return run.purge()

    def keep_small(self, purged: int) -> Upkeep:
        """Keep the hot store small after a purge; see :meth:`Run.keep_small`."""
        with self.run("upkeep") as run:
            return run.keep_small(purged)

    # What there is

    def backlog(self) -> Backlog:
        """What waits in the hot store.

        Raises:
            HotStoreError: it can't be read, or memories can't be archived from it.
        """
        with contextlib.closing(self.store.connect()) as con:
            return read_backlog(self.store, con, left_alone(self.store, self.archive))

    def size(self) -> StoreSize:
        """How large the hot store is.

        Raises:
            HotStoreError: it can't be read.
        """
        with contextlib.closing(self.store.connect()) as con:
            return self.store.size(con)

    def list_archive_files(self) -> list[Path]:
        """All files of the archive."""
        return self.archive.files()

    def get_archive_stats(self) -> dict[str, Any]:
        """Counts and sizes of the archive's files; see :meth:`Archive.stats`."""
        return self.archive.stats()


def _resume(run: Run) -> list[str]:
    return finish_restorations(run) + finish_erasures(run) + remove_returned(run)


if __name__ == "__main__":
    refuse_to_run("`vidurai-pipeline flush`, `vidurai-pipeline stats`, or `vidurai-pipeline doctor` to test")
