"""A run can be killed anywhere; no memory is lost, and the next run puts everything right."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def drive(*arguments: object) -> int:
    """Kill often; returns how many deaths there were."""
    done = subprocess.run(
        [sys.executable, "-m", "vidurai_pipeline_tests.archival.crash_driver", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failures"] == [], done.stderr[-10_000:]
    return report["deaths"]


def test_killed_before_every_change_to_file_system_or_sqlite(
    sample_store: Callable[[str], Path], tmp_path: Path
) -> None:
    assert drive("points", sample_store("schema_v7"), tmp_path) > 100


def test_killed_while_a_mirror_is_kept(
    sample_store: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, with a step of 1, before every change."""
    monkeypatch.setenv("VIDURAI_MIRROR", str(tmp_path / "work" / "mirror"))
    assert drive("points", sample_store("schema_v7"), tmp_path, 3, 6) > 10


def test_killed_while_another_process_stages(sample_store: Callable[[str], Path], tmp_path: Path) -> None:
    """By hand, with a step of 1, before every change."""
    assert drive("points-apart", sample_store("schema_v7"), tmp_path, 2, 4) > 20


def test_killed_at_random_times(sample_store: Callable[[str], Path], tmp_path: Path) -> None:
    assert drive("random", sample_store("schema_v7"), tmp_path, 1, 30) > 10


def test_killed_at_random_times_while_another_process_writes(
    sample_store: Callable[[str], Path], tmp_path: Path
) -> None:
    assert drive("apart", sample_store("schema_v7"), tmp_path, 3, 25) > 10
