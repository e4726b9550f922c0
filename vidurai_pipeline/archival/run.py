"""Bring pending files and the hot store to agreement: each memory in one tier, once.

A pending file's memories are still in the hot store when the file is new, partly so when a purge was interrupted.
"""

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.archival.report import Progress, Purge, unwatched
from vidurai_pipeline.cold.archive import Archive, read_back
from vidurai_pipeline.cold.files import archive_errors, sync_file
from vidurai_pipeline.cold.pending import Pending
from vidurai_pipeline.errors import VerificationError
from vidurai_pipeline.hot.purger import PurgeCount, Purger
from vidurai_pipeline.hot.sql import data_version, json_ids, quote_identifier, tolerant_text
from vidurai_pipeline.hot.store import HotStore

_NAMED = 10


class Reconciler:
    """Purges the memories of pending files, and finishes what a dead run left.

    Args:
        store: the hot store.
        archive: the archive, whose lock must be held.
        progress: told how far the work is.

    Attributes:
        verified: files found equal to the hot store, and the data version of the connection at which they were.
    """

    def __init__(self, store: HotStore, archive: Archive, progress: Progress = unwatched) -> None:
        self.store = store
        self.archive = archive
        self.verified: dict[Path, int] = {}
        self._progress = progress
        self._con: sqlite3.Connection | None = None
        self._purger: Purger | None = None
        self._version = -1

    def connection(self) -> sqlite3.Connection:
        """The connection that purges, opened when it is first needed.

        Raises:
            HotStoreError: the store can't be opened for writing.
        """
        if self._con is None:
            self._con = self.store.connect(write=True)
        return self._con

    def logged(self) -> bool:
        """Whether the store has a write-ahead log, so that reading and writing don't wait for each other."""
        return self.connection().execute("PRAGMA journal_mode").fetchone()[0] == "wal"

    def close(self) -> None:
        """Close the connection; what was found equal by it is known no longer."""
        if self._con is not None:
            self._con.close()
            self._con = self._purger = None
            self.verified.clear()

    @property
    def version(self) -> int:
        """The connection's data version when it last looked. Any thread may ask."""
        purger = self._purger
        return purger.version if purger else self._version

    def look(self) -> int:
        """Have the connection look whether anyone else has changed the store; gives its data version."""
        with self.store.errors():
            self._version = data_version(self.connection())
        if self._purger:
            self._purger.version = self._version
        return self._version

    def prepare(self) -> None:
        """Do what every purge needs first, before the first file is there."""
        with self.store.errors():
            self._purger_of(self.connection())

    def purge_file(self, mark: Pending, result: Purge) -> None:
        """Purge one pending file's memories, and take its stale copies out of the archive.

        Args:
            mark: the file's mark.
            result: added to.

        Raises:
            VerificationError: the file is not what was written; none of its memories was purged.
            HotStoreError, ArchiveError: it could not be finished; the next run goes on from there.
        """
        path = self.archive.root / mark.file
        con = self.connection()
        # Before the mark says that the file may hold the only copy of a memory.
        if problem := self.archive.examine(mark):
            raise VerificationError(f"{path}: {problem}; nothing of it was purged")
        # If none of the file's memories has been purged before, one that is missing was deleted by the daemon, and
        # one that differs was changed by it. Otherwise the file may hold the only copy of either.
        certain = not mark.purging
        if certain:
            mark = replace(mark, purging=True)
            self.archive.pending.write(mark)
        count = PurgeCount()
        with self.store.errors(), archive_errors(path):
            purger = self._purger_of(con)
            for copies in read_back(path):
                part = purger.purge(copies, self.verified.get(path))
                count.purged += part.purged
                count.kept |= part.kept
                count.held += part.held
                count.missing += part.missing
                count.longest_hold = max(count.longest_hold, part.longest_hold)
                self._progress("purging", result.purged + count.purged, 0)
            count.longest_hold = max(count.longest_hold, purger.finish([] if certain else count.missing))
        stale = count.kept
        if count.held:
            result.notes.append(_held_note(count.held))
        if certain:
            stale |= set(count.missing)
        else:
            stale &= self._same_memories(path, stale)
        if stale:
            self.archive.rewrite(path, mark, stale)
        self._sync_store()
        with self.store.errors():
            purger.checkpoint()
        self.archive.pending.remove(mark)
        result.purged += count.purged
        result.kept += len(stale)
        result.files.append(path)
        result.longest_hold = max(result.longest_hold, count.longest_hold)

    def _same_memories(self, path: Path, ids: set[int]) -> set[int]:
        """Those of some ids under which the hot store surely has the same memory as a file, changed or not.

        A store whose ids are not AUTOINCREMENT may have given the id of a purged memory to a new one. Where that is
        in doubt, the archived copy stays.
        """
        con = self.connection()
        same = set()
        with self.store.errors(), tolerant_text(con), archive_errors(path):
            known = {column.field: column.name for column in self.store.schema(con).columns}
            if "created_at" not in known:
                return same
            birth = [name for name in ("created_at", "project_id", "event_type", "file_path") if name in known]
            names = ", ".join(quote_identifier(known[name]) for name in birth)
            for copies in read_back(path, ["id", *birth]):
                for id_, *born in zip(*(column.to_pylist() for column in copies.columns), strict=True):
                    if id_ not in ids or born[0] is None:
                        continue
                    row = con.execute(f"SELECT {names} FROM memories WHERE id = ?", (id_,)).fetchone()
                    if row is not None and list(row) == born:
                        same.add(id_)
        return same

    def log_bytes(self) -> int:
        """How much of the store's write-ahead log was in use at the last checkpoint."""
        return self._purger.log_bytes if self._purger else 0

    def _sync_store(self) -> None:
        """Wait until the deletions are on the disk: with a WAL, ``synchronous=NORMAL`` leaves that open."""
        log = Path(f"{os.path.realpath(self.store.path)}-wal")
        if log.exists():
            with archive_errors(log):
                # The log carries none of SQLite's locks, so closing it here drops none.
                sync_file(log)

    def recover(self) -> Purge:
        """Finish the work of a run that died: drop what was never published, purge what was."""
        self.archive.sweep()
        result = Purge()
        for mark in self.marks():
            path = self.archive.root / mark.file
            if self.archive.is_void(mark):
                self.archive.pending.remove(mark)
                continue
            problem = self.archive.examine(mark)
            if problem is None:
                self.purge_file(mark, result)
            elif not mark.purging:
                # All of its memories are still hot, and are archived anew.
                aside = self.archive.set_aside(path)
                self.archive.pending.remove(mark)
                result.notes.append(f"{path}: {problem}; renamed to {aside.name}. Its memories are still hot")
            else:
                kept_mark = self.archive.pending.retire(mark)
                result.problems.append(
                    f"{path}: {problem}, and some of its {mark.rows:,} memories had been purged already. Restore the "
                    f"file from a backup, or move it out of the archive; what is known of it stands in {kept_mark}"
                )
        return result

    def purge_archived_before(self, result: Purge) -> None:
        """Purge memories whose equal copy has long been in the archive, as after the store's restore from a backup.

        Writing them once more would give the archive the same version twice.
        """
        con = self.connection()
        lowest, highest = con.execute(
            "SELECT min(id), max(id) FROM memories WHERE status = 'ARCHIVED' AND typeof(id) = 'integer'"
        ).fetchone()
        if lowest is None:
            return
        for path in self.archive.files():
            # A pending file's copies may yet be withdrawn, by the run of another store too: nothing to rely on.
            if self.archive.pending.knows(path.name) or not path.is_file():
                continue
            try:
                overlaps = self._overlaps(con, path, lowest, highest)
            except (OSError, pa.ArrowException):
                # A broken file holds nothing to rely on; queries and the self-test name it.
                continue
            if overlaps:
                self._purge_equal(path, result)

    def _overlaps(self, con: sqlite3.Connection, path: Path, lowest: int, highest: int) -> bool:
        with pq.ParquetFile(path) as file:
            if not _may_hold(file.metadata, lowest, highest):
                return False
        for ids in read_back(path, ["id"]):
            waiting = con.execute(
                "SELECT count(*) FROM json_each(?) AS copy CROSS JOIN memories AS m ON m.id = copy.value "
                "WHERE m.status = 'ARCHIVED'",
                (json_ids(ids.column("id").to_pylist()),),
            ).fetchone()[0]
            if waiting:
                return True
        return False

    def _purge_equal(self, path: Path, result: Purge) -> None:
        with archive_errors(path):
            sync_file(path)
            purger = self._purger_of(self.connection())
            for copies in read_back(path):
                count = purger.purge(copies)
                result.purged += count.purged
                result.longest_hold = max(result.longest_hold, count.longest_hold)
            result.longest_hold = max(result.longest_hold, purger.finish())
        self._sync_store()

    def _purger_of(self, con: sqlite3.Connection) -> Purger:
        if self._purger is None:
            self._purger = Purger(con, self.store.schema)
        return self._purger

    def marks(self) -> list[Pending]:
        """The pending marks that concern this hot store."""
        own = self.identity()
        return [m for m in self.archive.pending.all() if m.store[0] == own[0] or m.store[1] == own[1]]

    def identity(self) -> tuple[str, str]:
        """What pending marks know the hot store by: its real path, and its path relative to the archive."""
        real = os.path.realpath(self.store.path)
        return real, os.path.relpath(real, os.path.realpath(self.archive.root))


def _held_note(ids: list[int]) -> str:
    named = ", ".join(map(str, ids[:_NAMED])) + (f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else "")
    what = "1 memory" if len(ids) == 1 else f"{len(ids):,} memories"
    return (
        f"{what} can't be deleted from the hot store, whose own triggers or foreign keys forbid it, and what was "
        f"archived of them was taken back: {named}"
    )


def _may_hold(metadata: pq.FileMetaData, lowest: int, highest: int) -> bool:
    """Whether a file can hold an id of a range, by its row groups' statistics."""
    if "id" not in metadata.schema.names:
        return False
    position = metadata.schema.names.index("id")
    for n in range(metadata.num_row_groups):
        statistics = metadata.row_group(n).column(position).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        if statistics.min <= highest and statistics.max >= lowest:
            return True
    return False
