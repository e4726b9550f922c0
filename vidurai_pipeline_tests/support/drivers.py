"""Test programs that need a process of their own, such as those that kill the pipeline over and over."""

import json
import subprocess
from pathlib import Path

_MAIN = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def run_module(programs: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of the modules of these tests, which must end well."""
    done = subprocess.run(
        [programs / "python", "-c", _MAIN, f"vidurai_pipeline_tests.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    return done


def drive(programs: Path, driver: str, *arguments: object) -> int:
    """Kill the pipeline over and over, which must do no harm; gives how many deaths there were."""
    done = run_module(programs, driver, *arguments)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failures"] == [], done.stderr[-10_000:]
    return report["deaths"]
