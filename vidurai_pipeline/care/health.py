"""What can be checked of the tiers, each check with what to do where it fails.

``doctor`` makes all of them at once, Dagster's checks each alone. None holds a lock or changes anything.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, ParamSpec

import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.vector_index import VectorIndex
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.care.secrets import find_secrets
from vidurai_pipeline.cold.archive import Archive, PublishedFile
from vidurai_pipeline.cold.files import free_bytes
from vidurai_pipeline.cold.listing import ArchiveFile, list_files, list_settled
from vidurai_pipeline.cold.manifest import age_in_days
from vidurai_pipeline.errors import NAMED, ArchiveError, PipelineError, plural, some_of
from vidurai_pipeline.hot import backlog
from vidurai_pipeline.hot.inspection import (
    archived_but_protected,
    holders,
    newer_store,
    orphans,
    reclaimable_bytes,
)
from vidurai_pipeline.hot.rows import read_archived
from vidurai_pipeline.hot.sql import Connection, json_ids, snapshot
from vidurai_pipeline.hot.store import HotStore

#: What is left free on a disk beside what the next run needs.
SPARE_BYTES = 100_000_000
_OTHERS_NAME_IT = "could not be checked: a file can't be read, which the other checks name"
# How often months may be rewritten while the archive is checked.
_REWRITINGS = 20
_UNREADABLE = (OSError, pa.ArrowException, KeyError, ArchiveError)


# What may differ between two copies of one version: when and where it was archived, and what its project was called.
_NO_CONTENT = ("archived_at", "archived_ts", "filename", "year", "month", "project_name", "project_path")


Status = Literal["ok", "warning", "failed"]
P = ParamSpec("P")


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it where all is not well."""

    check: str
    status: Status
    detail: str


