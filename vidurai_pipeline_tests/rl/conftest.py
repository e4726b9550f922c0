"""Fixtures for the learner: an archive to write to, a table, and the reference implementation beside ours."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline_tests.reference import reference_python

DATA = Path(__file__).parent.parent / "data"


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
        done = subprocess.run(
            [reference_python(), "-c", program],
            input=json.dumps(data),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(home)},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
