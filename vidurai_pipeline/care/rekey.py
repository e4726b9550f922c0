"""Encrypt archived files with the newest key: those that are plain, or under an older key."""

import errno
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, no_progress
from vidurai_pipeline.cold.keys import SETTING
from vidurai_pipeline.cold.listing import ArchiveFile, list_files, list_settled, require_archive
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.errors import ArchiveError, ConfigError

#: The archive is given to other runs after each portion of at most this size, unless a single file is larger.
PORTION_BYTES = 64 * 1024 * 1024
PORTION_FILES = 200
_PENDING = "its memories have not left the hot store: run `vidurai-pipeline flush`"
_ELSEWHERE = "it does not lie in a month's own folder: move it there, or out of the archive"


@dataclass
class RekeyReport:
    """What was encrypted anew, or would be.

    Attributes:
        key: the id of the key that files are under now.
        files: files that were rewritten.
        memories: rows in them; None in a dry run.
        bytes: their size before.
        left: files that could not be rewritten, each with the reason.
        keys_in_use: the ids of the keys that files need now.
        longest_hold: the longest time that other runs had to wait for the archive, in seconds.
        dry_run: whether nothing was changed.
    """

    key: str
    files: int = 0
    memories: int | None = None
    bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)
    keys_in_use: list[str] = field(default_factory=list)
    longest_hold: float = 0.0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        left = [{"file": file, "reason": reason} for file, reason in self.left.items()]
        return {**asdict(self), "left": left}


def rekey(
    archive: Archive, *, dry_run: bool = False, lock_timeout: float = 0.0, progress: Progress = no_progress
) -> RekeyReport:
    """Rewrite all settled files that are not under the newest key.

    What is done stays done when it is stopped; the next time it goes on from there.

    Args:
        archive: the archive, with its keys.
        dry_run: only say what would be done.
        lock_timeout: seconds to wait for another run, before each portion.
        progress: told how far it is.

    Raises:
        ConfigError: there is no key.
        MissingKeyError: a file's key is not there; nothing was changed.
        ArchiveError: the archive can't be read or written; what was done before stays done.
        LockedError: another run did not finish in time; what was done before stays done.
    """
    if archive.keys.newest is None:
        raise ConfigError(f"{SETTING} is not set", "set it to a key file, which `vidurai-pipeline new-key` makes")
    require_archive(archive.root)
    report = RekeyReport(archive.keys.newest, memories=None if dry_run else 0, dry_run=dry_run)
    waiting = _waiting(archive)
    archive.require_keys(waiting)
    total = sum(file.size for file in waiting)
    if dry_run:
        report.files, report.bytes = len(waiting), total
    most = PORTION_FILES
    while waiting and not dry_run:
        progress("encrypting bytes", report.bytes, max(total, report.bytes))
        with archive.lock("rekey", lock_timeout, make=False):
            began = time.monotonic()
            archive.sweep()
            # Anew: other runs may have had the archive since the last portion.
            portion = _portion([file for file in _waiting(archive) if file.relative not in report.left][:most])
            try:
                if portion:
                    done = rewrite_folder(archive, portion[0].folder, portion, rows_per_file=1, bytes_per_file=1)
                    report.files += done.files_before
                    report.bytes += done.bytes_before
                    report.memories = (report.memories or 0) + done.rows
                most = min(2 * most, PORTION_FILES)
            except ArchiveError as error:
                if _stops_all(archive, portion, error):
                    raise
                # Smaller portions find the damaged file, and leave it alone in its own.
                if len(portion) == 1:
                    report.left[portion[0].relative] = str(error)
                most = max(1, len(portion) // 2)
            report.longest_hold = max(report.longest_hold, round(time.monotonic() - began, 3))
        waiting = [file for file in _waiting(archive) if file.relative not in report.left]
        report.key = archive.keys.newest  # another one, if it was made meanwhile
    settled = {file.relative for file in list_settled(archive.root)}
    for file in list_files(archive.root):
        if file.key != report.key and file.relative not in report.left and not (dry_run and file in waiting):
            report.left[file.relative] = _ELSEWHERE if file.relative in settled else _PENDING
    report.keys_in_use = sorted({file.key for file in list_files(archive.root) if file.key is not None})
    return report


def _waiting(archive: Archive) -> list[ArchiveFile]:
    newest = archive.keys.newest
    return [file for file in list_settled(archive.root) if file.key != newest and file.partitioned and not file.linked]


def _stops_all(archive: Archive, portion: list[ArchiveFile], error: ArchiveError) -> bool:
    """Whether other files would fare no better: the disk is full, say, or the mirror is not there."""
    rewritten = any(not (archive.root / file.relative).exists() for file in portion)
    return rewritten or getattr(error.__cause__, "errno", None) not in {None, errno.EIO}


def _portion(waiting: list[ArchiveFile]) -> list[ArchiveFile]:
    """The first files of the first month, about as many as can be rewritten in a few seconds."""
    portion: list[ArchiveFile] = []
    size = 0
    for file in waiting:
        size += file.size
        if portion and (size > PORTION_BYTES or file.folder != portion[0].folder):
            break
        portion.append(file)
    return portion
