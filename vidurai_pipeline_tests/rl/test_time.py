"""The order of learning where times are odd: clocks that were wrong, offsets, files in local time."""

import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.care.health import dates_plausible
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.rl.checkpoint import Checkpoint, Visits
from vidurai_pipeline.rl.dataset import open_experiences
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.rl.dreams import daemon_writes, dream, goes_on, learned
from vidurai_pipeline_tests.support.archives import BASE, experience, write_file

NIGHT = datetime(2026, 11, 28, 2, tzinfo=UTC)
WRONG = datetime(2030, 6, 1, 2, tzinfo=UTC)
IN_UTC = BASE.with_metadata({"vidurai_pipeline.timezone": "UTC"})


class Nights:
    """An archive and a table that grow night by night."""

    def __init__(self, folder: Path) -> None:
        self.archive, self.table = folder / "archive", folder / "q_table.json"
        self.number = 0
        self.total = 0

    def pass_by(self, flushed: datetime, dreamt: datetime, memories: int = 40, **how: Any) -> dict[str, Any]:
        """Archive some memories, and dream."""
        rng = random.Random(self.number)
        stamp = flushed.replace(tzinfo=None).isoformat(timespec="microseconds")
        rows = [
            experience(
                self.number * 1000 + n,
                rng.choice([1, -1]),
                verbatim="x" * rng.randrange(4000),
                salience=rng.choice(["high", "low", "medium"]),
                archived_at=stamp,
            )
            for n in range(memories)
        ]
        write_file(self.archive, rows, f"{self.number}.parquet", schema=IN_UTC)
        self.number += 1
        self.total += memories
        return dream_at(self.archive, self.table, dreamt, **how)

    def assert_as_learned_in_one_go(self) -> None:
        """The same archive gives the same table."""
        alone = self.table.with_name("alone.json")
        alone.unlink(missing_ok=True)
        dream(self.archive, alone)
        ours, whole = (json.loads(path.read_text()) for path in (self.table, alone))
        assert list(ours["q_table"].items()) == list(whole["q_table"].items())
        assert ours["total_reward"] == whole["total_reward"]
        assert visits(self.table) == visits(alone)


def dream_at(archive: Path, table: Path, now: datetime, **how: Any) -> dict[str, Any]:
    cycle = DreamCycle(archive, table, **how)
    cycle.clock = lambda: now
    stats = cycle.run()
    assert stats["success"], stats["error"]
    return stats


def visits(table: Path) -> Visits:
    return Checkpoint.from_json(json.loads(table.read_text())["vidurai_pipeline"]).visits


def count(table: Path) -> int:
    return sum(sum(row.values()) for row in visits(table).values())


@pytest.mark.parametrize(
    "dreamt", [WRONG, NIGHT + timedelta(days=1)], ids=["the dream's clock too", "the flush's only"]
)
def test_a_clock_that_was_wrong_once(tmp_path: Path, dreamt: datetime) -> None:
    nights = Nights(tmp_path)
    nights.pass_by(NIGHT, NIGHT, 200)
    nights.pass_by(WRONG, dreamt, 50)
    for day in range(2, 8):
        now = NIGHT + timedelta(days=day)
        stats = nights.pass_by(now, now)
        once_anew = dreamt == WRONG and day == 2
        assert (stats["rebuilt"], stats["late"]) == (once_anew, 40 if once_anew else 0)
        assert stats["episodes"] == (nights.total if once_anew else 40)
        assert stats["already_learned"] + stats["episodes"] == nights.total
        assert "50 experiences are dated in the future" in stats["notice"]
        assert count(nights.table) == nights.total
        nights.assert_as_learned_in_one_go()
        again = nights.table.read_bytes()
        assert dream_at(nights.archive, nights.table, now)["episodes"] == 0
        assert nights.table.read_bytes() == again
    after = WRONG + timedelta(days=1)
    stats = nights.pass_by(after, after)
    assert (stats["episodes"], stats["rebuilt"], stats["notice"]) == (40, False, None)
    nights.assert_as_learned_in_one_go()
    assert "ahead" not in json.loads(nights.table.read_text())["vidurai_pipeline"]


