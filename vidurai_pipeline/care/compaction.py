"""Make few large files of the many small ones of a month that is over.

Each night leaves a file, and what a file costs a reader hardly depends on its size. When the month is over, its small
files are put together, in portions that keep memory small and the archive's lock short. No row is changed or dropped:
of an id with several versions, all stay. Files of other columns, or with another zone in their footers, stay apart.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pyarrow as pa

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.contents import Footer
from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.cold.listing import REQUIRED, ArchiveFile, list_settled, require_archive
from vidurai_pipeline.cold.rewriting import BYTES_PER_FILE, ROWS_PER_FILE, rewrite_folder
from vidurai_pipeline.errors import ArchiveError, ConfigError

#: A file with a quarter of the rows or bytes that one may hold is large enough to be left alone.
_SMALL = 1 / 4
#: Seconds between two portions, in which a run that waits gets the archive's lock.
PAUSE_SECONDS = 0.5
_FOLDER = re.compile(r"year=(\d{1,4})/month=(\d{1,2})")


@dataclass
class MonthCompaction:
    """What was done to a month, such as ``2026-11``; in a dry run, what would be, with ``bytes_after`` None.

    ``rows`` counts what was written to new files; ``error`` says why not all of it could be done.
    """

    month: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int | None
    rows: int = 0
    error: str | None = None


@dataclass
class CompactionReport:
    """What was done to all months that are over.

    ``longest_hold``: the longest time that other runs had to wait for the archive, in seconds.
    """

    dry_run: bool = False
    months: list[MonthCompaction] = field(default_factory=list)
    longest_hold: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether no month failed."""
        return all(month.error is None for month in self.months)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types, with the totals."""
        names = ("files_before", "files_after", "bytes_before", "rows")
        totals: dict[str, int | None] = {name: sum(getattr(month, name) for month in self.months) for name in names}
        totals["bytes_after"] = None if self.dry_run else sum(month.bytes_after or 0 for month in self.months)
        return {**asdict(self), **totals}


def compact(
    archive: Archive,
    *,
    month: str | None = None,
    dry_run: bool = False,
    lock_timeout: float = 0.0,
    pause: float = PAUSE_SECONDS,
    rows_per_file: int = ROWS_PER_FILE,
    bytes_per_file: int = BYTES_PER_FILE,
    now: datetime | None = None,
    progress: Progress = no_progress,
) -> CompactionReport:
    """Put the small files of months that are over together; what is compact is left alone.

    Args:
        archive: the archive.
        month: only this one, such as ``2026-11``.
        dry_run: only say what would be done.
        lock_timeout: seconds to wait for another run, before each portion.
        pause: seconds in which other runs may have the archive, after each portion.
        rows_per_file: the most rows of a new file.
        bytes_per_file: the most bytes of its rows, encoded and not compressed.
        now: the time; default this machine's.
        progress: told how far it is.

    Raises:
        ConfigError: the month is not over.
        MissingKeyError: a file's key is not there; nothing was changed.
        ArchiveError: the archive can't be read.
        LockedError: another run did not finish in time; what was done before stays done.
    """
    require_archive(archive.root)
    running = f"{(now or datetime.now(UTC)).astimezone(UTC):%Y-%m}"
    if month is not None and month >= running:
        raise ConfigError(
            f"{month} is not over yet in UTC", "compact it when it is; nightly runs still add files to it"
        )
    report = CompactionReport(dry_run)
    listed = list_settled(archive.root)
    folders = {folder: name for folder, name in _months(listed).items() if name < running and month in {None, name}}
    archive.require_keys(file for file in listed if file.folder in folders)
    for number, (folder, name) in enumerate(folders.items()):
        progress("compacting months", number, len(folders))
        work = _Month(archive, folder, rows_per_file, bytes_per_file)
        files, size = work.size()
        done = MonthCompaction(name, files, files, size, size)
        report.months.append(done)
        try:
            if dry_run:
                done.bytes_after = None
                done.files_after -= sum(len(group) - 1 for group in work.portions())
                continue
            while work.compact_portion(lock_timeout):
                time.sleep(pause)
        except ArchiveError as error:
            done.error = str(error)
        finally:
            if not dry_run:
                done.files_after, done.bytes_after = work.size()
                done.rows = work.rows
                report.longest_hold = max(report.longest_hold, round(work.longest_hold, 3))
    return report


def _months(files: Sequence[ArchiveFile]) -> dict[str, str]:
    """The folders of an archive's months, each with its month, in order."""
    found = {file.folder: _FOLDER.match(file.relative) for file in files if file.partitioned}
    months = {folder: f"{int(name[1]):04d}-{int(name[2]):02d}" for folder, name in found.items() if name is not None}
    return dict(sorted(months.items(), key=lambda item: item[::-1]))


