"""Only the rows that a statement can be about are read from the hot store, and the answer stays the same."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.errors import HotStoreWarning
from vidurai_pipeline.hot.view import HotSnapshot, RowFilter
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.stores import changing, small_store

SCHEMA = """
    CREATE TABLE memories (id INTEGER PRIMARY KEY, verbatim TEXT COLLATE NOCASE, salience TEXT COLLATE RTRIM,
    created_at TEXT, project_id INTEGER, outcome TEXT, status INTEGER, gist, mood TEXT COLLATE NOCASE)
"""
TEXTS = ["HIGH", "high", "HIGH ", "", "5", "5.0", "-x", "2026-01-01", "2026-01-01T00:00:00", "a\ufffdb", "é", "z"]
VALUES = [None, 0, 5, -1, 2.5, 5.0, b"HIGH", b"\xff", *TEXTS]
COLUMNS = ["verbatim", "salience", "created_at", "project_id", "outcome", "status", "gist", "mood"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> RepoAnalyst:
    """Both tiers with values of every type in every column, and memories that are in both with other values."""
    home = tmp_path_factory.mktemp("odd")
    rows = [
        {"id": i, **{name: VALUES[(i * step) % len(VALUES)] for step, name in enumerate(COLUMNS, 1)}}
        for i in range(-3, 60)
    ]
    db = small_store(home / "vidurai.db", *rows, schema=SCHEMA)
    with changing(db) as con:
        con.execute("UPDATE memories SET verbatim = CAST(x'61ff62' AS TEXT), created_at = NULL WHERE id = 7")
    copies = [memory(i, created_at=None, salience=TEXTS[i % 4], project_id=5, outcome=5) for i in range(1, 20)]
    write_file(home / "archive", [*copies, *(memory(i) for i in range(100, 110))])
    return RepoAnalyst(home / "archive", hot_store=db)


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that is read from the hot store."""
    counts: list[int] = []

    def spied(method):
        def spy(*arguments) -> Iterator:
            for batch in method(*arguments):
                counts.append(batch.num_rows)
                yield batch

        return spy

    for name in ("filtered", "batches", "short_columns"):
        monkeypatch.setattr(HotSnapshot, name, spied(getattr(HotSnapshot, name)))
    return counts


def _literal(value: object) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


_names = st.sampled_from(["id", "ID", *COLUMNS, "content", "salience_score", "tier"])
_literals = st.sampled_from([*TEXTS, None, 0, 5, -1, 2.5, 10**30, "0x5"]).map(_literal)
_comparisons = st.one_of(
    st.builds("{} {} {}".format, _names, st.sampled_from(["=", "<", ">", "<=", ">=", "<>"]), _literals),
    st.builds("{} {} {}".format, _literals, st.sampled_from(["=", "<", ">="]), _names),
    st.builds("{} BETWEEN {} AND {}".format, _names, _literals, _literals),
    st.builds("{} IN ({}, {})".format, _names, _literals, _literals),
    st.builds("{} NOT IN ({}, {})".format, _names, _literals, _literals),
    st.builds("NOT ({} = {})".format, _names, _literals),
    st.builds("{} IS NULL".format, _names),
)
_conditions = st.recursive(
    _comparisons, lambda part: st.builds("({} {} {})".format, part, st.sampled_from(["AND", "AND", "OR"]), part)
)


