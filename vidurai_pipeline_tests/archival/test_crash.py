"""A run can be killed anywhere; no memory is lost, and the next run puts everything right."""

from pathlib import Path

import pytest

from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.stores import Store

pytestmark = pytest.mark.slow


DRIVER = "archival.crash_driver"


def test_killed_before_every_change_to_file_system_or_sqlite(
    sample_store: Store, programs: Path, tmp_path: Path
) -> None:
    assert drive(programs, DRIVER, "points", sample_store("schema_v7"), tmp_path) > 100


def test_killed_while_a_mirror_is_kept(
    sample_store: Store, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, with a step of 1, before every change."""
    monkeypatch.setenv("VIDURAI_MIRROR", str(tmp_path / "work" / "mirror"))
    assert drive(programs, DRIVER, "points", sample_store("schema_v7"), tmp_path, 3, 9) > 10


def test_killed_while_another_process_stages(sample_store: Store, programs: Path, tmp_path: Path) -> None:
    """By hand, with a step of 1, before every change."""
    assert drive(programs, DRIVER, "points-apart", sample_store("schema_v7"), tmp_path, 2, 6) > 10


def test_killed_at_random_times(sample_store: Store, programs: Path, tmp_path: Path) -> None:
    assert drive(programs, DRIVER, "random", sample_store("schema_v7"), tmp_path, 1, 30) > 10


def test_killed_at_random_times_while_another_process_writes(
    sample_store: Store, programs: Path, tmp_path: Path
) -> None:
    assert drive(programs, DRIVER, "apart", sample_store("schema_v7"), tmp_path, 3, 15) > 4
