"""What opening an archive found out, kept in the user's cache folder: opening it again reads no file twice.

The cache is never needed. It is believed only for files of the same size, inode and times (of change as well, which
nobody can set back), and not for files so young that a later change might carry the same times. What can't be read or
written is passed over.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
from platformdirs import user_cache_path

from vidurai_pipeline.analytics.file_schemas import Columns
from vidurai_pipeline.cold.listing import ArchiveFile

FEWEST_FILES = 32
FEWEST_BYTES = 8 * 1024 * 1024
"""An archive of fewer files, with fewer bytes, is opened in no time."""

SETTLED_SECONDS = 2.0
"""A file that changed more recently may change again within one tick of its file system's clock."""

_MOST_PLACES = 20_000
_FORMAT = f"4 {duckdb.__version__}"


class ListingCache:
    """The cache of one archive."""

    def __init__(self, base: Path) -> None:
        name = hashlib.sha256(os.fsencode(base)).hexdigest()[:24]
        self.path = user_cache_path("vidurai-pipeline", appauthor=False) / f"{name}.json"

    def load(self, files: Sequence[ArchiveFile]) -> tuple[dict[ArchiveFile, Columns], list[tuple[str, int]] | None]:
        """Give what is known of these files.

        Returns:
            the columns of each file that is known; and the places of superseded copies, or None unless the listing is
            the very one that they were found in.
        """
        if _is_small(files):
            return {}, None
        try:
            found = json.loads(self.path.read_bytes())
            if found["format"] != _FORMAT:
                return {}, None
            schemas = [tuple((str(name), str(type_)) for name, type_ in schema) for schema in found["schemas"]]
            if found["listing"] == _digest(files):
                columns = {file: schemas[row[-1]] for file, row in zip(files, found["files"], strict=True)}
                places = found["superseded"]
                return columns, None if places is None else [(str(file), int(row)) for file, row in places]
            known = {tuple(row[:-1]): schemas[row[-1]] for row in found["files"]}
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return {}, None
        return {file: known[file] for file in files if file in known}, None

    def save(self, columns: Mapping[ArchiveFile, Columns], superseded: Iterable[tuple[str, int]]) -> None:
        """Keep what was found out."""
        if _is_small(columns):
            return
        places = list(superseded)
        settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        old = [file for file in columns if max(file.modified, file.changed) <= settled]
        numbers = {schema: number for number, schema in enumerate(dict.fromkeys(columns[file] for file in old))}
        content = {
            "format": _FORMAT,
            "schemas": list(numbers),
            "listing": _digest(old),
            "files": [(*file, numbers[columns[file]]) for file in old],
            "superseded": places if len(old) == len(columns) and len(places) <= _MOST_PLACES else None,
        }
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.stem}.")
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(content, file)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise


def _is_small(files: Collection[ArchiveFile]) -> bool:
    return len(files) < FEWEST_FILES and sum(file.size for file in files) < FEWEST_BYTES


def _digest(files: Sequence[ArchiveFile]) -> str:
    lines = (f"{f.relative}\t{f.size}\t{f.modified}\t{f.changed}\t{f.inode}\t{f.linked}" for f in files)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