def test_a_late_file_before_the_future_is_learned_in_its_place(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.pass_by(NIGHT, NIGHT)
    nights.pass_by(WRONG, NIGHT)
    stats = nights.pass_by(NIGHT - timedelta(days=9), NIGHT)
    assert (stats["late"], stats["rebuilt"]) == (40, True)
    nights.assert_as_learned_in_one_go()
    assert nights.pass_by(NIGHT, NIGHT + timedelta(hours=1))["episodes"] == 40


@pytest.mark.parametrize(
    "dreamt", [WRONG, NIGHT + timedelta(days=1)], ids=["the dream's clock too", "the flush's only"]
)
def test_a_daemon_s_table_learns_on_after_a_wrong_clock(tmp_path: Path, dreamt: datetime) -> None:
    nights = Nights(tmp_path)
    nights.pass_by(NIGHT, NIGHT, 200)
    daemon_writes(nights.table, goes_on)
    nights.pass_by(WRONG, dreamt, 50)
    for day in range(2, 6):
        now = NIGHT + timedelta(days=day)
        stats = nights.pass_by(now, now)
        assert (stats["episodes"], stats["late"], stats["rebuilt"]) == (40, 0, False)
        assert stats["already_learned"] == nights.total - 40
        assert count(nights.table) == nights.total
        assert learned(nights.table)["9|9|9|5|5|1"] == {"consolidate": 3.0}
    after = WRONG + timedelta(days=1)
    assert nights.pass_by(after, after)["episodes"] == 40
    assert count(nights.table) == nights.total


def test_a_limit_and_a_wrong_clock(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.pass_by(NIGHT, NIGHT, 100)
    nights.pass_by(WRONG, NIGHT, 50)
    for now in (NIGHT + timedelta(days=day) for day in range(1, 4)):
        found = [nights.pass_by(now, now, max_episodes=15)["episodes"]]
        while found[-1]:
            found.append(dream_at(nights.archive, nights.table, now, max_episodes=15)["episodes"])
        assert found == [15, 15, 10, 0]
        assert count(nights.table) == nights.total
    tomorrow = NIGHT + timedelta(days=4)
    assert nights.pass_by(tomorrow, tomorrow)["rebuilt"], "without a limit the order is the archive's again"
    nights.assert_as_learned_in_one_go()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 30)), min_size=1, max_size=6))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_clocks(tmp_path_factory: pytest.TempPathFactory, clocks: list[tuple[int, int, int]]) -> None:
    """Whatever the clocks of flush and dream said, the table is what the archive alone gives."""
    nights = Nights(tmp_path_factory.mktemp("nights"))
    for day, (flushed, dreamt, memories) in enumerate(clocks):
        years = [timedelta(days=365 * (year - 1) + day) for year in (flushed, dreamt)]
        nights.pass_by(NIGHT + years[0], NIGHT + years[1], memories)
        assert count(nights.table) == nights.total
        nights.assert_as_learned_in_one_go()


def test_files_dated_in_the_future_are_named(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.pass_by(NIGHT, NIGHT)
    archive = Archive(nights.archive)
    assert dates_plausible(archive, NIGHT).status == "ok"
    nights.pass_by(WRONG, NIGHT)
    found = dates_plausible(archive, NIGHT)
    assert found.status == "warning"
    assert "40 memories in 1 file are dated in the future" in found.detail
    assert str(nights.archive / "year=2024/month=12/1.parquet") in found.detail
    assert dates_plausible(archive, WRONG).status == "ok"


def order(archive: Path) -> list[int]:
    with open_experiences(load_settings(), archive) as experiences:
        return [id_ for batch in experiences.stream() for id_ in batch.ids.to_pylist()]


def test_offsets_count(archive: Path) -> None:
    times = [
        "2026-03-01T23:30:00+08:00",  # 15:30 in UTC
        "2026-03-01T15:29:59.999999",
        "2026-03-01 15:31",
        "2026-03-01T10:32:00.5-05:00",  # 15:32
        "2026-03-01T15:33:00Z",
        "2026-03-01T21:04:00+05:30",  # 15:34
    ]
    write_file(archive, [experience(n, archived_at=text) for n, text in enumerate(times)], schema=IN_UTC)
    assert order(archive) == [1, 0, 2, 3, 4, 5]


def test_what_is_no_time_is_counted(archive: Path, table: Path) -> None:
    rows = [experience(n, archived_at=text) for n, text in enumerate(["2026-01-01", "yesterday", "", None])]
    write_file(archive, rows)
    assert dream(archive, table)["skipped"] == {"archived_at is no time": 3}


@pytest.fixture(params=["Asia/Tokyo", "America/New_York", "EST5EDT", "UTC"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_files_in_local_time_stand_in_their_place(archive: Path, zone: str) -> None:
    """Vidurai's own archiver writes local time, this pipeline UTC and says so."""
    moments = [datetime(2026, 7, 1, hour, tzinfo=UTC) + timedelta(days=day) for day in (0, 160) for hour in range(24)]
    ours, theirs = [], []
    for n, moment in enumerate(moments):
        local = moment.astimezone() if n % 2 else moment
        row = experience(n, archived_at=local.replace(tzinfo=None).isoformat())
        (theirs if n % 2 else ours).append(row)
    write_file(archive, ours, "ours.parquet", schema=IN_UTC)
    write_file(archive, theirs, "theirs.parquet")
    assert order(archive) == list(range(48))


def test_the_zone_can_be_set(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_TIMEZONE", "Asia/Tokyo")
    write_file(archive, [experience(1, archived_at="2026-07-01T02:00:00")], "theirs.parquet")
    dream(archive, table)
    assert json.loads(table.read_text())["vidurai_pipeline"]["watermark"]["archived_at"] == "2026-06-30T17:00:00"
