"""Dagster's home: its settings and its history of runs, in a folder that is made ready."""

import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path

import dagster as dg
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy.exc import DatabaseError, OperationalError
from yaml import YAMLError

from vidurai_pipeline.care.health import Finding
from vidurai_pipeline.defs.alerts import undelivered
from vidurai_pipeline.defs.runs import stuck_runs
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline.settings import DAGSTERS_OWN, Settings


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
        raise ConfigError(f"DAGSTER_HOME={home}: there is no folder {folder.parent}", "create it, or correct the path")
    if settings.stores is None:
        HotStore(settings.db_path).require()
    template = folder / "dagster.yaml"
    if folder.is_dir() and not template.exists():
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names - DAGSTERS_OWN:
            raise ConfigError(
                f"{folder} holds other files and no dagster.yaml",
                "set DAGSTER_HOME to an empty folder, or to one that is not there yet",
            )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not template.exists():
            with as_file(files("vidurai_pipeline") / "dagster.yaml") as recommended:
                shutil.copy(recommended, template)
        # Two processes that create Dagster's databases at once leave them with two revisions, of use to nobody.
        with FileLock(folder / ".creating.lock"):
            return dg.DagsterInstance.from_config(str(folder))
    except OSError as error:
        hint = f"set {'DAGSTER_HOME' if home else 'VIDURAI_HOME'} to a folder that you may write"
        raise ConfigError(f"{folder}: {os.strerror(error.errno or 0)}", hint) from None
    except (dg.DagsterInvalidConfigError, YAMLError) as error:
        faults = error.errors if isinstance(error, dg.DagsterInvalidConfigError) else ()
        reason = "; ".join(fault.message.split(" Expected:")[0] for fault in faults) or "not YAML"
        raise ConfigError(f"{template}: {reason}") from None
    except (CommandError, DatabaseError) as error:
        hint = "move the folder away: it holds only Dagster's history of runs, and the next start makes a new one"
        if isinstance(error, OperationalError):
            hint = f"try again later; if that does not help, {hint}"
        raise ConfigError(f"{folder}: Dagster's database can't be used ({str(error).splitlines()[0]})", hint) from None


def workspace_file(home: Path) -> Path:
    """Dagster's workspace in its home: this package, under the name by which ``run`` files its runs."""
    workspace = home / "workspace.yaml"
    workspace.write_text(
        "load_from:\n  - python_module:\n      module_name: vidurai_pipeline.definitions\n"
        "      location_name: vidurai_pipeline\n"
    )
    return workspace


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
