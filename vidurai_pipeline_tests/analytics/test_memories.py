"""The view over both tiers: each memory once, nothing missing, nothing made up, and the daemon is never in the way."""

import shutil
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from unittest import mock

import duckdb
import pyarrow as pa
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreError, HotStoreWarning, QueryError
from vidurai_pipeline_tests.support.archives import OWN, memory, write_file
from vidurai_pipeline_tests.support.stores import SCHEMA, changing, small_store

Store = Callable[[str], Path]


def test_each_memory_is_there_once_with_its_tier(both: RepoAnalyst):
    rows = both.query_archive("SELECT tier, count(*) AS n, count(DISTINCT id) AS ids FROM memories GROUP BY ALL")
    assert {row["tier"]: (row["n"], row["ids"]) for row in rows} == {"cold": (1_148, 1_148), "hot": (852, 852)}
    assert both.query_archive("SELECT count(DISTINCT id) AS ids FROM memories") == [{"ids": 2_000}]


def test_hot_rows_are_the_stores_own(both: RepoAnalyst):
    db = both.archive_base.parent / "vidurai.db"
    names = (
        "id, verbatim, gist, salience, created_at, access_count, outcome, file_path, tags, project_id, status, pinned"
    )
    with changing(db) as con:
        stored = con.execute(f"SELECT {names} FROM memories ORDER BY id").fetchall()
        gists = con.execute("SELECT memory_id, audience, gist FROM audience_gists ORDER BY memory_id, rowid").fetchall()
    rows = both.query_archive(f"SELECT {names} FROM memories WHERE tier = 'hot' ORDER BY id")
    assert [tuple(row.values()) for row in rows] == stored
    nested = both.query_archive("SELECT id, audience_gists AS g FROM memories WHERE tier = 'hot' ORDER BY id")
    shown = [(row["id"], gist["audience"], gist["gist"]) for row in nested for gist in row["g"]]
    assert sorted(shown) == sorted(gists)
    assert shown


def test_the_columns_are_those_of_history_and_the_tier(both: RepoAnalyst):
    memories, history = (both.query_df(f"FROM {view} LIMIT 0") for view in ("memories", "history"))
    assert list(memories.columns) == [*history.columns, "tier"]
    (row,) = both.query_archive("FROM memories WHERE tier = 'hot' LIMIT 1")
    assert row["content"] == row["verbatim"]
    assert (row["archived_at"], row["year"], row["month"]) == (None, None, None)
    (average,) = both.query_archive("SELECT AVG(salience) AS a FROM memories")
    assert 1 <= average["a"] <= 5


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) AS n FROM MEMORIES",
        'SELECT count(*) AS n FROM "Memories" AS m',
        "WITH a AS (FROM memories) SELECT count(*) AS n FROM a",
        "SELECT (SELECT count(*) FROM memories) AS n",
        "SELECT count(*) AS n FROM (SELECT id FROM memories UNION SELECT id FROM history)",
        "SELECT count(*) AS n FROM memories a JOIN memories b USING (id)",
    ],
)
def test_wherever_a_statement_names_them(both: RepoAnalyst, sql: str):
    assert both.query_archive(sql) == [{"n": 2_000}]
    assert both.query_df(sql)["n"].tolist() == [2_000]
    assert both.query_arrow(sql).read_all().to_pylist() == [{"n": 2_000}]


@pytest.mark.parametrize("sql", ["DESCRIBE memories", "SHOW memories", "SUMMARIZE memories", "EXPLAIN FROM memories"])
def test_what_describes_them(both: RepoAnalyst, sql: str):
    assert both.query_archive(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM memory.main.memories",
        "FROM memory.memories WHERE tier = 'hot'",
        "EXPLAIN FROM memory.main.memories",
        "DESCRIBE memory.memories",
        'SUMMARIZE "MEMORY"."Memories"',
        "SELECT (SELECT max(id) FROM memory.memories)",
    ],
)
def test_they_are_never_taken_for_what_only_stands_for_them(both: RepoAnalyst, sql: str):
    with pytest.raises(QueryError, match="the view `memories` belongs to no database"):
        both.query_archive(sql)


