"""The schedules under Dagster's own scheduler, with the clock moved."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs.schedules import Zone, next_run, schedule_zone, turns
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import Settings, load_settings

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
def queue(home: Path, dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Europe/Berlin")
    overrides = {"run_coordinator": {"module": "dagster._core.test_utils", "class": "MockedRunCoordinator"}}
    with dg.instance_for_test(overrides=overrides, temp_dir=str(dagster_home)) as instance:
        yield instance


@contextmanager
def ticking(queue: dg.DagsterInstance, folder: Path) -> Iterator[Clock]:
    """Dagster's daemon, started with the settings of the moment; its code server is in this process."""
    folder.mkdir()
    (folder / "location.py").write_text(
        "from vidurai_pipeline.definitions import build_definitions\n"
        "from vidurai_pipeline.settings import load_settings\n"
        "defs = build_definitions(load_settings())\n"
    )
    code = LoadableTargetOrigin(python_file=str(folder / "location.py"), working_directory=str(folder))
    target = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(code))
    with create_test_daemon_workspace_context(target, queue) as workspace:
        yield Clock(workspace, queue)


@pytest.fixture
def clock(queue: dg.DagsterInstance, tmp_path: Path) -> Iterator[Clock]:
    with ticking(queue, tmp_path / "code") as clock:
        yield clock


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


@pytest.mark.parametrize(
    ("before", "after", "moved_at"),
    [(4, 1, 12), (2, 1, 23), (1, 4, 23)],
    ids=["earlier at noon", "earlier at 23:00", "later at 23:00"],
)
def test_a_schedule_that_is_moved_leaves_no_night_out_and_takes_none_twice(
    queue: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: int,
    after: int,
    moved_at: int,
) -> None:
    begin = datetime(2026, 6, 1, 22, tzinfo=BERLIN)
    moved = datetime(2026, 6, 2, tzinfo=BERLIN) + timedelta(hours=moved_at)
    for hour, first, last in ((before, begin, moved), (after, moved, begin + timedelta(days=2))):
        monkeypatch.setenv("VIDURAI_SCHEDULE", f"0 {hour} * * *")
        with ticking(queue, tmp_path / str(hour)) as clock:
            clock.every_hour(first, last)
            runs = clock.runs()
    assert nights(runs) == {"06-02": 1, "06-03": 1}
    assert [run.astimezone(BERLIN).hour for run in runs] == [before, after]


@pytest.mark.parametrize(
    ("given", "zone"),
    [
        ("Asia/Kolkata", "Asia/Kolkata"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("EST5EDT", "EST5EDT"),
        ("", "UTC"),
        ("Europe/Belin", None),
        ("CET-1CEST,M3.5.0,M10.5.0/3", None),
        ("<+0530>-5:30", None),
        ("europe/berlin", None),
        ("/no/such/file", None),
    ],
)
def test_a_zone_that_is_not_known_is_said_everywhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str, zone: str | None
) -> None:
    monkeypatch.setenv("TZ", given)
    found = schedule_zone(load_settings())
    schedules = [build_definitions(load_settings()).resolve_schedule_def(n) for n in ("nightly", "health_check")]
    assert {schedule.execution_timezone for schedule in schedules} == {zone or "UTC"}
    assert found.name == (zone or "UTC")
    if zone:
        assert found.doubt is None
        assert caplog.records == []
    else:
        assert found.doubt
        assert f"TZ={given} is not" in found.doubt
        assert "Set VIDURAI_TIMEZONE" in found.doubt
        assert all(found.doubt in (schedule.description or "") for schedule in schedules)
        assert found.doubt in caplog.text


