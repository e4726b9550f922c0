"""Read the archive's files again and hold them against what was recorded when they were verified."""

import contextlib
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, archive_errors, no_progress
from vidurai_pipeline.cold.listing import REQUIRED, ArchiveFile, list_files, list_settled, require_archive
from vidurai_pipeline.cold.manifest import FileEntry, Flaw, age_in_days
from vidurai_pipeline.errors import ArchiveError, LockedError, MissingKeyError, PipelineError

#: What to do about files that are damaged or missing.
ADVICE = (
    "With a mirror, `vidurai-pipeline scrub --repair` heals them. Otherwise restore them from a backup. Without one, "
    "`vidurai-pipeline salvage` saves what can be read; move damaged files out of the archive, then run "
    "`vidurai-pipeline scrub --forget`"
)
#: What was found is written down this often, so that a scrub that is killed loses little.
RECORD_SECONDS = 60.0


@dataclass
class ScrubReport:
    """What a scrub found.

    Attributes:
        files: files that were read.
        bytes: their size.
        intact: how many of them are what was recorded.
        damaged: files, or manifests, that are not.
        missing: files and folders that are recorded and gone.
        unknown: files that still have no record.
        adopted: files without a record that were read, found sound, and are recorded from now on.
        forgotten: missing files whose record was removed, as asked.
        healed: files, of the archive or of its mirror, that were replaced by their copy on the other side.
        mirror: what was found in the mirror; None without one.
        oldest_proof: when the file whose proof is the oldest was last read, in UTC; None where no file is recorded.
    """

    files: int = 0
    bytes: int = 0
    intact: int = 0
    damaged: list[Flaw] = field(default_factory=list)
    missing: list[Flaw] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)
    mirror: "ScrubReport | None" = None
    oldest_proof: str | None = None

    @property
    def oldest_proof_days(self) -> float | None:
        """How old the oldest proof is, in days."""
        return None if self.oldest_proof is None else age_in_days(self.oldest_proof)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or missing, here and in the mirror."""
        return not self.flaws

    @property
    def flaws(self) -> list[Flaw]:
        """What is damaged or missing, here and in the mirror."""
        return [*self.damaged, *self.missing, *(self.mirror.flaws if self.mirror else ())]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        flaws = {name: [flaw._asdict() for flaw in getattr(self, name)] for name in ("damaged", "missing")}
        return {**asdict(self), **flaws, "mirror": self.mirror.to_dict() if self.mirror else None}


def scrub(
    archive: Archive,
    *,
    days: int | None = None,
    forget_missing: bool = False,
    lock_timeout: float = 0.0,
    progress: Progress = no_progress,
) -> ScrubReport:
    """Read files whose memories have left the hot store, and compare them with the manifest.

    Files are read without the archive's lock, so a flush does not wait; it is taken to write down what was found.

    Args:
        archive: the archive.
        days: read a share, such that every file is read once in this many days if it is done daily; by default all.
        forget_missing: remove the records of files that are gone.
        lock_timeout: seconds to wait for another run before what was found is recorded.
        progress: told how far it is.

    Raises:
        ArchiveError: the archive can't be read; or nothing is damaged, but that can't be recorded.
        LockedError: nothing is damaged, but another run did not finish in time to record that.
    """
    if archive.working_copy is not None:
        archive.working_copy.pull()
    require_archive(archive.root)
    report = ScrubReport()
    listed = list_settled(archive.root)
    recorded = {file: archive.manifests.entry(file.relative) for file in listed}
    due = _due(recorded, days)
    # Now too: a manifest that is gone is made anew below.
    gone = archive.manifests.missing(list_files(archive.root))
    report.damaged += [*archive.manifests.damaged(listed), *archive.tombstones.damaged()]
    total, found = sum(file.size for file in due), dict[str, FileEntry]()
    written_down = time.monotonic()
    for file in due:
        if time.monotonic() - written_down > RECORD_SECONDS:
            with contextlib.suppress(LockedError):
                _record(archive, found, 0.0)
                found.clear()
            written_down = time.monotonic()
        progress("proving bytes", report.bytes, total)
        try:
            entry = _proved(archive, file, recorded[file], report)
        except FileNotFoundError:  # withdrawn since it was listed
            continue
        report.files += 1
        report.bytes += file.size
        if entry is not None:
            found[file.relative] = entry
    unrecorded: PipelineError | None = None
    if found:
        try:
            _record(archive, found, lock_timeout)
        except (ArchiveError, LockedError) as error:  # which must not hide what is damaged
            unrecorded = error
            report.adopted.clear()
    if forget_missing:
        report.forgotten = _forget_missing(archive, lock_timeout)
    gone = dict.fromkeys([*gone, *archive.manifests.missing(list_files(archive.root))])
    report.missing = [flaw for flaw in gone if flaw.file not in report.forgotten]
    proofs = archive.manifests.proofs(list_settled(archive.root))
    report.oldest_proof, report.unknown = proofs.oldest, proofs.unknown
    if unrecorded is not None and report.sound:
        raise unrecorded
    return report


def _due(recorded: dict[ArchiveFile, FileEntry | None], days: int | None) -> list[ArchiveFile]:
    """What is to be read: all; or what changed or has no record, what is overdue, and a day's share of the rest."""
    if days is None:
        return list(recorded)
    overdue = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    share = sum(file.size for file in recorded) / days
    due: list[ArchiveFile] = []
    for file, entry in sorted(recorded.items(), key=lambda item: item[1].proved if item[1] else ""):
        if entry is None or not entry.same_file(file) or entry.proved < overdue:
            due.append(file)
        elif share > 0:
            due.append(file)
            share -= file.size
    return due