def test_a_column_of_other_types_in_either_tier_keeps_every_value(tmp_path: Path):
    db = small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "n": 2**53 + 1, "seen": 5},
        schema=SCHEMA.replace("outcome INTEGER", "outcome INTEGER, n INTEGER, seen INTEGER"),
    )
    files = OWN.append(pa.field("n", pa.float64())).append(pa.field("seen", pa.timestamp("us")))
    write_file(tmp_path / "archive", [memory(2, n=0.5, seen=datetime(2024, 3, 1))], schema=files)
    rows = RepoAnalyst(tmp_path / "archive", hot_store=db).query_archive("SELECT n, seen FROM memories ORDER BY id")
    assert rows == [{"n": "9007199254740993", "seen": "5"}, {"n": "0.5", "seen": "2024-03-01 00:00:00"}]


def test_the_hot_store_is_not_touched_unless_it_is_named(both: RepoAnalyst):
    with mock.patch("sqlite3.connect", side_effect=AssertionError("opened")):
        assert both.query_archive("SELECT count(*) AS n FROM history") == [{"n": 1_148}]
        assert both.search_archive("pytest", 1)
        with pytest.raises(AssertionError, match="opened"):
            both.query_archive("FROM memories")


def test_a_memory_in_both_tiers_is_shown_as_it_is_hot(tmp_path: Path):
    born = memory(1)["created_at"]
    small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "verbatim": "as it is now", "created_at": born},
        {"id": 2, "verbatim": "only hot", "created_at": born},
        {"id": 4, "verbatim": "without a date"},
    )
    write_file(
        tmp_path / "archive",
        [memory(1, verbatim="as it was"), memory(3, verbatim="only cold"), memory(4, verbatim="old", created_at=None)],
    )
    rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT id, content, tier FROM memories ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [
        (1, "as it is now", "hot"),
        (2, "only hot", "hot"),
        (3, "only cold", "cold"),
        (4, "without a date", "hot"),
    ]


def test_another_memory_of_the_same_id_is_not_hidden(tmp_path: Path):
    """A store without AUTOINCREMENT gives a purged memory's id anew."""
    small_store(tmp_path / "vidurai.db", {"id": 1, "verbatim": "new", "created_at": "2025-06-01T08:00:00"})
    write_file(tmp_path / "archive", [memory(1, verbatim="old")])
    rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT content, tier FROM memories ORDER BY created_at")
    assert [tuple(row.values()) for row in rows] == [("old", "cold"), ("new", "hot")]


def test_a_foreign_file_may_hold_moments_of_another_type(tmp_path: Path):
    small_store(tmp_path / "vidurai.db", {"id": 1, "verbatim": "hot", "created_at": "some time ago"})
    schema = OWN.set(OWN.get_field_index("created_at"), pa.field("created_at", pa.timestamp("us")))
    write_file(tmp_path / "archive", [memory(1, verbatim="cold", created_at=datetime(2024, 3, 1, 10))], schema=schema)
    rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT content, tier FROM memories ORDER BY tier")
    assert [tuple(row.values()) for row in rows] == [("cold", "cold"), ("hot", "hot")]


def test_two_stores_in_one_archive_hide_nothing_of_each_other(sample_store: Store):
    """They number their memories alike."""
    db = sample_store("guardian")
    other = Path(shutil.copy(db, db.with_name("other.db")))
    with changing(other) as con:
        con.execute("UPDATE memories SET created_at = datetime(created_at, '+1 second')")
    for store in (db, other):
        MemoryArchiver(store, db.parent / "archive").flush_archived_memories()
    assert RepoAnalyst(db.parent / "archive").query_archive("SELECT count(*) AS n FROM history") == [{"n": 2 * 1_148}]