@pytest.mark.parametrize("answer", [None, "local", ZoneInfoNotFoundError("two files say different things")])
def test_a_machine_without_a_zone_runs_in_utc_and_says_so(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.delenv("TZ", raising=False)
    with mock.patch("vidurai_pipeline.defs.schedules.get_localzone_name", side_effect=[answer]):
        found = schedule_zone(load_settings())
    assert found.name == "UTC"
    assert "can't be determined" in (found.doubt or "")
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Asia/Kolkata")
    assert schedule_zone(load_settings()) == Zone("Asia/Kolkata")


@pytest.mark.parametrize(
    ("now", "cron", "expected"),
    [
        ("2026-06-01T12:00:00+00:00", "0 2 * * *", "2026-06-02T02:00:00+02:00"),
        ("2026-03-28T12:00:00+00:00", "0 2 * * *", "2026-03-29T03:00:00+02:00"),
        ("2026-10-24T22:00:00+00:00", "0 2 * * *", "2026-10-25T02:00:00+01:00"),
        ("2026-06-01T12:00:00+00:00", "30 4 * * 1", "2026-06-08T04:30:00+02:00"),
        ("2026-06-01T12:00:00+00:00", "0 0 29 2 *", "2028-02-29T00:00:00+01:00"),
    ],
)
def test_the_next_run_is_dagsters(monkeypatch: pytest.MonkeyPatch, now: str, cron: str, expected: str) -> None:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Europe/Berlin")
    monkeypatch.setenv("VIDURAI_SCHEDULE", cron)
    moment = next_run(load_settings(), datetime.fromisoformat(now))
    assert moment
    assert moment.isoformat() == expected


@pytest.mark.parametrize(
    ("cron", "minutes", "lines"),
    [
        ("0 2 * * *", 10, ["0 2 * * *", "5 2 * * *"]),
        ("50 1 * * 1", 15, ["50 1 * * 1", "55 1 * * 1", "0 2 * * 1"]),
        ("55 23 * * *", 10, ["55 23 * * *", "0 0 * * *"]),
        ("0 */6 1 * *", 10, ["0 */6 1 * *", "5 */6 1 * *"]),
        ("@daily", 0, ["@daily"]),
        ("@daily", 60, None),
        ("55 23 * * 1", 60, None),
        ("*/30 * * * *", 60, None),
    ],
)
def test_the_runs_of_many_stores_are_spread_over_time(
    monkeypatch: pytest.MonkeyPatch, cron: str, minutes: int, lines: list[str] | None
) -> None:
    monkeypatch.setenv("VIDURAI_STORES", "/home/*/vidurai.db")
    monkeypatch.setenv("VIDURAI_STORES_SPREAD_MINUTES", str(minutes))
    monkeypatch.setenv("VIDURAI_SCHEDULE", cron)
    if lines is None:
        with pytest.raises(ConfigError, match=r"VIDURAI_SCHEDULE=.* can't be spread over 60 minutes: name one hour"):
            turns(load_settings(), "schedule")
    else:
        assert turns(load_settings(), "schedule") == lines


class Sensor:
    """The sensor `missed_night`, evaluated as Dagster's daemon does."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._cursor: str | None = None

    def at(self, moment: datetime) -> str:
        """What it says: the key of the run that it starts, or why it starts none."""
        repository = build_definitions(load_settings()).get_repository_def()
        with (
            dg.build_sensor_context(instance=self._instance, repository_def=repository, cursor=self._cursor) as context,
            mock.patch("time.time", return_value=moment.timestamp()),
        ):
            data = repository.get_sensor_def("missed_night").evaluate_tick(context)
        self._cursor = data.cursor
        return data.run_requests[0].run_key or "" if data.run_requests else data.skip_message or ""


def test_a_schedule_moved_to_an_hour_that_has_just_passed_leaves_no_night_out(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "UTC")
    monkeypatch.setenv("VIDURAI_SCHEDULE", "0 4 * * *")
    sensor, now = Sensor(instance), datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert "has begun" in sensor.at(midnight), "nothing ever ran: the schedule begins"
    build_definitions(load_settings()).resolve_job_def("maintenance").execute_in_process(instance=instance)
    record = instance.get_run_records(limit=1)[0]
    # The last night's run, at 04:00.
    ran = record._replace(create_timestamp=midnight - timedelta(hours=20))
    with mock.patch.object(type(instance), "get_run_records", return_value=[ran]):
        assert "has begun" in sensor.at(midnight + timedelta(hours=2))
        monkeypatch.setenv("VIDURAI_SCHEDULE", "0 1 * * *")
        moved = midnight + timedelta(hours=2, minutes=30)
        assert "waited 0 of 10 minutes for the schedule" in sensor.at(moved)
        assert "waited 5 of 10 minutes for the schedule" in sensor.at(moved + timedelta(minutes=5))
        key = f"missed-{(midnight + timedelta(hours=1)).isoformat()}"
        assert sensor.at(moved + timedelta(minutes=10)) == key
        assert sensor.at(moved + timedelta(minutes=15)) == key, "which Dagster starts only once"
        off = SimpleNamespace(name="nightly", status=SimpleNamespace(value="STOPPED"))
        with mock.patch.object(type(instance), "all_instigator_state", return_value=[off]):
            assert sensor.at(moved + timedelta(minutes=20)) == "the schedule nightly is off"