def _check(
    name: str, status: Status, why: str = "{}", errors: tuple[type[Exception], ...] = (PipelineError,)
) -> Callable[[Callable[P, tuple[Status, str]]], Callable[P, Finding]]:
    """Make a check of a function that gives a status and a detail; where an error stops it, it has another status."""

    def named(look: Callable[P, tuple[Status, str]]) -> Callable[P, Finding]:
        @functools.wraps(look)
        def check(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                return Finding(name, *look(*args, **kwargs))
            except errors as error:
                return Finding(name, status, why.format(error))

        return check

    return named


@dataclass(frozen=True)
class ArchiveSize:
    """How many files and rows the archive holds, and the size of each file that can be read."""

    files: int
    rows: int
    contents: tuple[PublishedFile, ...] = ()


@_check("hot store integrity", "failed")
def store_integrity(store: HotStore) -> tuple[Status, str]:
    """SQLite's own ``quick_check``: it reads the whole store, and holds no writer up."""
    with closing(store.connect()) as con, store.errors():
        faults = [row[0] for row in con.execute("PRAGMA quick_check(3)")]
    if faults == ["ok"]:
        return "ok", "quick_check found no fault"
    return "failed", (
        f"{store.path} is damaged ({len(faults)} faults or more): stop Vidurai, keep a copy, recover it with "
        "`sqlite3 STORE .recover` or from a backup"
    )


def archive_readable(
    archive: Archive, before: ArchiveSize | None = None, *, thorough: bool
) -> tuple[Finding, ArchiveSize]:
    """Whether each file can be read, and whether none is gone; also what the archive holds now.

    Args:
        archive: the archive.
        before: what it held after the last run; it does not shrink by itself.
        thorough: read the pages of a column too, not the footers alone.
    """
    listed = _listed(archive)
    for _ in range(_REWRITINGS):
        found = _archive_readable(archive, before, thorough=thorough)
        if (now := _listed(archive)) == listed:
            return found
        listed = now  # files were rewritten meanwhile, and some may have been missed
    return _archive_readable(archive, before, thorough=thorough)


def _listed(archive: Archive) -> tuple[ArchiveFile, ...]:
    try:
        return list_files(archive.root)
    except ArchiveError:  # which the check itself finds
        return ()


def _archive_readable(archive: Archive, before: ArchiveSize | None, *, thorough: bool) -> tuple[Finding, ArchiveSize]:
    pending: set[Path] = set()
    with contextlib.suppress(PipelineError):  # what a pending file is worth, the next run finds out
        pending = {archive.root / mark.file for mark in archive.pending.all()}
    try:
        files = [path for path in archive.files() if path not in pending]
        for path in files:
            archive.keys.get(path)
    except PipelineError as error:
        return Finding("archive", "failed", str(error)), ArchiveSize(0, 0)
    broken: list[Path] = []
    contents: list[PublishedFile] = []
    for path in files:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            broken.append(path)
            continue
        try:
            rows = (
                sum(part.num_rows for part in archive.read_back(path, ["id"])) if thorough else archive.count_rows(path)
            )
            contents.append(PublishedFile(path, rows, path.stat().st_size))
        except _UNREADABLE:
            if path.exists():
                broken.append(path)
    size = ArchiveSize(len(files), sum(file.rows for file in contents), tuple(contents))
    return _as_recorded(archive, size, before, broken), size


@_check("archive", "failed")
def _as_recorded(
    archive: Archive, size: ArchiveSize, before: ArchiveSize | None, broken: Sequence[Path]
) -> tuple[Status, str]:
    if broken:
        return "failed", (
            f"{len(broken)} of {plural(size.files, 'file')} can't be read: {some_of(broken)}. Restore them from a "
            "backup, or move them out of the archive"
        )
    if flaws := [*archive.manifests.flaws(list_files(archive.root)), *archive.tombstones.damaged()]:
        names = some_of([f"{flaw.file}: {flaw.reason}" for flaw in flaws])
        what = f"{plural(len(flaws), 'file')} not as recorded: {names}"
        return "failed", f"{what}. `vidurai-pipeline scrub` says what can be done"
    # Where there is a manifest, it knows better: memories leave the archive when they are restored.
    if before is not None and size.rows < before.rows and not archive.manifests.of("").folders:
        return "failed", (
            f"{archive.place} holds {plural(before.rows - size.rows, 'memory')} fewer than after the last run "
            f"({plural(before.files, 'file')} then, {size.files:,} now). Restore the files that are gone from a "
            "backup; if they were removed on purpose, there is nothing to do"
        )
    return "ok", f"{archive.place}: {plural(size.files, 'file')}, {plural(size.rows, 'row')}, all readable"


def mirrored(archive: Archive) -> Finding | None:
    """Whether the mirror is there and holds all files; None without a mirror."""
    if (mirror := archive.mirror) is None:
        return None
    try:
        mirror.refresh()
        files, lacking = len(archive.files()), mirror.lacking()
    except PipelineError as error:
        return Finding("mirror", "failed", str(error))
    if lacking:
        return Finding(
            "mirror",
            "warning",
            f"{lacking:,} of {plural(files, 'file')} are not in {mirror.place} yet: the job care, or "
            "`vidurai-pipeline scrub --repair`, copies them",
        )
    if mirror.working_copy is None and mirror.root.stat().st_dev == archive.root.stat().st_dev:
        return Finding("mirror", "warning", f"{mirror.place} is on the archive's own disk: both would be lost with it")
    return Finding("mirror", "ok", f"{mirror.place} holds {plural(files, 'file')}, as the archive does")


@_check("credentials", "warning", "could not be looked for: {}")
def no_credentials(archive: Archive, seconds: float) -> tuple[Status, str]:
    """Whether archived memories look as if they held credentials.

    Each file is looked at once. When the time is up, the next check goes on.
    """
    report = find_secrets(archive, seconds=seconds)
    left = f"; {plural(report.left, 'file')} not looked at yet" if report.left else ""
    if not report.suspects:
        return "ok", f"none seen in {plural(report.files, 'file')}{left}"
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.kinds.items())
    files = some_of(sorted({suspect.file for suspect in report.suspects}))
    return "warning", (
        f"{plural(len(report.suspects), 'archived memory')} may hold some ({kinds}) in {files}: "
        f"`vidurai-pipeline secrets` lists them, `vidurai-pipeline erase --id` erases them{left}"
    )


