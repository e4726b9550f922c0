"""Move an archive without a store's name into the folder of a store, so that other stores can share its place.

The archive is readable at every instant, before, during and after, also if the move dies:

1. A new folder is made beside the archive, with nothing but a link ``store=NAME`` that leads back to itself.
2. It changes places with the archive. The link now leads to the archive, which stands beside its old place.
3. The archive changes places with the link.
"""

import json
import os
from pathlib import Path

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import archive_errors, durable_write, sync_folder
from vidurai_pipeline.cold.generation import exchange_folders
from vidurai_pipeline.cold.listing import store_roots
from vidurai_pipeline.cold.mirror import NOTE, read_note
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.settings import Settings, store_folder


def move_into_store(settings: Settings, name: str) -> Path:
    """Move the archive, and its mirror if it has one, into the folder of a store; goes on with a move that died.

    Args:
        settings: which archive.
        name: the store's.

    Returns:
        the archive's folder now.

    Raises:
        ArchiveError: there is no archive, or one of a store of this name; or it can't be moved, and stays as it is.
        LockedError: a run is at work.
    """
    if settings.store_name not in (None, name):
        raise ConfigError(
            f"VIDURAI_STORE_NAME is {settings.store_name!r}, not {name!r}", hint="unset it, or give that name"
        )
    if isinstance(settings.archive, str) or isinstance(settings.mirror, str):
        raise ConfigError(
            "an archive or a mirror in an object store can't be moved",
            hint=f"while nothing runs, move its objects below {store_folder(name)}/ with the cloud's tools, and delete "
            "the folder `cache` in Vidurai's folder on each machine",
        )
    root = settings.archive_root
    move = _Move(root, name)
    move.require("VIDURAI_ARCHIVE")
    with Archive(move.archive).lock("moving the archive", settings.lock_timeout):
        if settings.mirror is not None:
            _move_mirror(move.archive, settings.mirror, name)
        move.finish()
    return root / store_folder(name)


def _move_mirror(archive: Path, mirror: Path, name: str) -> None:
    """Move the mirror, unless that was done; then both sides note where it is."""
    move = _Move(mirror, name)
    note, moved, there = (read_note(folder / NOTE) for folder in (archive, move.target, move.archive))
    if note is None:  # there is no mirror yet
        return
    if move.began or moved is None or moved["id"] != note["id"]:
        if there is None or there["id"] != note["id"]:
            raise ArchiveError(
                f"VIDURAI_MIRROR={mirror} is not the mirror of {archive}",
                hint="mount its disk, or set VIDURAI_MIRROR to its folder; nothing was moved",
            )
        move.require("VIDURAI_MIRROR")
        move.finish()
    content = json.dumps(note | {"mirror": os.path.realpath(move.target)}).encode()
    for place in (move.target / NOTE, archive / NOTE):
        with archive_errors(place):
            durable_write(place, content)


class _Move:
    """One folder's way into that of a store.

    Attributes:
        target: where it is to be.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = Path(os.path.realpath(root))
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
