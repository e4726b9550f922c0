import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.views import COMPANIONS, PROJECT, Views
from vidurai_pipeline.errors import ConfigError, QueryError
from vidurai_pipeline_tests.support.archives import BASE, OWN, REFERENCE, memory, write_file

pytestmark = pytest.mark.fast

ENDLESS = "SELECT count(*) FROM range(1000000000000) a(i) WHERE hash(i) = 1"


def test_the_training_query_of_the_specification():
    rows = RepoAnalyst(REFERENCE).query_archive("""
    SELECT id, content, salience, outcome, access_count
    FROM history
    WHERE outcome IS NOT NULL AND outcome != 0
    ORDER BY archived_at DESC
    LIMIT 1000
""")
    assert len(rows) == 439
    assert list(rows[0]) == ["id", "content", "salience", "outcome", "access_count"]
    assert all(row["content"] for row in rows)


def test_the_aggregate_query_of_the_specification():
    rows = RepoAnalyst(REFERENCE).query_archive("""
    SELECT
        COUNT(*) as total_memories,
        SUM(CASE WHEN outcome = 1 THEN 1 ELSE 0 END) as positive,
        SUM(CASE WHEN outcome = -1 THEN 1 ELSE 0 END) as negative,
        AVG(salience) as avg_salience
    FROM history
""")
    average = (5 * 15 + 4 * 55 + 3 * 256 + 2 * 524 + 298) / 1148
    assert rows == [{"total_memories": 1148, "positive": 194, "negative": 245, "avg_salience": pytest.approx(average)}]


def test_the_keyword_query_of_the_specification(tmp_path: Path):
    write_file(tmp_path, [memory(1, verbatim="Fixed the Authentication flow"), memory(2)])
    rows = RepoAnalyst(tmp_path).query_archive("""
    SELECT * FROM history
    WHERE LOWER(content) LIKE LOWER('%authentication%')
    LIMIT 50
""")
    assert [row["id"] for row in rows] == [1]


def test_content_is_the_text_and_every_column_is_there():
    (row,) = RepoAnalyst(REFERENCE).query_archive("SELECT * FROM history WHERE id = 1")
    assert row["content"] == row["verbatim"]
    assert list(row) == [*BASE.names, "content", "year", "month", *PROJECT, *COMPANIONS]
    assert (row["year"], row["month"]) == (2024, 11)


