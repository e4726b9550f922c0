"""Which files the cold archive holds.

The listing is cheap (two milliseconds for a thousand files) and is made again for every query, so that a long-lived
analyst sees what last night added.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa

from vidurai_pipeline.cold.files import fetchers, is_placeholder, make_present, require_usable
from vidurai_pipeline.cold.keys import KeyRing, key_of
from vidurai_pipeline.cold.pending import PendingMarks
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import STORE_NAME, store_folder

#: The hidden folder of an archive's search index.
INDEX = ".index"
#: What each file of an archive has: files without these columns are of other programs.
REQUIRED = frozenset({"id", "verbatim", "created_at"})
#: The columns that say of each row of encrypted files where it lies: the file's path as DuckDB sees it, month, store.
FILE, YEAR, MONTH, STORE = "_file", "_year", "_month", "_store"
_OF_STORE = re.compile(rf"store=({STORE_NAME.pattern})")
_PARTITION = re.compile(rf"({_OF_STORE.pattern}/)?year=\d{{1,4}}/month=\d{{1,2}}/[^/]+")
_MONTH = re.compile(r"year=(\d+)/month=(\d+)/")
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
    def name(self) -> str:
        """Its name without its folders."""
        return self.relative.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder that it is in, within the archive."""
        return self.relative.rpartition("/")[0]

    @property
    def stem(self) -> str:
        """Its name up to the first point."""
        return self.name.partition(".")[0]

    @property
    def key(self) -> str | None:
        """The id of the key that it is encrypted with; None for a plain file."""
        return key_of(self.name)

    @property
    def partitioned(self) -> bool:
        """Whether the file lies exactly where the layout puts it: ``year=YYYY/month=MM/``, perhaps of a store."""
        return _PARTITION.fullmatch(self.relative) is not None

    @property
    def month(self) -> tuple[int, int] | None:
        """The year and the month whose folder it lies in, if it lies in one."""
        found = _MONTH.search(self.relative) if self.partitioned else None
        return found and (int(found[1]), int(found[2]))

    @property
    def store(self) -> str | None:
        """The store whose archive it is in, where an archive of several stores was listed."""
        found = _OF_STORE.fullmatch(self.relative.partition("/")[0])
        return found and found[1]

    def within_store(self) -> Self:
        """The file as the archive of its store lists it."""
        return self._replace(relative=self.relative.partition("/")[2]) if self.store else self


def by_folder(files: Iterable[ArchiveFile]) -> dict[str, list[ArchiveFile]]:
    """Files by the folders that they are in."""
    folders: dict[str, list[ArchiveFile]] = {}
    for file in files:
        folders.setdefault(file.folder, []).append(file)
    return folders


def list_files(base: Path, folder: str = "") -> tuple[ArchiveFile, ...]:
    """List the archive's Parquet files in order of their paths; all, or those in one of its folders.

    This is the one rule of what belongs to an archive. Links to files and folders are followed, a link back to a folder
    above is not. Hidden files and folders are left out, and so is ``lost+found``. The folders of stores in it are
    archives of their own. There are no files where there is no folder yet.
    """
    try:
        if not base.exists():
            require_usable(base)
            return ()
        return tuple(sorted(_walk(base / folder, base, frozenset()), key=lambda file: file.relative))
    except NotADirectoryError:
        raise ArchiveError(f"{base} is a file, not an archive's folder", "set VIDURAI_ARCHIVE") from None
    except OSError as error:
        raise ArchiveError(f"{error.filename or base} can't be read: {error.strerror}") from None


def store_roots(base: Path) -> dict[str, Path]:
    """The archives of the stores that share a folder, by the stores' names, in their order.

    There are none in a folder that can't be read. To list its files is an error then.
    """
    try:
        names = sorted(path.name for path in base.iterdir() if _OF_STORE.fullmatch(path.name) and path.is_dir())
    except OSError:
        return {}
    return {name.removeprefix(store_folder("")): base / name for name in names}


def store_root(base: Path, store: str | None) -> Path:
    """The archive of one of the stores that share a folder; None stands for what lies in it without a store."""
    return base / store_folder(store) if store else base


