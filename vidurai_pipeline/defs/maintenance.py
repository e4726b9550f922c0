"""The maintenance job in this process, with its history kept where the UI shows it, and what it did."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from vidurai_pipeline.care.health import other_store
from vidurai_pipeline.cold.files import Progress
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.build import build_definitions
from vidurai_pipeline.defs.failures import described, innermost
from vidurai_pipeline.defs.instance import dagster_instance
from vidurai_pipeline.defs.resources import BUSY_RETRIES_TAG
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import Settings


@dataclass
class RunReport:
    """What a run of the maintenance job did.

    Attributes:
        success: every step and every check came out well.
        run_id: Dagster's id of the run.
        seconds: how long it took.
        numbers: the whole numbers that each asset reported.
        files: the new files of the archive.
        rejected: memories that stay hot: id, column, reason.
        notes: what was put right, and what could not be done this time.
        errors: what failed or needs a person, in words.
        stopped: Ctrl-C or a signal ended it.
    """

    success: bool
    run_id: str
    seconds: float
    numbers: dict[str, dict[metadata.Label, float]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types; a step that did not run has no figures."""
        archive, purge = self.numbers.get("parquet_archive", {}), self.numbers.get("purged_rows", {})
        table, recovered = self.numbers.get("q_table", {}), archive.get(metadata.RECOVERED)
        return {
            "success": self.success,
            "waiting": self.numbers.get("archived_rows", {}).get(metadata.ROW_COUNT),
            "archived": archive.get(metadata.MEMORIES_ARCHIVED),
            "purged": purge[metadata.MEMORIES_PURGED] + (recovered or 0) if purge else None,
            "kept": purge.get(metadata.KEPT),
            "rejected": self.rejected,
            "recovered": recovered,
            "tombstoned": archive.get(metadata.TOMBSTONED),
            "files": self.files,
            "learned": table.get(metadata.EXPERIENCES_LEARNED),
            "states": table.get(metadata.STATES),
            "seconds": round(self.seconds, 3),
            "run_id": self.run_id,
            "notes": self.notes,
            "errors": self.errors,
        }

    def add_materialization(self, materialization: dg.AssetMaterialization) -> None:
        """Take up what an asset reported."""
        made = materialization.metadata
        self.numbers[materialization.asset_key.to_user_string()] = metadata.numbers(made)
        folder = made.get(metadata.ARCHIVE)
        if isinstance(folder, dg.PathMetadataValue) and folder.value:
            self.files += [str(Path(folder.value) / row["file"]) for row in metadata.records(made, metadata.FILES)]
        self.rejected += metadata.records(made, metadata.REJECTED_MEMORIES)
        self.notes += metadata.lines(made, metadata.NOTES)
        self.errors += metadata.lines(made, metadata.PROBLEMS)

    def add_failure(self, event: dg.DagsterEvent, reached: str) -> None:
        """Take up why a step failed.

        Args:
            event: the failure.
            reached: how far the run had come, in words.
        """
        error = event.step_failure_data.error
        if error is not None and error.cls_name == "DagsterExecutionInterruptedError":
            self.stopped = True
            done = f" ({reached})" if reached else ""
            self.errors.append(f"stopped by Ctrl-C or a signal{done}; running it again goes on from there")
            return
        reason = described(event) or (error.message.strip() if error else "failed")
        self.errors.append(f"{event.step_key}: {reason}")


def run_maintenance(settings: Settings, progress: Progress, reached: Callable[[], str]) -> RunReport:
    """Run the maintenance job to its end.

    Args:
        settings: where the tiers are.
        progress: told how far the work is.
        reached: says in words how far it had come, for a run that is stopped.
    """
    began = time.monotonic()
    # The settings that Dagster judges come before anything is made.
    job = build_definitions(settings, progress).resolve_job_def("maintenance")
    with dagster_instance(settings) as instance:
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            # The report below says it all; Dagster keeps the events for the UI.
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            # By this the UI finds the run under its job.
            tags={".dagster/repository": "__repository__@vidurai_pipeline", BUSY_RETRIES_TAG: "0"},
        )
    report = RunReport(result.success, result.run_id, time.monotonic() - began)
    for event in result.all_events:
        if event.is_step_materialization:
            report.add_materialization(event.step_materialization_data.materialization)
        elif event.is_step_failure:
            report.add_failure(event, reached())
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking:
            report.errors.append(f"{check.check_name}: {check.description}")
            report.errors += [f"- {line}" for line in metadata.lines(check.metadata, metadata.WHAT_DIFFERS)]
    report.success = result.success and not report.errors
    if (found := other_store(HotStore(settings.db_path))) and found.status != "ok":
        report.notes.append(found.detail)
    if not result.success and not report.errors:
        report.errors += [_cause(event) for event in result.all_events if event.is_job_failure]
    return report


def _cause(event: dg.DagsterEvent) -> str:
    """Why a run failed before any step."""
    error = innermost(event.job_failure_data.error)
    # Dagster puts the name of the exception's class first.
    return re.sub(r"^[\w.]+: ", "", (error.message if error else str(event.message)).strip())