def test_files_of_all_schemas_are_one_table(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11", schema=BASE)
    write_file(tmp_path, [memory(2)])
    later = OWN.append(pa.field("mood", pa.float64()))
    write_file(tmp_path, [memory(3, mood=0.5)], month="2025-01", schema=later)
    analyst = RepoAnalyst(tmp_path)
    rows = analyst.query_archive("SELECT id, line_number, mood, len(audience_gists) AS n FROM history ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(1, None, None, None), (2, 7, None, 1), (3, 7, 0.5, 1)]
    assert list(analyst.query_df("FROM history").columns) == [
        *BASE.names,
        "line_number",
        "pinned",
        "status",
        "audience_gists",
        "mood",
        "content",
        "year",
        "month",
        *PROJECT,
        *COMPANIONS,
    ]


def test_structs_with_new_fields_and_columns_without_a_value_fit(tmp_path: Path):
    wider = pa.list_(pa.struct([("audience", pa.string()), ("tone", pa.string())]))
    write_file(tmp_path, [memory(1)], month="2024-11")
    schema = OWN.set(OWN.get_field_index("audience_gists"), pa.field("audience_gists", wider))
    schema = schema.set(schema.get_field_index("expires_at"), pa.field("expires_at", pa.null()))
    schema = schema.set(schema.get_field_index("outcome"), pa.field("outcome", pa.float64()))
    write_file(tmp_path, [memory(2, audience_gists=[{"audience": "ai", "tone": "dry"}], outcome=1.0)], schema=schema)
    rows = RepoAnalyst(tmp_path).query_archive(
        "SELECT id, expires_at, outcome, audience_gists[1].tone AS tone FROM history ORDER BY id"
    )
    assert [tuple(row.values()) for row in rows] == [(1, None, 0, None), (2, None, 1, "dry")]


def test_a_later_schemas_own_content_wins(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11")
    write_file(tmp_path, [memory(2, content="its own")], schema=OWN.append(pa.field("content", pa.string())))
    rows = RepoAnalyst(tmp_path).query_archive("SELECT content FROM history ORDER BY id")
    assert [row["content"] for row in rows] == ["memory 1", "its own"]


@pytest.mark.parametrize("condition", ["year = 2024 AND month = 11", "year < 2025 AND month IN (11)"])
def test_the_partition_columns_pick_the_files(tmp_path: Path, condition: str):
    for month in ("2024-10", "2024-11", "2024-12", "2025-11"):
        write_file(tmp_path, [memory(int(month[-2:]) + int(month[:4]))], month=month)
    analyst = RepoAnalyst(tmp_path)
    plan = analyst.query_archive(f"EXPLAIN ANALYZE SELECT verbatim FROM history WHERE {condition}")[0]["explain_value"]
    assert "Total Files Read: 1" in plan
    assert "year=2024/month=11" in plan
    assert "month=12" not in plan


def test_partitions_are_picked_among_duplicates_too(tmp_path: Path):
    for month in ("2024-10", "2024-11", "2024-12"):
        write_file(tmp_path, [memory(1, archived_at=f"{month}-30T02:00:00")], month=month)
    analyst = RepoAnalyst(tmp_path)
    plan = analyst.query_archive("EXPLAIN ANALYZE SELECT verbatim FROM history WHERE month = 12")[0]["explain_value"]
    assert "Total Files Read: 1" in plan
    for month, copies in ((10, 0), (11, 0), (12, 1)):
        found = analyst.query_archive("SELECT count(verbatim) AS n FROM history WHERE month = ?", [month])
        assert found == [{"n": copies}]


@pytest.mark.parametrize(
    "condition",
    ["year = 2030", "year > 2025", "year IN (SELECT unnest([2030, 2031]))", "month = (SELECT max(month) FROM history)"],
)
def test_a_question_to_some_partitions_shows_the_newest_copy_too(tmp_path: Path, condition: str):
    write_file(tmp_path, [memory(1)], month="2024-01")
    write_file(tmp_path, [memory(2, archived_at="2024-01-01T00:00:00", gist="old")], month="2029-02")
    for name, stamp in (("memories_a.parquet", "2030-03-01"), ("memories_b.parquet", "2030-03-02")):
        write_file(tmp_path, [memory(2, archived_at=stamp, gist=stamp)], name, month="2030-03")
    rows = RepoAnalyst(tmp_path).query_archive(f"SELECT gist FROM history WHERE {condition}")
    assert rows == [{"gist": "2030-03-02"}]


def test_the_newest_copy_of_a_memory_is_shown_once(tmp_path: Path):
    write_file(tmp_path, [memory(1, gist="old", archived_at="2024-11-30T02:00:00"), memory(2)], month="2024-11")
    write_file(tmp_path, [memory(1, gist="new", archived_at="2024-12-15T02:00:00"), memory(3), memory(3, gist="again")])
    same = "memories_20241215_020000_002.parquet"
    write_file(tmp_path, [memory(4, gist="first")], name="memories_20241215_020000.a.parquet")
    write_file(tmp_path, [memory(4, gist="second")], name=same)
    analyst = RepoAnalyst(tmp_path)
    gists = [row["gist"] for row in analyst.query_archive("SELECT gist FROM history ORDER BY id")]
    assert gists == ["new", "gist 2", "again", "second"]
    copies = analyst.query_archive("SELECT id, filename FROM history_all ORDER BY id, archived_at, filename")
    assert [row["id"] for row in copies] == [1, 1, 2, 3, 3, 4, 4]
    assert copies[-1]["filename"].endswith(same)


def test_rows_without_an_id_all_stay(tmp_path: Path):
    write_file(tmp_path, [memory(1), memory(1), {**memory(2), "id": None}, {**memory(3), "id": None}])
    rows = RepoAnalyst(tmp_path).query_archive("SELECT count(*) AS n, count(id) AS ids FROM history")
    assert rows == [{"n": 3, "ids": 1}]


def test_without_duplicates_the_view_is_a_plain_scan(tmp_path: Path):
    write_file(tmp_path, [memory(1)])
    analyst = RepoAnalyst(tmp_path)
    plan = analyst.query_archive("EXPLAIN SELECT verbatim FROM history")[0]["explain_value"]
    assert "Join" not in plan
    assert "Window" not in plan
    names = [row["name"] for row in analyst.query_archive("SHOW TABLES")]
    assert names == ["history", "history_all", "memories", "projects"]


def test_a_long_lived_analyst_sees_what_changes(tmp_path: Path):
    analyst = RepoAnalyst(tmp_path / "archive")
    count = "SELECT count(*) AS n, max(gist) AS last FROM history"
    assert analyst.query_archive(count) == []
    first = write_file(tmp_path / "archive", [memory(1)])
    assert analyst.query_archive(count) == [{"n": 1, "last": "gist 1"}]
    second = write_file(
        tmp_path / "archive", [memory(1, gist="newer", archived_at="2025-01-01T02:00:00")], month="2025-01"
    )
    assert analyst.query_archive(count) == [{"n": 1, "last": "newer"}]
    second.unlink()
    assert analyst.query_archive(count) == [{"n": 1, "last": "gist 1"}]
    replacement = write_file(tmp_path / "other", [memory(1, gist="gist 9")])
    replacement.replace(first)
    assert analyst.query_archive(count) == [{"n": 1, "last": "gist 9"}]


def test_a_reader_goes_on_while_the_archive_changes(tmp_path: Path):
    write_file(tmp_path, [memory(i) for i in range(30_000)], month="2024-11")
    analyst = RepoAnalyst(tmp_path)
    reader = analyst.query_arrow("SELECT id FROM history")
    rows = reader.read_next_batch().num_rows
    write_file(tmp_path, [memory(1_000_000)])
    assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 30_001}]
    analyst.close()
    assert rows + sum(batch.num_rows for batch in reader) == 30_000


def test_a_file_withdrawn_while_a_query_starts_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_file(tmp_path, [memory(1)], month="2024-11")
    doomed = write_file(tmp_path, [memory(2)])
    analyst = RepoAnalyst(tmp_path)
    cursor = analyst._database.cursor

    def withdraw(*needed: Any):
        found = cursor(*needed)
        doomed.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(analyst._database, "cursor", withdraw)
    assert analyst.query_archive("SELECT id FROM history") == [{"id": 1}]


def test_hidden_files_are_not_the_archive(tmp_path: Path):
    path = write_file(tmp_path, [memory(1)])
    (path.parent / ".memories_20241216_020000.parquet.tmp").write_bytes(b"half")
    (path.parent / ".half.parquet").write_bytes(b"half")
    (tmp_path / ".pending").mkdir()
    (tmp_path / ".pending" / "x.parquet").write_bytes(b"half")
    assert len(RepoAnalyst(tmp_path).query_archive("FROM history")) == 1


def test_files_beside_the_layout_are_read_and_get_the_partition_of_their_path(tmp_path: Path):
    write_file(tmp_path, [memory(1)])
    pq.write_table(pa.Table.from_pylist([memory(2)], schema=OWN), tmp_path / "loose.parquet")
    deep = tmp_path / "year=2025" / "month=02" / "day=03"
    deep.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([memory(3), memory(1)], schema=OWN), deep / "deep.parquet")
    odd = tmp_path / "year=2025" / "month=February"
    odd.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([memory(4)], schema=OWN), odd / "odd.parquet")
    rows = RepoAnalyst(tmp_path).query_archive("SELECT id, year, month FROM history ORDER BY id")
    assert [tuple(row.values()) for row in rows][1:] == [(2, None, None), (3, 2025, 2), (4, 2025, None)]


