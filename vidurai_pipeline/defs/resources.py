"""What the assets work with: the hot store, the archive, the Q-table and DuckDB."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import cast

import dagster as dg
import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field, PrivateAttr

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import Progress, no_progress
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import BusyError, PipelineError
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.summary import PolicySummary, read_summary
from vidurai_pipeline.settings import Hyperparameters, RewardProfile, Settings, Vacuum

#: How often a step is tried again whose hot store was busy; the command line, where a person waits, sets 0.
retries_if_busy: ContextVar[int] = ContextVar("retries_if_busy", default=3)
_FIRST_RETRY_SECONDS = 60


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
    most = retries_if_busy.get()
    if context.retry_number >= most:
        return None
    seconds = _FIRST_RETRY_SECONDS * 2**context.retry_number
    context.log.warning(f"{reason}. The step is tried again in {seconds} s")
    return dg.RetryRequested(most, seconds)


#: Who is told how far a run in this process is; the command line sets it.
progress_of_runs: ContextVar[Progress] = ContextVar("progress_of_runs", default=no_progress)


class ArchiverResource(dg.ConfigurableResource):
    """The archiver between the hot store and the cold archive.

    It holds the archive's lock from a run's first step to its last: two runs never overlap, whoever started them.
    """

    hot_store: str = Field(description="Vidurai's SQLite store")
    archive: str = Field(description="the folder of the Parquet archive")
    compression: str = Field("snappy", description="codec of new files: snappy or zstd")
    rows_per_file: int = Field(50_000, description="a larger batch is split into several files")
    busy_timeout: float = Field(60.0, description="seconds to wait for a busy hot store")
    lock_timeout: float = Field(10.0, description="seconds to wait for another run")

    vacuum: str = Field("off", description="how free pages are given back: off, incremental or full")
    vacuum_share: float = Field(0.5, description="share of pages that must be free before a full vacuum")

    _archiver: MemoryArchiver = PrivateAttr()

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["ArchiverResource"]:
        """Set up for one run, with the archive's lock held."""
        archiver = MemoryArchiver(
            Path(self.hot_store),
            Path(self.archive),
            compression=self.compression,
            rows_per_file=self.rows_per_file,
            busy_timeout=self.busy_timeout,
            lock_timeout=self.lock_timeout,
            vacuum=cast(Vacuum, self.vacuum),
            vacuum_share=self.vacuum_share,
            progress=progress_of_runs.get(),
        )
        run = f"Dagster run {context.run.run_id}" if context.run else "Dagster"
        with contextlib.ExitStack() as stack:
            with readable_failures():
                stack.enter_context(archiver.run(run))
            self._archiver = archiver
            yield self

    @property
    def archiver(self) -> MemoryArchiver:
        """The archiver of the run that goes on."""
        return self._archiver


class DreamResource(dg.ConfigurableResource):
    """The offline learner and its Q-table."""

    archive: str = Field(description="the folder of the Parquet archive")
    q_table: str = Field(description="the Q-table's file")
    reward_profile: str = Field("balanced", description="what learning rewards most")
    alpha: float = Field(0.1, description="learning rate")
    gamma: float = Field(0.9, description="discount of later rewards")
    epsilon_max: float = Field(0.3, description="share of random decisions at the beginning")
    epsilon_min: float = Field(0.05, description="share of random decisions that remains")
    epsilon_decay: float = Field(0.003, description="how fast it falls, for each episode")

    def dream_cycle(self, connection: duckdb.DuckDBPyConnection) -> DreamCycle:
        """A dream cycle that reads the archive through a DuckDB connection."""
        return DreamCycle(
            Path(self.archive),
            Path(self.q_table),
            reward_profile=RewardProfile(self.reward_profile),
            alpha=self.alpha,
            gamma=self.gamma,
            epsilon_max=self.epsilon_max,
            epsilon_min=self.epsilon_min,
            epsilon_decay=self.epsilon_decay,
            connection=connection,
        )

    def insight(self) -> PolicySummary:
        """What the table in use has learned."""
        profile = RewardProfile(self.reward_profile)
        return read_summary(
            Path(self.q_table),
            Hyperparameters(profile, self.alpha, self.gamma, self.epsilon_max, self.epsilon_min, self.epsilon_decay),
        )


class TiersResource(dg.ConfigurableResource):
    """The hot store and the archive, for those who only look: no lock is held."""

    hot_store: str = Field(description="Vidurai's SQLite store")
    archive: str = Field(description="the folder of the Parquet archive")
    busy_timeout: float = Field(60.0, description="seconds to wait for a busy hot store")

    @property
    def store(self) -> HotStore:
        """The hot store."""
        return HotStore(Path(self.hot_store), self.busy_timeout)

    @property
    def cold(self) -> Archive:
        """The archive."""
        return Archive(Path(self.archive))


def build_resources(settings: Settings) -> dict[str, object]:
    """The resources of all assets, as the settings have them."""
    config: dict[str, str | int] = {"memory_limit": settings.memory_limit}
    if settings.threads:
        config["threads"] = settings.threads
    return {
        "archiver": ArchiverResource(
            hot_store=str(settings.db_path),
            archive=str(settings.archive_path),
            compression=settings.compression,
            rows_per_file=settings.rows_per_file,
            busy_timeout=settings.busy_timeout,
            lock_timeout=settings.lock_timeout,
            vacuum=settings.vacuum,
            vacuum_share=settings.vacuum_share,
        ),
        "tiers": TiersResource(
            hot_store=str(settings.db_path), archive=str(settings.archive_path), busy_timeout=settings.busy_timeout
        ),
        "dream": DreamResource(
            archive=str(settings.archive_path),
            q_table=str(settings.q_table_path),
            reward_profile=settings.reward_profile.value,
            alpha=settings.alpha,
            gamma=settings.gamma,
            epsilon_max=settings.epsilon_max,
            epsilon_min=settings.epsilon_min,
            epsilon_decay=settings.epsilon_decay,
        ),
        "duckdb": DuckDBResource(database=":memory:", connection_config=config),
    }
