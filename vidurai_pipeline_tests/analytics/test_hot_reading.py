"""Of the hot store, a question reads what it needs and gets the same answer as if all of it were read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vidurai_pipeline.analytics.database import ArchiveDatabase
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Tier
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline.hot import schema
from vidurai_pipeline.hot.rows import light_array
from vidurai_pipeline.hot.view import HotSnapshot
from vidurai_pipeline_tests.support.archives import OWN, memory, write_file
from vidurai_pipeline_tests.support.stores import SCHEMA, changing, small_store


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The columns of each reading of the hot store."""
    readings: list[set[str]] = []

    def spied(method: Callable) -> Callable:
        def spy(snapshot: HotSnapshot, names):
            readings.append(set(names))
            yield from method(snapshot, names)

        return spy

    for name in ("batches", "short_columns"):
        monkeypatch.setattr(HotSnapshot, name, spied(getattr(HotSnapshot, name)))
    return readings


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT salience, count(*) FROM memories GROUP BY 1", {"id", "salience"}),
        ("SELECT count(*) FROM memories", {"id"}),
        ("SELECT count(*) FROM (FROM memories)", {"id"}),
        ("SELECT max(created_ts) FROM memories", {"id", "created_at"}),
        ("SELECT count(*) FROM memories WHERE salience_score > 2", {"id", "salience"}),
        ("SELECT gist FROM memories WHERE tier = 'cold'", {"id"}),
        ("SELECT gist FROM memories WHERE year = 2024", {"id"}),
        ("DESCRIBE memories", {"id"}),
        ("SELECT m.salience FROM memories AS m JOIN memories AS n USING (id)", {"id", "salience"}),
    ],
)
def test_only_the_columns_that_a_statement_needs_are_read(
    both: RepoAnalyst, read: list[set[str]], sql: str, columns: set[str]
):
    both.query_archive(sql)
    assert read == [columns]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT m FROM memories AS m WHERE id < 50 ORDER BY id",
        "SELECT * EXCLUDE (verbatim) FROM memories ORDER BY id",
        "SELECT COLUMNS('.*_at') FROM memories ORDER BY id",
        "SELECT gist, count(*) OVER (PARTITION BY salience) AS n FROM memories ORDER BY id",
        "FROM (SELECT id, gist FROM memories) NATURAL JOIN (SELECT id, tags FROM memories) ORDER BY id",
        "SELECT id, (SELECT max(n.gist) FROM memories AS n WHERE n.id = m.id) AS g FROM memories AS m ORDER BY id",
        "SELECT id, g.unnest.gist AS g FROM memories, unnest(audience_gists) AS g ORDER BY ALL",
        "SUMMARIZE memories",
    ],
)
def test_the_answer_is_that_of_reading_everything(both: RepoAnalyst, monkeypatch: pytest.MonkeyPatch, sql: str):
    answer = both.query_archive(sql)
    monkeypatch.setattr(ArchiveDatabase, "columns_needed", lambda *_: [*OWN.names, "decay_reason"])
    whole = both.query_archive(sql)
    if "SUMMARIZE" not in sql:  # which estimates
        assert answer == whole
    assert len(answer) == len(whole)


def test_a_plan_that_tells_too_little_costs_a_second_reading_never_a_wrong_answer(
    both: RepoAnalyst, read: list[set[str]], monkeypatch: pytest.MonkeyPatch
):
    expected = both.query_archive("SELECT id, gist FROM memories ORDER BY id")
    monkeypatch.setattr(ArchiveDatabase, "columns_needed", lambda *_: set())
    read.clear()
    assert both.query_archive("SELECT id, gist FROM memories ORDER BY id") == expected
    assert "gist" not in read[0]
    assert "gist" in read[-1]


