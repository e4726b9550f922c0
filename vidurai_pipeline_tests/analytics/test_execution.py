import threading
import time
from pathlib import Path
from unittest import mock

import duckdb
import pytest

from vidurai_pipeline.analytics import execution
from vidurai_pipeline.analytics.damage import find_damaged
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.execution import TimeLimit
from vidurai_pipeline.cold.listing import Listing, list_files
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline_tests.support.archives import memory, write_file


def test_what_cannot_be_interrupted_is_left_behind():
    """DuckDB heeds no interrupt within one step, such as making a text of gigabytes."""
    release = threading.Event()
    began = time.monotonic()
    with duckdb.connect() as connection, pytest.raises(QueryError, match=r"longer than 0\.1 s"):
        TimeLimit(0.1, grace=0.1).run(connection, lambda: release.wait(60))
    assert time.monotonic() - began < 30
    release.set()


CONVERSION = "SELECT CAST(verbatim AS INTEGER) FROM history"


def test_a_failed_query_looks_for_damage_no_longer_than_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A memory's own text may look like a damaged file's."""
    write_file(tmp_path, [memory(1, verbatim="parquet")])
    looked = []

    def search(connection: duckdb.DuckDBPyConnection, _listing: Listing) -> None:
        looked.append(True)
        connection.execute("SELECT count(*) FROM range(10_000_000_000) AS a, range(10_000_000_000) AS b").fetchall()

    monkeypatch.setattr(execution, "find_damaged", search)
    with RepoAnalyst(tmp_path, timeout=2.0) as analyst, pytest.raises(QueryError, match=r"^Conversion Error"):
        analyst.query_archive(CONVERSION)
    assert looked


def test_a_wrong_statement_is_no_reason_to_look_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_file(tmp_path, [memory(1)])
    monkeypatch.setattr(execution, "find_damaged", mock.Mock(side_effect=AssertionError))
    with RepoAnalyst(tmp_path) as analyst:
        for sql in (
            "SELECT parquet FROM history",
            "SELECT 'parquet' FROM",
            "SELECT id + 'parquet' AS x, y FROM history",
        ):
            with pytest.raises(QueryError):
                analyst.query_archive(sql)


def test_the_search_for_damage_ends_when_it_is_interrupted(tmp_path: Path):
    for month in range(1, 10):
        write_file(tmp_path, [memory(month)], month=f"2024-0{month}")
    connection = mock.Mock(execute=mock.Mock(side_effect=duckdb.InterruptException))
    with pytest.raises(duckdb.InterruptException):
        find_damaged(connection, Listing.readable(tmp_path, list_files(tmp_path), lambda: tmp_path))
    assert connection.execute.call_count == 1


def test_an_error_of_the_step_is_raised():
    with duckdb.connect() as connection, pytest.raises(ZeroDivisionError):
        TimeLimit(None).run(connection, lambda: 1 // 0)
