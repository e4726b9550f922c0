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
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vidurai_pipeline.archival.report import Batch, FlushResult, Progress, Purge, Verification, unwatched
from vidurai_pipeline.archival.run import Reconciler
from vidurai_pipeline.archival.staging import Stager, compare_file
from vidurai_pipeline.archival.staging_process import StagingProcess, start_staging_process
from vidurai_pipeline.cold.archive import Archive, PublishedFile
from vidurai_pipeline.cold.files import archive_errors
from vidurai_pipeline.cold.pending import Pending
from vidurai_pipeline.errors import ArchiveError, HotStoreError, VerificationError
from vidurai_pipeline.hot.backlog import Backlog, read_backlog
from vidurai_pipeline.hot.rows import read_archived
from vidurai_pipeline.hot.sql import data_version, snapshot
from vidurai_pipeline.hot.store import HotStore, StoreSize
from vidurai_pipeline.hot.upkeep import Upkeep, keep_small
from vidurai_pipeline.settings import Vacuum, load_settings

#: A second process takes half a second to start.
ROWS_WORTH_A_PROCESS = 20_000
#: Bytes of the write-ahead log from which on the other process leaves the store alone until the log is done with:
#: the longer it is, the longer takes each read, the daemon's too.
LARGEST_LOG = 256 * 1024 * 1024


