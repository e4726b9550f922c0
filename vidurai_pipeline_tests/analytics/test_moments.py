"""Times as people write them in a search."""

import datetime as dt
import time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import read_moment
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline_tests.support.archives import memory, write_file


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2026", (2026, 1, 1), (2027, 1, 1)),
        ("2026-11", (2026, 11, 1), (2026, 12, 1)),
        (" 2026-12 ", (2026, 12, 1), (2027, 1, 1)),
        ("2024-02", (2024, 2, 1), (2024, 3, 1)),
        ("0001", (1, 1, 1), (2, 1, 1)),
        ("9998-12", (9998, 12, 1), (9999, 1, 1)),
        ("9999", (9999, 1, 1), (9999, 12, 31, 23, 59, 59, 999_999)),
        ("9999-12", (9999, 12, 1), (9999, 12, 31, 23, 59, 59, 999_999)),
        ("2026-11-27", (2026, 11, 27), (2026, 11, 27)),
        ("20261127", (2026, 11, 27), (2026, 11, 27)),
        ("2026-11-27T08:30", (2026, 11, 27, 8, 30), (2026, 11, 27, 8, 30)),
        ("2026-11-27t08:30z", (2026, 11, 27, 8, 30), (2026, 11, 27, 8, 30)),
        ("2026-11-27 08:30+02:00", (2026, 11, 27, 6, 30), (2026, 11, 27, 6, 30)),
    ],
)
def test_a_month_or_year_is_read_from_its_beginning_and_to_its_end(text: str, begin: tuple, end: tuple):
    assert read_moment("since", text) == dt.datetime(*begin)
    assert read_moment("until", text, end=True) == dt.datetime(*end)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("7d", dt.timedelta(days=7)),
        ("2w", dt.timedelta(weeks=2)),
        ("36H", dt.timedelta(hours=36)),
        ("1 day", dt.timedelta(days=1)),
        ("3 weeks ago", dt.timedelta(weeks=3)),
        ("0d", dt.timedelta()),
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_a_duration_is_counted_back_from_now(text: str, ago: dt.timedelta, end: bool):
    before = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    moment = read_moment("since", text, end=end)
    after = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    assert moment is not None
    assert before - ago <= moment <= after - ago


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Los_Angeles", "Asia/Kolkata"])
@pytest.mark.parametrize(("text", "back"), [("today", 0), ("Yesterday", 1)])
def test_today_and_yesterday_are_local_days(monkeypatch: pytest.MonkeyPatch, zone: str, text: str, back: int):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        day = dt.datetime.now(ZoneInfo(zone)).date() - dt.timedelta(days=back)
        for end in (False, True):
            midnight = dt.datetime.combine(day + dt.timedelta(days=end), dt.time(), ZoneInfo(zone))
            assert read_moment("since", text, end=end) == midnight.astimezone(dt.UTC).replace(tzinfo=None)
    time.tzset()


@pytest.mark.parametrize(
    "text",
    ["", "soon", "7", "7x", "-7d", "7d2w", "2026-13", "2026-00", "0000", "2026-1", "26-11", "\u0667d", "2026-11-31"],
)
def test_what_is_no_time_is_refused_in_one_line_with_examples(text: str):
    with pytest.raises(QueryError, match=r"since can't be read as a time: .*: write it like 7d, 2w, today") as caught:
        read_moment("since", text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["999999w", "800000 days"])
def test_a_time_before_the_year_1_is_refused(text: str):
    with pytest.raises(QueryError, match="since is not within the years 1 to 9999"):
        read_moment("since", text)


def test_a_search_includes_the_month_that_until_names(tmp_path: Path):
    moments = ("2026-09-30T23:59:59", "2026-10-01T00:00:00", "2026-11-30T23:59:59.9", "2026-12-01T00:00:00")
    write_file(tmp_path, [memory(number, created_at=moment) for number, moment in enumerate(moments)])
    with RepoAnalyst(tmp_path) as analyst:
        found = analyst.search_archive("memory", since="2026-10", until="2026-11")
    assert sorted(row["id"] for row in found) == [1, 2]
