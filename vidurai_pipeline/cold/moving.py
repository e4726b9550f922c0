"""Move an archive without a store's name into the folder of a store, so that other stores can share its place.

A folder is readable at every instant, before, during and after, also if the move dies:

1. A new folder is made beside the archive, with nothing but a link ``store=NAME`` that leads back to itself.
2. It changes places with the archive. The link now leads to the archive, which stands beside its old place.
3. The archive changes places with the link.

In an object store, each object is copied, read back and found equal. When all are there, the old ones are deleted.
While that goes on, an object ``.moving`` in the new place keeps runs and questions away.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import archive_errors, durable_write, sync_folder
from vidurai_pipeline.cold.generation import exchange_folders
from vidurai_pipeline.cold.listing import store_roots
from vidurai_pipeline.cold.mirror import NOTE, note_name, parse_note, read_note
from vidurai_pipeline.cold.storage import ObjectStorage
from vidurai_pipeline.cold.working_copy import MOVING, WorkingCopy, belongs_to_archive
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.settings import Settings, store_folder


def move_into_store(settings: Settings, name: str) -> str:
    """Move the archive, and its mirror if it has one, into the folder of a store; goes on with a move that died.

    Args:
        settings: which archive.
        name: the store's.

    Returns:
        where the archive is now: its folder, or its address.

    Raises:
        ArchiveError: there is no archive, or one of a store of this name; or it can't be moved, and stays as it is.
        LockedError: a run is at work.
    """
    if settings.store_name not in (None, name):
        raise ConfigError(
            f"VIDURAI_STORE_NAME is {settings.store_name!r}, not {name!r}", hint="unset it, or give that name"
        )
    move = _move_of(settings.archive or settings.archive_root, name, settings)
    move.require("VIDURAI_ARCHIVE")
    with move.hold(settings.lock_timeout):
        if settings.mirror is not None:
            _move_mirror(move, _move_of(settings.mirror, name, settings))
        move.finish()
    return move.place if isinstance(move, _ObjectMove) else str(settings.archive_root / store_folder(name))


def _move_of(place: Path | str, name: str, settings: Settings) -> "_Move | _ObjectMove":
    if isinstance(place, Path):
        return _Move(place, name)
    return _ObjectMove(WorkingCopy.open(settings.working_copy(place), place, settings.machine_path), name)


def _move_mirror(archive: "_Move | _ObjectMove", mirror: "_Move | _ObjectMove") -> None:
    """Move the mirror, unless that was done; then both sides note where it is."""
    shared = archive.copy.machine if isinstance(archive, _ObjectMove) and isinstance(mirror, _Move) else None
    name = note_name(shared)
    note, moved, there = archive.read_note(name), mirror.read_note(NOTE, moved=True), mirror.read_note(NOTE)
    if note is None:  # there is no mirror yet
        return
    if mirror.began or moved is None or moved["id"] != note["id"]:
        if there is None or there["id"] != note["id"]:
            raise ArchiveError(
                f"VIDURAI_MIRROR={mirror.shown} is not the mirror of {archive.shown}",
                hint="mount its disk, or set VIDURAI_MIRROR to its folder; nothing was moved",
            )
        mirror.require("VIDURAI_MIRROR")
        mirror.finish()
    content = json.dumps(note | {"mirror": mirror.place}).encode()
    mirror.write_note(NOTE, content, moved=True)
    archive.write_note(name, content)


class _ObjectMove:
    """The way of an archive in an object store below the prefix of a store.

    Attributes:
        copy: this machine's working copy.
        shown: where the archive was.
        place: where it is to be.
    """

    def __init__(self, copy: WorkingCopy, name: str) -> None:
        self.copy, self._name, self.shown = copy, store_folder(name), copy.storage.url
        self.place = f"{self.shown}/{self._name}"
        self._source, self._target = copy.storage, ObjectStorage(self.place)

    @property
    def began(self) -> bool:
        """Whether some objects are in the new place, and not all is done."""
        return MOVING in self._target.objects()

    def _left(self) -> list[str]:
        return [key for key in self._source.objects() if belongs_to_archive(key)]

    def require(self, setting: str) -> None:
        """Refuse what can't be moved."""
        there, left = self._target.objects(), self._left()
        if there and left and MOVING not in there:
            raise ArchiveError(f"{self.place} is there already", hint="give this store another name")
        if others := [name for name in self._source.folders() if name.startswith("store=") and name != self._name]:
            raise ArchiveError(
                f"{setting}={self.shown} holds the archives of several stores, such as {others[0]}",
                hint="each of them has its own prefix already",
            )
        if not there and not left:
            raise ArchiveError(f"{setting}={self.shown}: there is no archive yet", hint="set VIDURAI_STORE_NAME alone")

    def hold(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Keep runs away, of this machine and others."""
        return self.copy.moving(timeout)

    def read_note(self, name: str, *, moved: bool = False) -> dict[str, str] | None:
        """A note on the mirror, in the old place or the new one."""
        storage = self._target if moved else self._source
        with contextlib.suppress(FileNotFoundError):
            return parse_note(storage.read(name)[0], f"{storage.url}/{name}")
        return None

    def write_note(self, name: str, content: bytes, *, moved: bool = False) -> None:
        """Replace a note."""
        storage = self._target if moved else self._source
        storage.write(name, content, storage.read(name)[1].etag)

    def finish(self) -> None:
        """Do what is left to do."""
        if left := self._left():
            if not self.began:
                self._target.write(MOVING, b"1")
            for key in left:
                self._target.write(key, self._source.read(key)[0])
            # The files first: an archive whose manifests are gone would look smaller than it is.
            self._source.delete(sorted(left, key=lambda key: not key.endswith(".parquet")))
        self._target.delete([MOVING])


class _Move:
    """One folder's way into that of a store.

    Attributes:
        target: where it is to be.
        shown: where it was, as the settings have it.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.shown, self._root = root, Path(os.path.realpath(root))
        self._name = store_folder(name)
        self._beside = self._root.with_name(f".{self._root.name}.{self._name}.moving")
        self.target = self._root / self._name

    @property
    def began(self) -> bool:
        """Whether the folder stands beside its old place, and the link leads to it."""
        return self.target.is_symlink() and self._beside.is_dir() and self.target.samefile(self._beside)

    @property
    def _ended(self) -> bool:
        """Whether only the link is left, beside the old place."""
        return self._beside.is_symlink() and self.target.is_dir() and not self.target.is_symlink()

    @property
    def archive(self) -> Path:
        """Where the archive is now."""
        return self._beside if self.began else self.target if self._ended else self._root

    @property
    def place(self) -> str:
        """Where it is to be, as notes on mirrors have it."""
        return os.path.realpath(self.target)

    @contextlib.contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Keep runs away."""
        with Archive(self.archive).lock("moving the archive", timeout):
            yield

    def read_note(self, name: str, *, moved: bool = False) -> dict[str, str] | None:
        """A note on the mirror, in the old place or the new one."""
        return read_note((self.target if moved else self.archive) / name)

    def write_note(self, name: str, content: bytes, *, moved: bool = False) -> None:
        """Replace a note."""
        path = (self.target if moved else self.archive) / name
        with archive_errors(path):
            durable_write(path, content)

    def require(self, setting: str) -> None:
        """Refuse what can't be moved."""
        if self.began or self._ended:
            return
        if os.path.lexists(self.target):
            raise ArchiveError(f"{self.target} is there already", hint="give this store another name")
        if stores := store_roots(self._root):
            raise ArchiveError(
                f"{setting}={self._root} holds the archives of several stores, such as {next(iter(stores))}",
                hint="each of them has its own folder already",
            )
        if not self._root.is_dir():
            raise ArchiveError(f"{setting}={self._root}: there is no archive yet", hint="set VIDURAI_STORE_NAME alone")
        if self._root.is_mount():
            raise ArchiveError(
                f"{setting}={self._root} is a mount point, which can't be renamed",
                hint=f"stop all runs and queries, make the folder {self._name} in it, and move all else into that",
            )

    def finish(self) -> None:
        """Do what is left to do."""
        with archive_errors(self._root):
            if not (self.began or self._ended):
                if self._beside.is_dir():  # never put in place: it holds a link alone, or the removal fails
                    (self._beside / self._name).unlink(missing_ok=True)
                    self._beside.rmdir()
                self._beside.mkdir(mode=0o700)
                (self._beside / self._name).symlink_to(Path("..", self._beside.name), target_is_directory=True)
                sync_folder(self._beside)
                exchange_folders(self._beside, self._root, self._root)
                sync_folder(self._root.parent)
            if self.began:
                exchange_folders(self._beside, self.target, self._root)
                sync_folder(self._root)
            self._beside.unlink()
            sync_folder(self._root.parent)