@_check("search index", "warning")
def search_index(archive: Archive) -> tuple[Status, str]:
    """Whether the search index holds what the archive does; without one, searches read the archive."""
    words, vectors = WordIndex(archive.root), VectorIndex(archive.root)
    if not words.exists():
        return "ok", "there is none: searches read the archive"
    lag = words.lag(list_settled(archive.root), archive.manifests)
    intact = words.intact()
    recall = words.recall(archive)
    covered = vectors.lag(archive)
    if lag.lacking or lag.gone or covered.gone:
        gone = len(lag.gone) + covered.gone
        detail = f"{plural(len(lag.lacking), 'file')} of the archive are not in it, {gone:,} in it are gone"
        return "warning", f"{detail}: run `vidurai-pipeline index`"
    if not intact:
        return "warning", "it is damaged: run `vidurai-pipeline index`"
    if recall.found < recall.asked:
        detail = f"it does not find {recall.asked - recall.found} of {recall.asked} memories by their own words"
        return "warning", f"{detail}: run `vidurai-pipeline index --rebuild`"
    size = (words.bytes() + vectors.bytes()) / 1e6
    with_vector = f", {covered.vectors:,} of them with a vector" if covered.vectors else ""
    return "ok", f"{plural(sum(words.held().values()), 'memory')}, {size:,.1f} MB{with_vector}"


@_check("proofs", "failed")
def archive_proved(archive: Archive, days: int) -> tuple[Status, str]:
    """Whether every file was read and found to be what was written within `VIDURAI_SCRUB_DAYS`."""
    proofs = archive.manifests.proofs(list_settled(archive.root))
    if proofs.unknown:
        return "warning", (
            f"{plural(len(proofs.unknown), 'file')} were never proved, so damage to them would not be noticed: "
            f"{some_of(proofs.unknown)}. `vidurai-pipeline scrub` reads and records them"
        )
    if proofs.oldest is None:
        return "ok", "there is no archived file to prove yet"
    age = age_in_days(proofs.oldest)
    detail = f"a file was last proved {proofs.newest}; the oldest proof is of {proofs.oldest}, {age:,.0f} days ago"
    if age > 2 * days:
        advice = "see that Dagster's daemon runs and the schedule `nightly_care` is on, or run `vidurai-pipeline scrub`"
        return "warning", f"{detail}, and VIDURAI_SCRUB_DAYS is {days}: {advice}"
    return "ok", detail


@_check(
    "one tier",
    "warning",
    "could not be checked: a store or file can't be read, which the other checks name",
    (PipelineError, *_UNREADABLE),
)
def one_tier(store: HotStore, archive: Archive) -> tuple[Status, str]:
    """Look for memories that both tiers hold: same id, same moment of creation.

    Reads the ids of the hot store and of those files that may hold one of them.
    """
    both: list[int] = []
    # In this order: a file that was there before the marks were read and has none has been purged.
    files = archive.files()
    marked = {archive.root / mark.file for mark in archive.pending.all()}
    with closing(store.connect()) as con, store.errors():
        con.execute("SELECT created_at FROM memories LIMIT 0")
        hot = pa.array([id_ for (id_,) in con.execute("SELECT id FROM memories")], pa.int64())
        for path in files:
            if path not in marked:
                both += _shared(con, archive, path, hot)
    if not both:
        return "ok", "no memory is in both tiers"
    return "warning", (
        f"{plural(len(both), 'memory')} both in the hot store and in the archive (ids {some_of(both)}): an older "
        "tool's purge failed, or the store was restored from a backup. The next run archives those that are ARCHIVED "
        "again; `history` shows each memory once"
    )


