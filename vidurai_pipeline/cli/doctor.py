"""A self-test: are the settings right, the tiers readable, and do they agree?"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from vidurai_pipeline.care.health import (
    Finding,
    archive_proved,
    archive_readable,
    dates_plausible,
    disk_room,
    mirrored,
    no_credentials,
    no_duplicates,
    odd_memories,
    one_tier,
    other_store,
    rejected_memories,
    search_index,
    store_integrity,
    store_room,
)
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import require_archive
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.cold.pending import store_identity
from vidurai_pipeline.errors import ArchiveError, ConfigError, PipelineError, plural, some_of
from vidurai_pipeline.hot.backlog import read_backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.hot.stores import find_stores
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import TableFile
from vidurai_pipeline.settings import Settings, unknown_variables

# A person waits.
_SECONDS_FOR_CREDENTIALS = 5.0


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything; one check's failure does not keep the others from running."""
    definitions = _definitions(settings)
    yield definitions
    if unknown := unknown_variables():
        yield Finding("unknown variables", "warning", "; ".join(unknown))
    waiting = yield from _tiers(settings) if settings.stores is None else _stores(settings)
    if definitions.status != "failed":  # with which Dagster can't be asked
        yield from _last_run(settings, waiting)


def _stores(settings: Settings) -> Generator[Finding, None, int]:
    """A line for each store that ``VIDURAI_STORES`` names; returns how many memories wait in all of them."""
    found = find_stores(settings)
    total = 0
    for problem in found.problems:
        yield Finding("stores", "failed", problem)
    for name, own in found.stores.items():
        finding, waiting = _store(name, own)
        yield finding
        total += waiting
    return total


def _store(name: str, settings: Settings) -> tuple[Finding, int]:
    """What is wrong with one store, in one line, and how many memories wait in it."""
    findings: list[Finding] = []
    tiers, waiting = _tiers(settings), 0
    try:
        while True:
            findings.append(next(tiers))
    except StopIteration as end:
        waiting = end.value
    except PipelineError as error:
        findings.append(Finding("archive", "failed", str(error)))
    wrong = sorted((finding for finding in findings if finding.status != "ok"), key=lambda one: one.status)
    if not wrong:
        return Finding(f"store {name}", "ok", f"{settings.db_path}: {waiting:,} ARCHIVED"), waiting
    said = f"{wrong[0].check}: {wrong[0].detail}"
    if more := len(wrong) - 1:
        said += f" (and {more} more: unset VIDURAI_STORES, set VIDURAI_DB and VIDURAI_STORE_NAME, and ask again)"
    return Finding(f"store {name}", wrong[0].status, said), waiting


def _tiers(settings: Settings) -> Generator[Finding, None, int]:
    """What is to be said of one store and its archive; returns how many memories wait in it."""
    archive = open_archive(settings)
    store = HotStore(settings.db_path, settings.busy_timeout)
    waiting = yield from _hot_store(store, archive, settings.wal_limit)
    yield from _archive_files(archive, settings.scrub_days)
    yield from _leftovers(store, archive)
    yield one_tier(store, archive)
    yield no_duplicates(archive)
    if settings.secrets_check:
        yield no_credentials(archive, _SECONDS_FOR_CREDENTIALS)
    yield dates_plausible(archive)
    yield _q_table(settings.q_table_path)
    yield disk_room(store, archive)
    return waiting


def _definitions(settings: Settings) -> Finding:
    """Whether Dagster takes the schedules and the channels of alerts: it is Dagster that knows."""
    try:
        from vidurai_pipeline.definitions import build_definitions  # noqa: PLC0415  (reads the settings too)
        from vidurai_pipeline.defs.schedules import next_run, schedule_zone  # noqa: PLC0415

        build_definitions(settings)
    except ConfigError as error:
        return Finding("settings", "failed", str(error))
    zone = schedule_zone(settings)
    if zone.doubt:
        return Finding("settings", "warning", zone.doubt)
    due = next_run(settings, datetime.now(UTC))
    moment = f"on {due:%Y-%m-%d at %H:%M}" if due else "never"
    return Finding(
        "settings",
        "ok",
        f"runs at {settings.schedule!r} in the time zone {zone.name}, next {moment}; "
        f"care at {settings.care_schedule!r}, checks at {settings.health_schedule!r}",
    )


def _hot_store(store: HotStore, archive: Archive, log_limit: int) -> Generator[Finding, None, int]:
    """What is to be said of the hot store; returns how many memories wait in it."""
    waiting = 0
    try:
        with closing(store.connect()) as con:
            backlog = read_backlog(store, con)
            waiting = backlog.waiting
            yield Finding(
                "hot store", "ok", f"{store.path}: {plural(backlog.total, 'memory')}, {backlog.waiting:,} ARCHIVED"
            )
            if found := other_store(store):
                yield found
            yield store_integrity(store)
            yield rejected_memories(store, con)
            yield from store_room(store, con, log_limit)
            yield from odd_memories(store, con, archive)
    except ArchiveError:
        pass  # which the next checks explain
    except PipelineError as error:
        yield Finding("hot store", "failed", str(error))
        return waiting
    if not os.access(store.path, os.W_OK):
        yield Finding("hot store permissions", "failed", f"{store.path} is not writable: nothing can be purged")
    return waiting


