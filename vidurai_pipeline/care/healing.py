"""Prove the archive and its mirror, and heal the damaged one from the other.

A file is put in its place in one step, after its copy was held against the recorded digest; what was there is kept as
``*.damaged``. A file that is damaged on both sides is named, and neither side is touched.
"""

from vidurai_pipeline.care.scrub import ScrubReport, scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, make_folder, no_progress
from vidurai_pipeline.cold.listing import list_files, list_settled
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.manifest import FileEntry, Flaw, Manifest
from vidurai_pipeline.cold.tombstones import FOLDER as TOMBSTONES
from vidurai_pipeline.errors import ArchiveError


def prove(
    archive: Archive,
    *,
    days: int | None = None,
    repair: bool = False,
    forget_missing: bool = False,
    lock_timeout: float = 0.0,
    progress: Progress = no_progress,
) -> ScrubReport:
    """Scrub the archive, and its mirror if it has one; see :func:`scrub`.

    Args:
        archive: the archive.
        days: read a share of both, as :func:`scrub` does.
        repair: heal each side from the other, and copy to the mirror what is not there yet.
        forget_missing: remove the records of the archive's files that are gone.
        lock_timeout: seconds to wait for another run.
        progress: told how far it is.

    Raises:
        ArchiveError: the archive can't be read.
        LockedError: another run did not finish in time.
    """
    mirror, unusable, healed = archive.mirror, None, list[str]()
    if mirror is not None:
        try:
            mirror.refresh()
            if repair:
                for side, other in ((archive, mirror), (mirror, archive)):
                    healed += _restore_manifests(side, other, lock_timeout)
                with archive.lock("scrub", lock_timeout, make=False):
                    healed += mirror.sync_tombstones()
        except ArchiveError as error:
            unusable = Flaw(str(mirror.root), str(error), None)
    report = scrub(archive, days=days, forget_missing=forget_missing, lock_timeout=lock_timeout, progress=progress)
    report.healed += healed
    if mirror is None:
        return report
    report.mirror = ScrubReport()
    if unusable is None:
        try:
            report.mirror = scrub(mirror, days=days, lock_timeout=lock_timeout, progress=progress)
            if repair:
                for side, found, other in ((archive, report, mirror), (mirror, report.mirror, archive)):
                    for flaws in (found.damaged, found.missing):
                        flaws[:] = [left for flaw in flaws if (left := _heal(side, other, flaw, report, lock_timeout))]
                mirror.catch_up(lock_timeout, progress)
        except ArchiveError as error:  # which must not hide what was found in the archive
            unusable = Flaw(str(mirror.root), str(error), None)
    for flaws in (report.mirror.damaged, report.mirror.missing):
        flaws[:] = [flaw._replace(file=str(mirror.root / flaw.file)) for flaw in flaws]
    if unusable is not None:
        report.mirror.damaged.append(unusable)
    return report


def _heal(side: Archive, other: Archive, flaw: Flaw, report: ScrubReport, lock_timeout: float) -> Flaw | None:
    """Replace one file by its copy on the other side; what is left to say of it, or None if all is well now."""
    folder, _, name = flaw.file.rpartition("/")
    if not name.endswith(".parquet"):
        # Manifests and tombstones were seen to, or manifests are written anew with the files.
        return flaw if folder == TOMBSTONES or side.manifests.of(folder).damaged else None
    with side.lock("scrub", lock_timeout, make=False):
        entry = side.manifests.entry(flaw.file) or other.manifests.entry(flaw.file)
        if entry is None or name in side.manifests.of(folder).replaced:  # compacted in the meantime, perhaps
            return flaw if (side.root / flaw.file).exists() else None
        try:
            contents = other.contents(other.root / flaw.file)
        except ArchiveError:
            contents = None
        if contents is None or not entry.allows(contents.sha256):
            return flaw._replace(reason=f"{flaw.reason}; the other copy, {other.root / flaw.file}, is no better")
        try:
            side.put(flaw.file, contents.data, entry)
            side.manifests.record(flaw.file, entry.proved_now(entry.modified))
            side.push()
        except ArchiveError as error:
            return flaw._replace(reason=f"{flaw.reason}; it could not be replaced by the other copy: {error}")
    report.healed.append(str(side.root / flaw.file))
    return None


def _restore_manifests(side: Archive, other: Archive, lock_timeout: float) -> list[str]:
    """Bring back one side's manifests that are damaged or gone, before anything is adopted without them."""
    healed = []
    for folder in {*other.manifests.folders(list_files(other.root)), *side.manifests.folders([])}:
        copy, path = other.manifests.of(folder), side.root / folder / MANIFEST
        if copy.damaged or not (copy.entries or copy.folders):
            continue
        with side.lock("scrub", lock_timeout):
            damaged = side.manifests.of(folder).damaged
            if damaged is None and path.exists():
                continue
            names = {file.name for file in list_settled(side.root) if file.folder == folder}
            entries: dict[str, FileEntry] = copy.entries
            if names - entries.keys():
                # The other side is behind: what is gone here may have been replaced by what only this side has.
                entries = {name: entry for name, entry in entries.items() if name in names}
            make_folder(path.parent)
            Manifest(path.parent, entries, copy.folders, copy.replaced, damaged).write()
            side.push()
            healed.append(str(path))
    return healed
