"""Which files the cold archive holds.

The listing is cheap (two milliseconds for a thousand files) and is made again for every query, so that a long-lived
analyst sees what last night added.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vidurai_pipeline.cold.files import require_usable
from vidurai_pipeline.errors import ArchiveError

_PARTITION = re.compile(r"year=\d{1,4}/month=\d{1,2}/[^/]+")
_GLOB = re.compile(r"[*?\[]")


class ArchiveFile(NamedTuple):
    """One Parquet file as the folder shows it; equal entries are the same file with the same content.

    Attributes:
        relative: its path within the archive.
        size: in bytes.
        modified: when its content changed, in nanoseconds since the epoch.
        changed: when anything about it changed, which no one can set back.
        inode: which file it is on its file system.
        linked: whether the name is that of a symbolic link.
    """

    relative: str
    size: int
    modified: int
    changed: int
    inode: int
    linked: bool = False

    @property
    def partitioned(self) -> bool:
        """Whether the file lies exactly where the layout puts it: ``year=YYYY/month=MM/``."""
        return _PARTITION.fullmatch(self.relative) is not None


def list_files(base: Path) -> tuple[ArchiveFile, ...]:
    """List the archive's Parquet files, hidden ones and hidden folders left out, in order of their paths.

    Raises:
        ArchiveError: the folder, or one below it, can't be listed; a file's name is one that DuckDB can't be given.
    """
    try:
        if not base.exists():
            require_usable(base)
            return ()
        files = sorted(_walk(base, base, frozenset()), key=lambda file: file.relative)
    except NotADirectoryError:
        raise ArchiveError(f"{base} is a file, not an archive's folder: set VIDURAI_ARCHIVE") from None
    except OSError as error:
        raise ArchiveError(f"{error.filename or base} can't be read: {error.strerror}") from None
    for file in files:
        if _GLOB.search(file.relative) or not file.relative.isprintable():
            raise ArchiveError(
                f"{str(base / file.relative)!r} has a name that can't be read safely: rename it without '*', '?', '[' "
                "and unprintable characters"
            )
    return tuple(files)


def _walk(folder: Path, base: Path, above: frozenset[tuple[int, int]]) -> Iterator[ArchiveFile]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link that leads back to a folder it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "lost+found":  # for root alone, on an archive's own disk
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), base, above | {here})
            elif entry.name.endswith(".parquet"):
                try:
                    found = entry.stat()
                except FileNotFoundError:  # withdrawn since the folder was read
                    if entry.is_symlink():
                        raise
                    continue
                if not stat.S_ISREG(found.st_mode):
                    raise ArchiveError(f"{entry.path} is not a file of the archive: move it away")
                relative = entry.path[len(str(base)) :].lstrip("/")
                yield ArchiveFile(
                    relative, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, entry.is_symlink()
                )


def linked_targets(base: Path, files: Sequence[ArchiveFile]) -> tuple[list[str], list[str]]:
    """Find where links within the archive lead out of it.

    Returns:
        folders that are read through a link, and files that are.
    """
    real_base = os.path.realpath(base)
    folders = {os.path.realpath(base / folder) for folder in {file.relative.rpartition("/")[0] for file in files}}
    paths = [os.path.realpath(base / file.relative) for file in files if file.linked]
    outside = [folder for folder in sorted(folders) if os.path.commonpath([folder, real_base]) != real_base]
    return outside, paths


def quote(text: str) -> str:
    """Make a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def file_list(root: str, files: Sequence[ArchiveFile]) -> str:
    """Make the SQL list of the files' full paths.

    One text to split is parsed and bound in half the time that thousands of texts take; no name has a line break.
    """
    names = f"string_split({quote(chr(10).join(file.relative for file in files))}, chr(10))"
    return f"list_transform({names}, lambda name: {quote(f'{root}/')} || name)"
