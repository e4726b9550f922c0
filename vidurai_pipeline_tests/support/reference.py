"""The public vidurai package, in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Read before any test begins: to the pipeline, which inherits a test's environment, it would be an unknown variable.
_PYTHON = os.environ.get("VIDURAI_REFERENCE_PYTHON") or str(ROOT / ".venvs/reference/bin/python")


def reference_python() -> str:
    """The Python that has the reference implementation; a test without it fails, it does not pass unseen."""
    assert Path(_PYTHON).exists(), "`make test` sets up the reference implementation's environment"
    return _PYTHON


def run_reference(code: str, *arguments: object, home: Path, data: Any = None) -> Any:
    """Run code under the reference's Python; gives the JSON value in the last line that it prints.

    Args:
        code: the program.
        arguments: its ``sys.argv[1:]``.
        home: its user's home folder.
        data: what it finds on its standard input, as JSON.
    """
    done = subprocess.run(
        [reference_python(), "-c", code, *map(str, arguments)],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