def test_while_a_purge_is_pending(sample_store: Store):
    db = sample_store("guardian")
    archiver = MemoryArchiver(db, db.parent / "archive")
    with archiver.run("test"):
        archiver.publish()
        rows = RepoAnalyst(db.parent / "archive").query_archive("SELECT tier, count(*) AS n FROM memories GROUP BY ALL")
    assert rows == [{"tier": "hot", "n": 2_000}]


def test_a_cold_row_without_an_id_is_not_lost(tmp_path: Path):
    small_store(tmp_path / "vidurai.db", {"id": 1})
    write_file(tmp_path / "archive", [memory(2), memory(3, id=None)])
    assert len(RepoAnalyst(tmp_path / "archive").query_archive("FROM memories")) == 3


def test_what_is_no_store_is_one_line(tmp_path: Path):
    write_file(tmp_path / "archive", [memory(1)])
    analyst = RepoAnalyst(tmp_path / "archive")
    (tmp_path / "vidurai.db").write_text("no database, but long enough to look like one " * 50)
    with pytest.raises(HotStoreError, match="not a SQLite database") as caught:
        analyst.query_archive("FROM memories")
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "vidurai.db").unlink()
    with changing(tmp_path / "vidurai.db") as con:
        con.execute("CREATE TABLE other (x)")
    with pytest.raises(HotStoreError, match="no table `memories`"):
        analyst.query_archive("FROM memories")


def test_without_a_store_the_archive_is_shown_and_said_to_be_alone(tmp_path: Path):
    write_file(tmp_path / "archive", [memory(1)])
    with pytest.warns(HotStoreWarning, match=f"no hot store at {tmp_path}/vidurai.db"):
        rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT id, tier FROM memories")
    assert rows == [{"id": 1, "tier": "cold"}]
    assert not (tmp_path / "vidurai.db").exists()


def test_without_an_archive_the_hot_store_is_shown(tmp_path: Path):
    small_store(tmp_path / "vidurai.db", {"id": 1, "verbatim": "x"})
    analyst = RepoAnalyst(tmp_path / "archive")
    assert analyst.query_archive("SELECT id, content, tier FROM memories") == [{"id": 1, "content": "x", "tier": "hot"}]
    assert analyst.query_archive("SELECT count(*) FROM history") == []


def test_without_either_there_is_nothing(tmp_path: Path):
    with pytest.warns(HotStoreWarning):
        assert RepoAnalyst(tmp_path / "archive").query_archive("SELECT count(*) FROM memories") == []


def test_a_store_before_the_guardian_migration_can_be_read(sample_store: Store):
    db = sample_store("pre_guardian")
    rows = RepoAnalyst(db.parent / "archive").query_archive("SELECT count(*) AS n, count(outcome) AS o FROM memories")
    assert rows == [{"n": 60, "o": 0}]


def test_odd_values_are_shown_as_well_as_they_can_be_and_named(tmp_path: Path):
    db = small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "access_count": "many", "verbatim": "fine"},
        {"id": 2, "verbatim": b"caf\xc3\xa9", "access_count": 2.5},
        {"id": 3, "verbatim": b"\xff\xfe secret", "created_at": 1_700_000_000},
        {"id": 4, "verbatim": "x", "outcome": b"\x01", "gist": 5, "created_at": 1.5},
    )
    with changing(db) as con:
        con.execute("UPDATE memories SET gist = CAST(x'61ff62' AS TEXT) WHERE id = 1")
    with pytest.warns(HotStoreWarning) as caught:
        rows = RepoAnalyst(tmp_path / "archive").query_archive(
            "SELECT id, verbatim, gist, access_count, outcome, created_at FROM memories ORDER BY id"
        )
    assert [tuple(row.values()) for row in rows] == [
        (1, "fine", "a\ufffdb", None, None, None),
        (2, "café", None, None, None, None),
        (3, "\ufffd\ufffd secret", None, None, None, "1700000000"),
        (4, "x", "5", None, None, "1.5"),
    ]
    (note,) = [str(warning.message) for warning in caught]
    assert "memory 3: verbatim: a blob where the column holds text" in note
    assert "(and 2 more)" in note
    assert "secret" not in note
    assert len(note.splitlines()) == 1