def test_an_archive_within_a_partition_of_something_else(tmp_path: Path):
    archive = tmp_path / "year=1999" / "env=prod" / "archive"
    write_file(archive, [memory(1)])
    write_file(tmp_path / "env=prod", [memory(1)])
    assert RepoAnalyst(archive).query_archive("SELECT year, month FROM history") == [{"year": 2024, "month": 12}]
    assert "env" not in RepoAnalyst(tmp_path / "env=prod").query_df("FROM history").columns


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "it's",
        'double"quote',
        "star*",
        "que?tion",
        "br[ab]cket",
        "100%20",
        "日本-ünï-мир",
        "{a,b}",
        "a,b",
        "new\nline",
        "back\\slash",
        "~",
        "$HOME",
    ],
)
def test_an_archive_may_have_any_name(tmp_path: Path, name: str):
    path = write_file(tmp_path / name, [memory(1), memory(1, archived_at="2025")])
    for neighbour in ("starX", "queXtion", "bracket", "a", "b"):
        write_file(tmp_path / neighbour, [memory(2)])
    with RepoAnalyst(tmp_path / name) as analyst:
        assert analyst.query_archive("SELECT id, month FROM history") == [{"id": 1, "month": 12}]
        assert analyst.query_archive("SELECT filename FROM history_all LIMIT 1") == [{"filename": str(path)}]


