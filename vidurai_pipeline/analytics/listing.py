"""Which files the cold archive holds, and which columns they have.

The listing is cheap (two milliseconds for a thousand files) and is made again for every query, so that a long-lived
analyst sees what last night added. Footers are read once per file: a listing's entry carries the file's size, times and
inode, and an entry that didn't change is the same file.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb

from vidurai_pipeline.errors import ArchiveError

REQUIRED = ("id", "verbatim", "archived_at")
BASE_COLUMNS = {
    "id": "BIGINT",
    "verbatim": "VARCHAR",
    "gist": "VARCHAR",
    "salience": "VARCHAR",
    "created_at": "VARCHAR",
    "expires_at": "VARCHAR",
    "access_count": "BIGINT",
    "outcome": "BIGINT",
    "file_path": "VARCHAR",
    "decay_reason": "VARCHAR",
    "event_type": "VARCHAR",
    "tags": "VARCHAR",
    "project_id": "BIGINT",
    "archived_at": "VARCHAR",
}
"""The columns that every archive has, whoever wrote it, with the types that the views give them."""

# Where the views put something of their own, a file's column of that name has no place.
RESERVED = frozenset({"year", "month", "filename", "file_row_number", "file_index"})

_ADVICE = "move it out of the archive or restore it from a backup"
_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BOOLEAN|FLOAT|DOUBLE|DECIMAL\(.*\)")
_PARTITION = re.compile(r"year=\d{1,4}/month=\d{1,2}/[^/]+")
_GLOB = re.compile(r"[*?\[]")

Columns = tuple[tuple[str, str], ...]


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
    if not base.exists():
        return ()
    try:
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
            if entry.name.startswith("."):
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


class Footers:
    """The columns of each file, remembered between listings.

    Attributes:
        known: the columns of the files of the last listing.
    """

    def __init__(self) -> None:
        self.known: dict[ArchiveFile, Columns] = {}

    def merged(
        self, connection: duckdb.DuckDBPyConnection, root: str, base: Path, files: Sequence[ArchiveFile]
    ) -> dict[str, str]:
        """Give every column of any of the files and the type that suits all of them.

        Args:
            connection: a connection that may read the files.
            root: the archive's folder as DuckDB is to see it.
            base: the archive's folder as the user knows it.
            files: the listing.

        Raises:
            ArchiveError: a file is damaged, is not of memories, or disagrees with the others; it is named.
        """
        known = {file: columns for file in files if (columns := self.known.get(file)) is not None}
        if new := [file for file in files if file not in known]:
            known.update(_read_footers(connection, root, base, new))
        self.known = known
        samples: dict[Columns, ArchiveFile] = {}
        for file in files:
            samples.setdefault(known[file], file)
        for columns, file in samples.items():
            _check_base(columns, base / file.relative)
        merged = dict(BASE_COLUMNS)
        if not samples:
            return merged
        rows = connection.execute(
            f"DESCRIBE SELECT * FROM read_parquet({file_list(root, list(samples.values()))}, "
            "union_by_name = true, hive_partitioning = false)"
        ).fetchall()
        for name, type_ in ((str(row[0]), str(row[1])) for row in rows):
            if name.lower() not in BASE_COLUMNS and name.lower() not in RESERVED:
                merged[name] = "VARCHAR" if type_ == '"NULL"' else type_
        _check_nested(samples, merged, base)
        return merged


def _read_footers(
    connection: duckdb.DuckDBPyConnection, root: str, base: Path, files: Sequence[ArchiveFile]
) -> dict[ArchiveFile, Columns]:
    try:
        found = _schemas(connection, root, files)
    except duckdb.Error:
        broken = [file for file in files if not _readable(connection, root, file)]
        if not broken:  # withdrawn between the listing and now, perhaps: the caller looks again
            raise
        raise ArchiveError(broken_message(base, broken)) from None
    return {file: found[f"{root}/{file.relative}"] for file in files}


def lacks_resources(error: duckdb.Error) -> bool:
    """Whether DuckDB lacked memory or threads, or was stopped: no file is to blame for that."""
    return isinstance(error, (duckdb.OutOfMemoryException, duckdb.InterruptException)) or any(
        said in str(error) for said in ("bad_alloc", "temporarily unavailable")
    )


def broken_message(base: Path, broken: Sequence[ArchiveFile]) -> str:
    """Name the first broken file, how many more there are, and what to do."""
    more = f" ({len(broken) - 1} more like it)" if len(broken) > 1 else ""
    return f"{base / broken[0].relative} is not a readable Parquet file{more}: {_ADVICE}"


def _readable(connection: duckdb.DuckDBPyConnection, root: str, file: ArchiveFile) -> bool:
    try:
        _schemas(connection, root, [file])
    except duckdb.Error as error:
        if lacks_resources(error):
            raise duckdb.OutOfMemoryException(f"Out of Memory Error: {error}") from None
        return not Path(root, file.relative).exists()
    return True


def _schemas(
    connection: duckdb.DuckDBPyConnection, root: str, files: Sequence[ArchiveFile]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Read the files' top-level columns; files of one schema are grouped in DuckDB, they are nearly all of one."""
    groups = connection.execute(
        f"""
        SELECT elements, list(file_name)
        FROM (
            SELECT file_name, list((name, coalesce(num_children, 0), duckdb_type) ORDER BY column_id) AS elements
            FROM parquet_schema({file_list(root, files)})
            GROUP BY file_name
        )
        GROUP BY elements
        """
    ).fetchall()
    schemas: dict[str, tuple[tuple[str, str], ...]] = {}
    for elements, names in groups:
        columns: list[tuple[str, str]] = []
        position = 1  # the first element is the root
        while position < len(elements):
            name, _, type_ = elements[position]
            columns.append((name, type_ or "STRUCT()"))
            position = _after(elements, position)
        schemas.update(dict.fromkeys(names, tuple(columns)))
    return schemas


