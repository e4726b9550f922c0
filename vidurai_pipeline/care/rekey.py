"""Encrypt archived files with the newest key: those that are plain, or under an older key."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import SETTING
from vidurai_pipeline.cold.listing import ArchiveFile, list_files, list_settled, require_archive
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.errors import ConfigError

#: The archive is given to other runs after each portion of at most this size, unless a single file is larger.
PORTION_BYTES = 64 * 1024 * 1024
PORTION_FILES = 200
_PENDING = "its memories have not left the hot store: run `vidurai-pipeline flush`"
_ELSEWHERE = "it does not lie in a month's own folder: move it there, or out of the archive"

#: Called with what is being done, the bytes that were rewritten, and how many there are to rewrite.
Progress = Callable[[str, int, int], None]


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
        dry_run: whether nothing was changed.
    """

    key: str
    files: int = 0
    memories: int | None = None
    bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)
    keys_in_use: list[str] = field(default_factory=list)
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        left = [{"file": file, "reason": reason} for file, reason in self.left.items()]
        return {**asdict(self), "left": left}


def rekey(
    archive: Archive, *, dry_run: bool = False, lock_timeout: float = 0.0, progress: Progress | None = None
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
        MissingKeyError: a file's key is not there.
        VerificationError: a file is damaged; what was done before stays done.
        ArchiveError: a file can't be read or written.
        LockedError: another run did not finish in time.
    """
    if archive.keys.newest is None:
        raise ConfigError(f"{SETTING} is not set", "set it to a key file, which `vidurai-pipeline new-key` makes")
    require_archive(archive.root)
    report = RekeyReport(archive.keys.newest, memories=None if dry_run else 0, dry_run=dry_run)
    waiting = _waiting(archive)
    total = sum(file.size for file in waiting)
    if dry_run:
        report.files, report.bytes = len(waiting), total
    while waiting and not dry_run:
        if progress is not None:
            progress("encrypting bytes", report.bytes, max(total, report.bytes))
        with archive.lock("rekey", lock_timeout, make=False):
            archive.sweep()
            # Anew: other runs may have had the archive since the last portion.
            if portion := _portion(_waiting(archive)):
                folder = portion[0].relative.rpartition("/")[0]
                done = rewrite_folder(archive, folder, portion, rows_per_file=1, bytes_per_file=1)
                report.files += done.files_before
                report.bytes += done.bytes_before
                report.memories = (report.memories or 0) + done.rows
        waiting = _waiting(archive)
        report.key = archive.keys.newest  # another one, if it was made meanwhile
    settled = {file.relative for file in list_settled(archive.root)}
    for file in list_files(archive.root):
        if file.key != report.key and not (dry_run and file in waiting):
            report.left[file.relative] = _ELSEWHERE if file.relative in settled else _PENDING
    report.keys_in_use = sorted({file.key for file in list_files(archive.root) if file.key is not None})
    return report


def _waiting(archive: Archive) -> list[ArchiveFile]:
    newest = archive.keys.newest
    return [file for file in list_settled(archive.root) if file.key != newest and file.partitioned and not file.linked]


def _portion(waiting: list[ArchiveFile]) -> list[ArchiveFile]:
    """The first files of the first month, about as many as can be rewritten in a few seconds."""
    portion: list[ArchiveFile] = []
    size = 0
    for file in waiting[:PORTION_FILES]:
        size += file.size
        if portion and (
            size > PORTION_BYTES or file.relative.rpartition("/")[0] != portion[0].relative.rpartition("/")[0]
        ):
            break
        portion.append(file)
    return portion
