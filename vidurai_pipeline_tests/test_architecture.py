"""What import-linter can't hold: rules about a part of an external package."""

from pathlib import Path

import pytest

import vidurai_pipeline

PACKAGE = Path(vidurai_pipeline.__file__).parent
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if "cold" not in path.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_cold_reads_and_writes_parquet_files(path: Path) -> None:
    """DuckDB reads them too, by the list of files that cold/ gives it."""
    assert "pyarrow.parquet" not in path.read_text()


def test_cold_does(tmp_path: Path) -> None:
    """Else the test above would look for nothing."""
    assert "pyarrow.parquet" in (PACKAGE / "cold/archive.py").read_text()