def _after(elements: Sequence[tuple[str, int, str | None]], position: int) -> int:
    """Step over one element and everything nested in it."""
    open_ = 1
    while open_ and position < len(elements):
        open_ += int(elements[position][1]) - 1
        position += 1
    return position


def is_nested(type_: str) -> bool:
    """Whether a type, as DuckDB spells it, is a list, a struct, a map or a union."""
    return type_.endswith("]") or type_.startswith(("STRUCT", "MAP", "UNION"))


def _check_base(columns: Columns, path: Path) -> None:
    types = {name.lower(): type_ for name, type_ in columns}
    if missing := [name for name in REQUIRED if name not in types]:
        raise ArchiveError(
            f"{path} is not an archive of memories: it has no column {', '.join(map(repr, missing))}; "
            "move it out of the archive"
        )
    for name, expected in BASE_COLUMNS.items():
        type_ = types.get(name, '"NULL"')
        fits = _NUMBERS.fullmatch(type_) if expected == "BIGINT" else not (is_nested(type_) or type_ == "BLOB")
        if type_ != '"NULL"' and not fits:
            raise ArchiveError(
                f"{path} is not an archive of memories: its column {name!r} holds {type_}, not {expected}; "
                "move it out of the archive"
            )


def _check_nested(samples: dict[Columns, ArchiveFile], merged: dict[str, str], base: Path) -> None:
    """Refuse what DuckDB would only notice row by row: a list in one file, plain text in another."""
    types = {name.lower(): type_ for name, type_ in merged.items()}
    for columns, file in samples.items():
        for name, type_ in columns:
            common = types.get(name.lower(), '"NULL"')
            if '"NULL"' not in (type_, common) and is_nested(type_) != is_nested(common):
                raise ArchiveError(
                    f"{base / file.relative} disagrees with the other files: its column {name!r} holds {type_}, theirs "
                    f"{common}; move it out of the archive"
                )
