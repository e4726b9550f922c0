"""A self-test: are the settings right, the tiers readable, and do they agree?"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from vidurai_pipeline.archival.archive import Archive, read_back
from vidurai_pipeline.archival.hot_store import HotStore, json_ids
from vidurai_pipeline.archival.pending import Pending
from vidurai_pipeline.archival.reconciler import Reconciler
from vidurai_pipeline.config import Settings
from vidurai_pipeline.errors import PipelineError
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.table_file import TableFile

_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it where all is not well."""

    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything; one check's failure does not keep the others from running."""
    archive = Archive(settings.archive_path)
    store = HotStore(settings.db_path, settings.busy_timeout)
    yield from _hot_store(store)
    yield from _archive_files(archive)
    yield from _leftovers(store, archive)
    yield from _both_tiers(store, archive)
    yield _q_table(settings.q_table_path)
    yield _disk(store, archive)


def _hot_store(store: HotStore) -> Iterator[Finding]:
    try:
        with closing(store.connect()) as con:
            backlog = store.backlog(con)
            yield Finding("hot store", "ok", f"{store.path}: {backlog.total:,} memories, {backlog.waiting:,} ARCHIVED")
            with store.errors():
                faults = [row[0] for row in con.execute("PRAGMA quick_check(3)")]
    except PipelineError as error:
        yield Finding("hot store", "failed", str(error))
        return
    if faults == ["ok"]:
        yield Finding("hot store integrity", "ok", "quick_check found no fault")
    else:
        yield Finding(
            "hot store integrity",
            "failed",
            f"{store.path} is damaged ({len(faults)} faults or more): stop Vidurai, keep a copy, recover it with "
            "`sqlite3 STORE .recover` or from a backup",
        )
    if not os.access(store.path, os.W_OK):
        yield Finding("hot store permissions", "failed", f"{store.path} is not writable: nothing can be purged")


def _archive_files(archive: Archive) -> Iterator[Finding]:
    if os.path.lexists(archive.root) and not (archive.root.is_dir() and os.access(archive.root, os.W_OK | os.X_OK)):
        yield Finding("archive folder", "failed", f"{archive.root} is not a folder that this user may write")
        return
    pending = {archive.root / mark.file for mark in _marks(archive)}
    # What a pending file is worth, the next run finds out.
    files = [path for path in archive.files() if path not in pending]
    broken, rows = [], 0
    for path in files:
        try:
            rows += sum(batch.num_rows for batch in read_back(path, ["id"]))
        except (OSError, pa.ArrowException, KeyError):
            broken.append(path)
    if broken:
        names = ", ".join(map(str, broken[:_NAMED]))
        yield Finding(
            "archive",
            "failed",
            f"{len(broken)} of {len(files)} files can't be read: {names}. Restore them from a backup, or move them "
            "out of the archive",
        )
    else:
        yield Finding("archive", "ok", f"{archive.root}: {len(files):,} files, {rows:,} rows, all readable")
    loose = [path for path in files if path.stat().st_mode & 0o077]
    if loose:
        yield Finding(
            "archive permissions",
            "warning",
            f"{len(loose):,} files can be read by other users: chmod -R go= {archive.root}",
        )


def _leftovers(store: HotStore, archive: Archive) -> Iterator[Finding]:
    try:
        marks = archive.pending.all()
    except PipelineError as error:
        yield Finding("interrupted runs", "failed", str(error))
        return
    own = Reconciler(store, archive).identity()
    strangers = [mark for mark in marks if mark.store[0] != own[0] and mark.store[1] != own[1]]
    waiting = [mark for mark in marks if mark not in strangers]
    if waiting:
        names = ", ".join(mark.file for mark in waiting[:_NAMED])
        yield Finding(
            "interrupted runs",
            "warning",
            f"{len(waiting)} files wait to be purged ({names}): run the job again; it finishes them or, where one is "
            "damaged, archives its memories anew",
        )
    else:
        yield Finding("interrupted runs", "ok", "none")
    if strangers:
        stores = ", ".join(sorted({mark.store[0] for mark in strangers})[:_NAMED])
        yield Finding(
            "other stores",
            "warning",
            f"{len(strangers)} files wait for another hot store ({stores}): run the job on that one; if it has moved "
            f"here, move their marks out of {archive.root / '.pending'}",
        )
    damaged = sorted(archive.root.rglob("*.parquet.damaged*"))
    set_aside = [path for path in damaged if path.parent.name != ".pending"]
    retired = [path for path in damaged if path.parent.name == ".pending"]
    if set_aside:
        yield Finding(
            "files set aside",
            "warning",
            f"{', '.join(map(str, set_aside[:_NAMED]))}: damaged before anything was purged on their account; delete "
            "them once you know why",
        )
    if retired:
        yield Finding(
            "lost files",
            "failed",
            f"{', '.join(path.name.removesuffix('.damaged') for path in retired[:_NAMED])}: damaged or gone after some "
            "of their memories had been purged: restore them from a backup, then delete the notes in "
            f"{archive.root / '.pending'}",
        )


def _marks(archive: Archive) -> list[Pending]:
    try:
        return archive.pending.all()
    except PipelineError:
        return []


def _both_tiers(store: HotStore, archive: Archive) -> Iterator[Finding]:
    """Look for memories that both tiers hold: same id, same moment of creation."""
    marked = set()
    both: list[int] = []
    try:
        marked = {archive.root / mark.file for mark in archive.pending.all()}
        with closing(store.connect()) as con, store.errors():
            con.execute("SELECT created_at FROM memories LIMIT 0")
            for path in archive.files():
                if path not in marked:
                    both += _shared(con, path)
    except (PipelineError, sqlite3.Error, OSError, pa.ArrowException, KeyError):
        yield Finding("one tier", "warning", "could not be checked: see the failures above")
        return
    if both:
        yield Finding(
            "one tier",
            "warning",
            f"{len(both):,} memories are in the hot store and in the archive (ids {', '.join(map(str, both[:_NAMED]))}"
            f"{', …' if len(both) > _NAMED else ''}): an older tool's purge failed, or the store was restored from a "
            "backup. The next run archives those that are ARCHIVED again; `history` shows each memory once",
        )
    else:
        yield Finding("one tier", "ok", "no memory is in both tiers")


def _shared(con: sqlite3.Connection, path: Path) -> list[int]:
    shared = []
    for batch in read_back(path, ["id", "created_at"]):
        copies = dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        rows = con.execute(
            "SELECT id, created_at FROM memories WHERE id IN (SELECT value FROM json_each(?))", (json_ids(copies),)
        )
        shared += [id_ for id_, created_at in rows if copies[id_] == created_at]
    return shared


def _q_table(path: Path) -> Finding:
    if not path.exists():
        return Finding("Q-table", "ok", f"{path}: not there yet; the first dream makes it")
    try:
        policy = QLearningPolicy.load(path)
    except PipelineError as error:
        return Finding("Q-table", "failed", str(error))
    if (candidate := TableFile(path).candidate_path).exists():
        detail = f"{candidate}: a newer table that was refused; `vidurai-pipeline dream` tells why"
        return Finding("Q-table", "warning", detail)
    return Finding("Q-table", "ok", f"{path}: {len(policy.q_table):,} states, {policy.episodes:,} episodes")


def _disk(store: HotStore, archive: Archive) -> Finding:
    place = next(path for path in (archive.root, *archive.root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = store.path.stat().st_size if store.path.exists() else 0
    detail = f"{free / 1e9:.1f} GB free at {place}"
    if free < needed:
        return Finding("disk", "warning", f"{detail}, less than the hot store's own size: free some")
    return Finding("disk", "ok", detail)
