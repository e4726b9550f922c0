"""When a run should start before the night."""

import itertools
from typing import Any

import pytest

from vidurai_pipeline.archival.early_run import Past, Situation, decide
from vidurai_pipeline.hot.backlog import BacklogCount
from vidurai_pipeline.settings import Settings

NOW = 1_800_000_000.0


def limits(rows: int, growth: int, free: int) -> Settings:
    given = {"early_run_rows": rows, "early_run_bytes": growth, "early_run_free_disk": free, "early_run_quiet": 60.0}
    return Settings.model_construct(**given)


LIMITS = limits(20_000, 256_000_000, 1_000_000_000)


PLENTY = 10**12


def counted(waiting: int, used: int = 0, total: int = 100_000) -> BacklogCount:
    return BacklogCount(waiting, total, used, "stamp", NOW, 0.1)


def decision(found: BacklogCount, settings: Settings = LIMITS, past: Past | None = None, **others: Any) -> Any:
    given: dict[str, Any] = {
        "now": NOW, "written": NOW - 3_600, "wanted_since": None, "store_free": PLENTY, "archive_free": PLENTY, **others
    }  # fmt: skip
    return decide(Situation(found, past or Past(), **given), settings)


@pytest.mark.parametrize(
    ("found", "others", "wanted", "why"),
    [
        (counted(19_999), {}, False, "19,999 of 20,000 memories wait"),
        (counted(20_000), {}, True, "20,000 memories wait (a run starts at 20,000)"),
        (counted(20_000), {"past": Past(left=1)}, False, "1 that the last run could not move"),
        (counted(999, used=300_000_000), {}, False, "no need"),
        (counted(1_000, used=300_000_000), {}, True, "grown by 300 MB"),
        (counted(1_000, used=300_000_000), {"past": Past(used_bytes=100_000_000)}, False, "grown by 200 MB"),
        (counted(1_000), {"store_free": 999_999_999}, True, "only 1,000 MB are free"),
        (counted(999), {"store_free": 0}, False, "no need"),
        (counted(10**6), {"settings": limits(0, 0, 0)}, False, "no need"),
    ],
)
def test_limits(found: BacklogCount, others: dict[str, Any], wanted: bool, why: str) -> None:
    made = decision(found, **others)
    assert (made.start, made.wanted) == (wanted, wanted)
    assert why in made.why


def test_no_room_for_the_archive() -> None:
    made = decision(counted(50_000, used=1_000_000_000), archive_free=200_000_000)
    assert not made.start
    assert "may need 250 MB: free some" in made.why
    assert decision(counted(50_000, used=1_000_000_000), archive_free=250_000_000).start


def test_failed_runs_are_tried_again_less_and_less_often() -> None:
    def waits(failures: int) -> float:
        past = Past(failures=failures, ended=NOW)
        return next(s for s in itertools.count(0, 60) if decision(counted(10**5), past=past, now=NOW + s).start)

    assert [waits(n) / 3600 for n in range(8)] == [0, 0.5, 1, 2, 4, 8, 16, 24]
    assert "last 3 runs failed" in decision(counted(10**5), past=Past(failures=3, ended=NOW)).why


def test_waits_for_a_pause_of_the_daemon_but_not_for_ever() -> None:
    assert not decision(counted(10**5), written=NOW - 59).start
    assert decision(counted(10**5), written=NOW - 60).start
    assert "written to 3 s ago" in decision(counted(10**5), written=NOW - 3).why
    assert not decision(counted(10**5), written=NOW - 3, wanted_since=NOW - 3_599).start
    assert decision(counted(10**5), written=NOW - 3, wanted_since=NOW - 3_600).start
    # A clock that was put back must not keep it waiting.
    assert decision(counted(10**5), written=NOW + 10**6).start
