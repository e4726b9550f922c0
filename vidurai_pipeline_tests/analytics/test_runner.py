import threading
import time

import duckdb
import pytest

from vidurai_pipeline.analytics import runner
from vidurai_pipeline.analytics.runner import Runner
from vidurai_pipeline.errors import QueryError


def test_what_cannot_be_interrupted_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    """DuckDB heeds no interrupt within one step, such as making a text of gigabytes."""
    monkeypatch.setattr(runner, "_GRACE", 0.1)
    release = threading.Event()
    began = time.monotonic()
    with duckdb.connect() as connection, pytest.raises(QueryError, match=r"longer than 0\.1 s"):
        Runner(connection, 0.1).run(lambda: release.wait(60))
    assert time.monotonic() - began < 30
    release.set()


def test_an_error_of_the_step_is_the_runners():
    with duckdb.connect() as connection, pytest.raises(ZeroDivisionError):
        Runner(connection, None).run(lambda: 1 // 0)
