"""``vidurai-pipeline doctor``: are the settings right, the tiers readable, and do they agree?"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click

from vidurai_pipeline.care import health
from vidurai_pipeline.care.health import Finding
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
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
from vidurai_pipeline.settings import Settings, load_settings, unknown_variables

# A person waits.
_SECONDS_FOR_CREDENTIALS = 5.0


@click.command()
@format_option("table", "json")
def doctor(form: str) -> None:
    """Check settings, stores and files, and whether the tiers agree.

    For example: vidurai-pipeline doctor --format json
    """
    findings = [asdict(finding) for finding in examine(load_settings())]
    output.answer(form, findings, print_findings, success=all(finding["status"] != "failed" for finding in findings))


def print_findings(findings: list[dict[str, str]]) -> None:
    """Print a line for each finding."""
    for finding in findings:
        colour = {"ok": "green", "warning": "yellow", "failed": "red"}[finding["status"]]
        detail = finding["detail"].replace("\n", "\\n")  # a path may hold one
        status = click.style(finding["status"].ljust(8), fg=colour)
        click.echo(f"{status}{finding['check']}: {detail}")


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything; one check's failure does not keep the others from running."""
    definitions = _definitions(settings)
    yield definitions
    if unknown := unknown_variables():
        yield Finding("unknown variables", "warning", "; ".join(unknown))
    if settings.stores is None:
        tiers = [Tiers(settings)]
        yield from tiers[0].examine()
    else:
        found = find_stores(settings)
        yield from (Finding("stores", "failed", problem) for problem in found.problems)
        tiers = [Tiers(own) for own in found.stores.values()]
        yield from (one.in_one_line(name) for name, one in zip(found.stores, tiers, strict=True))
    if definitions.status != "failed":  # with which Dagster can't be asked
        yield from _last_run(settings, sum(one.waiting for one in tiers))


def _definitions(settings: Settings) -> Finding:
    """Whether Dagster takes the schedules and the channels of alerts: it is Dagster that knows."""
    from vidurai_pipeline.defs.build import build_definitions  # noqa: PLC0415  (Dagster is slow to import)
    from vidurai_pipeline.defs.schedules import next_run, schedule_zone  # noqa: PLC0415

    try:
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


@dataclass
class Tiers:
    """One store, its archive and its Q-table.

    Attributes:
        settings: where they are.
        waiting: how many memories wait to be archived; known after the examination.
    """

    settings: Settings
    waiting: int = 0

    def examine(self) -> Iterator[Finding]:
        """What is to be said of them."""
        archive = open_archive(self.settings)
        store = HotStore(self.settings.db_path, self.settings.busy_timeout)
        yield from self._hot_store(store, archive)
        yield from self._archive_files(archive)
        yield from _leftovers(store, archive)
        yield health.one_tier(store, archive)
        yield health.no_duplicates(archive)
        if self.settings.secrets_check:
            yield health.no_credentials(archive, _SECONDS_FOR_CREDENTIALS)
        yield health.dates_plausible(archive)
        yield self._q_table()
        yield health.disk_room(store, archive)

    def in_one_line(self, name: str) -> Finding:
        """The worst of what is to be said, of one store among many."""
        findings: list[Finding] = []
        try:
            for finding in self.examine():
                findings.append(finding)
        except PipelineError as error:
            findings.append(Finding("archive", "failed", str(error)))
        wrong = sorted((finding for finding in findings if finding.status != "ok"), key=lambda one: one.status)
        if not wrong:
            return Finding(f"store {name}", "ok", f"{self.settings.db_path}: {self.waiting:,} ARCHIVED")
        said = f"{wrong[0].check}: {wrong[0].detail}"
        if more := len(wrong) - 1:
            said += f" (and {more} more: unset VIDURAI_STORES, set VIDURAI_DB and VIDURAI_STORE_NAME, and ask again)"
        return Finding(f"store {name}", wrong[0].status, said)

    def _hot_store(self, store: HotStore, archive: Archive) -> Iterator[Finding]:
        try:
            with closing(store.connect()) as con:
                backlog = read_backlog(store, con)
                self.waiting = backlog.waiting
                memories = f"{plural(backlog.total, 'memory')}, {backlog.waiting:,} ARCHIVED"
                yield Finding("hot store", "ok", f"{store.path}: {memories}")
                if found := health.other_store(store):
                    yield found
                yield health.store_integrity(store)
                yield health.rejected_memories(store, con)
                yield from health.store_room(store, con, self.settings.wal_limit)
                yield from health.odd_memories(store, con, archive)
        except ArchiveError:
            pass  # which the next checks explain
        except PipelineError as error:
            yield Finding("hot store", "failed", str(error))
            return
        if not os.access(store.path, os.W_OK):
            yield Finding("hot store permissions", "failed", f"{store.path} is not writable: nothing can be purged")

    def _archive_files(self, archive: Archive) -> Iterator[Finding]:
        try:
            require_archive(archive.root)
        except PipelineError as error:
            yield Finding("archive folder", "failed", str(error))
            return
        there = next(folder for folder in (archive.root, *archive.root.parents) if os.path.lexists(folder))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            yield Finding("archive folder", "failed", f"{there} is not a folder that this user may write")
            return
        yield health.archive_readable(archive, thorough=True)[0]
        if found := health.mirrored(archive):
            yield found
        yield health.archive_proved(archive, self.settings.scrub_days)
        yield health.search_index(archive)
        if loose := [path for path in archive.files() if path.stat().st_mode & 0o077]:
            said = f"{plural(len(loose), 'file')} can be read by other users: chmod -R go= {archive.root}"
            yield Finding("archive permissions", "warning", said)

    def _q_table(self) -> Finding:
        path = self.settings.q_table_path
        if not path.exists():
            return Finding("Q-table", "ok", f"{path}: not there yet; the first dream makes it")
        try:
            policy = QLearningPolicy.load(path)
        except PipelineError as error:
            return Finding("Q-table", "failed", str(error))
        if (candidate := TableFile(path).candidate_path).exists():
            detail = f"{candidate}: a newer table that was refused; `vidurai-pipeline dream` tells why"
            return Finding("Q-table", "warning", detail)
        known = f"{plural(policy.states_tried, 'state')}, {plural(policy.episodes, 'episode')}"
        return Finding("Q-table", "ok", f"{path}: {known}")