def list_all_stores(base: Path, only: str | None = None) -> tuple[ArchiveFile, ...]:
    """List the files of an archive, and of all stores that share its folder, in order of their paths."""
    found = [] if only else list(list_files(base))
    roots = {only: store_root(base, only)} if only else store_roots(base)
    for name, root in roots.items():
        found += [file._replace(relative=f"{store_folder(name)}/{file.relative}") for file in list_files(root)]
    return tuple(sorted(found, key=lambda file: file.relative))


def list_settled(base: Path, folder: str = "") -> tuple[ArchiveFile, ...]:
    """List the files without a pending mark: the others may yet be found damaged, or lose memories that changed."""
    marks = PendingMarks(base)
    # The files first: one that is purged in between has then been settled all the while.
    return tuple(file for file in list_files(base, folder) if not marks.path(file.name).exists())


def require_archive(base: Path, setting: str = "VIDURAI_ARCHIVE") -> None:
    """Refuse a folder of other people's files: nothing may be written to it, and nothing in it is touched.

    An archive holds its partitions, and hidden files. What its first file holds must be memories.

    Raises:
        ArchiveError: it is no archive; or it can't be read.
    """
    require_usable(base, setting)
    try:
        names = [path.name for path in base.iterdir() if not path.name.startswith(".") and path.name != "lost+found"]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArchiveError(f"{setting}={base}: {error.strerror}", "name an archive's folder") from None
    advice = f"set {setting} to an empty folder, or to one that is not there yet"
    require_one_store(base)
    if not names and _OF_STORE.fullmatch(base.name):
        _require_place_for_stores(base.parent, base.name, advice)
    if names and not any(re.fullmatch(r"year=\d{1,4}", name) for name in names):
        raise ArchiveError(f"{base} holds other files and no archive", advice)
    try:
        files = (file for file in _walk(base, base, frozenset()) if file.partitioned)
        first = next((file for file in files if not is_placeholder(base / file.relative)), None)
        if first is None:
            return
        with KeyRing().open(base / first.relative) as parquet:
            columns = parquet.schema_arrow.names
    except (ArchiveError, OSError, pa.ArrowException):  # encrypted; or damaged: others say so
        return
    if missing := REQUIRED - set(columns):
        raise ArchiveError(
            f"{base} is no archive of memories: {first.relative} has no column {', '.join(sorted(missing))}", advice
        )


def require_one_store(base: Path) -> None:
    """Refuse to take a folder of several stores' archives for the archive of one."""
    if stores := store_roots(base):
        raise ArchiveError(
            f"{base} holds the archives of several stores, such as {next(iter(stores))}",
            hint="set VIDURAI_STORE_NAME to the name of this one",
        )


def _require_place_for_stores(base: Path, store: str, advice: str) -> None:
    """Refuse to make a store's archive in a folder that holds something else than those of other stores."""
    with contextlib.suppress(FileNotFoundError):
        names = [path.name for path in base.iterdir() if not path.name.startswith(".") and path.name != "lost+found"]
        if any(_OF_STORE.fullmatch(name) for name in names) or not names:
            return
        if any(re.fullmatch(r"year=\d{1,4}", name) for name in names):
            raise ArchiveError(
                f"{base} is the archive of one store without a name",
                hint=f"`vidurai-pipeline move-into-store NAME` moves it into a folder of its own, as {store} is one",
            )
        raise ArchiveError(f"{base} holds other files and no archive", advice)


def _walk(folder: Path, base: Path, above: frozenset[tuple[int, int]]) -> Iterator[ArchiveFile]:
    here, folders, files = _scan(folder, base)
    if here in above:  # a link that leads back to a folder it lies in
        return
    yield from files
    for path in folders:
        yield from _walk(path, base, above | {here})


def _scan(folder: Path, base: Path) -> tuple[tuple[int, int], list[Path], list[ArchiveFile]]:
    """One folder: which it is, the folders in it, and the archive's files in it."""
    while True:
        before = folder.stat()
        folders: list[Path] = []
        files: list[ArchiveFile] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "lost+found":  # for root alone, on an archive's own disk
                    continue
                if entry.is_dir():
                    if folder == base and _OF_STORE.fullmatch(entry.name):
                        continue
                    folders.append(Path(entry.path))
                elif entry.name.endswith(".parquet") and (file := _file(entry, base)):
                    files.append(file)
        # A folder whose files were rewritten gives its place to another while it is read; half of each is neither.
        if os.path.samestat(before, folder.stat()):
            return (before.st_dev, before.st_ino), folders, files


