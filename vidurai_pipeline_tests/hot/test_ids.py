"""Ids that are no integers, which only a table that Vidurai did not make can hold."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import HotStoreWarning
from vidurai_pipeline.hot.backlog import count_backlog
from vidurai_pipeline.hot.store import HotStore
from vidurai_pipeline_tests.hot.stores import twenty_memories
from vidurai_pipeline_tests.support.stores import WAITING, Store, change, flush
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

ODD_IDS = ["NULL", "'abc'", "''", "x'00ff'", "CAST(x'ff' AS TEXT)", "1.5", "-1e300", "1e300"]


@pytest.mark.parametrize("verbatim", ["'v'", "CAST(x'ff' AS TEXT)"])
@pytest.mark.parametrize("declaration", ["id INT PRIMARY KEY", "id INT PRIMARY KEY NOT NULL", "id PRIMARY KEY"])
@pytest.mark.parametrize("rowid", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("rows_per_file", [2, 50_000])
def test_ids_that_are_no_integers(
    tmp_path: Path, verbatim: str, declaration: str, rowid: str, rows_per_file: int
) -> None:
    db = tmp_path / "vidurai.db"
    change(db, f"CREATE TABLE memories ({declaration}, verbatim TEXT, status TEXT){rowid}")
    odd = ODD_IDS if not rowid and "NOT" not in declaration else ODD_IDS[1:]
    for id_ in (*odd, *odd[:1] * (odd[0] == "NULL")):
        change(db, f"INSERT INTO memories VALUES ({id_}, {verbatim}, 'ARCHIVED')")
    change(db, "INSERT INTO memories VALUES (-9223372036854775808, 'v', 'ARCHIVED'), (7, 'v', 'ARCHIVED')")
    change(db, "INSERT INTO memories VALUES (2, 'v', 'ARCHIVED'), (9223372036854775807, 'v', 'ARCHIVED')")
    result = MemoryArchiver(db, tmp_path / "archive", rows_per_file=rows_per_file).flush_archived_memories()
    assert result == 4
    assert len(result.rejected) == len(odd) + (odd[0] == "NULL")
    assert {r.column for r in result.rejected} == {"id"}
    with (
        RepoAnalyst(tmp_path / "archive", hot_store=db) as analyst,
        pytest.warns(HotStoreWarning),
    ):
        assert analyst.query_archive("SELECT count(*) AS n FROM memories") == [{"n": 4}]


@pytest.mark.parametrize("odd", ["zz", 9.3e18, None, b"\xff", -1e300])
def test_a_restored_store_with_an_odd_id_is_archived_once_and_counted(tmp_path: Path, odd: object) -> None:
    db = twenty_memories(tmp_path, id_="id INT PRIMARY KEY")
    change(db, ("INSERT INTO memories (id, verbatim, status) VALUES (?, 'v', 'ARCHIVED')", (odd,)))
    backup = shutil.copy(db, tmp_path / "backup.db")
    assert flush(db) == 20
    for path in tmp_path.glob("vidurai.db*"):
        path.unlink()
    shutil.copy(backup, db)
    counted = count_backlog(HotStore(db))
    assert (counted.waiting, counted.total) == (21, 21)
    again = flush(db)
    assert (again, again.purged) == (0, 20)
    assert [r.id for r in again.rejected] == [odd if not isinstance(odd, bytes) else None]


def test_a_table_without_rowid(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    con = sqlite3.connect(db)
    (sql,) = con.execute("SELECT sql FROM sqlite_master WHERE name = 'memories'").fetchone()
    con.executescript(
        "PRAGMA foreign_keys = OFF; CREATE TABLE kept AS SELECT * FROM memories; DROP TABLE memories;"
        + sql.replace("AUTOINCREMENT", "")
        + " WITHOUT ROWID; INSERT INTO memories SELECT * FROM kept; DROP TABLE kept;"
        "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, status) "
        "VALUES ('text id', 1, 'v', 'chat', 'LOW', 'g', 'ARCHIVED')"
    )
    con.close()
    before = hot_rows(db)
    result = flush(db)
    assert result == WAITING["schema_v7"]
    assert [(r.id, r.column) for r in result.rejected] == [("text id", "id")]
    assert_one_tier(before, db, db.parent / "archive")
