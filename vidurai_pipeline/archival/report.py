"""What the archiver's steps report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from vidurai_pipeline.cold.archive import PublishedFile
from vidurai_pipeline.hot.salvage import Rejected

#: Called with what is being done, how many memories are done, and how many there are (0: not known).
Progress = Callable[[str, int, int], None]


def unwatched(stage: str, done: int, total: int) -> None:
    """No one asked for progress."""


@dataclass
class Purge:
    """What a purge did.

    Attributes:
        purged: memories deleted from the hot store.
        kept: memories that stay hot (changed, or deleted by the daemon, since they were read); their copies left
            the archive again.
        files: the files whose memories were purged.
        longest_hold: the longest hold of the hot store's write lock, in seconds.
        notes: what was put right, for the record.
        problems: files that need a person, and what to do.
    """

    purged: int = 0
    kept: int = 0
    files: list[Path] = field(default_factory=list)
    longest_hold: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Batch:
    """What a run published.

    Attributes:
        files: the new files.
        rejected: memories that stay hot because Parquet can't hold them.
        recovered: what finishing an interrupted run's work did.
        schema: the files' schema.
        waiting: how many memories waited when the run began.
    """

    schema: pa.Schema
    waiting: int = 0
    files: list[PublishedFile] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    recovered: Purge = field(default_factory=Purge)

    @property
    def rows(self) -> int:
        """Memories published."""
        return sum(file.rows for file in self.files)


@dataclass
class Verification:
    """How the files that wait to be purged compare with the hot store.

    Attributes:
        files: how many files were read back.
        rows: how many memories they hold.
        changed: memories whose hot row has changed since it was read; they will stay hot.
        problems: what is wrong, in words; empty if all is well.
    """

    files: int = 0
    rows: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the purge may go ahead."""
        return not self.problems


class FlushResult(int):
    """What a flush did. It compares, counts and prints like the number of memories archived.

    Attributes:
        archived: memories that this run moved to the archive.
        purged: memories deleted from the hot store, an interrupted run's among them.
        kept: memories that changed meanwhile, and stay hot.
        rejected: memories that Parquet can't hold, and stay hot.
        files: the new files.
        recovered: memories purged to finish an interrupted run.
        longest_hold: the longest hold of the hot store's write lock, in seconds.
        notes: what an interrupted run left and was put right, for the record.
        problems: files that need a person, and what to do.
        dry_run: nothing was written or deleted; ``archived`` is what would have been.
    """

    archived: int
    purged: int
    kept: int
    rejected: list[Rejected]
    files: list[Path]
    recovered: int
    longest_hold: float
    notes: list[str]
    problems: list[str]
    dry_run: bool

    def __new__(cls, archived: int, *, batch: Batch, purge: Purge, dry_run: bool = False) -> Self:
        """Put the steps' reports together."""
        self = super().__new__(cls, archived)
        self.archived = archived
        self.purged = purge.purged + batch.recovered.purged
        self.kept = purge.kept + batch.recovered.kept
        self.rejected = batch.rejected
        self.files = [file.path for file in batch.files]
        self.recovered = batch.recovered.purged
        self.longest_hold = max(purge.longest_hold, batch.recovered.longest_hold)
        self.notes = batch.recovered.notes + purge.notes
        self.problems = batch.recovered.problems + purge.problems
        self.dry_run = dry_run
        return self

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {
            "archived": self.archived,
            "purged": self.purged,
            "kept": self.kept,
            "rejected": [{"id": r.id, "column": r.column, "reason": r.reason} for r in self.rejected],
            "files": [str(path) for path in self.files],
            "recovered": self.recovered,
            "longest_lock_ms": round(self.longest_hold * 1000, 1),
            "notes": self.notes,
            "problems": self.problems,
            "dry_run": self.dry_run,
        }
