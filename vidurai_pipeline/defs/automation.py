"""The jobs, and what follows when one fails or dies."""

import time

import dagster as dg

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.defs.assets import GROUP, q_table
from vidurai_pipeline.defs.checks import HEALTH_CHECKS
from vidurai_pipeline.errors import LockedError
from vidurai_pipeline.settings import Settings

#: The job, and the one that Dagster makes for "Materialize all".
LIFECYCLE_JOBS = ("maintenance", "__ASSET_JOB")
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A run holds the lock a moment after it is reported as started.
_GRACE_SECONDS = 60.0

maintenance = dg.define_asset_job(
    "maintenance",
    selection=dg.AssetSelection.groups(GROUP) - dg.AssetSelection.checks(*HEALTH_CHECKS),
    executor_def=dg.in_process_executor,
    description="Archive, verify, purge, dream: the whole lifecycle, one step after the other, in one process.",
)

dream_job = dg.define_asset_job(
    "dream_job",
    selection=dg.AssetSelection.assets(q_table),
    executor_def=dg.in_process_executor,
    description="Only learn from what the archive already holds.",
)

health_job = dg.define_asset_job(
    "health",
    selection=dg.AssetSelection.checks(*HEALTH_CHECKS),
    executor_def=dg.in_process_executor,
    description="Check all tiers; changes nothing, holds no lock, and keeps no run waiting.",
)

#: The names of all jobs of the pipeline.
ALL_JOBS = (*LIFECYCLE_JOBS, dream_job.name, health_job.name)


@dg.run_failure_sensor(
    # Runs that the command line started belong to no code location, and are meant as well.
    monitor_all_code_locations=True,
    request_job=dream_job,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def dream_after_failure(context: dg.RunFailureSensorContext) -> dg.RunRequest | dg.SkipReason:
    """Dream all the same when a maintenance run has failed before its dream."""
    run = context.dagster_run
    if run.job_name not in LIFECYCLE_JOBS:
        return dg.SkipReason(f"{run.job_name} is not a maintenance run")
    events = [entry.dagster_event for entry in context.instance.all_logs(run.run_id) if entry.dagster_event]
    started = {event.step_key for event in events if event.event_type == dg.DagsterEventType.STEP_START}
    planned = {e.asset_key for e in events if e.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
    if not started:
        return dg.SkipReason("it never began: another run was at work")
    if q_table.key not in planned or q_table.key.to_user_string() in started:
        return dg.SkipReason("its dream had begun, or was not asked for")
    return dg.RunRequest(run_key=f"dream-after-{run.run_id}")


def dead_run_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that ends runs whose process was killed; Dagster would keep later runs queued behind them for ever."""

    @dg.sensor(
        name="end_dead_runs",
        description="Ends runs that say they are at work while nobody holds the archive's lock: their process died.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def end_dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """End runs that say they are at work while nobody holds the archive's lock: their process was killed."""
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        began_by = time.time() - _GRACE_SECONDS
        suspects = [
            record.dagster_run
            for record in context.instance.get_run_records(started)
            if record.dagster_run.job_name in {*LIFECYCLE_JOBS, dream_job.name} and (record.start_time or 0) < began_by
        ]
        if not suspects:
            return dg.SkipReason("no run is at work, or it has only just begun")
        try:
            with Archive(settings.archive_path).lock("looking for dead runs", make=False):
                for run in suspects:
                    context.instance.report_run_failed(run, "Its process ended without a word: killed, or a power cut")
        except LockedError as error:
            return dg.SkipReason(str(error))
        return dg.SkipReason(f"ended {len(suspects)} dead runs: {', '.join(run.run_id for run in suspects)}")

    return end_dead_runs
