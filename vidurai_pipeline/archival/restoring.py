"""Bring archived memories back into the hot store: the part that a crash may cut short.

The hot store comes first: a memory is inserted, compared with its archived copy and on the disk before the copy leaves
the archive, with all its older versions. What was begun stands in an intent
(:mod:`vidurai_pipeline.cold.intents`), from which the next run goes on.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.archival.report import ChoiceReport, Refusal
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, archive_errors
from vidurai_pipeline.cold.intents import Identity, Intent
from vidurai_pipeline.cold.listing import ArchiveFile, by_folder, list_settled
from vidurai_pipeline.cold.rewriting import Rewriting, rewrite_folder
from vidurai_pipeline.errors import plural
from vidurai_pipeline.hot.restoring import RestoreOptions, Restorer

if TYPE_CHECKING:
    from vidurai_pipeline.archival.run import Run


@dataclass
class RestoreReport(ChoiceReport):
    """What a restoration did; in a dry run, what it would do.

    Attributes:
        restored: memories that came back from the archive.
        already_hot: memories that were in the hot store already. Those that waited for archival are active again.
        files: files of the archive that were written anew, or are gone.
        unexpired: restored memories whose time had expired: they no longer expire.
        would_decay: restored memories that Vidurai would set aside again by its own rules.
        until: until when restored memories are not archived again, in UTC; None where nothing was restored.
    """

    restored: int = 0
    already_hot: int = 0
    files: int = 0
    unexpired: int = 0
    would_decay: int = 0
    until: str | None = None


def finish_restorations(run: "Run") -> list[str]:
    """Finish the restorations that a run before this one began; says what was done.

    Raises:
        HotStoreError, ArchiveError: one could not be finished; the next run tries again.
    """
    found = [one for one in run.archive.intents.all() if one.kind == "restore" and one.concerns(run.identity)]
    for intent in found:
        bring_back(run, intent, RestoreReport())
    return [f"finished a restoration that was cut short: {plural(len(one.memories), 'memory')}" for one in found]


def bring_back(run: "Run", intent: Intent, report: RestoreReport) -> None:
    """Do what an intent says, or what is left of it, and add it to the report."""
    archive = run.archive
    files_of = holders(archive, list_settled(archive.root), intent.memories)
    if not intent.removing:
        with run.store.errors():
            restorer = Restorer(run.con, run.store.schema(run.con), RestoreOptions(**intent.options))
            stored = insert(archive, files_of, intent.memories, restorer=restorer, report=report, progress=run.progress)
        run.sync_store()
        # From here on nothing is inserted again: what is gone from the hot store was deleted there, or archived anew.
        intent = replace(intent, memories=tuple(row for row in intent.memories if row[0] in stored), removing=True)
        archive.intents.write(intent)
    # The run that goes on may come late. A memory that has left the hot store since may be in the archive alone.
    born = run.still_hot({row[:2] for row in intent.memories})
    holding = [
        file
        for file in files_of
        if any(
            mask(batch, born).true_count
            for batch in archive.read_back(archive.root / file.relative, ["id", "created_at"])
        )
    ]
    for folder, files in by_folder(holding).items():
        report.files += take_out(run, folder, files, born).files_before
    archive.intents.remove(intent)


def take_out(
    run: "Run", folder: str, files: Sequence[ArchiveFile], born: Collection[tuple[int, str | None]]
) -> Rewriting:
    """Write some files of a folder anew without some memories, given by their ids and ``created_at``.

    Raises:
        ArchiveError: it could not be done; nothing has changed.
    """
    rows = run.settings.rows_per_file
    return rewrite_folder(run.archive, folder, files, rows_per_file=rows, leave_out=lambda table: mask(table, born))


def holders(archive: Archive, files: Iterable[ArchiveFile], memories: Sequence[Identity]) -> list[ArchiveFile]:
    """Those of some files that may hold some memories, by their ids."""
    if not memories:
        return []
    lowest, highest = min(row[0] for row in memories), max(row[0] for row in memories)
    found = []
    for file in files:
        with archive_errors(archive.root / file.relative):
            if archive.may_hold_ids(file, lowest, highest):
                found.append(file)
    return found


def insert(
    archive: Archive,
    files: Iterable[ArchiveFile],
    memories: Sequence[Identity],
    *,
    restorer: Restorer,
    report: RestoreReport,
    progress: Progress,
) -> set[int]:
    """Insert one version of each memory; returns the ids of those that are in the store now."""
    wanted, stored = set(memories), set()
    for file in files:
        path = archive.root / file.relative
        with archive_errors(path):
            ids = pa.array([row[0] for row in wanted], pa.int64())
            for batch in archive.read_back(path):
                # A quick look first: most batches hold none of them.
                if not wanted or not pc.call_function("any", [_is_in(batch.column("id"), ids)]).as_py():
                    continue
                taken = batch.filter(_take(batch, wanted))
                # A restored copy of an old file brings back what expired or was erased; the next flush would purge it.
                removed = archive.tombstones.stand_for(taken)
                gone = taken.filter(removed).column("id").to_pylist()
                report.refuse(gone, "it expired or was erased, and came back with a backup")
                done = restorer.restore(taken.filter(pc.call_function("invert", [removed])))
                stored.update(done.ids)
                report.restored += len(done.ids)
                report.refused += [Refusal(id_, reason) for id_, reason in sorted(done.refused.items())]
                report.unexpired += done.unexpired
                report.longest_hold = max(report.longest_hold, done.longest_hold)
                progress("restoring", len(stored), len(memories))
    report.refuse((row[0] for row in wanted), "no file of the archive holds it any more")
    return stored


def _take(batch: pa.RecordBatch, wanted: set[Identity]) -> pa.Array:
    """Which rows of a batch are wanted; each once."""
    taken = []
    for row in _identities(batch, ("id", "created_at", "archived_at")):
        taken.append(row in wanted)
        wanted.discard(row)  # pyright: ignore[reportArgumentType]
    return pa.array(taken, pa.bool_())


def mask(rows: pa.RecordBatch | pa.Table, born: Collection[tuple[int, str | None]]) -> pa.Array:
    """Which rows are versions of some memories, given by their ids and ``created_at``."""
    candidates = _is_in(rows.column("id"), pa.array([id_ for id_, _ in born], pa.int64()))
    if not pc.call_function("any", [candidates]).as_py():
        return pa.repeat(pa.scalar(value=False), rows.num_rows)
    identities = _identities(rows, ("id", "created_at"))
    return pa.array(
        [candidate and row in born for candidate, row in zip(candidates.to_pylist(), identities, strict=True)],
        pa.bool_(),
    )


def _identities(rows: pa.RecordBatch | pa.Table, names: Sequence[str]) -> Iterable[tuple]:
    none = pa.nulls(rows.num_rows, pa.string())
    columns = [rows.column(name) if name in rows.schema.names else none for name in names]
    return zip(*(column.to_pylist() for column in columns), strict=True)


def _is_in(ids: pa.Array | pa.ChunkedArray, wanted: pa.Array) -> pa.Array | pa.ChunkedArray:
    return pc.call_function("is_in", [ids], pc.SetLookupOptions(wanted))