class _Month:
    """The compaction of one month's folder.

    Attributes:
        rows: rows that were written to new files.
        longest_hold: the longest time that the archive was locked, in seconds.
    """

    def __init__(self, archive: Archive, folder: str, rows_per_file: int, bytes_per_file: int) -> None:
        self.rows = 0
        self.longest_hold = 0.0
        self._archive = archive
        self._folder = folder
        self._most_rows, self._most_bytes = rows_per_file, bytes_per_file
        self._footer = cache(archive.footer)

    def _files(self) -> list[ArchiveFile]:
        return sorted(list_settled(self._archive.root, self._folder), key=lambda file: file.name)

    def size(self) -> tuple[int, int]:
        """How many files there are, and their size in bytes."""
        files = self._files()
        return len(files), sum(file.size for file in files)

    def portions(self) -> Iterator[list[ArchiveFile]]:
        """Small files that can share one, in the order of archival; each portion becomes one file.

        Raises:
            ArchiveError: a file's footer can't be read.
        """
        most_rows, most_bytes = self._most_rows * _SMALL, self._most_bytes * _SMALL
        entries = {file: self._archive.manifests.entry(file.relative) for file in self._files() if not file.linked}
        small = [file for file, entry in entries.items() if entry is None or entry.rows < most_rows]
        if len(small) < 2:
            return
        kinds: dict[tuple, list[tuple[ArchiveFile, Footer]]] = {}
        for file in small:
            footer = self._footer(file)
            if not footer.names >= REQUIRED:
                continue  # some other program's
            if footer.rows < most_rows and footer.bytes < most_bytes:
                kinds.setdefault(footer.kind, []).append((file, footer))
        for alike in kinds.values():
            yield from (portion for portion in self._packed(alike) if len(portion) > 1)

    def compact_portion(self, lock_timeout: float) -> bool:
        """Write the next portion's rows to one file; whether there was one.

        Raises:
            ArchiveError: it could not be done; nothing of it was.
            LockedError: another run did not finish in time.
        """
        if next(self.portions(), None) is None:
            return False
        with self._archive.lock("compact", lock_timeout):
            began = time.monotonic()
            if not self.longest_hold:
                self._archive.sweep()
            # Once more: another run may have rewritten them meanwhile.
            if portion := next(self.portions(), None):
                # The footers say how large the file will be: one of them, however much its rows take in memory.
                done = rewrite_folder(
                    self._archive, self._folder, portion, rows_per_file=self._most_rows, bytes_per_file=sys.maxsize
                )
                self.rows += done.rows
                # Else the next portion's memory comes on top of what this one no longer uses.
                pa.default_memory_pool().release_unused()
            self.longest_hold = max(self.longest_hold, time.monotonic() - began)
        return True

    def _packed(self, files: Sequence[tuple[ArchiveFile, Footer]]) -> Iterator[list[ArchiveFile]]:
        portion: list[ArchiveFile] = []
        rows = size = 0
        for file, footer in files:
            if rows + footer.rows > self._most_rows or size + footer.bytes > self._most_bytes:
                yield portion
                portion, rows, size = [], 0, 0
            portion.append(file)
            rows, size = rows + footer.rows, size + footer.bytes
        yield portion
