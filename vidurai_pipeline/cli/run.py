"""Run the maintenance job from the command line, in this process, with its history kept where the UI shows it."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn

import click
import dagster as dg
from alembic.util import CommandError
from filelock import FileLock
from pydantic import SecretStr
from sqlalchemy.exc import DatabaseError, OperationalError
from yaml import YAMLError

from vidurai_pipeline.care.health import Finding, other_store
from vidurai_pipeline.cli import output
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.alerts import undelivered
from vidurai_pipeline.defs.resources import BUSY_RETRIES_TAG
from vidurai_pipeline.defs.runs import stuck_runs
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import DAGSTERS_OWN, Settings


@dataclass
class RunReport:
    """What a run of the maintenance job did.

    Attributes:
        success: every step and every check came out well.
        run_id: Dagster's id of the run.
        seconds: how long it took.
        dagster_home: where its history is kept.
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
    dagster_home: Path
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


def dagster_home(settings: Settings) -> Path:
    """The folder of Dagster's history, made ready; see :func:`dagster_instance`."""
    with dagster_instance(settings):
        return settings.dagster_home


def dagster_instance(settings: Settings) -> dg.DagsterInstance:
    """Dagster's history, in a folder that is made ready; to be used in a ``with``.

    Raises:
        HotStoreError: there is no hot store whose history it would be: nothing is created for a mistyped path.
        ConfigError: it is not a folder that this user may write, or holds other people's files.
    """
    home, folder = os.environ.get("DAGSTER_HOME"), settings.dagster_home
    if home and not folder.parent.is_dir():
        raise ConfigError(f"DAGSTER_HOME={home}: there is no folder {folder.parent}: create it, or correct the path")
    if settings.stores is None:
        HotStore(settings.db_path).require()
    if folder.is_dir() and not (folder / "dagster.yaml").exists():
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names - DAGSTERS_OWN:
            raise ConfigError(
                f"{folder} holds other files and no dagster.yaml: set DAGSTER_HOME to an empty folder, or to one that "
                "is not there yet"
            )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "dagster.yaml").exists():
            with as_file(files("vidurai_pipeline") / "dagster.yaml") as template:
                shutil.copy(template, folder / "dagster.yaml")
        # Two processes that create Dagster's databases at once leave them with two revisions, of use to nobody.
        with FileLock(folder / ".creating.lock"):
            return dg.DagsterInstance.from_config(str(folder))
    except OSError as error:
        name = "DAGSTER_HOME" if home else "VIDURAI_HOME"
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{folder}: {reason}: set {name} to a folder that you may write") from None
    except (dg.DagsterInvalidConfigError, YAMLError) as error:
        faults = error.errors if isinstance(error, dg.DagsterInvalidConfigError) else ()
        reason = "; ".join(fault.message.split(" Expected:")[0] for fault in faults) or "not YAML"
        raise ConfigError(f"{folder / 'dagster.yaml'}: {reason}") from None
    except (CommandError, DatabaseError) as error:
        reason = str(error).splitlines()[0]
        advice = "move the folder away: it holds Dagster's history of runs only, and the next start makes a new one"
        if isinstance(error, OperationalError):
            advice = f"if it is no passing trouble, {advice}"
        raise ConfigError(f"{folder}: Dagster's database can't be used ({reason}); {advice}") from None


@dataclass(frozen=True)
class History:
    """What Dagster's history says of the nightly job.

    Attributes:
        set_up: when Dagster's home was made, so that the job could run.
        succeeded: when it last ended well; None if it never did.
        undelivered: the services that alerts can't be sent to now, and since when.
        unfinished: whether a run has been queued or unfinished for too long.
    """

    set_up: datetime
    succeeded: datetime | None
    undelivered: dict[str, datetime]
    unfinished: Finding


def read_history(settings: Settings) -> History | None:
    """Dagster's history; None if there is none yet.

    Raises:
        ConfigError: Dagster's home can't be used, or an address of VIDURAI_ALERT_URLS is none.
    """
    marker = settings.dagster_home / "dagster.yaml"
    if not marker.exists():
        return None
    good = dg.RunsFilter(job_name="maintenance", statuses=[dg.DagsterRunStatus.SUCCESS])
    with dagster_instance(settings) as instance:
        ends = [record.end_time for record in instance.get_run_records(good, limit=1)]
        return History(
            datetime.fromtimestamp(marker.stat().st_mtime, UTC),
            datetime.fromtimestamp(ends[0], UTC) if ends and ends[0] else None,
            undelivered(instance, settings),
            stuck_runs(instance, time.time()),
        )


def workspace_file(home: Path) -> Path:
    """Dagster's workspace in its home: this package, under the name by which ``run`` files its runs."""
    workspace = home / "workspace.yaml"
    workspace.write_text(
        "load_from:\n  - python_module:\n      module_name: vidurai_pipeline.definitions\n"
        "      location_name: vidurai_pipeline\n"
    )
    return workspace


