"""What the archive needs of the file system: durable writes, private folders, errors that say what to do."""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa

from vidurai_pipeline.errors import ArchiveError

T = TypeVar("T")

#: Called with what is being done, how much is done, and how much there is (0: not known).
Progress = Callable[[str, int, int], None]


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """For a caller who does not ask how far the work is."""


@contextlib.contextmanager
def archive_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system and of Arrow into an ``ArchiveError`` that names the path."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{path}: {_advice(error)}") from error
    except pa.ArrowException as error:
        raise ArchiveError(f"{path} can't be read or written as Parquet ({type(error).__name__})") from error


def _advice(error: OSError) -> str:
    # Arrow's own text may quote a value, so of errors without a number only the kind is told.
    text = os.strerror(error.errno) if error.errno else "damaged, or not a Parquet file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"{text}: free some space, or move the archive with VIDURAI_ARCHIVE, and run again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{text}: it must be writable for this user"
        case _:
            return text


def require_usable(path: Path, setting: str = "VIDURAI_ARCHIVE") -> None:
    """Refuse a path at which there can be no archive, although it may look like one that is not made yet.

    Raises:
        ArchiveError: it is not UTF-8, so that neither Arrow nor DuckDB could open a file there; or it is, or lies
            below, a link that leads nowhere, as to a disk that is not mounted.
    """
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise ArchiveError(
                f"{link} is a link to {link.readlink()}, which is not there", f"mount or restore it or set {setting}"
            )
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ArchiveError(
            f"{str(path)!r} is not valid UTF-8, and no Parquet file can be used there",
            f"rename the folder, or set {setting}",
        ) from None


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents for this user's eyes only, durably."""
    require_usable(folder)
    with archive_errors(folder):
        if folder.is_dir():
            return
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_folder(path.parent)
        if not folder.is_dir():
            raise ArchiveError(f"{folder} is not a folder", "move it away, or set VIDURAI_ARCHIVE")


def sync_file(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file


@contextlib.contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Write a file's new content, durably and for this user's eyes only, under a hidden name of its own beside it.

    Rename it over the old file within the context; what is not renamed is removed. A crash leaves at most a hidden
    file that ends with ``.part``.

    Raises:
        OSError: it can't be written; nothing is left of it.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            folder = path.parent.stat()
            if folder.st_uid != os.geteuid() == 0:  # a store's user uses the Q-table that root writes
                with contextlib.suppress(OSError):
                    os.fchown(descriptor, folder.st_uid, folder.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def durable_write(path: Path, data: bytes) -> None:
    """Make or replace a file in one atomic step that lasts: a reader finds the old content or all of the new.

    Raises:
        OSError: it can't be written; the old file is untouched.
    """
    with written_beside(path, data) as beside:
        beside.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Make or replace a record, durably and at once; its folder is made if it is not there."""
    make_folder(path.parent)
    with archive_errors(path):
        durable_write(path, json.dumps(value).encode())


def read_json(path: Path, make: Callable[[Any], T], what: str, hint: str = "move it away") -> T | None:
    """Read a record; None if it is not there.

    Args:
        path: where it is.
        make: makes of JSON's types what is wanted; an error of it means that the file is not what it should be.
        what: what it should be, as in ``is not a pending mark``.
        hint: what to do then.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(f"{path}: {_advice(error)}") from error
    try:
        return make(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ArchiveError(f"{path} is not {what}", hint) from None


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, so that it does not come back."""
    with archive_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def discard(path: Path) -> None:
    """Remove a file that no longer serves; a failure to do so must not hide why."""
    with contextlib.suppress(OSError):
        path.unlink()


def make_placeholder(path: Path, size: int, modified: int, fill: Callable[[BinaryIO], None] | None = None) -> None:
    """Put a file without content in the place of one that is in the object store alone.

    It has the size and time of the file, so that a listing shows what there is, and no one may read it.

    Args:
        path: its place.
        size: its size.
        modified: its time.
        fill: puts some of the content in its place. Then it may be read, and no one may write it: what is not there
            is no valid page of a Parquet file.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(size)
            if fill is not None:
                fill(file)
                file.flush()
            os.fchmod(descriptor, stat.S_IRUSR if fill else 0)
            os.utime(descriptor, ns=(modified, modified))
            Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


#: What brings the content of placeholders, by the folder that they are in.
fetchers: dict[Path, Callable[[Path], None]] = {}


def _fetcher(path: Path) -> Callable[[Path], None] | None:
    folders = path.absolute().parents if fetchers else ()
    return next((fetchers[folder] for folder in folders if folder in fetchers), None)


def is_placeholder(path: Path) -> bool:
    """Whether a file's content is in the object store alone, or all but some of it."""
    # Files of an archive in a folder can have the same permissions.
    return _fetcher(path) is not None and _mode(path) in {0, stat.S_IRUSR}


def has_parts(path: Path) -> bool:
    """Whether some of a placeholder's content is here."""
    return _mode(path) == stat.S_IRUSR


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def make_present(path: Path) -> None:
    """Bring a file's content from the object store, if that is where it is.

    Raises:
        FileNotFoundError: it is not there.
    """
    if (fetch := _fetcher(path)) and is_placeholder(path):
        fetch(path)


def free_bytes(folder: Path) -> int:
    """The free space, in bytes, where a folder is or will be."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(place).free
