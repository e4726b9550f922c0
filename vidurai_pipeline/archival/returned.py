"""Memories that had left a tier, and came back to it with a backup."""

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from vidurai_pipeline.archival.report import PurgeReport
from vidurai_pipeline.archival.restoring import mask, take_out
from vidurai_pipeline.cold.files import archive_errors, sync_file
from vidurai_pipeline.cold.listing import by_folder, list_files, list_settled
from vidurai_pipeline.cold.tombstones import Tombstones
from vidurai_pipeline.errors import ArchiveError, MissingKeyError, plural
from vidurai_pipeline.hot.erasing import HotEraser
from vidurai_pipeline.hot.purger import PurgeCount
from vidurai_pipeline.hot.rows import BATCH_ROWS, read_all
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import json_ids

if TYPE_CHECKING:
    from vidurai_pipeline.archival.run import Run

_WAITING = "status = 'ARCHIVED' AND id IN (SELECT value FROM json_each(?))"


def purge_archived_before(run: "Run", result: PurgeReport) -> None:
    """Purge memories whose equal copy has long been in the archive, as after the store's restore from a backup.

    Writing them once more would give the archive the same version twice.
    """
    lowest, highest = run.con.execute("SELECT min(id), max(id) FROM memories WHERE status = 'ARCHIVED'").fetchone()
    if lowest is None:
        return
    try:
        files = list_files(run.archive.root)
    except ArchiveError as error:
        # What can't be listed must not keep new memories from the archive.
        result.notes.append(f"{error}. Memories that came back from a backup were not looked for in the archive")
        return
    for file in files:
        # A pending file's copies may yet be withdrawn, by the run of another store too: nothing to rely on.
        if run.archive.pending.knows(file.name):
            continue
        path = run.archive.root / file.relative
        try:
            overlaps = run.archive.may_hold_ids(file, lowest, highest) and any(
                run.con.execute(f"SELECT 1 FROM memories WHERE {_WAITING} LIMIT 1", (json_ids(ids),)).fetchone()
                for ids in (part.column("id").to_pylist() for part in run.archive.read_back(path, ["id"]))
            )
            overlaps = overlaps and run.archive.is_stored(file)
        except (OSError, pa.ArrowException, MissingKeyError):
            # Nothing to rely on, like a broken file; queries and the self-test name it.
            continue
        if overlaps:
            run.archive.sync_mirror(file.folder)
            count = PurgeCount()
            with archive_errors(path):
                sync_file(path)
                for copies in run.archive.read_back(path):
                    run.purger.purge(copies, count)
                run.purger.finish(count)
            run.sync_store()
            result.purged += count.purged
            result.longest_hold = max(result.longest_hold, count.longest_hold)


def purge_tombstoned(run: "Run", result: PurgeReport) -> None:
    """Purge memories that came back after they had been removed from the archive for good."""
    erased_again, expired = 0, PurgeCount()
    try:
        if erased := run.archive.tombstones.erased():
            erased_again = HotEraser(run.store, run.con, run.purger).erase(erased).rows["memories"]
        for rows in read_tombstoned(run.con, run.store.schema(run.con), run.archive.tombstones):
            run.purger.purge(rows, expired)
    except ArchiveError as error:
        # What can't be read must not keep new memories from the archive; `expire` removes them again.
        result.notes.append(f"{error}. Memories that came back from a backup may be archived again")
    if expired.purged:
        run.purger.finish(expired)
    for number, how in ((erased_again, "been erased"), (expired.purged, "expired")):
        if number:
            result.tombstoned += number
            result.notes.append(f"{plural(number, 'memory')} had {how}, came back and were purged again")
    result.longest_hold = max(result.longest_hold, expired.longest_hold)


def read_tombstoned(con: sqlite3.Connection, schema: StoreSchema, tombstones: Tombstones) -> Iterator[pa.RecordBatch]:
    """Read ARCHIVED memories that have a tombstone.

    Raises:
        ArchiveError: the tombstones can't be read.
    """
    if not tombstones.files():
        return
    waiting = con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED'").fetchall()
    ids = tombstones.ids(pa.array([id_ for (id_,) in waiting], pa.int64()))
    for first in range(0, len(ids), BATCH_ROWS):
        # Whole, before any of them is purged: a statement that is still being read would keep the log from ending.
        for part in list(read_all(con, schema, _WAITING, (json_ids(ids[first : first + BATCH_ROWS]),))):
            rows = part.record_batch(schema, None)
            if (found := rows.filter(tombstones.stand_for(rows))).num_rows:
                yield found


def remove_returned(run: "Run") -> list[str]:
    """Take erased memories out of files that came back, as with a backup of the archive; says what was done.

    Only files without a record are read: what is recorded was looked at before.

    Raises:
        ArchiveError: it could not be done; the next run tries again.
    """
    archive = run.archive
    files = [file for file in list_settled(archive.root) if archive.manifests.entry(file.relative) is None]
    erased = archive.tombstones.erased() if files else set()
    holding = []
    for file in files if erased else ():
        with contextlib.suppress(ArchiveError, KeyError):  # what can't be read is named by those who must read it
            holding += [file] * bool(mask(archive.columns(file, ("id", "created_at")), erased).true_count)
    gone = sum(take_out(run, folder, found, erased).left_out for folder, found in by_folder(holding).items())
    return [f"{plural(gone, 'memory')} had been erased, came back with a file and were removed again"] if gone else []