def _file(entry: os.DirEntry[str], base: Path) -> ArchiveFile | None:
    try:
        found = entry.stat()
    except FileNotFoundError:  # withdrawn since the folder was read
        if entry.is_symlink():
            raise
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ArchiveError(f"{entry.path} is not a file of the archive", "move it away")
    relative = entry.path[len(str(base)) :].lstrip("/")
    return ArchiveFile(relative, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, entry.is_symlink())


@dataclass(frozen=True)
class Listing:
    """An archive's files at one moment, as DuckDB is to read them.

    Attributes:
        base: the archive's folder.
        root: the folder as DuckDB sees it: below it, a file's path means that file alone.
        files: the files.
        keys: the archive's keys.
    """

    base: Path
    root: str
    files: tuple[ArchiveFile, ...]
    keys: KeyRing

    @classmethod
    def readable(
        cls,
        base: Path,
        files: Sequence[ArchiveFile],
        scratch: Callable[[], Path],
        keys: KeyRing | None = None,
        *,
        present: bool = True,
    ) -> Self:
        """Find the paths under which DuckDB reads exactly these files.

        DuckDB takes ``*``, ``?`` and ``[`` in a path for a pattern, and an escaped pattern for a path that it may not
        read. An archive in such a folder is read through a link; a file with such a name is refused.

        Args:
            base: the archive's folder.
            files: its files, or some of them.
            scratch: gives a private folder for the link, where one is needed.
            keys: the archive's keys; default none.
            present: whether content that is in an object store alone is brought.

        Raises:
            ArchiveError: a file has a name that can't be given to DuckDB.
        """
        require_usable(base)
        for file in files if present and fetchers else ():
            make_present(base / file.relative)
        for file in files:
            if _GLOB.search(file.relative) or not file.relative.isprintable():
                raise ArchiveError(
                    f"{str(base / file.relative)!r} has a name that can't be read safely",
                    "rename it without '*', '?', '[' and unprintable characters",
                )
        root = str(base)
        if _GLOB.search(root):
            link = scratch() / "archive"
            with contextlib.suppress(FileExistsError):
                link.symlink_to(base.absolute(), target_is_directory=True)
            root = str(link)
        return cls(base, root, tuple(files), keys or KeyRing())

    def require_keys(self) -> None:
        """Refuse to go on without a key that one of the files needs."""
        for file in {file.key: file for file in self.files}.values():
            self.keys.get(self.path(file))

    def path(self, file: ArchiveFile) -> Path:
        """Where a file is, as the user knows it."""
        return self.base / file.relative

    def named(self, path: str) -> ArchiveFile | None:
        """The file that DuckDB calls by this path, if it is one of these."""
        relative = path.removeprefix(f"{self.root}/")
        return next((file for file in self.files if file.relative == relative), None)

    def sql(self, files: Sequence[ArchiveFile] | None = None) -> str:
        """Make the SQL list of the files' paths, all of them or some.

        One text to split is parsed and bound in half the time that thousands of texts take; no name has a line break.
        """
        names = "\n".join(file.relative for file in (self.files if files is None else files))
        paths = f"string_split({quote_literal(names)}, chr(10))"
        return f"list_transform({paths}, lambda name: {quote_literal(f'{self.root}/')} || name)"

    def linked_targets(self) -> tuple[list[str], list[str]]:
        """Find where links within the archive lead out of it.

        Returns:
            folders that are read through a link, and files that are.
        """
        base = os.path.realpath(self.base)
        within = {file.relative.rpartition("/")[0] for file in self.files}
        folders = {os.path.realpath(self.base / folder) for folder in within}
        paths = [os.path.realpath(self.path(file)) for file in self.files if file.linked]
        return [folder for folder in sorted(folders) if os.path.commonpath([folder, base]) != base], paths


def quote_literal(text: str) -> str:
    """Quote a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