def test_an_empty_archive_answers_with_nothing(tmp_path: Path):
    for archive in (tmp_path, tmp_path / "missing"):
        analyst = RepoAnalyst(archive)
        assert analyst.query_archive("SELECT COUNT(*), AVG(salience), max(year) FROM history") == []
        assert analyst.search_archive("auth") == []
        assert analyst.get_training_data() == []
        assert analyst.get_memory_stats() == {
            "total_memories": 0,
            "positive_outcomes": 0,
            "negative_outcomes": 0,
            "avg_salience": 0,
            "oldest_memory": None,
            "newest_archive": None,
            "archive_empty": True,
            "files": 0,
            "bytes": 0,
            "by_month": {},
            "by_salience": {},
            "by_outcome": {},
        }
        assert analyst.query_df("SELECT id, content, year FROM history").empty
        schema = analyst.query_arrow("SELECT id, content, year FROM history").schema
        assert schema.types == [pa.int64(), pa.string(), pa.int32()]
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("sql", ["SELECT nope FROM history", "SELEC 1", "COPY history TO 'x.csv'", ""])
def test_an_empty_archive_does_not_hide_a_mistake(tmp_path: Path, sql: str):
    with pytest.raises(QueryError):
        RepoAnalyst(tmp_path).query_archive(sql)


def test_training_data_is_the_references():
    analyst = RepoAnalyst(REFERENCE)
    rows = analyst.get_training_data()
    assert list(rows[0]) == [
        "id",
        "verbatim",
        "gist",
        "salience",
        "outcome",
        "access_count",
        "created_at",
        "archived_at",
        "file_path",
        "event_type",
    ]
    assert len(rows) == 439
    assert all(row["outcome"] for row in rows)
    stamps = [row["archived_at"] for row in rows]
    assert stamps == sorted(stamps, reverse=True)
    assert analyst.get_training_data(3) == rows[:3]


def test_the_stats_of_the_reference_archive():
    stats = RepoAnalyst(REFERENCE).get_memory_stats()
    assert stats == {
        "total_memories": 1148,
        "positive_outcomes": 194,
        "negative_outcomes": 245,
        "avg_salience": pytest.approx(2.0984, abs=1e-4),
        "oldest_memory": "2024-02-19T00:00:00",
        "newest_archive": "2024-12-15T00:56:48.625000",
        "archive_empty": False,
        "files": 2,
        "bytes": sum(path.stat().st_size for path in REFERENCE.rglob("*.parquet")),
        "by_month": {"2024-11": 521, "2024-12": 627},
        "by_salience": {"CRITICAL": 15, "HIGH": 55, "MEDIUM": 256, "LOW": 524, "NOISE": 298},
        "by_outcome": {"positive": 194, "neutral": 709, "negative": 245},
    }


def test_stats_of_an_archive_with_odd_rows(tmp_path: Path):
    write_file(tmp_path, [memory(1, salience=None, outcome=None), memory(2, salience=" low ", outcome=7)])
    stats = RepoAnalyst(tmp_path).get_memory_stats()
    assert stats["by_salience"] == {"LOW": 1, "unknown": 1}
    assert stats["by_outcome"] == {"unknown": 2}
    assert stats["avg_salience"] == 2


def test_all_ways_to_ask_give_the_same_rows():
    sql, values = "SELECT id, gist FROM history WHERE id BETWEEN $low AND $high ORDER BY id", {"low": 5, "high": 40}
    with RepoAnalyst(REFERENCE) as analyst:
        rows = analyst.query_archive(sql, values)
        assert rows
        assert analyst.query_arrow(sql, values).read_all().to_pylist() == rows
        assert analyst.query_df(sql, values).to_dict("records") == rows
        assert analyst.query_archive(sql.replace("$low", "?").replace("$high", "?"), [5, 40]) == rows


def test_columns_of_one_name_are_all_kept():
    (row,) = RepoAnalyst(REFERENCE).query_archive("SELECT 1 AS a, 2 AS a, 3 AS a_1")
    assert row == {"a": 1, "a_1": 2, "a_1_1": 3}


def test_arrow_batches_come_while_the_query_runs():
    reader = RepoAnalyst(REFERENCE).query_arrow("SELECT h.id FROM history h, range(1000000000)")
    assert reader.read_next_batch().num_rows > 0


def test_a_query_over_its_time_is_stopped_and_says_so():
    analyst = RepoAnalyst(REFERENCE, timeout=0.2)
    for ask in (analyst.query_archive, analyst.query_df, lambda sql: analyst.query_arrow(sql).read_all()):
        with pytest.raises(QueryError, match=r"longer than 0\.2 s"):
            ask(ENDLESS)
    assert analyst.query_archive("SELECT 1 AS one") == [{"one": 1}]


def test_batches_share_the_time_of_their_query():
    reader = RepoAnalyst(REFERENCE, timeout=0.3).query_arrow("SELECT h.id FROM history h, range(1000000000)")
    with pytest.raises(QueryError, match="longer than"):
        for _ in reader:
            pass


