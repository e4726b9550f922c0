"""What an analyst may not show: the memories of excluded projects, by no way at all."""

import sqlite3
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Tier
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import ConfigError, PipelineError, QueryError
from vidurai_pipeline_tests.support.archives import BASE, memory, write_file
from vidurai_pipeline_tests.support.stores import SCHEMA, change, small_store

SECRET = "xyzzy"
NAMED = {"project_id": 2, "project_name": "Sécret", "project_path": "/code/secret"}
OPEN = {"project_id": 1, "project_name": "open", "project_path": "/code/open"}
HIDDEN, SHOWN = {2, 4, 6, 8}, {1, 3, 5, 7}


def hidden(id_: int, **columns: object) -> dict[str, object]:
    return (
        memory(id_, verbatim=f"{SECRET} {id_}", gist=SECRET, file_path=f"/{SECRET}.py", tags=f'["{SECRET}"]') | columns
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Odd ids may be seen, even ones may not; in files with and without the projects' names, and in the hot store."""
    schema = BASE
    for name in ("project_name", "project_path"):
        schema = schema.append(BASE.field("gist").with_name(name))
    folder = tmp_path / "archive"
    old = {"archived_at": "2024-11-01T00:00:00"}
    write_file(
        folder,
        [memory(1, **OPEN), hidden(2, **NAMED), memory(3, **OPEN) | old, memory(3, **OPEN), hidden(2, **NAMED) | old],
        schema=schema,
    )
    write_file(folder, [memory(5, project_id=1), hidden(4, project_id=2)], "b.parquet", schema=BASE)
    rows = [memory(7, project_id=1, status="ACTIVE"), hidden(6, project_id=2, status="ACTIVE")]
    rows.append(hidden(8, project_id=2, status="ACTIVE", salience=b"\xff"))
    names = [line.split()[0] for line in SCHEMA.split("(", 1)[1].split(",")]
    db = small_store(tmp_path / "vidurai.db", *({name: row.get(name) for name in names} for row in rows))
    change(
        db,
        "CREATE TABLE projects (id INTEGER PRIMARY KEY, name TEXT, path TEXT)",
        "INSERT INTO projects VALUES (1, 'open', '/code/open'), (2, 'Sécret', '/code/secret')",
    )
    return folder


@pytest.fixture(params=["Sécret", "SE\u0301CRET", "/code/secret/", "2"], ids=ascii)
def analyst(request: pytest.FixtureRequest, archive: Path) -> RepoAnalyst:
    return RepoAnalyst(archive, exclude_projects=[request.param])


def ids(rows: list[dict[str, object]]) -> set[object]:
    return {row["id"] for row in rows}


def test_no_view_shows_or_counts_them(analyst: RepoAnalyst) -> None:
    assert ids(analyst.query_archive("FROM memories")) == SHOWN
    assert ids(analyst.query_archive("FROM history")) == SHOWN - {7}
    assert len(analyst.query_archive("FROM history_all")) == 4
    assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 4}]
    assert ids(analyst.query_archive("FROM memories LIMIT 1")) <= SHOWN
    assert [(row["id"], row["hot"], row["cold"]) for row in analyst.query_archive("FROM projects")] == [(1, 1, 3)]


def test_no_search_finds_them(analyst: RepoAnalyst) -> None:
    searched: list[tuple[Tier, set[int]]] = [("hot", {7}), ("cold", SHOWN - {7}), ("all", SHOWN)]
    for tier, shown in searched:
        assert analyst.search_archive(SECRET, tier=tier) == []
        assert analyst.search_archive("memory", tier=tier, project="sécret") == []
        assert ids(analyst.search_archive("memory", tier=tier)) == shown


def test_no_search_index_finds_them(archive: Path) -> None:
    WordIndex(archive).update(Archive(archive))
    assert ids(RepoAnalyst(archive).search_archive(SECRET, mode="words")) == {2, 4}
    analyst = RepoAnalyst(archive, exclude_projects=["Sécret"])
    searched: list[tuple[Tier, set[int]]] = [("hot", {7}), ("cold", SHOWN - {7}), ("all", SHOWN)]
    for tier, shown in searched:
        assert analyst.search_archive(SECRET, tier=tier, mode="words") == []
        assert ids(analyst.search_archive("memory", tier=tier, mode="words")) == shown


def test_what_is_hidden_takes_no_other_memorys_place(tmp_path: Path) -> None:
    rows = [hidden(id_, **NAMED) for id_ in range(2, 40, 2)]
    rows.append(memory(1, verbatim=f"a long text that once names {SECRET} and then says more") | OPEN)
    schema = BASE
    for name in ("project_name", "project_path"):
        schema = schema.append(BASE.field("gist").with_name(name))
    write_file(tmp_path, rows, schema=schema)
    WordIndex(tmp_path).update(Archive(tmp_path))
    analyst = RepoAnalyst(tmp_path, exclude_projects=["sécret"])
    assert ids(analyst.search_archive(SECRET, 1, mode="words")) == {1}


