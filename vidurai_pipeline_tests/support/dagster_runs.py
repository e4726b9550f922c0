"""Runs of Dagster's jobs in this process, and other processes that hold the archive's lock meanwhile."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.settings import Settings

ASSETS = ["archived_rows", "parquet_archive", "purged_rows", "q_table"]
HOLDER = """
import sys, time
from pathlib import Path
from vidurai_pipeline.cold.lock import RunLock
with RunLock(Path(sys.argv[1])).hold("test holder", 0):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holding(archive: Path, *, really: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the archive's lock, until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(archive)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        if not really:
            holder.kill()
            holder.wait()
        try:
            yield holder
        finally:
            holder.kill()


def execute(settings: Settings, instance: dg.DagsterInstance, job: str = "maintenance") -> dg.ExecuteInProcessResult:
    """Run a job; ``__ASSET_JOB`` is what a person starts by *Materialize all* on the four assets."""
    selection = [dg.AssetKey(name) for name in ASSETS] if job == "__ASSET_JOB" else None
    job_def = build_definitions(settings).resolve_job_def(job)
    return job_def.execute_in_process(instance=instance, raise_on_error=False, asset_selection=selection)


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def leave_run(instance: dg.DagsterInstance, job: dg.JobDefinition, status: dg.DagsterRunStatus) -> str:
    """A run as it is left when its process is killed in a state; gives its id."""
    if status == dg.DagsterRunStatus.QUEUED:
        origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("vidurai_pipeline"), "__repository__")
        queued = origin.get_job_origin(job.name)
        return instance.create_run_for_job(job, status=status, remote_job_origin=queued).run_id
    run = instance.create_run_for_job(job)
    events = {
        dg.DagsterRunStatus.NOT_STARTED: [],
        dg.DagsterRunStatus.STARTING: ["PIPELINE_STARTING"],
        dg.DagsterRunStatus.STARTED: ["PIPELINE_STARTING", "PIPELINE_START"],
        dg.DagsterRunStatus.CANCELING: ["PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_CANCELING"],
    }[status]
    for event in events:
        instance.report_dagster_event(dg.DagsterEvent(event_type_value=event, job_name=job.name), run_id=run.run_id)
    assert status_of(instance, run.run_id) == status
    return run.run_id


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run
    return run.status
