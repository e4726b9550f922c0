"""Times as text of any form are the moments that they mean, wherever times are compared."""

import datetime as dt
from pathlib import Path

import duckdb
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Tier
from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.stores import small_store

NOON = dt.datetime(2026, 3, 1, 15, 30)
FORMS = [
    "2026-03-01T15:30:00",
    "2026-03-01 15:30:00",
    "2026-03-01T15:30",
    "2026-03-01T15:30:00.000",
    "2026-03-01T15:30:00Z",
    "2026-03-01T15:30:00z",
    "2026-03-01T15:30:00.000000Z",
    "2026-03-01T15:30Z",
    "2026-03-01T15:30:00+00:00",
    "2026-03-01T23:30:00+08:00",
    "2026-03-01 23:30:00 +08:00",
    "2026-03-01T23:30:00+0800",
    "2026-03-01 23:30:00+08",
    "2026-03-01T23:30+08:00",
    "2026-03-01T10:00:00-05:30",
    "2026-03-02T05:30:00.000000+14:00",
    "2026-03-01T15:30:00 UTC",
]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("text", FORMS)
def test_a_text_is_one_moment_in_any_session(text: str, zone: str):
    with duckdb.connect() as connection:
        connection.execute(f"SET TimeZone = '{zone}'")
        rows = connection.execute(f"SELECT {utc_timestamp('t')} FROM (SELECT $t::VARCHAR AS t)", {"t": text}).fetchall()
    assert rows == [(NOON,)]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", dt.datetime(2026, 3, 1)),
        ("2026-03-01T15:30:00.123456", NOON.replace(microsecond=123456)),
        ("2026-03-01T15:30:00.123456789Z", NOON.replace(microsecond=123456)),
        ("9999-12-31T23:59:59.999999", dt.datetime.max),
        *((text, None) for text in ("never", "", "2026-13-01", "12000-01-01", "infinity", "0044-03-15 (BC)", None)),
    ],
)
def test_dates_fractions_and_what_is_no_time(text: str | None, moment: dt.datetime | None):
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT {utc_timestamp('t')} FROM (SELECT $t::VARCHAR AS t)", {"t": text}).fetchall()
    assert rows == [(moment,)]


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("tier", ["cold", "hot", "all"])
def test_search_filters_by_the_moment(tmp_path: Path, text: str, tier: Tier):
    small_store(tmp_path / "vidurai.db", {"id": 1, "verbatim": "word", "created_at": text})
    write_file(tmp_path / "archive", [memory(2, verbatim="word", created_at=text)])
    analyst = RepoAnalyst(tmp_path / "archive")
    expected = {"cold": {2}, "hot": {1}, "all": {1, 2}}[tier]

    def found(since: str, until: str) -> set[int]:
        return {row["id"] for row in analyst.search_archive("word", since=since, until=until, tier=tier)}

    assert found("2026-03-01T15:00", "2026-03-01T16:00") == expected
    assert found("2026-03-01T23:30:00+08:00", "2026-03-01T15:30:01Z") == expected
    assert found("2026-03-01T16:00", "2027-01-01") == set()
    assert found("2026-02-01", "2026-03-01T15:30") == set()


def test_the_newest_and_the_oldest_are_told_by_time_not_by_text(tmp_path: Path):
    """Later by the clock, earlier as text: 01:00 in Berlin is before 00:30 in London."""
    write_file(
        tmp_path,
        [
            memory(1, created_at="2024-03-01T00:30:00Z", archived_at="2024-12-15T01:00:00+01:00"),
            memory(2, created_at="2024-03-01T01:00:00+01:00", archived_at="2024-12-15T00:30:00Z"),
            memory(3, gist="older", archived_at="2024-12-15T01:00:00+01:00"),
            memory(3, gist="newer", archived_at="2024-12-15T00:30:00"),
        ],
    )
    analyst = RepoAnalyst(tmp_path)
    stats = analyst.get_memory_stats()
    assert (stats["oldest_memory"], stats["newest_archive"]) == ("2024-03-01T01:00:00+01:00", "2024-12-15T00:30:00Z")
    assert analyst.query_archive("SELECT gist FROM history WHERE id = 3") == [{"gist": "newer"}]
    assert [row["id"] for row in analyst.search_archive("memory")][1:] == [1, 2]


def test_questions_about_time_and_salience(tmp_path: Path):
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "salience": "HIGH", "created_at": (now - dt.timedelta(days=1)).isoformat()},
        {"id": 2, "salience": "low", "created_at": "2024-03-01 10:00:00"},
    )
    write_file(tmp_path / "archive", [memory(3, salience="CRITICAL", created_at="2024-03-05T10:00:00+02:00")])
    analyst = RepoAnalyst(tmp_path / "archive")

    def ids(condition: str) -> list[int]:
        return [row["id"] for row in analyst.query_archive(f"SELECT id FROM memories WHERE {condition} ORDER BY id")]

    assert ids("created_ts > now() - INTERVAL 30 DAY") == [1]
    assert ids("salience_score >= 3") == [1, 3]
    months = analyst.query_archive(
        "SELECT date_trunc('month', created_ts) AS m, count(*) AS n FROM memories GROUP BY 1"
    )
    assert {(row["m"].isoformat()[:7], row["n"]) for row in months} == {("2024-03", 2), (now.isoformat()[:7], 1)}
    assert analyst.query_archive("SELECT max(salience_score) AS s, min(created_ts) AS t FROM memories") == [
        {"s": 5, "t": dt.datetime(2024, 3, 1, 10)}
    ]
    described = {row["column_name"]: row["column_type"] for row in analyst.query_archive("DESCRIBE memories")}
    assert described["created_ts"] == described["archived_ts"] == described["expires_ts"] == "TIMESTAMP"
    assert described["salience_score"] == "INTEGER"


@pytest.mark.parametrize(
    "condition",
    [
        "created_at > now() - INTERVAL 30 DAY",
        "created_at > DATE '2024-01-01'",
        "date_trunc('month', created_at) = DATE '2024-01-01'",
        "year(archived_at) = 2024",
        "salience >= 3",
        "3 < salience",
    ],
)
@pytest.mark.parametrize("view", ["history", "memories"])
def test_the_text_columns_misused_point_to_the_typed_ones(tmp_path: Path, view: str, condition: str):
    small_store(tmp_path / "vidurai.db", {"id": 1})
    write_file(tmp_path / "archive", [memory(2)])
    with pytest.raises(QueryError, match=r"created_ts.*archived_ts.*salience_score"):
        RepoAnalyst(tmp_path / "archive").query_archive(f"SELECT id FROM {view} WHERE {condition}")