def test_ctrl_c_stops_a_query():
    analyst = RepoAnalyst(REFERENCE)
    analyst.query_archive("SELECT 1")
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        analyst.query_archive(ENDLESS)
    assert analyst.query_archive("SELECT 1 AS one") == [{"one": 1}]


def test_threads_may_share_an_analyst(tmp_path: Path):
    write_file(tmp_path, [memory(i) for i in range(500)])
    analyst = RepoAnalyst(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: analyst.query_archive("FROM history WHERE id = ?", [i]), range(64)))
    assert [rows[0]["id"] for rows in found] == list(range(64))


def test_a_connection_of_the_callers_gets_the_views(tmp_path: Path):
    archive = tmp_path / "archive"
    write_file(archive, [memory(1, gist="old", archived_at="2024"), memory(1), memory(2, salience="HIGH")])
    database = tmp_path / "own.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE history AS SELECT 'mine' AS x")
        analyst = RepoAnalyst(archive, connection=connection)
        assert connection.execute("SELECT avg(salience_score(salience)) FROM history").fetchall() == [(3.5,)]
        assert analyst.query_archive("SELECT AVG(salience) AS a FROM history") == [{"a": 3.5}]
        write_file(archive, [memory(3)], month="2025-01")
        assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 3}]
        assert connection.execute("SELECT count(*) FROM history").fetchall() == [(3,)]
        assert analyst.query_df("FROM history_all").shape[0] == 4
        assert len(analyst.search_archive("memory")) == 3
        analyst.close()
        connection.execute("SET threads = 1")  # still the caller's
    with duckdb.connect(str(database)) as connection:
        assert connection.execute("FROM history").fetchall() == [("mine",)]


def test_answers_on_a_connection_of_the_callers_do_not_end_each_other(tmp_path: Path):
    write_file(tmp_path, [memory(n) for n in range(3)])
    with duckdb.connect() as connection:
        analyst = RepoAnalyst(tmp_path, connection=connection)
        _, first = analyst.query_rows("SELECT id FROM history ORDER BY id")
        reader = analyst.query_arrow("SELECT id FROM history ORDER BY id")
        _, second = analyst.query_rows("SELECT 'B' AS x FROM history")
        analyst.query_archive("SELECT 1")
        assert (list(first), list(second)) == ([(0,), (1,), (2,)], [("B",)] * 3)
        assert reader.read_all().to_pylist() == [{"id": 0}, {"id": 1}, {"id": 2}]


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e300])
def test_a_time_limit_that_is_none_is_refused(tmp_path: Path, timeout: float):
    with pytest.raises(ConfigError, match="timeout must be more than 0 seconds and at most 31,536,000"):
        RepoAnalyst(tmp_path, timeout=timeout)


def test_ctrl_c_while_the_archive_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """DuckDB's client makes another error of it."""
    write_file(tmp_path, [memory(1)])
    monkeypatch.setattr(Views, "superseded_places", mock.Mock(side_effect=RuntimeError("Query interrupted")))
    with pytest.raises(KeyboardInterrupt):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")


def test_settings_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_file(tmp_path / "cold", [memory(1)])
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "cold"))
    monkeypatch.setenv("VIDURAI_MEMORY_LIMIT", "123MB")
    monkeypatch.setenv("VIDURAI_THREADS", "1")
    settings = "SELECT current_setting('memory_limit') AS m, current_setting('threads') AS t FROM history"
    assert RepoAnalyst().query_archive(settings) == [{"m": "117.3 MiB", "t": 1}]
    assert RepoAnalyst(memory_limit="1GiB", threads=2).query_archive(settings) == [{"m": "1.0 GiB", "t": 2}]


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="timeout"):
        RepoAnalyst(REFERENCE, timeout=0)
    with pytest.raises(ConfigError, match="memory"):
        RepoAnalyst(REFERENCE, memory_limit="a lot").query_archive("SELECT 1")
    with duckdb.connect() as connection, pytest.raises(ConfigError, match="passed in"):
        RepoAnalyst(REFERENCE, connection=connection, threads=2)


def test_a_query_that_needs_too_much_memory_says_what_to_do():
    analyst = RepoAnalyst(REFERENCE, memory_limit="30MB", threads=1)
    with pytest.raises(QueryError, match="VIDURAI_MEMORY_LIMIT"):
        analyst.query_archive("SELECT list(h.verbatim || i) FROM history h, range(100000) r(i)")


def test_closing_leaves_nothing_and_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with RepoAnalyst(REFERENCE) as analyst:
        assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 1148}]
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 1148}]
    analyst.close()
    assert not list(tmp_path.iterdir())
