"""Other engines read the archive as docs/engines.md says, and see the same memories as we do."""

import lzma
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from sqlglot import exp, parse_one

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.retention import expire
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import fetchers
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.rl.fleet import learn_fleet
from vidurai_pipeline.rl.inference import SALIENCES
from vidurai_pipeline.rl.stores import count_with_duckdb, find_stores
from vidurai_pipeline.settings import RetentionRule, Settings
from vidurai_pipeline_tests.rl.dreams import generated
from vidurai_pipeline_tests.support.archives import BASE, DATA, REFERENCE, experience, write_file

ROOT = Path(__file__).parents[1]
SPARK = ROOT / ".venvs/spark"
PAGE = (ROOT / "docs/engines.md").read_text()
COLUMNS = (
    "id, created_at, archived_at, verbatim, gist, salience, outcome, access_count, event_type, file_path, tags, "
    "project_id, year, month"
)


def statements(section: str, archive: Path | None = None) -> list[str]:
    """The SQL of one section of the page, over an archive."""
    body = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"```sql\n(.*?)```", body, re.DOTALL)
    found = [one.strip() for one in block.replace("/data/archive", str(archive)).split(";\n") if one.strip()]
    assert found
    return [one.removesuffix(";") for one in found]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An archive of stores of several schemas, with files that came twice, newer versions, and expired memories."""
    home = tmp_path_factory.mktemp("engines")
    archive = home / "archive"
    for name, packed in (("alice", "guardian"), ("007", "schema_v7")):
        with lzma.open(DATA / f"{packed}.db.xz") as source, (home / f"{name}.db").open("wb") as target:
            shutil.copyfileobj(source, target)
    make_store(home / "demo.db", 400)
    for name in ("alice", "007", "demo"):
        MemoryArchiver(home / f"{name}.db", archive / f"store={name}").flush_archived_memories()
    shutil.copytree(REFERENCE, archive / "store=reference")
    first = next((archive / "store=alice").rglob("*.parquet"))
    shutil.copy(first, first.with_name("memories_20240101_000000.parquet"))
    odd = [*SALIENCES, "Critical", "H\u0130GH", "\uff2c\uff2f\uff37", "5", "", None]
    rows = [experience(n, (-1) ** n, salience=odd[n % len(odd)], verbatim="ü€😀"[: n % 4] * 9) for n in range(1, 99)]
    write_file(archive / "store=odd", [*rows, *generated(200, 300)])
    newer = [row | {"archived_at": "2025-01-02T03:04:05+01:00", "outcome": 1, "gist": None} for row in rows[:20]]
    write_file(archive / "store=odd", newer, month="2025-01")
    newest = [row | {"archived_at": "2025-01-02T02:30:00", "gist": "newest"} for row in newer[:5]]
    damaged = write_file(archive / "store=odd", newest, "memories_20250102_020000.parquet", month="2025-01")
    damaged.with_suffix(".parquet.damaged").write_bytes(b"PAR1")
    empty = {"tags": pa.null(), "file_path": pa.null()}
    untyped = pa.schema([field.with_type(empty.get(field.name, field.type)) for field in BASE])
    write_file(archive / "store=untyped", rows[:3], schema=untyped)
    expire(Archive(archive / "store=odd"), [RetentionRule.parse("NOISE=1d")])
    return Settings(home=home)


@pytest.fixture(scope="module")
def history(settings: Settings) -> list[tuple[Any, ...]]:
    """What our own view of the archive shows."""
    with RepoAnalyst(settings.archive_root) as analyst:
        rows = [tuple(row) for row in analyst.query_rows(f"SELECT store, {COLUMNS} FROM history")[1]]
    assert len(rows) > 1_400
    assert {row[0] for row in rows} == {"007", "alice", "demo", "odd", "reference", "untyped"}
    assert sum(row[5] == "newest" for row in rows) == 4, "one of the five expired"
    return sorted(rows, key=str)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    if not (shutil.which("java") and (SPARK / "pyspark").exists()):
        pytest.skip("needs Java 17 and `make .venvs/spark/installed`")
    sys.path.append(str(SPARK))
    from pyspark.sql import SparkSession  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    options = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",
    }
    session = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
    yield session
    session.stop()
    sys.path.remove(str(SPARK))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")
def test_spark_sees_the_same(
    spark: Any, settings: Settings, history: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for statement in statements("Spark", settings.archive_path):
        spark.sql(statement)
    rows = [tuple(row) for row in spark.sql(f"SELECT store, {COLUMNS} FROM history").collect()]
    assert sorted(rows, key=str) == history
    [question] = statements("Questions")
    assert [tuple(row) for row in spark.sql(question).collect()] == answers(settings, question)

    by_spark = settings.model_copy(update={"spark_master": "local[2]", "fleet_q_table": settings.home / "spark.json"})
    from vidurai_pipeline.rl.spark import count_with_spark  # noqa: PLC0415

    counted, by_duckdb = find_stores(by_spark), find_stores(settings)
    count_with_duckdb(settings, by_duckdb)
    elsewhere = next((settings.archive_root / "store=reference").rglob("*.parquet"))
    content = elsewhere.read_bytes()
    elsewhere.write_bytes(bytes(len(content)))
    elsewhere.chmod(0)

    def fetch(path: Path) -> None:
        path.chmod(0o600)
        path.write_bytes(content)

    monkeypatch.setitem(fetchers, settings.archive_root / "store=reference", fetch)
    count_with_spark(by_spark, counted)
    assert counted == by_duckdb
    assert sum(one.total.total() for one in counted) > 200

    as_text = pa.schema([*BASE.remove(BASE.get_field_index("outcome")), ("outcome", pa.string())])
    unfit = write_file(settings.archive_root / "store=unfit", [experience(1, "1")], schema=as_text)
    with pytest.raises(ArchiveError, match="Spark could not count"):
        learn_fleet(by_spark)
    assert not by_spark.fleet_q_table_path.exists()
    shutil.rmtree(unfit.parents[2])


def test_duckdb_sees_the_same(settings: Settings, history: list[tuple[Any, ...]]) -> None:
    with duckdb.connect() as con:
        for statement in statements("DuckDB", settings.archive_path):
            con.execute(statement)
        rows = con.execute(f"SELECT store, {COLUMNS} FROM history").fetchall()
        stored = con.execute("SELECT count(*) FROM archived").fetchall()[0][0]
    assert sorted(rows, key=str) == history
    assert stored > len(rows), "there are copies to leave out"


def test_duckdb_sees_the_archive_of_one_store(settings: Settings, history: list[tuple[Any, ...]]) -> None:
    with duckdb.connect() as con:
        for statement in statements("DuckDB", settings.archive_path / "store=odd"):
            alone = statement.replace("'store': VARCHAR, ", "").replace("store, ", "").replace("/*/*/*/", "/*/*/")
            con.execute(alone)
        rows = con.execute(f"SELECT {COLUMNS} FROM history").fetchall()
    assert sorted(rows, key=str) == sorted((row[1:] for row in history if row[0] == "odd"), key=str)


def answers(settings: Settings, question: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as con:
        for statement in statements("DuckDB", settings.archive_path):
            con.execute(statement)
        return con.execute(question).fetchall()


def test_trino_s_view_is_valid_and_shows_the_same(settings: Settings, history: list[tuple[Any, ...]]) -> None:
    table, sync, view = statements("Trino")
    for statement in (table, view, *statements("Questions")):
        assert not isinstance(parse_one(statement, dialect="trino"), exp.Command), "text that the parser does not know"
    assert sync.startswith("CALL ")
    declared = [one.name for one in parse_one(table, dialect="trino").find_all(exp.ColumnDef)]
    with duckdb.connect() as con:
        con.execute("ATTACH ':memory:' AS hive; CREATE SCHEMA hive.vidurai")
        con.execute(statements("DuckDB", settings.archive_path)[0])
        con.execute(f"CREATE TABLE hive.vidurai.archived AS SELECT {', '.join(declared)} FROM archived")
        con.execute(parse_one(view, dialect="trino").sql(dialect="duckdb"))
        rows = con.execute(f"SELECT store, {COLUMNS} FROM hive.vidurai.history").fetchall()
    assert sorted(rows, key=str) == history


def test_spark_that_is_not_installed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(ConfigError, match=r"pyspark is not installed.*vidurai-pipeline\[spark\]"):
        learn_fleet(settings.model_copy(update={"spark_master": "local"}))
