"""What the archiver's steps report."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidurai_pipeline.cold.archive import PublishedFile
from vidurai_pipeline.hot.salvage import Rejected


@dataclass
class PurgeReport:
    """What a purge did.

    Attributes:
        purged: memories deleted from the hot store.
        kept: memories that stay hot because they changed, or were deleted by the daemon, since they were read. Their
            copies left the archive again.
        tombstoned: memories that had expired, came back with a backup, and were purged without being archived.
        files: the files whose memories were purged.
        longest_hold: the longest hold of the hot store's write lock, in seconds.
        notes: what was put right, for the record.
        problems: files that need a person, and what to do.
    """

    purged: int = 0
    kept: int = 0
    tombstoned: int = 0
    files: list[Path] = field(default_factory=list)
    longest_hold: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class PublishReport:
    """What a run published.

    Attributes:
        schema: the files' schema.
        waiting: how many memories waited when the run began.
        files: the new files.
        rejected: memories that stay hot because Parquet can't hold them.
        recovered: what finishing an interrupted run's work did.
        last: the last id that was read.
    """

    schema: pa.Schema
    waiting: int = 0
    files: list[PublishedFile] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    recovered: PurgeReport = field(default_factory=PurgeReport)
    last: Any = None

    @property
    def rows(self) -> int:
        """Memories published."""
        return sum(file.rows for file in self.files)


@dataclass
class Verification:
    """How the files that wait to be purged, and the memories in them, compare with the hot store.

    ``changed`` counts memories whose hot row has changed since it was read; they will stay hot.
    """

    files: int = 0
    rows: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the purge may go ahead."""
        return not self.problems


@dataclass
class Refusal:
    """A memory that was chosen, and why nothing was done with it."""

    id: int
    reason: str


@dataclass(kw_only=True)
class ChoiceReport:
    """What was done with memories that somebody chose; in a dry run, what would be done.

    Attributes:
        refused: memories with which nothing was done, and why.
        longest_hold: the longest hold of the hot store's write lock, in seconds.
        dry_run: nothing was changed.
    """

    refused: list[Refusal] = field(default_factory=list)
    longest_hold: float = 0.0
    dry_run: bool = False

    def refuse(self, ids: Iterable[int], reason: str) -> None:
        """Note that nothing is done with some memories."""
        self.refused += [Refusal(id_, reason) for id_ in sorted(ids)]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        report = asdict(self)
        report["longest_lock_ms"] = round(report.pop("longest_hold") * 1000, 1)
        return report


@dataclass(frozen=True)
class FlushReport:
    """What a flush did.

    Attributes:
        archived: memories that this run moved to the archive; in a dry run, those that it would have moved.
        purged: memories deleted from the hot store, an interrupted run's among them.
        kept: memories that changed meanwhile, and stay hot.
        rejected: memories that Parquet can't hold, and stay hot.
        files: the new files.
        recovered: memories purged to finish an interrupted run.
        tombstoned: memories that had expired, came back with a backup, and were purged without being archived.
        longest_hold: the longest hold of the hot store's write lock, in seconds.
        notes: what an interrupted run left and was put right, for the record.
        problems: files that need a person, and what to do.
        dry_run: nothing was written or deleted.
        object_store: what was asked of the object store that the archive is in, and how many bytes went there and back.
    """

    archived: int
    purged: int
    kept: int
    rejected: list[Rejected]
    files: list[Path]
    recovered: int
    tombstoned: int
    longest_hold: float
    notes: list[str]
    problems: list[str]
    dry_run: bool = False
    object_store: dict[str, int] | None = None

    @classmethod
    def of(cls, published: PublishReport, purge: PurgeReport) -> "FlushReport":
        """Put the reports of a flush's steps together."""
        recovered = published.recovered
        return cls(
            archived=published.rows - purge.kept,
            purged=purge.purged + recovered.purged,
            kept=purge.kept + recovered.kept,
            rejected=published.rejected,
            files=[file.path for file in published.files],
            recovered=recovered.purged,
            tombstoned=purge.tombstoned + recovered.tombstoned,
            longest_hold=max(purge.longest_hold, recovered.longest_hold),
            notes=recovered.notes + purge.notes,
            problems=recovered.problems + purge.problems,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        report = {**asdict(self), "files": [str(path) for path in self.files]}
        if report["object_store"] is None:
            del report["object_store"]
        report["longest_lock_ms"] = round(report.pop("longest_hold") * 1000, 1)
        return report


class ArchivedCount(int):
    """How many memories a flush archived; the fields of its report are attributes of the number."""

    report: FlushReport

    def __getattr__(self, name: str) -> Any:
        """Look a field up in the report."""
        return getattr(self.report, name)
