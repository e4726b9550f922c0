"""Fixtures of the tests that ask questions."""

import shutil
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline_tests.support.stores import flush


@pytest.fixture(scope="session")
def _archived(_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archived")
    shutil.copy(_stores / "guardian.db", folder / "vidurai.db")
    flush(folder / "vidurai.db")
    return folder


@pytest.fixture
def both(_archived: Path, tmp_path: Path) -> RepoAnalyst:
    """The sample store once archived: 1,148 memories in the archive, 852 in the hot store."""
    return RepoAnalyst(shutil.copytree(_archived, tmp_path / "guardian") / "archive")
