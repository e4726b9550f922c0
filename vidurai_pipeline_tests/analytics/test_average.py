"""AVG over salience means the levels' numbers; over everything else it stays DuckDB's."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline_tests.support.archives import OWN, memory, write_file

LEVELS = ("CRITICAL", "high", "Medium", " low ", "NOISE", "NOISE", "strange", None)


@pytest.fixture
def analyst(tmp_path: Path) -> RepoAnalyst:
    rows = [memory(i, salience=level, event_type="ab"[i % 2], outcome=i % 3 - 1) for i, level in enumerate(LEVELS)]
    write_file(tmp_path, rows)
    return RepoAnalyst(tmp_path)


def values(analyst: RepoAnalyst, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in analyst.query_archive(sql, parameters)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("AVG(salience)", 16 / 6),
        ("mean(salience)", 16 / 6),
        ("avg(history.salience)", 16 / 6),
        ('"avg"("salience")', 16 / 6),
        ("AVG(lower(salience))", 16 / 6),
        ("AVG(DISTINCT salience)", 3.0),
        ("AVG(salience) FILTER (WHERE id < 2)", 4.5),
        ("AVG(salience ORDER BY id)", 16 / 6),
        ("round(AVG(salience), 1) + 1", 3.7),
        ("AVG(CASE WHEN salience = 'NOISE' THEN 1 ELSE 0 END)", 0.25),
        ("AVG(length(salience)) FILTER (WHERE id = 0)", 8.0),
        ("(SELECT AVG(salience) FROM history WHERE id = 1)", 4.0),
    ],
)
def test_salience_has_an_average(analyst: RepoAnalyst, expression: str, expected: float):
    assert analyst.query_archive(f"SELECT {expression} AS a FROM history LIMIT 1") == [{"a": pytest.approx(expected)}]


def test_the_column_keeps_its_name(analyst: RepoAnalyst):
    assert list(analyst.query_archive("SELECT AVG(salience), AVG(id) AS b FROM history")[0]) == ["avg(salience)", "b"]


def test_salience_averages_over_windows_groups_and_subqueries(analyst: RepoAnalyst):
    over = "SELECT AVG(salience) OVER (PARTITION BY event_type ORDER BY id) FROM history ORDER BY event_type, id"
    assert [row[0] for row in values(analyst, over)][:3] == [5.0, 4.0, 3.0]
    groups = "SELECT event_type, AVG(salience) FROM history GROUP BY ALL HAVING AVG(salience) > ? ORDER BY 2 DESC"
    assert values(analyst, groups, [1]) == [("a", 3.0), ("b", pytest.approx(7 / 3))]
    inner = "WITH x AS (SELECT AVG(salience) AS a FROM history WHERE id < $n) SELECT a * $m FROM x"
    assert values(analyst, inner, {"n": 2, "m": 2}) == [(9.0,)]
    assert analyst.query_df("SELECT AVG(salience) AS a FROM history").a[0] == pytest.approx(16 / 6)
    assert analyst.query_arrow("SELECT AVG(salience) AS a FROM history").read_all()["a"].to_pylist() == [
        pytest.approx(16 / 6)
    ]
    assert "salience_score" not in str(analyst.query_archive("DESCRIBE SELECT AVG(salience) FROM history"))
    assert analyst.query_archive("EXPLAIN SELECT AVG(salience) FROM history")


AVERAGES = [
    "AVG(i)",
    "AVG(i::TINYINT)",
    "AVG(i::HUGEINT)",
    "AVG(i / 3)",
    "AVG(i::DECIMAL(10, 2))",
    "AVG(DISTINCT i % 3)",
    "AVG(i) FILTER (WHERE i > 4)",
    "AVG(i ORDER BY i DESC)",
    "AVG(INTERVAL 1 HOUR * i)",
    "AVG(DATE '2024-01-01' + i::INTEGER)",
    "AVG(TIMESTAMP '2024-01-01' + INTERVAL 1 HOUR * i)",
    "AVG(TIMESTAMPTZ '2024-01-01 00:00:00+00' + INTERVAL 1 HOUR * i)",
    "AVG(TIME '10:00:00' + INTERVAL 1 MINUTE * i)",
    "AVG(NULL::INTEGER)",
    "mean(i)",
    "favg(i)",
    "sum(i)",
    "min(i::VARCHAR)",
    "max(INTERVAL 1 HOUR * i)",
    "median(i)",
    "stddev(i)",
]


@pytest.mark.parametrize("expression", AVERAGES)
def test_other_aggregates_are_duckdbs_own(analyst: RepoAnalyst, expression: str):
    sql = f"SELECT {expression} AS a, typeof({expression}) AS t FROM range(10) r(i)"
    with duckdb.connect() as plain:
        expected = plain.execute(sql).fetchall()
    assert values(analyst, sql) == expected
    if "ORDER BY" not in expression:
        window = f"SELECT {expression} OVER () AS a FROM range(10) r(i)"
        with duckdb.connect() as plain:
            assert values(analyst, window) == plain.execute(window).fetchall()


def test_averages_of_dates_stay_dates_beside_one_of_salience(analyst: RepoAnalyst):
    sql = "SELECT AVG(salience), AVG(id), AVG(DATE '2024-01-01'), AVG(INTERVAL 2 DAY) FROM history"
    day, span = dt.datetime(2024, 1, 1), dt.timedelta(days=2)
    assert values(analyst, sql) == [(pytest.approx(16 / 6), 3.5, day, span)]


def test_salience_is_still_text(analyst: RepoAnalyst):
    sql = "SELECT min(salience), max(salience), count(*) FILTER (salience = 'CRITICAL'), typeof(any_value(salience))"
    assert values(analyst, f"{sql} FROM history") == [(" low ", "strange", 1, "VARCHAR")]
    assert values(analyst, "SELECT salience FROM history WHERE salience LIKE 'CRIT%'") == [("CRITICAL",)]


def test_the_average_of_other_text_is_an_error_that_tells_of_salience_score(analyst: RepoAnalyst):
    for sql in (
        "SELECT AVG(gist) FROM history",
        "SELECT AVG(salience), AVG(gist) FROM history",
        "SELECT sum(salience) FROM history",
        "SELECT AVG(s) FROM (SELECT salience AS s FROM history)",
    ):
        with pytest.raises(QueryError, match=r"\(VARCHAR\)[^¬]*salience_score \(CRITICAL 5"):
            analyst.query_archive(sql)
    assert values(analyst, "SELECT sum(salience_score(salience)), salience_score(7) FROM history") == [(16, 7)]


@pytest.mark.parametrize("type_", [pa.int64(), pa.float64(), pa.decimal128(3, 1), pa.string()], ids=str)
def test_levels_as_numbers_are_levels(tmp_path: Path, type_: pa.DataType):
    schema = OWN.set(OWN.get_field_index("salience"), pa.field("salience", type_))
    levels = [5, 4, 1, 1] if type_ != pa.string() else ["5", " 4", "1.0", "NOISE"]
    rows = [memory(i, salience=decimal.Decimal(x) if pa.types.is_decimal(type_) else x) for i, x in enumerate(levels)]
    write_file(tmp_path, rows, schema=schema)
    analyst = RepoAnalyst(tmp_path)
    assert values(analyst, "SELECT AVG(salience), count(salience_score(salience)) FROM history") == [(2.75, 4)]
    assert {row["id"] for row in analyst.search_archive("memory", salience=["CRITICAL", "NOISE"])} == {0, 2, 3}
    assert analyst.get_memory_stats()["avg_salience"] == 2.75


def test_other_numbers_are_no_levels(tmp_path: Path):
    write_file(
        tmp_path, [memory(i, salience=text) for i, text in enumerate(["0", "6", "2.5", "nan", "1e400", "", "LOW"])]
    )
    assert values(RepoAnalyst(tmp_path), "SELECT AVG(salience) FROM history") == [(2.0,)]