def _shared(con: Connection, archive: Archive, path: Path, hot: pa.Array) -> list[int]:
    try:
        ids = pa.chunked_array([batch.column("id") for batch in archive.read_back(path, ["id"])], pa.int64())
    except FileNotFoundError:
        return []
    known = pc.call_function("is_in", [ids], pc.SetLookupOptions(hot))
    candidates = set(ids.filter(known).to_pylist())
    if not candidates:
        return []
    shared = []
    for batch in archive.read_back(path, ["id", "created_at"]):
        copies = dict(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        rows = con.execute(
            "SELECT id, created_at FROM memories WHERE id IN (SELECT value FROM json_each(?))",
            (json_ids(candidates & copies.keys()),),
        )
        shared += [id_ for id_, created_at in rows if copies[id_] == created_at]
    return shared


@_check("duplicates", "warning", _OTHERS_NAME_IT, (ArchiveError,))
def no_duplicates(archive: Archive) -> tuple[Status, str]:
    """Look for versions of a memory that the archive holds twice.

    A memory that was archived, taken back and archived again is there in two versions: that is no duplicate.
    """
    repeated = "SELECT id FROM history_all GROUP BY id HAVING count(*) > 1"
    with RepoAnalyst(archive.root) as analyst:
        suspects = analyst.query_archive(f"SELECT count(*) AS n FROM ({repeated})")
        if not suspects or not suspects[0]["n"]:
            return "ok", "the archive holds no version of a memory twice"
        found = analyst.query_archive(
            "SELECT count(*) AS n, count(DISTINCT id) AS ids FROM (SELECT any_value(id) AS id FROM (SELECT "
            f"COLUMNS(lambda name: name NOT IN {_NO_CONTENT}) FROM history_all WHERE id IN ({repeated})) "
            "AS copy GROUP BY copy HAVING count(*) > 1)"
        )[0]
    if not found["n"]:
        return "ok", f"{plural(suspects[0]['n'], 'memory')} in several versions, none of them twice"
    return "warning", (
        f"the archive holds {plural(found['n'], 'version')} of {plural(found['ids'], 'memory')} more than once: "
        "written by an older tool or by a machine that took over from a dead one, or restored from a backup. "
        "`history` shows each memory once and learning takes each once, so nothing needs to be done; to save the "
        "space, move restored files out of the archive"
    )


@_check("dates", "warning", _OTHERS_NAME_IT, (ArchiveError,))
def dates_plausible(archive: Archive, now: datetime | None = None) -> tuple[Status, str]:
    """Look for files with memories that are dated in the future, as a wrong clock leaves them.

    Args:
        archive: the archive.
        now: the time; default this machine's. A day more is allowed, for times in a zone that nobody noted.
    """
    limit = ((now or datetime.now(UTC)).astimezone(UTC) + timedelta(days=1)).replace(tzinfo=None)
    with RepoAnalyst(archive.root) as analyst:
        found = analyst.query_archive(
            "SELECT filename, count(*) AS n FROM history_all WHERE archived_ts > ? GROUP BY ALL ORDER BY ALL", [limit]
        )
    if not found:
        return "ok", "no memory is dated in the future"
    return "warning", (
        f"{plural(sum(row['n'] for row in found), 'memory')} in {plural(len(found), 'file')} are dated in the future "
        f"({some_of([row['filename'] for row in found])}): a clock was wrong when they were archived. Nothing is lost, "
        "and learning takes them last; check this machine's clock"
    )


@_check("disk", "failed", "what the next run needs can't be told: {}")
def disk_room(store: HotStore, archive: Archive) -> tuple[Status, str]:
    """Whether the disks have room for what the next run writes."""
    needed = backlog.bytes_needed(backlog.count_backlog(store))
    places = {archive.root: needed + SPARE_BYTES, store.path.parent: SPARE_BYTES}
    free = {place: free_bytes(place) for place in places}
    detail = ", ".join(f"{size / 1e9:.1f} GB free at {place}" for place, size in free.items())
    if short := [place for place in places if free[place] < places[place]]:
        wanted = " and ".join(f"{places[place] / 1e9:.1f} GB at {place}" for place in short)
        return "warning", f"{detail}: the next run may need {wanted}. Free some, or move the archive"
    return "ok", f"{detail}; the next run needs {needed / 1e6:,.0f} MB at most"


@_check("backlog", "failed")
def backlog_shrinks(store: HotStore, waited: Sequence[int], left: Sequence[int]) -> tuple[Status, str]:
    """Whether the runs keep up with what is archived.

    Args:
        store: the hot store.
        waited: how many memories waited when each of the last runs began, newest first.
        left: how many of them each of the last runs could not move, newest first.
    """
    waiting = backlog.count_backlog(store).waiting
    before = f"; {waited[0]:,} when the last run began" if waited else ""
    if waited and waiting >= max(waited[0], backlog.WORTH_A_RUN):
        return "warning", (
            f"{waiting:,} memories wait{before}: it does not shrink. See under Runs whether the last ones failed, "
            "and under Automation whether the schedule is on and Dagster's daemon runs; then run the job maintenance"
        )
    if len(left) > 2 and left[0] > left[1] > left[2]:
        return "warning", (
            f"each of the last runs left more memories behind ({left[2]:,}, {left[1]:,}, {left[0]:,}): see the "
            "rejected ones and the reasons under parquet_archive, and correct them in SQLite"
        )
    return "ok", f"{waiting:,} memories wait{before}"


def other_store(store: HotStore) -> Finding | None:
    """Whether Vidurai's folder holds a second store, and which of the two Vidurai writes to; None without one."""
    chosen = store.path
    other = chosen.with_name("vidurai.db" if chosen.name == "memory.db" else "memory.db")
    if chosen.name not in {"vidurai.db", "memory.db"} or not other.is_file():
        return None
    if newer_store(chosen):
        return Finding(
            "two stores",
            "warning",
            f"{chosen} is used, because where both are there vidurai.db is; but {other} was written to later: if "
            f"Vidurai uses that one now, set VIDURAI_DB={other}",
        )
    return Finding("two stores", "ok", f"{chosen} is used: it was written to later than {other}, which is left alone")


def store_room(store: HotStore, con: Connection, log_limit: int) -> list[Finding]:
    """How much space the store would give back, and whether a long read makes its log grow past a limit."""
    size = store.size(con)
    share = f"{reclaimable_bytes(store, con) / 1e6:,.0f} of {size.bytes / 1e6:,.0f} MB"
    findings = [Finding("hot store space", "ok", f"a full vacuum (VIDURAI_VACUUM=full) would give back {share}")]
    if size.log_bytes > log_limit:
        # Which process reads can't always be seen; then all that have it open are named.
        having = holders(store.path)
        reading = [holder for holder in having if holder.reading] or having
        who = ", ".join(f"{holder.command} (process {holder.pid})" for holder in reading[:NAMED])
        who = f"these programs have it open: {who}" if who else "no program of this user has it open"
        detail = f"the hot store's write-ahead log is {size.log_bytes / 1e6:,.0f} MB: a long read holds it; {who}"
        findings.append(Finding("hot store log", "warning", detail))
    return findings


def odd_memories(store: HotStore, con: Connection, archive: Archive) -> list[Finding]:
    """Memories that should not have been archived, and rows whose memory is nowhere."""
    findings = []
    if protected := archived_but_protected(store, con):
        findings.append(
            Finding(
                "protected memories",
                "warning",
                f"{plural(len(protected), 'memory')} wait to be archived although pinned or CRITICAL "
                f"(ids {some_of(protected)}): to keep them, set their status to ACTIVE",
            )
        )
    for lost in orphans(store, con):
        if missing := sorted(set(lost.memory_ids) - _archived(archive, lost.memory_ids)):
            findings.append(
                Finding(
                    "orphans",
                    "warning",
                    f"{lost.table} has rows of {plural(len(missing), 'memory')} that neither tier holds "
                    f"(ids {some_of(missing)}): Vidurai deleted them, or a file of the archive is missing",
                )
            )
    return findings


def _archived(archive: Archive, ids: Sequence[int]) -> set[int]:
    with RepoAnalyst(archive.root) as analyst:
        rows = analyst.query_archive("SELECT DISTINCT id FROM history WHERE id IN (SELECT unnest(?))", [list(ids)])
    return {row["id"] for row in rows}


def rejected_memories(store: HotStore, con: Connection) -> Finding:
    """Whether memories that wait can be archived at all."""
    schema = store.schema(con)
    with store.errors(), snapshot(con):
        faults = [fault for batch in read_archived(con, schema) for fault in batch.rejected]
    if not faults:
        return Finding("rejected memories", "ok", "every memory that waits can be archived")
    more = f"; and {len(faults) - NAMED:,} more" if len(faults) > NAMED else ""
    detail = (
        f"{plural(len(faults), 'memory')} can't be archived and stay in the hot store: "
        f"{'; '.join(map(str, faults[:NAMED]))}{more}. Correct them in SQLite"
    )
    return Finding("rejected memories", "warning", detail)