def test_no_warning_where_nothing_is_lost(both: RepoAnalyst):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both.query_archive("FROM memories")


def test_columns_that_only_one_tier_has(tmp_path: Path):
    schema = """
        CREATE TABLE memories (id INTEGER PRIMARY KEY, verbatim TEXT, "year" INTEGER, tier TEXT, "it's" REAL, mood TEXT,
        shape TEXT, raw BLOB)
    """
    row = {"id": 1, "verbatim": "v", "year": 7, "tier": "own", "it's": 0.5, "mood": "bad", "shape": "s", "raw": b"\xff"}
    small_store(tmp_path / "vidurai.db", row, schema=schema)
    files = OWN.append(pa.field("mood", pa.float64())).append(pa.field("shape", pa.list_(pa.int64())))
    files = files.append(pa.field("raw", pa.string())).append(pa.field("tier", pa.string()))
    write_file(tmp_path / "archive", [memory(2, mood=0.5, shape=[1, 2], raw="r", tier="file")], schema=files)
    hot, cold = RepoAnalyst(tmp_path / "archive").query_archive("FROM memories ORDER BY id")
    assert (hot["memories_year"], hot["memories_tier"], hot["it's"], hot["mood"], hot["shape"], hot["raw"]) == (
        7,
        "own",
        0.5,
        "bad",
        "s",
        "\\xFF",
    )
    assert (cold["memories_year"], cold["it's"], cold["mood"], cold["shape"], cold["raw"]) == (
        None,
        None,
        "0.5",
        "[1, 2]",
        "r",
    )
    assert (hot["tier"], cold["tier"], hot["line_number"], cold["line_number"]) == ("hot", "cold", None, 7)


def test_nested_columns_of_both_tiers_are_united(tmp_path: Path):
    db = small_store(tmp_path / "vidurai.db", {"id": 1})
    with changing(db) as con:
        con.execute("CREATE TABLE audience_gists (memory_id INTEGER, audience TEXT, tone TEXT)")
        con.execute("INSERT INTO audience_gists VALUES (1, 'manager', 'dry'), (99, 'nobody', '')")
    write_file(tmp_path / "archive", [memory(2)])
    rows = RepoAnalyst(tmp_path / "archive").query_archive(
        "SELECT id, g.unnest.audience AS a, g.unnest.tone AS t, g.unnest.gist AS g "
        "FROM memories, unnest(audience_gists) g ORDER BY id"
    )
    assert [tuple(row.values()) for row in rows] == [(1, "manager", "dry", None), (2, "developer", None, "short")]


def test_a_hot_store_larger_than_the_memory_limit_is_spilled(tmp_path: Path):
    rows = ({"id": i, "verbatim": f"{i} " + "lorem ipsum " * 300} for i in range(30_000))
    small_store(tmp_path / "vidurai.db", *rows)
    analyst = RepoAnalyst(tmp_path / "archive", memory_limit="60MB", threads=1)
    (row,) = analyst.query_archive("SELECT count(*) AS n, sum(length(verbatim)) > 100_000_000 AS large FROM memories")
    assert row == {"n": 30_000, "large": True}


def test_a_partitions_filter_still_prunes_its_files(both: RepoAnalyst):
    write_file(both.archive_base, [memory(90_001)], month="2020-01")
    (row,) = both.query_archive("EXPLAIN ANALYZE SELECT id FROM memories WHERE year = 2020 AND month = 1")
    assert "Scanning Files: 1/2" in row["explain_value"] or "Total Files Read: 1" in row["explain_value"]
    assert both.query_archive("SELECT id FROM memories WHERE year = 2020") == [{"id": 90_001}]