class MemoryArchiver:
    """Moves ARCHIVED memories from the hot store to the cold archive.

    Args:
        db_path: the hot store; default as configured by the environment.
        archive_base: the archive's folder; default as configured by the environment.
        compression: the codec of new files, ``"snappy"`` or ``"zstd"``.
        rows_per_file: a larger batch is split into several files.
        busy_timeout: seconds to wait for a busy hot store.
        lock_timeout: seconds to wait for another run.
        vacuum: how the hot store's free pages are given back: ``"off"``, ``"incremental"`` or ``"full"``.
        vacuum_share: of its pages, so many must be free before a full vacuum.
        progress: told how far the work is.

    Example:
        >>> count = MemoryArchiver(db_path, archive_base).flush_archived_memories()  # doctest: +SKIP
        >>> print(f"Archived {count} memories")  # doctest: +SKIP
    """

    def __init__(
        self,
        db_path: Path | None = None,
        archive_base: Path | None = None,
        *,
        compression: str | None = None,
        rows_per_file: int | None = None,
        busy_timeout: float | None = None,
        lock_timeout: float | None = None,
        vacuum: Vacuum | None = None,
        vacuum_share: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        settings = load_settings()
        self.store = HotStore(
            db_path or settings.db_path, settings.busy_timeout if busy_timeout is None else busy_timeout
        )
        self.archive = Archive(archive_base or settings.archive_path, compression or settings.compression)
        self.rows_per_file = rows_per_file or settings.rows_per_file
        self.lock_timeout = settings.lock_timeout if lock_timeout is None else lock_timeout
        self.vacuum: Vacuum = vacuum or settings.vacuum
        self.vacuum_share = settings.vacuum_share if vacuum_share is None else vacuum_share
        self._progress = progress or unwatched
        self._reconciler = Reconciler(self.store, self.archive, self._progress)

    # The whole protocol

    def flush_archived_memories(self, *, dry_run: bool = False, upkeep: bool = True) -> FlushResult:
        """Archive and purge everything that is ARCHIVED.

        Of 20,000 memories or more, another process writes and compares the next file while this one purges.

        Args:
            dry_run: read and check all rows, but write and delete nothing.
            upkeep: see to it afterwards that the hot store stays small; see :meth:`keep_small`.

        Returns:
            A number, the memories archived, that carries the details as attributes.

        Raises:
            LockedError: another run is at work.
            HotStoreError, ArchiveError: something failed; no memory is lost, and the next run goes on from there.
        """
        if dry_run:
            return self._dry_run()
        with self.run("flush"):
            batch, purge = self._begin(), Purge()
            with contextlib.closing(self._stager()) as stager:
                # Without a write-ahead log, the next file's snapshot would hold up the purge's commits.
                apart = batch.waiting >= ROWS_WORTH_A_PROCESS and self._reconciler.logged()
                if apart and (process := start_staging_process(stager)):
                    try:
                        with process:
                            self._flush_in_parallel(process, batch, purge)
                    except BaseException:
                        # It was ended amid a file, perhaps.
                        with contextlib.suppress(ArchiveError):
                            self.archive.sweep()
                        raise
                else:
                    for mark in self._publish_files(batch, stager, self._reconciler.look):
                        self._reconciler.purge_file(mark, purge)
            if upkeep:
                purge.notes += self.keep_small(purge.purged + batch.recovered.purged).notes
        return FlushResult(batch.rows - purge.kept, batch=batch, purge=purge)

    def _flush_in_parallel(self, process: StagingProcess, batch: Batch, purge: Purge) -> None:
        """Purge each file while another process stages the next."""
        # The worker has a connection of its own; see HotStore.connect().
        self._reconciler.close()
        jobs: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as worker:
            try:
                worker.submit(self._reconciler.look).result()
                jobs.append(worker.submit(self._reconciler.prepare))
                for mark in self._publish_files(batch, process, lambda: self._reconciler.version):
                    jobs.append(worker.submit(self._reconciler.purge_file, mark, purge))
                    # One file ahead is enough; and while the other process reads, the store's log can't begin anew.
                    most = 1 if self._reconciler.log_bytes() < LARGEST_LOG else 0
                    while len(jobs) > most:
                        jobs.popleft().result()
                while jobs:
                    jobs.popleft().result()
            finally:
                for job in jobs:
                    job.cancel()
                # However often Ctrl-C is pressed: the archive's lock must not be free while the worker deletes.
                _outlast(worker.submit(self._reconciler.close))

    def _dry_run(self) -> FlushResult:
        rows = 0
        with contextlib.closing(self.store.connect()) as con:
            schema = self.store.schema(con)
            batch = Batch(schema.arrow_schema)
            with self.store.errors(), snapshot(con):
                for part in read_archived(con, schema):
                    rows += len(part.ids)
                    batch.rejected += part.rejected
        return FlushResult(rows, batch=batch, purge=Purge(), dry_run=True)

    @contextlib.contextmanager
    def run(self, purpose: str) -> Iterator[None]:
        """Hold the archive's lock and one connection to the hot store over several steps.

        Raises:
            LockedError: another run is at work.
        """
        with self.archive.lock(purpose, self.lock_timeout):
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """Close the connection to the hot store."""
        self._reconciler.close()

    # Select

    def backlog(self) -> Backlog:
        """What waits in the hot store.

        Raises:
            HotStoreError: it can't be read, or memories can't be archived from it.
        """
        with contextlib.closing(self.store.connect()) as con:
            return read_backlog(self.store, con)

    def size(self) -> StoreSize:
        """How large the hot store is.

        Raises:
            HotStoreError: it can't be read.
        """
        with contextlib.closing(self.store.connect()) as con:
            return self.store.size(con)

    # Write

    def publish(self) -> Batch:
        """Finish what an interrupted run left, then write all ARCHIVED memories to new files.

        Raises:
            HotStoreError, ArchiveError: nothing was purged; files that were published before it wait for the
                next run.
        """
        with self.archive.lock("publish", self.lock_timeout):
            batch = self._begin()
            with contextlib.closing(self._stager()) as stager:
                for _ in self._publish_files(batch, stager, self._reconciler.look):
                    pass
            return batch

    def _begin(self) -> Batch:
        con = self._reconciler.connection()
        schema = self.store.schema(con)
        recovered = self._reconciler.recover()
        with self.store.errors():
            self._reconciler.purge_archived_before(recovered)
            waiting = con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone()[0]
        return Batch(schema.arrow_schema, waiting, recovered=recovered)

    def _stager(self) -> Stager:
        return Stager(self.store, self.archive, datetime.now(UTC), uuid.uuid4().hex, self.rows_per_file)

    def _publish_files(
        self, batch: Batch, stager: Stager | StagingProcess, version_now: Callable[[], int]
    ) -> Iterator[Pending]:
        """Publish file after file, each written and verified in a snapshot of its own."""
        last: Any = None
        while True:
            # The purging connection's version, before the snapshot and the schema that the file is made by: what
            # changes after it makes the purge compare once more.
            version = version_now()
            path = self.archive.new_path(stager.moment)
            staged = stager.stage(
                path, last, lambda rows: self._progress("archiving", batch.rows + rows, batch.waiting)
            )
            batch.rejected += staged.rejected
            last = staged.last
            if staged.hidden is None:
                return
            mark = Pending(
                file=str(path.relative_to(self.archive.root)),
                sha256=(staged.sha256,),
                rows=staged.rows,
                store=self._reconciler.identity(),
                batch=stager.batch,
            )
            self.archive.publish(staged.hidden, path, mark)
            self._reconciler.verified[path] = version
            with archive_errors(path):
                batch.files.append(PublishedFile(path, mark.rows, path.stat().st_size))
            batch.schema = staged.schema
            yield mark

    # Verify

    def verify(self) -> Verification:
        """Read back the files that wait to be purged, and compare every column of every row with the hot store.

        Rows that the daemon has changed since are counted, not blamed: the file's own digest tells them from a
        file that is no longer what was written.

        Raises:
            HotStoreError: the hot store can't be read.
        """
        result = Verification()
        con = self._reconciler.connection()
        for mark in self._reconciler.marks():
            path = self.archive.root / mark.file
            self._progress("verifying", result.rows, 0)
            result.files += 1
            result.rows += mark.rows
            problem = self.archive.examine(mark)
            found = None
            with self.store.errors():
                version = data_version(con)
                schema = self.store.schema(con)
                with contextlib.suppress(ArchiveError):
                    found = compare_file(con, path, schema)
            if problem:
                differing = f"; against the hot store: {found.describe()}" if found else ""
                result.problems.append(f"{path}: {problem}{differing}")
            elif found and (found.differing or found.missing):
                result.changed += len(found.differing) + len(found.missing)
            else:
                self._reconciler.verified[path] = version
        return result

    # Purge

    def purge(self) -> Purge:
        """Purge the memories of all pending files from the hot store.

        Raises:
            HotStoreError: the store was busy for too long, or is damaged; what was deleted before is archived.
            VerificationError: a file is not what was written; none of its memories was purged.
        """
        with self.archive.lock("purge", self.lock_timeout):
            result = Purge()
            marks = [mark for mark in self._reconciler.marks() if not self.archive.is_void(mark)]
            for mark in marks:
                if problem := self.archive.examine(mark):
                    raise VerificationError(f"{self.archive.root / mark.file}: {problem}; nothing of it was purged")
            for mark in marks:
                self._reconciler.purge_file(mark, result)
            return result

    # Upkeep

    def keep_small(self, purged: int) -> Upkeep:
        """Checkpoint the hot store's log, merge its search index, give free pages back as configured.

        Args:
            purged: memories that were just purged.

        Raises:
            LockedError: another run is at work. What fails in the hot store is noted only.
        """
        with self.archive.lock("upkeep", self.lock_timeout):
            try:
                con = self._reconciler.connection()
                search_index = self.store.schema(con).search_index
            except HotStoreError as error:
                # By now the memories have moved; that must be told, whatever becomes of this.
                return Upkeep(notes=[f"the hot store was not made smaller: {error}"])
            return keep_small(
                self.store,
                con,
                purged=purged,
                search_index=search_index,
                vacuum=self.vacuum,
                share=self.vacuum_share,
            )

    # As the specification has it

    def list_archive_files(self) -> list[Path]:
        """All files of the archive."""
        return self.archive.files()

    def get_archive_stats(self) -> dict[str, Any]:
        """Counts and sizes of the archive's files; see :meth:`Archive.stats`."""
        return self.archive.stats()


def _outlast(work: Future[None]) -> None:
    """Wait for work that must not be left alone, through all interruptions."""
    while True:
        try:
            wait([work])
        except KeyboardInterrupt:
            continue
        return work.result()
