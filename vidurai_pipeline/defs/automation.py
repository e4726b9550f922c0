"""The jobs, and the dream that follows when a run fails before it."""

import dagster as dg

from vidurai_pipeline.defs.assets import GROUP, q_table
from vidurai_pipeline.defs.care import archive_is_proved
from vidurai_pipeline.defs.checks import HEALTH_CHECKS
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.runs import LIFECYCLE_JOBS

_TAGS = {"team": "memory"}

maintenance = dg.define_asset_job(
    "maintenance",
    tags=_TAGS | {"tiers": "hot, cold"},
    selection=dg.AssetSelection.groups(GROUP).materializable()
    - dg.AssetSelection.checks(archive_is_proved, *HEALTH_CHECKS),
    executor_def=dg.in_process_executor,
    description="The nightly job: archives what waits, compares it with SQLite, purges it there, and learns from it. "
    "The steps run one after the other in one process.",
)

dream_job = dg.define_asset_job(
    "dream_job",
    tags=_TAGS | {"tiers": "cold"},
    selection=dg.AssetSelection.assets(q_table),
    executor_def=dg.in_process_executor,
    description="Learns from what the archive already holds, and moves nothing.",
)

health_job = dg.define_asset_job(
    "health",
    tags=_TAGS | {"tiers": "hot, cold"},
    selection=dg.AssetSelection.checks(*HEALTH_CHECKS),
    executor_def=dg.in_process_executor,
    description="Checks the hot store, the archive and Dagster's runs. It changes nothing and keeps no run waiting.",
)


@dg.run_failure_sensor(
    # Runs that the command line started belong to no code location, and are meant as well.
    monitor_all_code_locations=True,
    request_job=dream_job,
    description="Starts dream_job when a maintenance run failed before the step q_table, so that the memories already "
    "in the archive are learned from. Next: look at the failed run under Runs. Its error says what to do. Then run "
    "maintenance again.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def dream_after_failure(context: dg.RunFailureSensorContext) -> dg.RunRequest | dg.SkipReason:
    """Start a dream when a maintenance run has failed before its own."""
    run = context.dagster_run
    if run.job_name not in LIFECYCLE_JOBS:
        return dg.SkipReason(f"{run.job_name} is not a maintenance run")
    events = [entry.dagster_event for entry in context.instance.all_logs(run.run_id) if entry.dagster_event]
    started = {event.step_key for event in events if event.event_type == dg.DagsterEventType.STEP_START}
    planned = {e.asset_key for e in events if e.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
    if not started:
        return dg.SkipReason("the run failed before its first step")
    if q_table.key not in planned or q_table.key.to_user_string() in started:
        return dg.SkipReason("the run had begun to learn, or was not meant to")
    return dg.RunRequest(run_key=f"dream-after-{run.run_id}", partition_key=store_of(run))