@pytest.mark.parametrize(
    "value",
    ["plain", 'a "quoted" one', '","', "back\\slash", "new\nline", "naïve \U0001f600", "", None, 5, "null", "[1]"],
)
def test_short_columns_come_as_they_are(tmp_path: Path, value: object):
    small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "file_path": value},
        {"id": 2, "file_path": "x"},
        {"id": 3, "file_path": value},
    )
    rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT file_path AS f FROM memories ORDER BY id")
    shown = str(value) if isinstance(value, int) else value
    assert [row["f"] for row in rows] == [shown, "x", shown]


@pytest.mark.parametrize("values", [[1, 2], [-5, None], [None, None], [2**63 - 1, -(2**63)]])
def test_short_numbers_come_as_they_are(tmp_path: Path, values: list[int | None]):
    small_store(tmp_path / "vidurai.db", *({"id": n, "outcome": value} for n, value in enumerate(values)))
    rows = RepoAnalyst(tmp_path / "archive").query_archive("SELECT outcome AS o FROM memories ORDER BY id")
    assert [row["o"] for row in rows] == values


TEXTS = [
    {"verbatim": "Fixed the AUTH token", "gist": "auth"},
    {"verbatim": "ПРИВЕТ мир", "gist": "Größe 100%"},
    {"verbatim": "a_b [x] back\\slash", "gist": "na\u0131ve task"},
    {"verbatim": "nai\u0308ve", "gist": None, "tags": json.dumps(["naïve", 'say "hi"'])},
    {"verbatim": "認証トークン", "gist": "", "file_path": "src/auth_token.py"},
    {"verbatim": "plain", "gist": "it's 100 % \x01", "tags": r'["\u0061uth\u0054oken", "\u017fun", "a\/c", "x\u0001"]'},
    {"verbatim": "it's plain AND 50% of a_c", "gist": "plain", "tags": r'["\u00e9t\u00e9", "\ud83d\ude00"]'},
    {"verbatim": b"fixed auth token", "gist": "a blob", "tags": '["auth"]'},
]
WORDS = "auth AUTH token привет größe 100% a_b [x] \\ naïve 認証 hi fixed task ab".split()  # noqa: SIM905
WORDS += [
    "it's",
    "a/c",
    "sun",
    "été",
    "😀",
    "\x01",
    "plain it's",
    "auth plain",
    "100 %",
    "auth blob",
    "50% a_c",
    "plain été",
]


@pytest.fixture(scope="module")
def same_texts(tmp_path_factory: pytest.TempPathFactory) -> RepoAnalyst:
    """Both tiers with the same texts; an archived memory's id is 100 above its hot twin's."""
    folder = tmp_path_factory.mktemp("same_texts")
    bare = {"tags": None, "file_path": None}
    rows: list[dict[str, Any]] = [bare | row | {"id": n, "created_at": "2024-03-01"} for n, row in enumerate(TEXTS)]
    small_store(folder / "vidurai.db", *rows)
    texts = [{name: None if isinstance(value, bytes) else value for name, value in row.items()} for row in TEXTS]
    write_file(folder / "archive", [memory(100 + n, **(bare | row)) for n, row in enumerate(texts)])
    return RepoAnalyst(folder / "archive")


@pytest.mark.parametrize("word", WORDS)
def test_both_tiers_find_the_same_in_the_same_texts(same_texts: RepoAnalyst, word: str):
    tiers: list[Tier] = ["hot", "cold", "all"]
    found = {tier: [row["id"] for row in same_texts.search_archive(word, tier=tier)] for tier in tiers}
    assert sorted(found["hot"]) == sorted(id_ - 100 for id_ in found["cold"])
    assert sorted(found["all"]) == sorted(found["hot"] + found["cold"])
    assert found["hot"] or word == "ab"


