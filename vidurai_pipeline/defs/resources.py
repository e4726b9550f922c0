"""What the assets work with: the hot store, the archive, the Q-table and DuckDB, as the settings have them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.defs.heartbeat import heartbeat
from vidurai_pipeline.defs.partitions import settings_of
from vidurai_pipeline.defs.runs import what_was_done
from vidurai_pipeline.errors import BusyError, HotStoreError, PipelineError
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.hot.stores import q_tables
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.fleet import FleetReport, learn_fleet
from vidurai_pipeline.rl.summary import PolicySummary, read_summary
from vidurai_pipeline.settings import Hyperparameters, Settings

#: A run's tag: how often a step is tried again when the hot store is busy. The command line, where a person waits,
#: says 0.
BUSY_RETRIES_TAG = "vidurai/busy_retries"
BUSY_RETRIES = 3
#: The wait before the first such retry; it doubles each time.
FIRST_RETRY_SECONDS = 60.0


@contextlib.contextmanager
def readable_failures() -> Iterator[None]:
    """Turn an error meant for users into a failed step that says the same.

    Only where the hot store was busy is the step tried again, after 1, 2 and 4 minutes: no other failure mends
    itself, least of all a failed verification. (A retry policy of Dagster's would try all of them again.)

    The error's cause is left out: libraries may quote a value in theirs, and memories are private.
    """
    try:
        yield
    except PipelineError as error:
        if isinstance(error, BusyError) and (again := _retry(str(error))):
            raise again from None
        raise dg.Failure(description=str(error), allow_retries=False) from None


def _retry(reason: str) -> dg.RetryRequested | None:
    try:
        context = dg.OpExecutionContext.get()
    except dg.DagsterInvariantViolationError:
        return None  # no step: a resource is being set up
    most = int(context.run.tags.get(BUSY_RETRIES_TAG, BUSY_RETRIES))
    if context.retry_number >= most:
        return None
    seconds = FIRST_RETRY_SECONDS * 2**context.retry_number
    context.log.warning(f"{reason}. The step is tried again in {seconds:g} s")
    return dg.RetryRequested(most, seconds)


@dataclass(frozen=True)
class Tiers:
    """The hot store, the archive and the Q-table, to look at: no lock is held."""

    settings: Settings

    @property
    def store(self) -> HotStore:
        """The hot store."""
        return HotStore(self.settings.db_path, self.settings.busy_timeout)

    @property
    def cold(self) -> Archive:
        """The archive."""
        return open_archive(self.settings)

    def policy(self) -> PolicySummary:
        """What the table in use has learned."""
        return read_summary(self.settings.q_table_path, Hyperparameters.of(self.settings))


@dataclass(frozen=True)
class Fleet:
    """All stores of the archive, to learn from together."""

    settings: Settings

    def learn(self) -> FleetReport:
        """Make their common Q-table."""
        return learn_fleet(self.settings, q_tables(self.settings))


class ArchiveReader(DuckDBResource):
    """DuckDB in memory. The asset `q_table` reads the archive's Parquet files with it; no database file is made."""


#: Makes a dream cycle that reads the archive through a connection.
Dreams = Callable[[duckdb.DuckDBPyConnection], DreamCycle]


def build_resources(settings: Settings, progress: Progress = no_progress) -> dict[str, Any]:
    """The resources of all assets.

    Args:
        settings: where the tiers are, and how they are treated.
        progress: told how far a run in this process is.
    """

    def own(context: dg.InitResourceContext) -> Settings:
        """The settings of the store that the run is for."""
        with readable_failures():
            return settings_of(settings, context.run)

    @dg.resource(
        description=f"The lock on {settings.archive_path}. A run holds it from its first step to its last, so two runs "
        "never overlap, however they were started."
    )
    def archive_lock(context: dg.InitResourceContext) -> Iterator[None]:
        one = own(context)
        run = f"Dagster run {context.run.run_id}" if context.run else "Dagster"
        with heartbeat(one, context), contextlib.ExitStack() as stack:
            with readable_failures():
                stack.enter_context(open_archive(one).lock(run, one.lock_timeout))
            yield
            done = what_was_done(context.instance, context.run.run_id) if context.instance and context.run else None
            if done and context.log:
                context.log.info(done)

    @dg.resource(
        required_resource_keys={"archive_lock"},
        description=f"Moves memories from {settings.db_path} to {settings.archive_path}.",
    )
    def archiver(context: dg.InitResourceContext) -> Iterator[MemoryArchiver]:
        archiver = MemoryArchiver(settings=own(context), progress=progress)
        with contextlib.ExitStack() as stack:
            # Why the hot store can't be opened, the first step tells: a run without any step would start no dream.
            with contextlib.suppress(HotStoreError):
                stack.enter_context(archiver.run("Dagster"))
            yield archiver

    @dg.resource(
        required_resource_keys={"archive_lock"}, description=f"Trains {settings.q_table_path} on archived memories."
    )
    def dream(context: dg.InitResourceContext) -> Dreams:
        one = own(context)
        return lambda connection: DreamCycle(settings=one, connection=connection)

    @dg.resource(description="The tiers and the Q-table, to look at. No lock is held.")
    def tiers(context: dg.InitResourceContext) -> Tiers:
        return Tiers(own(context))

    limits: dict[str, str | int] = {"memory_limit": settings.memory_limit}
    if settings.threads:
        limits["threads"] = settings.threads
    return {
        "archive_lock": archive_lock,
        "archiver": archiver,
        "dream": dream,
        "tiers": tiers,
        "fleet": Fleet(settings),
        "duckdb": ArchiveReader(database=":memory:", connection_config=limits),
    }
