"""The schedules under Dagster's own scheduler, with the clock moved."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

BERLIN = ZoneInfo("Europe/Berlin")


class Clock:
    """Dagster's scheduler at moments of the test's choosing; it queues runs, and nothing takes them up."""

    def __init__(self, workspace: Any, instance: dg.DagsterInstance) -> None:
        self._workspace = workspace
        self._instance = instance
        self._times: dict[str, Any] = {}

    def at(self, moment: datetime) -> None:
        """Let the scheduler look at a moment."""
        with freeze_time(moment.astimezone(UTC)):
            logger = logging.getLogger("test")
            for _ in launch_scheduled_runs(self._workspace, logger, moment.astimezone(UTC), self._times):
                pass

    def every_hour(self, first: datetime, last: datetime) -> None:
        """Let it look every hour from one moment to another."""
        moment = first.astimezone(UTC)
        while moment <= last:
            self.at(moment)
            moment += timedelta(hours=1)

    def runs(self, job: str = "maintenance") -> list[datetime]:
        """When runs of a job were meant to start, oldest first."""
        return sorted(
            datetime.fromisoformat(run.tags[".dagster/scheduled_execution_time"])
            for run in self._instance.get_runs(dg.RunsFilter(job_name=job))
        )


@pytest.fixture
def clock(sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    monkeypatch.setenv("VIDURAI_HOME", str(sample_store("guardian").parent))
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Europe/Berlin")
    definitions = tmp_path / "location.py"
    definitions.write_text("from vidurai_pipeline.definitions import defs\n")
    overrides = {"run_coordinator": {"module": "dagster._core.test_utils", "class": "MockedRunCoordinator"}}
    with dg.instance_for_test(overrides=overrides) as instance:
        target = PythonFileTarget(str(definitions), None, str(tmp_path), "vidurai_pipeline")
        with create_test_daemon_workspace_context(target, instance) as workspace:
            yield Clock(workspace, instance)


def nights(runs: list[datetime]) -> dict[str, int]:
    return dict(Counter(f"{run.astimezone(BERLIN):%m-%d}" for run in runs))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        # 02:00 does not exist on 29 March: the clock goes from 02:00 to 03:00.
        (datetime(2026, 3, 28, 22, tzinfo=BERLIN), datetime(2026, 3, 30, 8, tzinfo=BERLIN), range(29, 31)),
        # 02:00 comes twice on 25 October.
        (datetime(2026, 10, 24, 22, tzinfo=BERLIN), datetime(2026, 10, 26, 8, tzinfo=BERLIN), range(25, 27)),
    ],
    ids=["spring", "autumn"],
)
def test_one_run_each_night_when_the_clock_changes(
    clock: Clock, first: datetime, last: datetime, expected: range
) -> None:
    clock.every_hour(first, last)
    assert nights(clock.runs()) == {f"{first:%m}-{day:02}": 1 for day in expected}
    assert nights(clock.runs("health")) == {f"{first:%m}-{day:02}": 1 for day in expected}


def test_after_a_week_off_one_run_catches_up(clock: Clock) -> None:
    begin = datetime(2026, 6, 1, 12, tzinfo=BERLIN)
    clock.at(begin)
    clock.at(begin + timedelta(hours=15))
    assert nights(clock.runs()) == {"06-02": 1}
    back = begin + timedelta(days=7)
    clock.at(back)
    clock.at(back + timedelta(minutes=1))
    assert nights(clock.runs()) == {"06-02": 1, "06-08": 1}
    clock.at(back + timedelta(hours=15))
    assert nights(clock.runs()) == {"06-02": 1, "06-08": 1, "06-09": 1}


def test_the_clock_put_back_starts_no_second_run(clock: Clock) -> None:
    begin = datetime(2026, 6, 1, 12, tzinfo=BERLIN)
    for hours in (0, 15, 10, 13, 16):
        clock.at(begin + timedelta(hours=hours))
    assert nights(clock.runs()) == {"06-02": 1}