@pytest.mark.parametrize(
    ("words", "filters"),
    [("test", {}), ("fix error", {"salience": ["HIGH", "LOW"]}), ("py", {"outcome": 1}), ("e", {"project": "2"})],
)
def test_a_search_of_both_tiers_gives_the_best_of_both(both: RepoAnalyst, words: str, filters: dict[str, Any]):
    best = both.search_archive(words, 30, tier="all", mode="exact", **filters)
    assert best == both.search_archive(words, 10_000, tier="all", mode="exact", **filters)[:30]
    tiers: list[Tier] = ["hot", "cold"]
    found = [row for tier in tiers for row in both.search_archive(words, 10_000, tier=tier, mode="exact", **filters)]
    ranks = [(row["score"], row["created_at"], row["id"]) for row in found]
    assert [(row["score"], row["created_at"], row["id"]) for row in best] == sorted(ranks, reverse=True)[:30]


def test_a_memory_in_both_tiers_is_found_once_as_it_is_hot(tmp_path: Path):
    small_store(tmp_path / "vidurai.db", {"id": 1, "verbatim": "word now", "created_at": "2024-03-01"}, {"id": 2})
    copy = memory(1, verbatim="word and another", created_at="2024-03-01", gist="word")
    write_file(tmp_path / "archive", [copy, memory(3, verbatim="word")])
    analyst = RepoAnalyst(tmp_path / "archive")
    found = [(row["id"], row["tier"], row["content"]) for row in analyst.search_archive("word", tier="all")]
    assert sorted(found) == [(1, "hot", "word now"), (3, "cold", "word")]
    assert analyst.search_archive("another", tier="all") == []


def test_projects_by_name_and_path(tmp_path: Path):
    db = small_store(
        tmp_path / "vidurai.db",
        {"id": 1, "verbatim": "word", "project_id": 7, "created_at": "2024-03-01"},
        {"id": 2, "verbatim": "word", "project_id": 8, "created_at": "2024-03-01"},
    )
    with changing(db) as con:
        con.execute("CREATE TABLE projects (id INTEGER PRIMARY KEY, name TEXT, path TEXT)")
        con.execute("INSERT INTO projects VALUES (7, 'Web Shop', '/home/me/shop'), (8, 'api', '/home/me/api')")
    write_file(tmp_path / "archive", [memory(3, verbatim="word", project_id=7)])
    with_names = OWN
    for name in ("project_name", "project_path"):
        with_names = with_names.append(OWN.field("gist").with_name(name))
    gone = memory(4, verbatim="word", project_id=9) | {"project_name": "old", "project_path": "/gone"}
    write_file(tmp_path / "archive", [gone], "memories_2.parquet", schema=with_names)
    analyst = RepoAnalyst(tmp_path / "archive")

    def ids(project: int | str, tier: Tier = "all") -> set[int]:
        return {row["id"] for row in analyst.search_archive("word", project=project, tier=tier)}

    assert ids(7) == ids("7") == ids("web shop") == ids("/home/me/shop") == ids("/home/me/shop/") == {1, 3}
    assert ids("Web Shop", "cold") == {3}
    assert ids("OLD") == ids("/gone") == {4}
    assert ids("nothing") == set()
    names = {row["id"]: row["project_name"] for row in analyst.search_archive("word", tier="all")}
    assert (names[1], names[2], names[4]) == ("Web Shop", "api", "old")
    rows = analyst.query_archive("SELECT id, name, path, hot, cold FROM projects")
    assert [tuple(row.values()) for row in rows] == [
        (7, "Web Shop", "/home/me/shop", 1, 1),
        (8, "api", "/home/me/api", 1, 0),
        (9, "old", "/gone", 0, 1),
    ]
    with pytest.raises(QueryError, match="the view `projects` belongs to no database"):
        analyst.query_archive("FROM memory.projects")


def test_one_memory_from_whichever_tier_with_its_place(both: RepoAnalyst):
    base = both.archive_base
    ids = both.query_archive("SELECT tier, min(id) AS id FROM memories GROUP BY 1")
    for tier, id_ in ((row["tier"], row["id"]) for row in ids):
        (row,) = both.memory(id_)
        assert (row["id"], row["tier"]) == (id_, tier)
        assert row["content"] == row["verbatim"]
        assert Path(row["file"]).is_relative_to(base) == (tier == "cold")
        assert Path(row["file"]).exists()
    assert both.memory(10**9) == []