def _proved(archive: Archive, file: ArchiveFile, entry: FileEntry | None, report: ScrubReport) -> FileEntry | None:
    """Read one file; what is to be recorded of it, or None if it is damaged."""
    path = archive.root / file.relative
    if entry is None:
        return _adopted(archive, path, file, report)
    try:
        sha256, size, modified = archive.digest(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        report.damaged.append(Flaw(file.relative, f"it can't be read: {error.strerror}", entry.rows))
        return None
    if not entry.allows(sha256):
        report.damaged.append(Flaw(file.relative, entry.difference(size), entry.rows))
        return None
    report.intact += 1
    return entry.proved_now(modified)


def _adopted(archive: Archive, path: Path, file: ArchiveFile, report: ScrubReport) -> FileEntry | None:
    """Read a file that nothing is recorded of, in full; whatever it holds is what it will be held against."""
    try:
        contents = archive.contents(path)
        with archive_errors(path), contents.parquet() as parquet:
            if missing := REQUIRED - set(parquet.schema_arrow.names):
                report.damaged.append(Flaw(file.relative, f"it has no column {', '.join(sorted(missing))}", None))
                return None
            for _ in contents.batches():
                pass
        with contextlib.suppress(ArchiveError):  # of the tombstones, which are looked at on their own
            if True in archive.tombstones.stand_for(archive.columns(file, ("id", "created_at"))).to_pylist():
                # It came back, as with a backup. The next flush takes erased memories out of unrecorded files.
                return None
        entry = contents.entry(origin="adopted")
    except MissingKeyError as error:
        report.damaged.append(Flaw(file.relative, f"it can't be read: {error}", None))
        return None
    except ArchiveError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        what = "it can't be read as Parquet" if isinstance(error.__cause__, pa.ArrowException) else "it can't be read"
        report.damaged.append(Flaw(file.relative, what, None))
        return None
    report.adopted.append(file.relative)
    return entry


def _record(archive: Archive, found: dict[str, FileEntry], lock_timeout: float) -> None:
    with archive.lock("scrub", lock_timeout, make=False):
        current: dict[str, FileEntry | None] = {}
        for relative, entry in found.items():
            known = archive.manifests.entry(relative)
            # Another run may have rewritten the file, or removed it, while it was read.
            if (archive.root / relative).exists() and (known is None or known.sha256 == entry.sha256):
                current[relative] = entry
        archive.manifests.update(current)
        archive.push()


def _forget_missing(archive: Archive, lock_timeout: float) -> list[str]:
    with archive.lock("scrub", lock_timeout, make=False):
        gone = [flaw.file for flaw in archive.manifests.missing(list_files(archive.root))]
        files = [name for name in gone if name.endswith(".parquet")]
        archive.manifests.update(dict.fromkeys(files))
        for folder in set(gone) - set(files):
            archive.manifests.forget_folder(folder)
    return gone
