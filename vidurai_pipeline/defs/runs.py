"""Runs as Dagster's history has them: which are finished, which are stuck, and the end of those whose process died."""

import time

import dagster as dg

from vidurai_pipeline.care.health import Finding
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.errors import PipelineError, plural
from vidurai_pipeline.settings import Settings

#: The job, and the one that Dagster makes for "Materialize all".
LIFECYCLE_JOBS = ("maintenance", "__ASSET_JOB")
#: Those whose runs hold the archive's lock.
LOCKING_JOBS = (*LIFECYCLE_JOBS, "dream_job")
ALL_JOBS = (*LOCKING_JOBS, "care", "health")
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
#: For this long, a run without the archive's lock may be alive: it loads its code, or is about to take the lock.
GRACE_SECONDS = {
    dg.DagsterRunStatus.NOT_STARTED: 300.0,
    dg.DagsterRunStatus.STARTING: 300.0,
    dg.DagsterRunStatus.STARTED: 60.0,
    dg.DagsterRunStatus.CANCELING: 300.0,
}
#: A run that has had its status for longer is stuck. A run may take 20 hours: see ``dagster.yaml``.
LONGEST_SECONDS = {
    dg.DagsterRunStatus.QUEUED: 2 * 3_600.0,
    dg.DagsterRunStatus.NOT_STARTED: 900.0,
    dg.DagsterRunStatus.STARTING: 900.0,
    dg.DagsterRunStatus.STARTED: 20 * 3_600.0,
    dg.DagsterRunStatus.CANCELING: 900.0,
}
UNFINISHED = list(LONGEST_SECONDS)


def dead_run_sensor(settings: Settings) -> dg.SensorDefinition:
    """A sensor that ends runs whose process was killed; Dagster would keep later runs queued behind them for ever."""

    @dg.sensor(
        name="end_dead_runs",
        description="Marks a run as failed if Dagster shows it as unfinished but its process is dead, for example "
        "after a power cut. A living run holds the archive's lock. Without this sensor, later runs would stay in the "
        "queue. Next: run maintenance again, or wait for the night. It continues where the dead run stopped.",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def end_dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        unfinished = dg.RunsFilter(statuses=list(GRACE_SECONDS))
        suspects = [
            record.dagster_run
            for record in context.instance.get_run_records(unfinished)
            if record.dagster_run.job_name in LOCKING_JOBS
            and time.time() - unchanged_since(record) > GRACE_SECONDS[record.dagster_run.status]
        ]
        if not suspects:
            return dg.SkipReason(
                "no unfinished run is old enough to be judged: 1 minute if it has started, 5 minutes if not"
            )
        said: list[str] = []
        ended: list[str] = []
        for run in suspects:
            # Also of a store that is gone: its run would keep a place in the queue.
            of = {} if settings.stores is None else {"stores": None, "store_name": store_of(run)}
            try:
                with open_archive(settings.model_copy(update=of)).lock("looking for dead runs"):
                    _end(context.instance, run)
                ended.append(run.run_id)
            except PipelineError as error:
                said.append(str(error))
        if ended:
            said.insert(0, f"ended {plural(len(ended), 'dead run')}: {', '.join(ended)}")
        return dg.SkipReason("; ".join(dict.fromkeys(said)))

    return end_dead_runs


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    reason = "Its process was killed, or the machine lost power. The next run continues where it stopped"
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, reason)
    else:
        instance.report_run_failed(run, reason)


def unchanged_since(record: dg.RunRecord) -> float:
    """Since when a run has had its status, in seconds since the epoch."""
    if record.dagster_run.status == dg.DagsterRunStatus.STARTED and record.start_time:
        return record.start_time
    return record.update_timestamp.timestamp()


def stuck_runs(instance: dg.DagsterInstance, now: float) -> Finding:
    """Whether a run of the pipeline has been queued or unfinished for too long.

    Args:
        instance: where Dagster keeps its history.
        now: the time, in seconds since the epoch.
    """
    stuck = [
        (record.dagster_run, (now - unchanged_since(record)) / 3_600)
        for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED))
        if record.dagster_run.job_name in ALL_JOBS
        and now - unchanged_since(record) > LONGEST_SECONDS[record.dagster_run.status]
    ]
    if not stuck:
        return Finding("unfinished runs", "ok", "no run has been queued or unfinished for too long")
    names = ", ".join(
        f"{run.job_name} {run.run_id[:8]} ({run.status.value}, {hours:.1f} h)" for run, hours in stuck[:5]
    )
    return Finding(
        "unfinished runs",
        "warning",
        f"{plural(len(stuck), 'run')} queued or unfinished for too long: {names}. Later runs may wait for them. See "
        "whether Dagster's daemon runs; if it does, terminate them in the UI under Runs",
    )


def what_was_done(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """What a run archived, purged and learned, in one line; None if a step failed, or none of these was asked for."""
    if any((step.status and step.status.value) != "SUCCESS" for step in instance.get_run_step_stats(run_id)):
        return None
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    reported = [made.metadata for entry in entries if (made := entry.asset_materialization)]
    figures = {label: int(value) for one in reported for label, value in metadata.numbers(one).items()}
    archived, purged = figures.get(metadata.MEMORIES_ARCHIVED), figures.get(metadata.MEMORIES_PURGED)
    parts = []
    if archived is not None and archived == purged:
        parts.append(f"{plural(archived, 'memory')} archived and purged")
    else:
        moved = ((archived, "archived"), (purged, "purged"))
        parts += [f"{plural(count, 'memory')} {done}" for count, done in moved if count is not None]
    parts += [f"{count:,} {label}" for label in (metadata.REJECTED, metadata.KEPT) if (count := figures.get(label))]
    if archived is not None:
        parts.append(plural(sum(len(metadata.records(one, metadata.FILES)) for one in reported), "new file"))
    if (learned := figures.get(metadata.EXPERIENCES_LEARNED)) is not None:
        parts.append(f"{plural(learned, 'experience')} learned")
    return ", ".join(parts) or None