def _archive_files(archive: Archive, scrub_days: int) -> Iterator[Finding]:
    try:
        require_archive(archive.root)
    except PipelineError as error:
        yield Finding("archive folder", "failed", str(error))
        return
    there = next(folder for folder in (archive.root, *archive.root.parents) if os.path.lexists(folder))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Finding("archive folder", "failed", f"{there} is not a folder that this user may write")
        return
    yield archive_readable(archive, thorough=True)[0]
    if found := mirrored(archive):
        yield found
    yield archive_proved(archive, scrub_days)
    yield search_index(archive)
    loose = [path for path in archive.files() if path.stat().st_mode & 0o077]
    if loose:
        yield Finding(
            "archive permissions",
            "warning",
            f"{plural(len(loose), 'file')} can be read by other users: chmod -R go= {archive.root}",
        )


def _unfinished(archive: Archive) -> Iterator[Finding]:
    """Restorations and erasures that a crash cut short."""
    try:
        intents = archive.intents.all()
    except PipelineError as error:
        yield Finding("unfinished work", "failed", str(error))
        return
    for intent in intents:
        work = {"restore": "restoration", "erase": "erasure"}[intent.kind]
        yield Finding(
            f"unfinished {work}",
            "warning",
            f"{plural(len(intent.memories), 'memory')} of {intent.store[0]}: run the job or `vidurai-pipeline flush`, "
            "which finishes it",
        )


def _leftovers(store: HotStore, archive: Archive) -> Iterator[Finding]:
    try:
        marks = archive.pending.all()
    except PipelineError as error:
        yield Finding("interrupted runs", "failed", str(error))
        return
    own = store_identity(store.path, archive.root)
    strangers = [mark for mark in marks if not mark.concerns(own)]
    waiting = [mark for mark in marks if mark not in strangers]
    if waiting:
        names = some_of([mark.file for mark in waiting])
        yield Finding(
            "interrupted runs",
            "warning",
            f"{len(waiting)} files wait to be purged ({names}): run the job again; it finishes them or, where one is "
            "damaged, archives its memories anew",
        )
    else:
        yield Finding("interrupted runs", "ok", "none")
    if strangers:
        stores = some_of(sorted({mark.store[0] for mark in strangers}))
        yield Finding(
            "other stores",
            "warning",
            f"{len(strangers)} files wait for another hot store ({stores}): run the job on that one; if it has moved "
            f"here, move their marks out of {archive.root / '.pending'}",
        )
    yield from _unfinished(archive)
    if manifests := archive.manifests.set_aside():
        yield Finding(
            "manifests set aside",
            "warning",
            f"{some_of(manifests)}: damaged, and replaced by new ones. Run `vidurai-pipeline scrub`, then delete them",
        )
    retired = archive.pending.retired()
    if set_aside := archive.damaged_files():
        yield Finding(
            "files set aside",
            "warning",
            f"{some_of(set_aside)}: damaged. A copy from the mirror took their place, or their memories were archived "
            "anew from the hot store. Delete them once you know why",
        )
    if retired:
        yield Finding(
            "lost files",
            "failed",
            f"{some_of([path.name.removesuffix('.damaged') for path in retired])}: damaged or gone after some "
            "of their memories had been purged: restore them from a backup, then delete the notes in "
            f"{archive.root / '.pending'}",
        )


def _last_run(settings: Settings, waiting: int) -> Iterator[Finding]:
    """Whether the nightly job still runs, and alerts arrive; cron or a login script can tell by the exit code."""
    try:
        from vidurai_pipeline.cli.run import read_history  # noqa: PLC0415  (slow; fails if Dagster refuses a setting)

        history = read_history(settings)
    except ConfigError as error:
        yield Finding("last run", "failed", str(error))
        return
    if history is None:
        yield Finding("unfinished runs", "ok", "no run yet")
        yield Finding("last run", "ok", "the nightly job has not run yet")
        return
    yield history.unfinished
    for service, since in history.undelivered.items():
        yield Finding(
            "alerts",
            "failed",
            f"no alert could be sent by {service} since {since.astimezone():%Y-%m-%d %H:%M %Z}: see the ticks of its "
            "sensor under Automation, and check VIDURAI_ALERT_URLS",
        )
    moment = history.succeeded
    start = moment or history.set_up
    hours = (datetime.now(UTC) - start).total_seconds() / 3600
    at = f"{start.astimezone():%Y-%m-%d %H:%M %Z}"
    detail = (
        f"the last good run of the nightly job ended {at}"
        if moment
        else f"the nightly job has not succeeded yet; Dagster was set up {at}"
    )
    # Without a good run it is no failure that nothing was archived while nothing was there to archive.
    if hours > settings.stale_hours and (moment or waiting):
        waits = "" if moment else f", and {plural(waiting, 'memory')} {'waits' if waiting == 1 else 'wait'}"
        advice = "check that Dagster's daemon runs, and look at the job's history under Runs; then run the job"
        yield Finding("last run", "failed", f"{detail}, {hours:,.0f} hours ago{waits}: {advice}")
    else:
        yield Finding("last run", "ok", detail)


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
    return Finding(
        "Q-table", "ok", f"{path}: {plural(policy.states_tried, 'state')}, {plural(policy.episodes, 'episode')}"
    )