def test_they_have_no_id(analyst: RepoAnalyst) -> None:
    assert [analyst.memory(id_) for id_ in sorted(HIDDEN)] == [[], [], [], []]
    assert analyst.get_memory_stats()["total_memories"] == 3
    assert ids(analyst.get_training_data()) <= SHOWN


REFUSED = [
    "FROM _hot",
    "SELECT * FROM memories, _hot",
    "FROM _hot_incoming",
    "FROM _in_both_tiers",
    "FROM _superseded",
    "FROM main._superseded",
    "FROM temp.memories",
    "FROM memory.main.history",
    "FROM duckdb_views()",
    "FROM duckdb_views",
    "FROM duckdb_functions()",
    "FROM duckdb_tables",
    "FROM information_schema.views",
    "FROM pg_catalog.pg_views",
    "FROM pg_views",
    "FROM sqlite_master",
    "WITH duckdb_views AS (SELECT 1) FROM (WITH x AS (SELECT 1) FROM x), duckdb_views",
    "WITH _hot AS (SELECT 1) FROM _hot",
    "SELECT pg_get_viewdef(1)",
    "SELECT stats(content) FROM history",
    'SELECT "STATS"(content) FROM history',
    "SELECT main._partitioned_files()",
    "EXPLAIN FROM history",
    "EXPLAIN ANALYZE FROM memories",
    "SUMMARIZE _hot",
    "DESCRIBE duckdb_views",
    "FROM (SUMMARIZE FROM _superseded)",
]


def test_nothing_but_the_views_can_be_asked(archive: Path) -> None:
    analyst = RepoAnalyst(archive, exclude_projects=["Sécret"])
    for sql in REFUSED:
        with pytest.raises(QueryError) as caught:
            analyst.query_archive(sql)
        assert "écret" not in str(caught.value), sql


@pytest.mark.parametrize("view", ["history", "history_all", "memories"])
@pytest.mark.parametrize(
    "condition",
    [
        f"CASE WHEN content LIKE '{SECRET}%' THEN error('found') ELSE true END",
        f"CASE WHEN gist = '{SECRET}' THEN CAST('x' AS INTEGER) = 1 ELSE true END",
        "CASE WHEN id % 2 = 0 THEN error('found') ELSE true END",
    ],
)
def test_no_condition_meets_them(archive: Path, view: str, condition: str) -> None:
    """An error would tell what is in them."""
    analyst = RepoAnalyst(archive, exclude_projects=["Sécret"])
    for ask in ("{} WHERE {}", "{} WHERE id > 0 AND {} ORDER BY id", "{} GROUP BY ALL HAVING any_value({})"):
        rows = analyst.query_archive(f"SELECT id FROM {ask.format(view, condition)}")
        assert ids(rows) == (SHOWN if view == "memories" else SHOWN - {7})


def test_statements_that_ask_the_views_alone_still_work(archive: Path) -> None:
    analyst = RepoAnalyst(archive, exclude_projects=["Sécret"])
    for sql in (
        "WITH x AS (FROM history), Y AS (FROM x) SELECT count(*) AS n FROM y",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT max(n) AS n FROM r",
        'SELECT count(*) AS n FROM history AS h JOIN "History" AS o USING (id)',
        "SELECT max(unnest) AS n FROM unnest([1, 2, 3])",
    ):
        assert analyst.query_archive(sql) == [{"n": 3}]
    assert analyst.query_archive("DESCRIBE history")
    assert {row["max"] for row in analyst.query_archive("SUMMARIZE memories") if row["column_name"] == "gist"} == {
        "gist 7"
    }


def test_a_project_that_comes_later_is_hidden_too(archive: Path) -> None:
    db = archive.parent / "vidurai.db"
    change(db, "DELETE FROM projects WHERE id = 2")
    analyst = RepoAnalyst(archive, exclude_projects=["later", "Sécret"])
    assert 4 in ids(analyst.query_archive("FROM history"))
    change(db, "INSERT INTO projects VALUES (2, 'later', NULL)")
    assert ids(analyst.query_archive("FROM history")) == SHOWN - {7}
    assert ids(analyst.query_archive("FROM memories")) == SHOWN


def test_without_the_store_that_knows_them_nothing_is_shown(archive: Path) -> None:
    (archive.parent / "vidurai.db").write_text("no database")
    with pytest.raises(PipelineError, match="not a SQLite database"):
        RepoAnalyst(archive, exclude_projects=["Sécret"]).query_archive("FROM history")


def test_a_connection_of_ones_own_hides_nothing(archive: Path) -> None:
    import duckdb  # noqa: PLC0415

    with pytest.raises(ConfigError, match="exclude_projects"):
        RepoAnalyst(archive, connection=duckdb.connect(), exclude_projects=["x"])


def test_the_store_is_only_looked_at(archive: Path) -> None:
    db = archive.parent / "vidurai.db"
    before = sqlite3.connect(db).execute("SELECT type, name FROM sqlite_master").fetchall()
    RepoAnalyst(archive, exclude_projects=["Sécret"]).query_archive("FROM memories")
    assert sqlite3.connect(db).execute("SELECT type, name FROM sqlite_master").fetchall() == before