def _leftovers(store: HotStore, archive: Archive) -> Iterator[Finding]:
    """What interrupted or failed work has left."""
    try:
        marks, intents = archive.pending.all(), archive.intents.all()
    except PipelineError as error:
        yield Finding("interrupted runs", "failed", str(error))
        return
    own = store_identity(store.path, archive.root)
    waiting = [mark.file for mark in marks if mark.concerns(own)]
    if waiting:
        yield Finding(
            "interrupted runs",
            "warning",
            f"{len(waiting)} files wait to be purged ({some_of(waiting)}): run the job again; it finishes them or, "
            "where one is damaged, archives its memories anew",
        )
    else:
        yield Finding("interrupted runs", "ok", "none")
    if strangers := [mark for mark in marks if not mark.concerns(own)]:
        stores = some_of(sorted({mark.store[0] for mark in strangers}))
        yield Finding(
            "other stores",
            "warning",
            f"{len(strangers)} files wait for another hot store ({stores}): run the job on that one; if it has moved "
            f"here, move their marks out of {archive.root / '.pending'}",
        )
    for intent in intents:
        yield Finding(
            f"unfinished {'restoration' if intent.kind == 'restore' else 'erasure'}",
            "warning",
            f"{plural(len(intent.memories), 'memory')} of {intent.store[0]}: run the job or `vidurai-pipeline flush`, "
            "which finishes it",
        )
    if manifests := archive.manifests.set_aside():
        yield Finding(
            "manifests set aside",
            "warning",
            f"{some_of(manifests)}: damaged, and replaced by new ones. Run `vidurai-pipeline scrub`, then delete them",
        )
    if set_aside := archive.damaged_files():
        yield Finding(
            "files set aside",
            "warning",
            f"{some_of(set_aside)}: damaged. A copy from the mirror took their place, or their memories were archived "
            "anew from the hot store. Delete them once you know why",
        )
    if retired := [path.name.removesuffix(".damaged") for path in archive.pending.retired()]:
        yield Finding(
            "lost files",
            "failed",
            f"{some_of(retired)}: damaged or gone after some of their memories had been purged: restore them from a "
            f"backup, then delete the notes in {archive.root / '.pending'}",
        )


def _last_run(settings: Settings, waiting: int) -> Iterator[Finding]:
    """Whether the nightly job still runs, and alerts arrive; cron or a login script can tell by the exit code."""
    from vidurai_pipeline.defs.instance import read_history  # noqa: PLC0415  (Dagster is slow to import)

    try:
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
    start = history.succeeded or history.set_up
    hours = (datetime.now(UTC) - start).total_seconds() / 3600
    at = f"{start.astimezone():%Y-%m-%d %H:%M %Z}"
    detail, waits = f"the last good run of the nightly job ended {at}", ""
    if history.succeeded is None:
        detail = f"the nightly job has not succeeded yet; Dagster was set up {at}"
        waits = f", and {plural(waiting, 'memory')} {'waits' if waiting == 1 else 'wait'}"
    # Without a good run it is no failure that nothing was archived while nothing was there to archive.
    if hours > settings.stale_hours and (history.succeeded or waiting):
        advice = "check that Dagster's daemon runs, and look at the job's history under Runs; then run the job"
        yield Finding("last run", "failed", f"{detail}, {hours:,.0f} hours ago{waits}: {advice}")
    else:
        yield Finding("last run", "ok", detail)
