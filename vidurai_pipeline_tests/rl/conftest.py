"""Fixtures for the learner: an archive to write to, a table, and the reference implementation beside ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline_tests.support.reference import run_reference


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "q_table.json"


@pytest.fixture
def reference(tmp_path: Path) -> Callable[[str, Any], Any]:
    """Runs code under the reference's Python, with ``data`` in hand and the result in ``result``."""

    def run(code: str, data: Any) -> Any:
        program = f"import json, sys\ndata = json.load(sys.stdin)\n{code}\nprint()\nprint(json.dumps(result))"
        home = tmp_path / "reference_home"
        home.mkdir(exist_ok=True)
        return run_reference(program, home=home, data=data)

    return run
