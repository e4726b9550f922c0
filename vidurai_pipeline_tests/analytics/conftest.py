"""Fixtures of the tests that ask questions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver


@pytest.fixture
def both(sample_store: Callable[[str], Path]) -> RepoAnalyst:
    """The sample store once archived: 1,148 memories in the archive, 852 in the hot store."""
    db = sample_store("guardian")
    MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    return RepoAnalyst(db.parent / "archive")
