"""When things run: the jobs, the nightly schedule, and what follows a failure."""

import dagster as dg
from tzlocal import get_localzone_name

from vidurai_pipeline.assets import GROUP, q_table
from vidurai_pipeline.config import Settings
from vidurai_pipeline.errors import ConfigError

maintenance = dg.define_asset_job(
    "maintenance",
    selection=dg.AssetSelection.groups(GROUP),
    executor_def=dg.in_process_executor,
    description="Archive, verify, purge, dream: the whole lifecycle, one step after the other, in one process.",
)

dream_job = dg.define_asset_job(
    "dream_job",
    selection=dg.AssetSelection.assets(q_table),
    executor_def=dg.in_process_executor,
    description="Only learn from what the archive already holds.",
)


@dg.run_failure_sensor(
    monitored_jobs=[maintenance], request_job=dream_job, default_status=dg.DefaultSensorStatus.RUNNING
)
def dream_after_failure(context: dg.RunFailureSensorContext) -> dg.RunRequest | dg.SkipReason:
    """Dream all the same when a maintenance run has failed before its dream."""
    run = context.dagster_run
    records = context.instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    ).records
    if any(record.asset_key == q_table.key for record in records):
        return dg.SkipReason(f"run {run.run_id} failed after its dream")
    return dg.RunRequest(run_key=f"dream-after-{run.run_id}")


def nightly_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """The schedule of the maintenance job: on as soon as a Dagster daemon runs.

    Raises:
        ConfigError: the setting is not a cron line.
    """
    try:
        return dg.ScheduleDefinition(
            name="nightly",
            job=maintenance,
            cron_schedule=settings.schedule,
            execution_timezone=settings.timezone or get_localzone_name(),
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Runs the maintenance job, by default at 02:00 local time.",
        )
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(f"VIDURAI_SCHEDULE={settings.schedule!r}: not a cron line, such as `0 2 * * *`") from None