def test_nothing_of_a_copy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    small_store(tmp_path / "vidurai.db", {"id": 1})
    with RepoAnalyst(tmp_path / "archive") as analyst:
        analyst.query_archive("FROM memories")
        assert not list(temporary.rglob("hot.db"))
    assert not list(temporary.iterdir())


def test_the_store_can_be_named(tmp_path: Path):
    db = small_store(tmp_path / "elsewhere" / "store.db", {"id": 5})
    analyst = RepoAnalyst(tmp_path / "archive", hot_store=db)
    assert analyst.query_archive("SELECT id FROM memories") == [{"id": 5}]


def test_by_default_it_is_the_settings_store_and_for_another_archive_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = small_store(tmp_path / "home" / "memory.db", {"id": 1})
    monkeypatch.setenv("VIDURAI_HOME", str(own.parent))
    small_store(tmp_path / "other" / "vidurai.db", {"id": 2})
    assert RepoAnalyst().query_archive("SELECT id FROM memories") == [{"id": 1}]
    assert RepoAnalyst(tmp_path / "other" / "archive").query_archive("SELECT id FROM memories") == [{"id": 2}]


def test_on_a_connection_of_the_callers(tmp_path: Path):
    small_store(tmp_path / "vidurai.db", {"id": 1})
    write_file(tmp_path / "archive", [memory(2)])
    with duckdb.connect() as connection:
        analyst = RepoAnalyst(tmp_path / "archive", connection=connection)
        for _ in range(2):
            rows = analyst.query_archive("SELECT id, tier FROM memories ORDER BY id")
            assert [tuple(row.values()) for row in rows] == [(1, "hot"), (2, "cold")]


def test_a_wrong_column_names_the_candidates(both: RepoAnalyst):
    for ask in (both.query_archive, both.query_df, both.query_arrow):
        with pytest.raises(QueryError, match="tier"):
            ask("SELECT teir FROM memories")
        with pytest.raises(QueryError, match="tier"):
            ask("SELECT m.teir FROM memories m")


@pytest.mark.parametrize("sql", ["INSERT INTO memories (id) VALUES (1)", "DELETE FROM memories", "DROP VIEW memories"])
def test_they_can_only_be_read(both: RepoAnalyst, sql: str):
    before = (both.archive_base.parent / "vidurai.db").read_bytes()
    with pytest.raises(QueryError, match="can only be read"):
        both.query_archive(sql)
    assert (both.archive_base.parent / "vidurai.db").read_bytes() == before


def test_search_in_either_tier_or_both(both: RepoAnalyst):
    words = "pytest"
    tiers = {tier: both.search_archive(words, 3_000, tier=tier) for tier in ("hot", "cold", "all")}
    assert {row["tier"] for row in tiers["hot"]} == {"hot"}
    assert "tier" not in tiers["cold"][0]
    ids = {tier: {row["id"] for row in rows} for tier, rows in tiers.items()}
    assert ids["hot"]
    assert ids["all"] == ids["hot"] | ids["cold"]
    assert len(tiers["all"]) == len(tiers["hot"]) + len(tiers["cold"])
    keys = [(-row["score"], row["created_at"]) for row in tiers["all"]]
    assert [score for score, _ in keys] == sorted(score for score, _ in keys)
    with pytest.raises(QueryError, match="no tier 'warm'"):
        both.search_archive(words, tier="warm")  # pyright: ignore[reportArgumentType]


def test_search_in_all_tiers_needs_no_hot_store(tmp_path: Path):
    write_file(tmp_path / "archive", [memory(1)])
    analyst = RepoAnalyst(tmp_path / "archive")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row["tier"] for row in analyst.search_archive("memory", tier="all", mode="exact")] == ["cold"]
    with pytest.warns(HotStoreWarning):
        assert analyst.search_archive("memory", tier="hot") == []
