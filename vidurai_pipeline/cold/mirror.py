"""A second copy of the archive, on another disk.

The mirror is an archive too: the same folders, files, manifests and tombstones, without pending marks. A file is in it,
read back and held against its digest, before its memories leave the hot store. What the archive's manifests say was
replaced goes from the mirror after all that took its place is there; nothing else ever goes. So an archive that lost a
month, or a manifest, leaves its mirror whole.

Both sides hold the same note, ``.mirror.json``. A folder without it, as where a disk is not mounted, is not the mirror.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.contents import FileContents
from vidurai_pipeline.cold.files import Progress, archive_errors, durable_write, make_folder, no_progress, sync_folder
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import list_files, list_settled, require_archive
from vidurai_pipeline.cold.manifest import FileEntry, digest_file
from vidurai_pipeline.cold.pending import Pending
from vidurai_pipeline.cold.storage import ObjectStorage
from vidurai_pipeline.cold.working_copy import WorkingCopy
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import Settings, store_folder

NOTE = ".mirror.json"
#: For how many seconds files are copied before another run may have the archive.
HOLD = 2.0


class Mirror(Archive):
    """The mirror of an archive. It has no lock of its own: the archive's is meant for both.

    Args:
        root: the mirror's folder.
        archive: the archive.
    """

    def __init__(self, root: Path, archive: Archive) -> None:
        super().__init__(root, archive.compression, archive.keys)
        self.archive = archive

    @contextlib.contextmanager
    def lock(self, purpose: str, timeout: float = 0.0, *, make: bool = True) -> Iterator[None]:
        """Hold the archive; see :meth:`Archive.lock`."""
        with self.archive.lock(purpose, timeout, make=make):
            yield

    def sweep(self) -> int:
        """Remove what a killed run left half written; see :meth:`Archive.sweep`."""
        with self._usable():
            return super().sweep()

    # One pending file

    def copy(self, contents: FileContents, mark: Pending) -> None:
        """Have a file of the archive in the mirror, before its memories leave the hot store.

        Args:
            contents: the file as it was read, and found to be what was written.
            mark: its mark; another file that it allows may be replaced.
        """
        with self._usable():
            known = self.manifests.entry(mark.file)
            if known is None or not known.allows(contents.sha256) or not self._holds(mark.file, known):
                entry = contents.entry(store=mark.store)
                self.put(mark.file, contents.data, entry, replaces=mark.sha256)
                self.manifests.record(mark.file, entry)

    def withdraw(self, mark: Pending) -> None:
        """Let go of a pending file of which nothing is left in the archive, because all its memories are still hot."""
        with self._usable():
            self._remove({mark.file: mark.sha256})

    # What is settled

    def sync(self, folder: str, seconds: float = float("inf")) -> bool:
        """Bring one folder in line with the archive, which must be locked.

        New files are copied and compared first. When all are there, those that were replaced go.

        Args:
            folder: relative to the archive.
            seconds: stop after this time.

        Returns:
            whether nothing is left to do.
        """
        until = time.monotonic() + seconds
        with self._usable():
            self.sync_tombstones()
            manifest, copied, complete = self.archive.manifests.of(folder), dict[str, FileEntry | None](), True
            try:
                for relative, entry in self._lacking(folder):
                    if copied and time.monotonic() > until:
                        return False
                    contents = _read(self.archive, relative, entry)
                    if contents is None:
                        complete = False
                    else:
                        self.put(relative, contents.data, entry)
                        copied[relative] = entry
            finally:
                self.manifests.update(copied)
            if complete and not manifest.damaged:
                gone = {name: sha256 for name, sha256 in manifest.replaced.items() if name not in manifest.entries}
                self._remove({_below(folder, name): (sha256,) for name, sha256 in gone.items()})
        return True

    def sync_tombstones(self) -> list[str]:
        """Have the sound tombstones of either side on both; returns the files that were put in place."""
        made = []
        for source, target in ((self.archive, self), (self, self.archive)):
            sound = self._sound_tombstones(target)
            for name in self._sound_tombstones(source) - sound:
                path = target.tombstones.folder / name
                make_folder(path.parent)
                with archive_errors(path):
                    durable_write(path, (source.tombstones.folder / name).read_bytes())
                made.append(str(path))
            # What was added to a month's file stands in another one: one of them is enough.
            target.tombstones.sweep()
            target.push()
        return made

    @staticmethod
    def _sound_tombstones(side: Archive) -> set[str]:
        damaged = {flaw.file.rpartition("/")[2] for flaw in side.tombstones.damaged()}
        return {file.name for file in side.tombstones.files()} - damaged

    def catch_up(self, lock_timeout: float, progress: Progress = no_progress) -> None:
        """Bring everything in line, and let other runs have the archive in between.

        Args:
            lock_timeout: seconds to wait for another run.
            progress: told how many files were to be copied, and how many of them are there.

        Raises:
            ArchiveError: the mirror can't be used.
            LockedError: another run did not finish in time.
        """
        lacking = self.lacking()
        for folder in self.archive.manifests.folders(list_files(self.archive.root)):
            done = False
            while not done:
                with self.archive.lock("mirror", lock_timeout, make=False):
                    done = self.sync(folder, HOLD)
                progress("copying to the mirror", lacking - self.lacking(), lacking)

    def lacking(self) -> int:
        """How many files of the archive are not in the mirror yet, or not as the archive has them."""
        files, manifests = list_settled(self.archive.root), self.archive.manifests
        unrecorded = sum(manifests.entry(file.relative) is None for file in files)
        return unrecorded + sum(1 for folder in manifests.folders(files) for _ in self._lacking(folder))

    def refresh(self) -> None:
        """See what the mirror holds now, and refuse a place that is not this archive's mirror; see :meth:`require`."""
        if self.working_copy is not None:
            self.working_copy.pull()
        self.require()

    def require(self) -> None:
        """Refuse a folder that is not this archive's mirror; make the mirror at the first use.

        Raises:
            ArchiveError: it is another archive, holds other files, or its disk is not mounted.
        """
        require_archive(self.root, "VIDURAI_MIRROR")
        note = self._archive_note()
        here = self.place if self.working_copy else os.path.realpath(self.root)
        known, found = read_note(note), read_note(self.root / NOTE)
        if found is not None and known is not None and found["id"] == known["id"]:
            return
        if found is None and known is not None and known["mirror"] == here:
            raise ArchiveError(
                f"VIDURAI_MIRROR={self.place}: the archive's mirror is not there",
                hint=f"mount its disk; if it is gone for good, delete {note}, and a new one is made",
            )
        if list_files(self.root):
            raise ArchiveError(
                f"VIDURAI_MIRROR={self.place} holds an archive that is not the mirror of {self.archive.root}",
                hint="set VIDURAI_MIRROR to an empty folder, or to one that is not there yet",
            )
        make_folder(self.root)
        content = json.dumps({"id": uuid.uuid4().hex, "mirror": here}).encode()
        for place in (self.root / NOTE, note):
            with archive_errors(place):
                durable_write(place, content)

    def _archive_note(self) -> Path:
        shared = self.archive.working_copy
        own = None if shared is None or self.working_copy is not None else shared.machine
        return self.archive.root / note_name(own)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Within: the mirror is there, and what the file system refuses is told in one line."""
        try:
            self.refresh()
            yield
            if self.working_copy is not None:
                self.push()
                self.working_copy.evict(0)
        except ArchiveError as error:
            if not isinstance(error.__cause__, OSError) or str(self.root) not in str(error):
                raise
            raise ArchiveError(
                f"the mirror {self.root} can't be used: {os.strerror(error.__cause__.errno or 0)}",
                hint="mount its disk or free some space, and run again; until then nothing more is purged",
            ) from error

    def _lacking(self, folder: str) -> Iterator[tuple[str, FileEntry]]:
        """The recorded files of a folder that are not in the mirror as the archive has them."""
        for name, entry in self.archive.manifests.of(folder).entries.items():
            if not self._holds(_below(folder, name), entry):
                yield _below(folder, name), entry

    def _holds(self, relative: str, entry: FileEntry) -> bool:
        """Whether the mirror recorded this file, and its size says nothing else."""
        own = self.manifests.entry(relative)
        try:
            return own is not None and own.sha256 == entry.sha256 and (self.root / relative).stat().st_size == own.bytes
        except OSError:
            return False

    def _remove(self, files: dict[str, tuple[str, ...]]) -> None:
        """Remove files, given the digests that they may have."""
        gone, recorded = [], dict[str, FileEntry | None]()
        for relative, allowed in files.items():
            path, entry = self.root / relative, self.manifests.entry(relative)
            with archive_errors(path), contextlib.suppress(FileNotFoundError):
                if (entry.sha256 if entry else digest_file(path)[0]) in allowed:
                    path.unlink(missing_ok=True)
                    sync_folder(path.parent)
                    gone.append(relative)
                    if entry:
                        recorded[relative] = None
        self.manifests.update(recorded)
        if self.working_copy is not None:
            self.push()
            self.working_copy.remove(gone)


def open_archive(settings: Settings, root: Path | None = None) -> Archive:
    """The archive as the settings have it, with its mirror if there is one.

    Args:
        settings: the settings.
        root: another folder than that of the settings.
    """
    if settings.archive_address is not None and root in (None, settings.archive_path):
        copy = WorkingCopy.open(settings.archive_path, settings.archive_address, settings.machine_path)
        copy.most_bytes = settings.cache_size
        copy.pull()
    archive = Archive(root or settings.archive_path, settings.compression, KeyRing(settings.archive_key_file))
    mirror = settings.mirror_path
    if mirror is not None and settings.mirror_address is not None:
        WorkingCopy.open(mirror, settings.mirror_address, settings.machine_path)
    if mirror is not None:
        archive.mirror = Mirror(mirror, archive)
    return archive


def open_root(settings: Settings) -> Path:
    """The folder of the archive, or of the archives of all stores, as their bucket has them now."""
    if isinstance(settings.archive, str):
        if settings.store_name is None:
            open_archive(settings)
        for name in ObjectStorage(settings.archive).folders():
            if name.startswith(store_folder("")):
                address = f"{settings.archive}/{name}"
                copy = WorkingCopy.open(settings.archive_root / name, address, settings.machine_path)
                copy.most_bytes = settings.cache_size
                copy.pull()
    return settings.archive_root


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read(archive: Archive, relative: str, entry: FileEntry) -> FileContents | None:
    """A file, if it is what is recorded of it."""
    with contextlib.suppress(ArchiveError):
        contents = archive.contents(archive.root / relative)
        if entry.allows(contents.sha256):
            return contents
    return None


def note_name(machine: str | None) -> str:
    """What an archive's note is called; of machines that share an archive, each may have a mirror in a folder."""
    return NOTE if machine is None else f".mirror.{machine}.json"


def read_note(path: Path) -> dict[str, str] | None:
    """Read the note that an archive and its mirror share; None if there is none.

    Raises:
        ArchiveError: it is damaged, or can't be read.
    """
    with archive_errors(path):
        return parse_note(path.read_bytes(), path) if path.exists() else None


def parse_note(data: bytes, path: object) -> dict[str, str]:
    """What a note says.

    Raises:
        ArchiveError: it is damaged.
    """
    try:
        found = json.loads(data)
        return {"id": str(found["id"]), "mirror": str(found["mirror"])}
    except (ValueError, TypeError, KeyError):
        raise ArchiveError(
            f"{path} is damaged", hint="copy it from the other side: the archive and its mirror hold the same note"
        ) from None
