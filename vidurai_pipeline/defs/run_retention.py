"""Keeps Dagster's own history from growing for ever: nothing in Dagster deletes runs by itself."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from pydantic import Field

from vidurai_pipeline.defs.runs import FINISHED
from vidurai_pipeline.errors import plural


class PruneConfig(dg.Config):
    """What the job `prune_history` keeps."""

    keep_days: int = Field(365, gt=0, description="Finished runs are deleted this many days after they last changed.")


def prune_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete old finished runs with their events and captured logs.

    A run that has not finished, and one that made an asset's newest materialization, stay, however old they are.

    Args:
        instance: where the history is kept, in SQLite or PostgreSQL.
        before: runs that changed last at or after this moment stay.

    Returns:
        How many runs were deleted.
    """
    records = instance.get_run_records(dg.RunsFilter(statuses=FINISHED, updated_before=before))
    newest = [instance.get_latest_materialization_event(key) for key in instance.all_asset_keys()]
    needed = {event.run_id for event in newest if event}
    old = [run_id for record in records if (run_id := record.dagster_run.run_id) not in needed]
    for run_id in old:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.delete_run(run_id)
        _delete_database(instance, run_id)
    return len(old)


def _delete_database(instance: dg.DagsterInstance, run_id: str) -> None:
    """In SQLite each run's events have a database of their own, which Dagster empties but leaves."""
    if database_of := getattr(instance.event_log_storage, "path_for_shard", None):
        for end in ("", "-wal", "-shm"):
            Path(database_of(run_id) + end).unlink(missing_ok=True)


@dg.op(description="Deletes Dagster's records of old runs: no memory and no file of the archive is touched.")
def prune(context: dg.OpExecutionContext, config: PruneConfig) -> None:
    """Delete old finished runs with their events and captured logs."""
    deleted = prune_runs(context.instance, datetime.now(tz=UTC) - timedelta(days=config.keep_days))
    context.log.info(f"{plural(deleted, 'run')} deleted that ended more than {config.keep_days:,} days ago")


@dg.job(executor_def=dg.in_process_executor, tags={"team": "memory", "tiers": "none"})
def prune_history() -> None:
    """Keeps Dagster's own database small by deleting its records of runs that ended long ago.

    The newest materialization of each asset stays. The schedule keeps runs for `VIDURAI_HISTORY_DAYS` days; in the
    Launchpad, set `keep_days`.
    """
    prune()
