"""Change several files of one folder of the archive in one step.

The folder's next contents are prepared in a work folder, on the same file system, and synced. Then the two folders
change places by one call of the operating system. Before it nothing has changed, after it everything has: whichever
folder has the place is the archive, and the other is waste. So a crash needs no record of what was going on.

The work folder stands beside the archive, so that a pattern such as ``archive/**/*.parquet`` never meets it. Where that
place is another file system, or not writable, it stands in the archive under a hidden name.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from vidurai_pipeline.cold.files import archive_errors, make_folder, sync_folder
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.manifest import FileEntry, Manifest
from vidurai_pipeline.errors import ArchiveError

_AT_FDCWD = -100
_RENAME_EXCHANGE = _RENAME_SWAP = 2
_STEM = re.compile(r"memories_\d{8}_\d{6}")
_WORK = re.compile(r"\.(?P<archive>.+)\.(?P<key>[0-9a-f]{8})\.next")


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places, in one step.

    Raises:
        OSError: the operating system or the file system can't do it (``EINVAL``, ``ENOSYS``, ``EXDEV``).
    """
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        failed = library.renamex_np(os.fsencode(one), os.fsencode(other), _RENAME_SWAP)
    else:
        failed = library.renameat2(
            _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
        )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def require_exchange(root: Path) -> None:
    """Make sure that files of an archive can be rewritten, before anything is done that leads to it.

    Raises:
        ArchiveError: its file system can't exchange two folders.
    """
    work = _work_folder(root, uuid.uuid4().hex[:8])
    try:
        with archive_errors(root):
            for name in ("one", "other"):
                (work / name).mkdir()
            exchange_folders(work / "one", work / "other", root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def exchange_folders(one: Path, other: Path, shown: Path) -> None:
    """Let two folders change places, in one step; an error names the folder that is shown.

    Raises:
        ArchiveError: the file system can't do it.
    """
    try:
        exchange(one, other)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}:
            raise
        raise ArchiveError(
            f"{shown}: this file system can't exchange two folders in one step, so archived files can't be "
            "rewritten on it",
            hint="move the archive to a local disk (ext4, XFS, Btrfs, APFS)",
        ) from None


class Generation:
    """The next contents of one folder; made by :func:`next_generation`.

    Attributes:
        live: the folder as readers see it.
        folder: the work folder, where the next contents are put.
        entries: what the new manifest records.
        folders: those that the new manifest names.
        replaced: the files that were ever left out, for the mirror.
    """

    def __init__(self, live: Path, folder: Path, key: str) -> None:
        self.live = live
        self.folder = folder
        before = Manifest.read(live)
        self.entries = before.entries
        self.folders = before.folders
        self.replaced = before.replaced
        self.generation = 1 + max((entry.generation for entry in self.entries.values()), default=0)
        self._key = key
        self._made = 0
        self._gone: set[str] = set()

    def new_path(self, source: str, suffix: str) -> Path:
        """The hidden place of a new file; its name is as old as that of the file that its first rows come from."""
        found = _STEM.match(source)
        self._made += 1
        return self.folder / f"{found.group() if found else 'memories'}_{self._key}_{self._made:03d}{suffix}"

    def add(self, path: Path, entry: FileEntry) -> None:
        """Take in a file that was written in the work folder, and read back."""
        self.entries[path.name] = entry

    def leave_out(self, name: str) -> None:
        """Let a file of the folder go."""
        self._gone.add(name)
        if entry := self.entries.pop(name, None):
            self.replaced[name] = entry.sha256

    def commit(self) -> None:
        """Put the next contents in the folder's place; all files that were not left out stay.

        Raises:
            ArchiveError: it can't be done; nothing has changed.
        """
        with archive_errors(self.live):
            for entry in list(os.scandir(self.live)):
                if entry.name not in self._gone and entry.name != MANIFEST:
                    if entry.is_dir(follow_symlinks=False):
                        raise ArchiveError(f"{entry.path} is a folder within a month of the archive: move it away")
                    os.link(entry.path, self.folder / entry.name, follow_symlinks=False)
            Manifest(self.folder, self.entries, self.folders, self.replaced).write()
            shutil.copymode(self.live, self.folder)
            sync_folder(self.folder)
            exchange_folders(self.folder, self.live, self.live)
            sync_folder(self.live.parent)


@contextlib.contextmanager
def next_generation(root: Path, folder: str) -> Iterator[Generation]:
    """Prepare the next contents of a folder; without a commit, nothing has changed. The archive must be locked.

    Raises:
        ArchiveError: the folder is reached through a link, or the disk is full or not writable.
    """
    live = root / folder
    if not folder or Path(os.path.realpath(live)) != Path(os.path.realpath(root)) / folder:
        raise ArchiveError(f"{live} is reached through a link: only a month's own folder can be rewritten")
    key = uuid.uuid4().hex[:8]
    work = _work_folder(root, key)
    try:
        place = work / folder
        make_folder(place)
        yield Generation(live, place, key)
    finally:
        with contextlib.suppress(OSError):
            _clear(work, root, key)


def sweep_generations(root: Path) -> None:
    """Remove what a run that died left of a rewriting; the archive must be locked."""
    with archive_errors(root):
        for parent in (Path(os.path.realpath(root)).parent, root):
            for path in parent.glob(".*.????????.next"):
                found = _WORK.fullmatch(path.name)
                if found and found["archive"] == Path(os.path.realpath(root)).name and path.is_dir():
                    _clear(path, root, found["key"])


def _work_folder(root: Path, key: str) -> Path:
    real = Path(os.path.realpath(root))
    name = f".{real.name}.{key}.next"
    with contextlib.suppress(OSError):
        if real.parent.stat().st_dev == real.stat().st_dev:
            (real.parent / name).mkdir(mode=0o700)
            return real.parent / name
    with archive_errors(root):
        (real / name).mkdir(mode=0o700)
    return real / name


def _clear(work: Path, root: Path, key: str) -> None:
    """Remove a work folder: contents that were never put in place, or those whose place was taken.

    What another program put into the folder in the last moment is moved back to it.
    """
    for folder, _, names in os.walk(work, topdown=False):
        here = Path(folder)
        live = root / here.relative_to(work)
        recorded = Manifest.read(here).entries
        # The manifest last: without it, a second try would not know which files are ours.
        for name in sorted(names, key=lambda name: name == MANIFEST):
            ours = name == MANIFEST or name in recorded or f"_{key}_" in name or name.endswith(".part")
            if not ours and not _same(here / name, live / name):
                # Fails where the name is taken by another file; then the work folder stays, for a person to look at.
                os.link(here / name, live / name, follow_symlinks=False)
                sync_folder(live)
            (here / name).unlink()
        here.rmdir()
    sync_folder(work.parent)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(one.lstat(), other.lstat())
    return False