def test_a_memory_that_is_archived_twice_is_shown_from_its_newest_file(tmp_path: Path):
    write_file(tmp_path / "archive", [memory(1, gist="old", archived_at="2024-11-01")], month="2024-11")
    newest = write_file(tmp_path / "archive", [memory(1, gist="new")])
    analyst = RepoAnalyst(tmp_path / "archive")
    with pytest.warns(UserWarning, match="no hot store"):
        (row,) = analyst.memory(1)
    assert (row["gist"], row["file"]) == ("new", str(newest))


INSIDE = sorted(
    {*schema.RESERVED, "place", "_hot", "_superseded", "hot", "project", "score", "snippet"} - {"archived_at"}
)


@pytest.mark.parametrize("name", [*INSIDE, "FILE_INDEX", "Created_TS"])
def test_a_column_of_any_name_that_the_views_use_is_shown(tmp_path: Path, name: str):
    """Hot, archived by us, and in a file of someone else's; found by its value."""
    table = SCHEMA.replace("outcome INTEGER", f'outcome INTEGER, "{name}" TEXT')
    row = {"verbatim": "v", "created_at": "2024-03-01", name: "its own"}
    db = small_store(
        tmp_path / "vidurai.db",
        row | {"id": 1, "status": "ARCHIVED"},
        row | {"id": 2, "status": "ACTIVE"},
        schema=table,
    )
    MemoryArchiver(db, tmp_path / "archive").flush_archived_memories()
    foreign = OWN.append(OWN.field("gist").with_name(name)) if name.lower() not in ("content", *PROJECT) else OWN
    write_file(tmp_path / "archive", [memory(3, **{name: "its own"})], "memories_9.parquet", schema=foreign)
    analyst = RepoAnalyst(tmp_path / "archive")
    assert "its own" in analyst.query_archive("FROM history WHERE id = 1")[0].values()
    if foreign is not OWN:
        assert "its own" in analyst.query_archive("FROM history WHERE id = 3")[0].values()
    hot, archived = analyst.query_archive("FROM memories WHERE id < 3 ORDER BY tier DESC")
    assert "its own" in hot.values()
    assert "its own" in archived.values()
    assert [key for key, value in hot.items() if value == "its own"] == [
        key for key, value in archived.items() if value == "its own"
    ]
    assert analyst.query_archive("SELECT year, month, tier FROM memories WHERE id = 3") == [
        {"year": 2024, "month": 12, "tier": "cold"}
    ]


PROJECT = ("project_name", "project_path")


@pytest.mark.parametrize(
    "question",
    [
        "query_archive('SELECT salience, count(*) FROM memories GROUP BY 1')",
        "query_archive('FROM memories WHERE id = 5')",
        "search_archive('pytest', tier='all')",
        "search_archive('nothing-like-this', tier='hot')",
    ],
)
def test_no_question_loads_pandas(both: RepoAnalyst, question: str):
    """It would take more time and memory than the answer."""
    code = f"""
import sys
from pathlib import Path
from vidurai_pipeline.analytics.engine import RepoAnalyst
RepoAnalyst(Path({str(both.archive_base)!r})).{question}
sys.exit("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([], pa.string()),
        (["", None, "café", "a\0b", "🔴" * 1000], pa.string()),
        ([], pa.int64()),
        ([0, -(2**63), 2**63 - 1], pa.int64()),
        ([None, 0, 7, None], pa.int64()),
        ([0.5, None, float("inf")], pa.float64()),
        ([b"\xff", None], pa.binary()),
    ],
)
def test_arrays_are_those_that_arrow_makes(values: list, type_: pa.DataType):
    made = light_array(values, type_)
    made.validate(full=True)
    assert made.equals(pa.array(values, type_))