def open_ui(settings: Settings, port: int) -> NoReturn:
    """Become Dagster's UI and daemon, with the history that ``run`` writes.

    Raises:
        ConfigError: Dagster's home can't be used, or another program uses the port.
    """
    home = dagster_home(settings)
    _require_free(port)
    click.echo(f"Dagster's UI for the hot store {settings.db_path}, at http://127.0.0.1:{port}; Ctrl-C ends it")
    # Absolute, since Dagster starts in another folder.
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "VIDURAI_HOME": str(settings.home),
        "VIDURAI_DB": str(settings.db_path),
        "VIDURAI_ARCHIVE": str(settings.archive or settings.archive_root),
        "VIDURAI_Q_TABLE": str(settings.q_table_path),
    }
    command = ["dagster", "dev", "-w", str(workspace_file(home)), "--port", str(port)]
    os.chdir(home)
    # Dagster recommends `dg dev`, which needs a project's folder that an installed package has not.
    quiet = ["-W", "ignore:Function `dev_command` is superseded:FutureWarning"]
    os.execve(sys.executable, [sys.executable, *quiet, "-m", *command], environment)  # noqa: S606


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        # As the web server does it: a connection that has just ended does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = f"port {port} can't be used: {os.strerror(error.errno or 0)}"
            another = port + 1 if port < 65_535 else 3000
            hint = f"close the program that uses it, or choose another: `vidurai-pipeline ui --port {another}`"
            raise ConfigError(reason, hint) from None


def run_maintenance(settings: Settings) -> RunReport:
    """Run the maintenance job to its end."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(output.ProgressLine())
        # The settings that Dagster judges come before anything is made.
        job = build_definitions(settings, progress).resolve_job_def("maintenance")
        instance = stack.enter_context(dagster_instance(settings))
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            # The report below says it all; Dagster keeps the events for the UI.
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            # By this the UI finds the run under its job.
            tags={".dagster/repository": "__repository__@vidurai_pipeline", BUSY_RETRIES_TAG: "0"},
        )
    report = RunReport(result.success, result.run_id, time.monotonic() - began, settings.dagster_home)
    for event in result.all_events:
        if event.is_step_materialization:
            _note_materialization(event.step_materialization_data.materialization, report)
        elif event.is_step_failure and _was_stopped(event):
            report.stopped = True
            done = f" ({progress.reached})" if progress.reached else ""
            report.errors.append(f"stopped by Ctrl-C or a signal{done}; running it again goes on from there")
        elif event.is_step_failure:
            report.errors.append(_failure(event))
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking:
            report.errors.append(f"{check.check_name}: {check.description}")
            report.errors += [f"- {line}" for line in metadata.lines(check.metadata, metadata.WHAT_DIFFERS)]
    report.success = result.success and not report.errors
    if (found := other_store(HotStore(settings.db_path))) and found.status != "ok":
        report.notes.append(found.detail)
    if not result.success and not report.errors:
        report.errors += [_cause(event) for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
    return report


def _note_materialization(materialization: dg.AssetMaterialization, report: RunReport) -> None:
    made = materialization.metadata
    report.numbers[materialization.asset_key.to_user_string()] = metadata.numbers(made)
    folder = made.get(metadata.ARCHIVE)
    if isinstance(folder, dg.PathMetadataValue) and folder.value:
        report.files += [str(Path(folder.value) / row["file"]) for row in metadata.records(made, metadata.FILES)]
    report.rejected += metadata.records(made, metadata.REJECTED_MEMORIES)
    report.notes += metadata.lines(made, metadata.NOTES)
    report.errors += metadata.lines(made, metadata.PROBLEMS)


def _was_stopped(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterExecutionInterruptedError"


def _failure(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    described = data.user_failure_data.description if data.user_failure_data else None
    return f"{event.step_key}: {described or (data.error.message.strip() if data.error else 'failed')}"


def _cause(event: dg.DagsterEvent) -> str:
    """Why a run failed before any step: the innermost reason, in its first line."""
    error = event.job_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    text = (error.message if error else str(event.message)).strip()
    # Dagster puts the name of the exception's class first.
    return re.sub(r"^[\w.]+: ", "", text)


def print_report(report: RunReport, settings: Settings) -> None:
    """Say what happened in numbers, where the files are, and what to do next."""
    if report.stopped:
        output.print_attention(report.rejected, report.notes, report.errors)
        return
    facts = report.to_dict()
    files = facts.pop("files")
    attention = {name: facts.pop(name) for name in ("rejected", "notes", "errors")}
    for seldom in ("recovered", "tombstoned"):
        if not facts[seldom]:
            del facts[seldom]
    output.print_facts(
        "Maintenance: done" if facts.pop("success") else "Maintenance: failed",
        {
            **facts,
            "rejected": len(report.rejected),
            "hot store": settings.db_path,
            "new files": ", ".join(files) or "none",
            "archive": settings.archive_address or settings.archive_path,
            "Q-table": settings.q_table_path,
        },
    )
    output.print_attention(attention["rejected"], attention["notes"], attention["errors"])
    tool = output.program()
    shown = {f"VIDURAI_{n.upper()}" for n in Settings.model_fields if not isinstance(getattr(settings, n), SecretStr)}
    given = "".join(f"{name}={shlex.quote(os.environ[name])} " for name in sorted(shown) if os.environ.get(name))
    if not report.success:
        click.echo(f"\nto see what is wrong, and what to do:\n  {given}{tool} doctor")
        return
    click.echo(
        "\nnext:\n"
        f"  {given}{tool} stats\n"
        f"  {given}{tool} query 'SELECT salience, count(*) FROM history GROUP BY salience'\n"
        f"  {given}{tool} ui   # Dagster's UI, at http://127.0.0.1:3000"
    )
