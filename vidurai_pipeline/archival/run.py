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

from vidurai_pipeline.archival.report import Progress, PublishReport, PurgeReport, Verification
from vidurai_pipeline.archival.returned import read_tombstoned
from vidurai_pipeline.archival.staging import Stager, StagingRequest, compare_contents
from vidurai_pipeline.archival.staging_process import Staging
from vidurai_pipeline.cold.archive import Archive, FileContents, PublishedFile
from vidurai_pipeline.cold.files import archive_errors, sync_file
from vidurai_pipeline.cold.intents import Grace
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.pending import Pending, store_identity
from vidurai_pipeline.errors import (
    ArchiveError,
    HotStoreError,
    LogHeldError,
    MissingKeyError,
    VerificationError,
    plural,
    some_of,
)
from vidurai_pipeline.hot.erasing import HotEraser
from vidurai_pipeline.hot.purger import PurgeCount, Purger
from vidurai_pipeline.hot.sql import data_version, json_ids, quote_identifier, tolerant_text
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.hot.upkeep import Upkeep, keep_small
from vidurai_pipeline.settings import Settings

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

    #: Of so many memories or more, a second process stages the next file; it takes half a second to start.
    rows_worth_a_process = 20_000
    #: A flush in two processes divides its work into so many files, of the fewest and the most rows that follow: while
    #: the first is staged nothing is purged, while the last is purged nothing is staged.
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
        apart = published.waiting >= self.rows_worth_a_process and self._has_log()
        self._to_purge = published.waiting
        with self._leaving_the_rest(purge), self._staging(apart=apart) as staging:
            version = self._begin_file(staging, published, apart=apart)
            while mark := self._publish_file(staging, published, version):
                # While the second process reads, SQLite can't begin its log anew: not ahead of a long one.
                ahead = apart and self.purger.log_bytes < self.log_share * self.settings.wal_limit
                if ahead:
                    version = self._begin_file(staging, published, apart=apart)
                self._purge_file(mark, self._read(mark), purge)
                if not ahead:
                    version = self._begin_file(staging, published, apart=apart)

    def publish(self) -> PublishReport:
        """Finish what an interrupted run left, then write all ARCHIVED memories to new files.

        Raises:
            HotStoreError, ArchiveError: nothing was purged; files that were published before it wait for the next
                run.
        """
        published = self.begin()
        with self._staging(apart=False) as staging:
            version = self._begin_file(staging, published, apart=False)
            while self._publish_file(staging, published, version):
                version = self._begin_file(staging, published, apart=False)
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
            self._purge_archived_before(recovered)
            self._purge_tombstoned(recovered)
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

    def _begin_file(self, staging: Staging, published: PublishReport, *, apart: bool) -> int:
        """Begin to stage the next file; returns the data version before its snapshot."""
        # The version comes first: what changes after it makes the purge compare once more.
        with self.store.errors():
            version = data_version(self.con)
        rows = self.settings.rows_per_file
        if apart:
            rows = min(rows, max(self.least_portion, published.waiting // self.portions), self.most_portion)
        staging.begin(StagingRequest(self.archive.new_path(self._moment), published.last, rows, self._left_alone))
        return version

    def _publish_file(self, staging: Staging, published: PublishReport, version: int) -> Pending | None:
        """Publish the file that was begun; None if there was no row for it."""
        before = published.rows
        staged = staging.finish(lambda rows: self.progress("archiving", before + rows, published.waiting))
        published.rejected += staged.rejected
        published.last = staged.last
        if staged.hidden is None:
            return None
        mark = Pending(
            file=str(staged.path.relative_to(self.archive.root)),
            sha256=(staged.sha256,),
            rows=staged.rows,
            store=self.identity,
            batch=self._batch,
        )
        self.archive.publish(staged.hidden, staged.path, mark)
        self._verified[staged.path] = version
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
                    result.problems.append(str(error) + self._differences(path))
                    continue
            if found.differing or found.missing:
                result.changed += len(found.differing) + len(found.missing)
            else:
                self._verified[path] = version
        if marks:
            self.progress("verifying", total, total)
        return result

    def _differences(self, path: Path) -> str:
        """How a file that is not what was written compares with the hot store, where it can be read."""
        with contextlib.suppress(ArchiveError):
            found = compare_contents(self.con, self.store.schema(self.con), self.archive.contents(path))
            return f"; against the hot store: {found.describe()}"
        return ""

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

        Args:
            mark: the file's mark.
            contents: the file, read before its mark says that it may hold the only copy of a memory.
            result: added to.

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
            result.notes.append(_held_note(count.held))
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
        same = set()
        with self.store.errors(), tolerant_text(self.con):
            known = {column.field: column.name for column in self.store.schema(self.con).columns}
            if "created_at" not in known or not ids:
                return same
            birth = [name for name in ("created_at", "project_id", "event_type", "file_path") if name in known]
            names = ", ".join(quote_identifier(known[name]) for name in birth)
            for copies in contents.batches():
                for id_, *born in zip(*(copies.column(name).to_pylist() for name in ("id", *birth)), strict=True):
                    if id_ not in ids or born[0] is None:
                        continue
                    row = self.con.execute(f"SELECT {names} FROM memories WHERE id = ?", (id_,)).fetchone()
                    if row is not None and list(row) == born:
                        same.add(id_)
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

    def _purge_archived_before(self, result: PurgeReport) -> None:
        """Purge memories whose equal copy has long been in the archive, as after the store's restore from a backup.

        Writing them once more would give the archive the same version twice.
        """
        lowest, highest = self.con.execute(
            "SELECT min(id), max(id) FROM memories WHERE status = 'ARCHIVED' AND typeof(id) = 'integer'"
        ).fetchone()
        if lowest is None:
            return
        try:
            files = list_files(self.archive.root)
        except ArchiveError as error:
            # What can't be listed must not keep new memories from the archive.
            result.notes.append(f"{error}. Memories that came back from a backup were not looked for in the archive")
            return
        for file in files:
            # A pending file's copies may yet be withdrawn, by the run of another store too: nothing to rely on.
            if self.archive.pending.knows(file.name):
                continue
            path = self.archive.root / file.relative
            try:
                overlaps = self.archive.may_hold_ids(file, lowest, highest) and self._holds_waiting(path)
                overlaps = overlaps and self.archive.is_stored(file)
            except (OSError, pa.ArrowException, MissingKeyError):
                # Nothing to rely on, like a broken file; queries and the self-test name it.
                continue
            if overlaps:
                self.archive.sync_mirror(file.relative.rpartition("/")[0])
                self._purge_equal(path, result)

    def _holds_waiting(self, path: Path) -> bool:
        for ids in self.archive.read_back(path, ["id"]):
            waiting = self.con.execute(
                "SELECT count(*) FROM json_each(?) AS copy CROSS JOIN memories AS m ON m.id = copy.value "
                "WHERE m.status = 'ARCHIVED'",
                (json_ids(ids.column("id").to_pylist()),),
            ).fetchone()[0]
            if waiting:
                return True
        return False

    def _purge_equal(self, path: Path, result: PurgeReport) -> None:
        count = PurgeCount()
        with archive_errors(path):
            sync_file(path)
            for copies in self.archive.read_back(path):
                self.purger.purge(copies, count)
            self.purger.finish(count)
        self.sync_store()
        result.purged += count.purged
        result.longest_hold = max(result.longest_hold, count.longest_hold)

    def _purge_tombstoned(self, result: PurgeReport) -> None:
        """Purge memories that came back, as from a backup, after they had been removed from the archive for good."""
        count = PurgeCount()
        try:
            if erased := self.archive.tombstones.erased():
                again = HotEraser(self.store, self.con, self.purger).erase(erased).rows["memories"]
                result.tombstoned += again
                if again:
                    result.notes.append(f"{plural(again, 'memory')} had been erased, came back and were purged again")
            for rows in read_tombstoned(self.con, self.store.schema(self.con), self.archive.tombstones):
                self.purger.purge(rows, count)
        except ArchiveError as error:
            # What can't be read must not keep new memories from the archive; `expire` removes them again.
            result.notes.append(f"{error}. Memories that came back from a backup may be archived again")
        if count.purged:
            self.purger.finish(count)
            result.tombstoned += count.purged
            result.notes.append(f"{plural(count.purged, 'memory')} had expired, came back and were purged again")
        result.longest_hold = max(result.longest_hold, count.longest_hold)

    # Upkeep

    def keep_small(self, purged: int) -> Upkeep:
        """Checkpoint the hot store's log, merge its search index, give free pages back as configured.

        Args:
            purged: memories that were just purged.
        """
        try:
            search_index = self.store.schema(self.con).search_index
        except HotStoreError as error:
            # By now the memories have moved; that must be told, whatever becomes of this.
            return Upkeep(notes=[f"the hot store was not made smaller: {error}"])
        return keep_small(
            self.store,
            self.con,
            purged=purged,
            search_index=search_index,
            vacuum=self.settings.vacuum,
            share=self.settings.vacuum_share,
            log_limit=self.settings.wal_limit,
        )

    # What both tiers know each other by

    def _has_log(self) -> bool:
        return self.con.execute("PRAGMA journal_mode").fetchone()[0] == "wal"

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


def _held_note(ids: list[int]) -> str:
    what = "1 memory" if len(ids) == 1 else f"{len(ids):,} memories"
    return (
        f"{what} can't be deleted from the hot store, whose own triggers or foreign keys forbid it, and what was "
        f"archived of them was taken back: {some_of(ids)}"
    )


def left_alone(store: HotStore, archive: Archive) -> set[int]:
    """The ids of memories that were restored lately, and are not archived again yet.

    Raises:
        ArchiveError: their list can't be read.
    """
    return Grace(archive.root, store_identity(store.path, archive.root)).ids(datetime.now(UTC))
