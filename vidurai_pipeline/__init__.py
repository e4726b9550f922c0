"""The memory-lifecycle pipeline for Vidurai: SQLite to Parquet to Q-table, nightly, under Dagster.

The classes that do the work are loaded when they are asked for, since Arrow and DuckDB are slow to import:

    from vidurai_pipeline import DreamCycle, MemoryArchiver, MemoryEraser, MemoryRestorer, RepoAnalyst
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidurai_pipeline.analytics.engine import RepoAnalyst as RepoAnalyst
    from vidurai_pipeline.archival.archiver import MemoryArchiver as MemoryArchiver
    from vidurai_pipeline.archival.eraser import MemoryEraser as MemoryEraser
    from vidurai_pipeline.archival.restorer import MemoryRestorer as MemoryRestorer
    from vidurai_pipeline.rl.agent import VismritiRLAgent as VismritiRLAgent
    from vidurai_pipeline.rl.dreamer import DreamCycle as DreamCycle

_HOMES = {
    "DreamCycle": "vidurai_pipeline.rl.dreamer",
    "MemoryArchiver": "vidurai_pipeline.archival.archiver",
    "MemoryEraser": "vidurai_pipeline.archival.eraser",
    "MemoryRestorer": "vidurai_pipeline.archival.restorer",
    "RepoAnalyst": "vidurai_pipeline.analytics.engine",
    "VismritiRLAgent": "vidurai_pipeline.rl.agent",
}
__all__ = ["DreamCycle", "MemoryArchiver", "MemoryEraser", "MemoryRestorer", "RepoAnalyst", "VismritiRLAgent"]


def __getattr__(name: str) -> Any:
    """Load a public class from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
