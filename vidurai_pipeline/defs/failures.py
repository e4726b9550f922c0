"""What a run that has ended says of its failures and its failed checks.

All of it is the pipeline's own: figures, ids and paths, never a memory's text. Of an error that it did not foresee,
only the kind is told.
"""

import time
from collections.abc import Iterable

import dagster as dg

from vidurai_pipeline.defs import metadata

#: A check that says since when it stands (``metadata.STANDS_SINCE``) is told after this long: from the second night on.
A_NIGHT_SECONDS = 12 * 3_600.0


def failures(events: Iterable[dg.DagsterEvent]) -> list[str]:
    """Why steps failed, or the run before its first one."""
    lines, stopped_by_check = [], False
    for event in events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error and error.cls_name == "DagsterAssetCheckFailedError":
                stopped_by_check = True  # which is told with the checks
            else:
                lines.append(f"{words(event.step_key or '')}: {described(event) or _kind(error)}")
        elif event.is_job_failure and not lines and not stopped_by_check:
            # None where somebody else reported it: the sensor that ends dead runs, Dagster's own daemon.
            error = innermost(getattr(event.event_specific_data, "error", None))
            foreseen = error is not None and error.cls_name == "Failure"
            said = error.message.strip().partition(": ")[2] if error and foreseen else None
            lines.append(said or (_kind(error) if error else str(event.message)))
    return lines


def described(event: dg.DagsterEvent) -> str | None:
    """What the pipeline says of a step's failure; None if it did not foresee it."""
    data = event.step_failure_data.user_failure_data
    return data.description if data else None


def innermost(error: "dg.SerializableErrorInfo | None") -> "dg.SerializableErrorInfo | None":
    """The error that caused all others."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error


def _kind(error: "dg.SerializableErrorInfo | None") -> str:
    return f"{error.cls_name if error else 'an error'}, which was not foreseen: see the run's log"


def failed_checks(events: Iterable[dg.DagsterEvent]) -> tuple[list[str], list[str]]:
    """The checks that failed, and those that only warn."""
    failed, warnings = [], []
    for event in events:
        if event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            continue
        check = event.asset_check_evaluation_data
        since = metadata.moment(check.metadata, metadata.STANDS_SINCE)
        if check.passed or (since is not None and time.time() - since < A_NIGHT_SECONDS):
            continue
        warns = check.severity == dg.AssetCheckSeverity.WARN
        line = f"{'Warning' if warns else 'Failed check'}: {words(check.check_name)}: {check.description}"
        (warnings if warns else failed).append(line)
    return failed, warnings


def words(name: str) -> str:
    """A name of Dagster's, as people read it."""
    return name.replace("_", " ")