def _both_answers(analyst: RepoAnalyst, sql: str, parameters=None) -> list:
    answers = []
    for whole in (False, True):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", HotStoreWarning)
            if whole:
                patch.setattr(ArchiveDatabase, "rows_needed", lambda *_: RowFilter())
            try:
                answers.append([tuple(row.values()) for row in analyst.query_archive(sql, parameters)])
            except Exception as error:
                answers.append(str(error))
    return answers


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_conditions)
def test_the_answer_is_that_of_reading_every_row(odd: RepoAnalyst, condition: str):
    pushed, whole = _both_answers(odd, f"SELECT id, tier, * FROM memories WHERE {condition} ORDER BY ALL")
    # A value that can't be compared may stand in a row that is no longer looked at.
    assert pushed == whole or isinstance(whole, str)


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT outcome AS id FROM memories WHERE id = 5", None),
        ("SELECT id FROM memories AS id WHERE id = 5", None),
        ("SELECT id FROM memories AS m(status, mood) WHERE mood = 'high'", None),
        ("SELECT count(*) FROM memories WHERE id < 5 HAVING count(*) > 1", None),
        ("SELECT id, (SELECT count(*) FROM memories) AS n FROM memories WHERE id = 5", None),
        ("WITH memories AS (SELECT 5 AS id) SELECT * FROM memories WHERE id = 5", None),
        ("SELECT id FROM memories WHERE id = 5 UNION ALL SELECT id FROM memories WHERE id = 6", None),
        ("SELECT id FROM memories a JOIN memories b USING (id) WHERE id > 50 ORDER BY id", None),
        ("SELECT id FROM memories WHERE salience = 'HIGH' AND id = ? ORDER BY id", [22]),
        ("SELECT id FROM memories WHERE $a < id AND id <= $b ORDER BY id", {"a": 3, "b": 9}),
        ("SELECT id FROM memories WHERE id = ?", ["5"]),
        ("SELECT id FROM memories WHERE id = ?", [True]),
        ("SELECT id FROM memories WHERE id = ?", [2**70]),
        ("SELECT id FROM memories WHERE salience COLLATE NOCASE = 'high' ORDER BY id", None),
        ("SELECT id, tier FROM memories LIMIT 10", None),
        ("SELECT id, tier, verbatim FROM memories LIMIT 10 OFFSET 60", None),
        ("SELECT id, tier, verbatim FROM memories LIMIT 0", None),
        ("SELECT id, tier, verbatim FROM memories LIMIT 1000", None),
        ("SELECT count(*), max(verbatim) FROM memories LIMIT 10", None),
        ("SELECT max(id) OVER () AS m, verbatim FROM memories LIMIT 1", None),
        ("SELECT DISTINCT salience FROM memories ORDER BY 1 LIMIT 2", None),
        ("SELECT salience FROM memories GROUP BY ALL ORDER BY ALL LIMIT 2", None),
        ("SELECT verbatim FROM memories ORDER BY id DESC LIMIT 3", None),
        ("SELECT count(*) FROM memories USING SAMPLE 100% WHERE id = 5", None),
    ],
)
def test_statements_of_other_shapes(odd: RepoAnalyst, sql: str, parameters: object):
    pushed, whole = _both_answers(odd, sql, parameters)
    assert pushed == whole


@pytest.mark.parametrize(
    ("sql", "most"),
    [
        ("FROM memories WHERE id = 5", 1),
        ("FROM memories WHERE id IN (5, 6, 999) AND salience = 'HIGH'", 2),
        ("FROM memories WHERE id BETWEEN 10 AND 19 AND content LIKE '%'", 10),
        ("FROM memories WHERE 1990 < id AND verbatim <> ''", 10),
        ("EXPLAIN ANALYZE FROM memories WHERE id = 5", 1),
        ("FROM memories LIMIT 10", 10),
        ("SELECT id, gist FROM memories LIMIT 10 OFFSET 5", 15),
        ("FROM memories WHERE created_at < '2000'", 0),
        ("FROM memories WHERE status = 'NOTHING'", 0),
        ("FROM memories WHERE project_id = -4", 0),
    ],
)
def test_only_the_rows_that_it_can_be_about_are_read(both: RepoAnalyst, rows_read: list[int], sql: str, most: int):
    both.query_archive(sql)
    ids_alone = 852  # to show each memory once may take all the ids
    assert sum(rows_read) in {count + most - less for count in (0, ids_alone) for less in range(most + 1)}


def test_one_memory_is_read_alone(both: RepoAnalyst, rows_read: list[int]):
    (hot,) = both.query_archive("SELECT min(id) AS id FROM memories WHERE tier = 'hot'")
    rows_read.clear()
    (row,) = both.memory(hot["id"])
    assert row["tier"] == "hot"
    assert sum(rows_read) == 1


def test_a_connection_of_the_callers_may_compare_by_another_collation(tmp_path: Path):
    db = small_store(tmp_path / "vidurai.db", {"id": 1, "salience": "HIGH"}, {"id": 2, "salience": "LOW"})
    con = duckdb.connect()
    con.execute("SET default_collation = NOCASE")
    analyst = RepoAnalyst(tmp_path / "archive", hot_store=db, connection=con)
    assert analyst.query_archive("SELECT id FROM memories WHERE salience = 'high'") == [{"id": 1}]
    assert analyst.query_archive("SELECT id FROM memories WHERE id = 2") == [{"id": 2}]


def test_text_is_compared_as_duckdb_compares_it(tmp_path: Path):
    with changing(tmp_path / "vidurai.db") as con:
        con.execute("CREATE TABLE memories (id INTEGER PRIMARY KEY, verbatim TEXT)")
        con.executemany("INSERT INTO memories (verbatim) VALUES (?)", [(text,) for text in ("a", "b", "Ā", "z", "愀")])
    analyst = RepoAnalyst(tmp_path / "archive")
    rows = analyst.query_archive("SELECT verbatim AS v FROM memories WHERE verbatim >= 'b' ORDER BY 1")
    assert [row["v"] for row in rows] == ["b", "z", "Ā", "愀"]
