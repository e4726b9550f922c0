"""One run on the archive: its lock is held, one connection to the hot store is open, marks say how far it is.

What a step hands to the next stands on the disk, so a run that dies at any point leaves every memory in the hot
store, in a published file, or in both, and in the last case a mark from which :meth:`Run.recover` goes on.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.archival.report import PublishReport, PurgeReport, Verification
from vidurai_pipeline.archival.returned import purge_archived_before, purge_tombstoned
from vidurai_pipeline.archival.staging import Stager, StagingRequest, compare_contents
from vidurai_pipeline.archival.staging_process import Staging
from vidurai_pipeline.cold.archive import Archive, PublishedFile
from vidurai_pipeline.cold.contents import FileContents
from vidurai_pipeline.cold.files import Progress, archive_errors, sync_file
from vidurai_pipeline.cold.intents import Grace
from vidurai_pipeline.cold.pending import Pending, store_identity
from vidurai_pipeline.errors import ArchiveError, HotStoreError, LogHeldError, VerificationError, plural, some_of
from vidurai_pipeline.hot.comparison import compare
from vidurai_pipeline.hot.purger import PurgeCount, Purger
from vidurai_pipeline.hot.sql import data_version, json_ids, tolerant_text
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.hot.upkeep import Upkeep, keep_small
from vidurai_pipeline.settings import Settings

#: What tells that two rows of one id are the same memory, whatever has become of it since.
_BIRTH = {"id", "created_at", "project_id", "event_type", "file_path"}
_REACTIVATED_AT_ONCE = 500


class Run:
    """The steps of the archival protocol, on one connection to the hot store.

    Args:
        store: the hot store.
        archive: the archive, whose lock must be held.
        settings: how to archive.
        progress: told how far the work is.
        resume: finishes the restorations and erasures that a run before this one began, and says what it did.
    """

    #: From this many memories on, a second process stages the next file; it takes half a second to start.
    rows_worth_a_process = 20_000
    #: A flush in two processes divides its work into this many files, within the two limits that follow: while the
    #: first is staged nothing is purged, while the last is purged nothing is staged.
    portions = 8
    least_portion = 12_500
    most_portion = 25_000
    #: The share of VIDURAI_WAL_LIMIT from which on the second process leaves the store alone until the write-ahead
    #: log is done with: while it reads, the log can't begin anew.
    log_share = 0.5

    def __init__(
        self,
        store: HotStore,
        archive: Archive,
        settings: Settings,
        progress: Progress,
        resume: Callable[["Run"], list[str]],
    ) -> None:
        self.store = store
        self.archive = archive
        self.settings = settings
        self.progress = progress
        self._resume = resume
        #: Files found equal to the hot store, and the connection's data version when their comparison began.
        self._verified: dict[Path, int] = {}
        #: How many memories there are to purge, for the progress.
        self._to_purge = 0
        #: Memories that were restored lately.
        self._left_alone: Collection[int] = ()
        self._moment = datetime.now(UTC)
        self._batch = uuid.uuid4().hex

    @cached_property
    def con(self) -> sqlite3.Connection:
        """The connection that reads, compares and purges, opened when it is first needed.

        Raises:
            HotStoreError: the store can't be opened for writing.
        """
        return self.store.connect(write=True)

    @cached_property
    def purger(self) -> Purger:
        """Deletes memories by the run's connection."""
        with self.store.errors():
            return Purger(self.con, self.store.schema, self.settings.wal_limit, self.settings.busy_timeout)

    def close(self) -> None:
        """Close the connection."""
        if "con" in self.__dict__:
            self.con.close()

    # The whole protocol

    def flush(self, published: PublishReport, purge: PurgeReport) -> None:
        """Select, write, verify, purge: file after file, the next one staged while this one is purged.

        Args:
            published: what :meth:`begin` returned; added to.
            purge: added to.

        Raises:
            HotStoreError, ArchiveError: no memory is lost, and the next run goes on from there.
        """
        # Without a write-ahead log, the second process's snapshot would hold up the purge's commits.
        logged = self.con.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self._to_purge = published.waiting
        apart = logged and published.waiting >= self.rows_worth_a_process
        with self._leaving_the_rest(purge), self._staging(apart=apart) as staging:
            while mark := self._publish_next(staging, published):
                # While the second process reads, SQLite can't begin its log anew: not ahead of a long one.
                if apart and self.purger.log_bytes < self.log_share * self.settings.wal_limit:
                    self._begin_next(staging, published)
                self._purge_file(mark, self._read(mark), purge)

    def publish(self) -> PublishReport:
        """Finish what an interrupted run left, then write all ARCHIVED memories to new files.

        Raises:
            HotStoreError, ArchiveError: nothing was purged; files that were published before it wait for the next
                run.
        """
        published = self.begin()
        with self._staging(apart=False) as staging:
            while self._publish_next(staging, published):
                pass
        return published

    def begin(self) -> PublishReport:
        """Finish what an interrupted run left, and count what waits."""
        schema = self.store.schema(self.con)
        recovered = self.recover()
        try:
            recovered.notes += self.resume()
        except ArchiveError as error:  # which must not keep new memories from the archive
            recovered.problems.append(f"a restoration or an erasure could not be finished: {error}")
        self._left_alone = left_alone(self.store, self.archive)
        with self.store.errors():
            purge_archived_before(self, recovered)
            purge_tombstoned(self, recovered)
            (waiting,) = self.con.execute(
                "SELECT count(*) FROM memories WHERE status = 'ARCHIVED' "
                "AND id NOT IN (SELECT value FROM json_each(?))",
                (json_ids(self._left_alone),),
            ).fetchone()
        return PublishReport(schema.arrow_schema, waiting, recovered=recovered)

    # Write

    @contextlib.contextmanager
    def _staging(self, *, apart: bool) -> Iterator[Staging]:
        stager = Stager(self.store, self.archive, self._moment, self._batch)
        try:
            with Staging(stager, apart=apart) as staging:
                yield staging
        except BaseException:
            # The second process was ended amid a file, perhaps.
            with contextlib.suppress(ArchiveError):
                self.archive.sweep()
            raise

    def _begin_next(self, staging: Staging, published: PublishReport) -> None:
        """Begin to stage the next file."""
        rows = self.settings.rows_per_file
        if staging.apart:
            rows = min(rows, max(self.least_portion, published.waiting // self.portions), self.most_portion)
        # The version comes first: what changes after it makes the purge compare once more.
        with self.store.errors():
            version = data_version(self.con)
        path = self.archive.new_path(self._moment)
        staging.begin(StagingRequest(path, published.last, rows, self._left_alone, version))

    def _publish_next(self, staging: Staging, published: PublishReport) -> Pending | None:
        """Publish the file that was begun, or else the next one; None if there was no row for it."""
        if not staging.begun:
            self._begin_next(staging, published)
        before = published.rows
        staged = staging.finish(lambda rows: self.progress("archiving", before + rows, published.waiting))
        published.rejected += staged.rejected
        published.last = staged.last
        if staged.hidden is None:
            return None
        relative = str(staged.path.relative_to(self.archive.root))
        mark = Pending(relative, (staged.sha256,), staged.rows, store=self.identity, batch=self._batch)
        self.archive.publish(staged.hidden, staged.path, mark)
        self._verified[staged.path] = staged.version
        with archive_errors(staged.path):
            published.files.append(PublishedFile(staged.path, staged.rows, staged.path.stat().st_size))
        published.schema = staged.schema
        return mark

    # Verify

    def verify(self) -> Verification:
        """Read back the files that wait to be purged, and compare every column of every row with the hot store.

        Rows that the daemon has changed since are counted, not blamed: the file's own digest tells them from a
        file that is no longer what was written.

        Raises:
            HotStoreError: the hot store can't be read.
        """
        result = Verification()
        marks = self._marks()
        total = sum(mark.rows for mark in marks)
        for mark in marks:
            path = self.archive.root / mark.file
            self.progress("verifying", result.rows, total)
            result.files += 1
            result.rows += mark.rows
            with self.store.errors():
                version = data_version(self.con)
                schema = self.store.schema(self.con)
                try:
                    found = compare_contents(self.con, schema, self.archive.read(mark))
                except VerificationError as error:
                    problem = str(error)
                    with contextlib.suppress(ArchiveError):  # it may be readable all the same
                        found = compare_contents(self.con, schema, self.archive.contents(path))
                        problem += f"; against the hot store: {found.describe()}"
                    result.problems.append(problem)
                    continue
            if found.differing or found.missing:
                result.changed += len(found.differing) + len(found.missing)
            else:
                self._verified[path] = version
        if marks:
            self.progress("verifying", total, total)
        return result

    # Purge

    def purge(self) -> PurgeReport:
        """Purge the memories of all pending files from the hot store.

        Raises:
            HotStoreError: the store was busy for too long, or is damaged; what was deleted before is archived.
            VerificationError: a file is not what was written; none of its memories was purged.
        """
        result = PurgeReport()
        marks = self._marks()
        self._to_purge = sum(mark.rows for mark in marks)
        with self._leaving_the_rest(result):
            for mark in marks:
                if not self.archive.is_void(mark):
                    self._purge_file(mark, self._read(mark), result)
        return result

    @contextlib.contextmanager
    def _leaving_the_rest(self, result: PurgeReport) -> Iterator[None]:
        """Within: a log that is held for too long ends the purge, but not the run; marks keep what is left."""
        try:
            yield
        except LogHeldError as error:
            result.notes.append(f"{error}. The memories that are left wait in both tiers for the next run")

    def _read(self, mark: Pending) -> FileContents:
        try:
            return self.archive.read(mark)
        except VerificationError as error:
            raise VerificationError(f"{error}; nothing of it was purged") from None

    def _purge_file(self, mark: Pending, contents: FileContents, result: PurgeReport) -> None:
        """Purge one pending file's memories, and take its stale copies out of the archive.

        It was read before its mark says that it may hold the only copy of a memory.

        Raises:
            HotStoreError, ArchiveError: it could not be finished; the next run goes on from there.
        """
        path = contents.path
        # If none of the file's memories has been purged before, one that is missing was deleted by the daemon, and
        # one that differs was changed by it. Otherwise the file may hold the only copy of either.
        certain = not mark.purging
        self.archive.copy_to_mirror(contents, mark)
        if certain:
            mark = replace(mark, purging=True)
            self.archive.pending.write(mark)
            self.archive.push()
        count = PurgeCount()
        try:
            with self.store.errors():
                for copies in contents.batches():
                    self.purger.purge(copies, count, self._verified.get(path))
                    self.progress("purging", result.purged + count.purged, self._to_purge)
                self.purger.finish(count, [] if certain else count.missing)
        finally:
            result.purged += count.purged
            result.longest_hold = max(result.longest_hold, count.longest_hold)
        if count.held:
            result.notes.append(
                f"{plural(len(count.held), 'memory')} can't be deleted from the hot store, whose own triggers or "
                f"foreign keys forbid it, and what was archived of them was taken back: {some_of(count.held)}"
            )
        stale = count.kept | set(count.missing) if certain else count.kept & self._same_memories(contents, count.kept)
        left = self.archive.rewrite(contents, mark, stale) if stale else contents
        self.sync_store()
        self.archive.settle(left, mark)
        result.kept += len(stale)
        result.files.append(path)

    def _same_memories(self, contents: FileContents, ids: set[int]) -> set[int]:
        """Those of some ids under which the hot store surely has the same memory as a file, changed or not.

        A store whose ids are not AUTOINCREMENT may have given the id of a purged memory to a new one. Where that is
        in doubt, the archived copy stays.
        """
        schema = self.store.schema(self.con)
        birth = tuple(column for column in schema.columns if column.field in _BIRTH)
        same: set[int] = set()
        if ids and "created_at" in {column.field for column in birth}:
            birth_alone, wanted = replace(schema, columns=birth, child_tables=()), pa.array(ids, pa.int64())
            for copies in contents.batches():
                # A copy of an unknown moment may be of any memory.
                dated = copies.filter(pc.is_valid(copies["created_at"]))  # pyright: ignore[reportAttributeAccessIssue]
                some = dated.filter(pc.call_function("is_in", [dated["id"]], pc.SetLookupOptions(wanted)))
                with self.store.errors():
                    same.update(compare(self.con, birth_alone, some).equal)
        return same

    def sync_store(self) -> None:
        """Wait until the deletions are on the disk: with a WAL, ``synchronous=NORMAL`` leaves that open."""
        log = Path(f"{os.path.realpath(self.store.path)}-wal")
        if log.exists():
            with archive_errors(log):
                # The log carries none of SQLite's locks, so closing it here drops none.
                sync_file(log)
        with self.store.errors():
            self.purger.checkpoint()

    # Recover

    def recover(self) -> PurgeReport:
        """Finish the work of a run that died: drop what was never published, purge what was."""
        self.archive.sweep()
        result = PurgeReport()
        marks = self._marks()
        self._to_purge = sum(mark.rows for mark in marks)
        for mark in marks:
            path = self.archive.root / mark.file
            if self.archive.is_void(mark):
                self.archive.settle(None, mark)
                continue
            try:
                contents = self.archive.read(mark)
            except VerificationError as error:
                if self.archive.restore_pending(mark):
                    result.notes.append(f"{error}; it was replaced by its copy in the mirror")
                    self._purge_file(mark, self.archive.read(mark), result)
                elif not mark.purging:
                    # All of its memories are still hot, and are archived anew.
                    aside = self.archive.set_aside(path)
                    self.archive.pending.remove(mark)
                    result.notes.append(f"{error}; renamed to {aside.name}. Its memories are still hot")
                else:
                    kept_mark = self.archive.pending.retire(mark)
                    result.problems.append(
                        f"{error}, and some of its {mark.rows:,} memories had been purged already. Restore the file "
                        f"from a backup, or move it out of the archive; what is known of it stands in {kept_mark}"
                    )
            else:
                self._purge_file(mark, contents, result)
        return result

    def resume(self) -> list[str]:
        """Finish the restorations and erasures that a run before this one began; says what was done.

        Raises:
            HotStoreError, ArchiveError: one could not be finished; the next run tries again.
        """
        return self._resume(self)

    # Upkeep

    def keep_small(self, purged: int) -> Upkeep:
        """Checkpoint the hot store's log, merge its search index, give free pages back as configured."""
        try:
            return keep_small(self.store, self.con, self.settings, purged)
        except HotStoreError as error:  # from opening it: that memories have moved must be told all the same
            return Upkeep(notes=[f"the hot store was not made smaller: {error}"])

    # What both tiers know each other by

    @cached_property
    def identity(self) -> tuple[str, str]:
        """What marks and intents know the hot store by."""
        return store_identity(self.store.path, self.archive.root)

    def still_hot(self, memories: Collection[tuple[int, str | None]]) -> set[tuple[int, str | None]]:
        """Those of some memories, given by their ids and ``created_at``, that the hot store has now."""
        with self.store.errors(), tolerant_text(self.con):
            rows = self.con.execute(
                "SELECT id, created_at FROM memories WHERE id IN (SELECT value FROM json_each(?))",
                (json_ids(id_ for id_, _ in memories),),
            ).fetchall()
        return set(rows).intersection(memories)

    def reactivate(self, ids: Sequence[int]) -> None:
        """Let memories that wait for archival be active again."""
        with self.store.errors():
            for first in range(0, len(ids), _REACTIVATED_AT_ONCE):
                self.con.execute(
                    "UPDATE memories SET status = 'ACTIVE' "
                    "WHERE status = 'ARCHIVED' AND id IN (SELECT value FROM json_each(?))",
                    (json_ids(ids[first : first + _REACTIVATED_AT_ONCE]),),
                )

    def _marks(self) -> list[Pending]:
        """The pending marks that concern this hot store."""
        return [mark for mark in self.archive.pending.all() if mark.concerns(self.identity)]


def left_alone(store: HotStore, archive: Archive) -> set[int]:
    """The ids of memories that were restored lately, and are not archived again yet.

    Raises:
        ArchiveError: their list can't be read.
    """
    return Grace(archive.root, store_identity(store.path, archive.root)).ids(datetime.now(UTC))
