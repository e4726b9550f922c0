"""What opening an archive found out, kept in the user's cache folder: opening it again reads no file.

The cache is never needed. It is believed only for the very files of which it was made: of the same size, inode and
times (of change as well, which nobody can set back), and none so young that a later change might carry the same times.
What can't be read or written is passed over.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
from platformdirs import user_cache_path

from vidurai_pipeline.cold.listing import ArchiveFile

FEWEST_FILES = 32
FEWEST_BYTES = 8 * 1024 * 1024
"""An archive of fewer files, with fewer bytes, is opened in no time."""

SETTLED_SECONDS = 2.0
"""A file that changed more recently may change again within one tick of its file system's clock."""

_MOST_PLACES = 20_000
_FORMAT = f"5 {duckdb.__version__}"


class ListingCache:
    """The cache of one archive."""

    def __init__(self, base: Path) -> None:
        name = hashlib.sha256(os.fsencode(base)).hexdigest()[:24]
        self.path = user_cache_path("vidurai-pipeline", appauthor=False) / f"{name}.json"

    def load(self, files: Sequence[ArchiveFile]) -> tuple[dict[str, str], list[tuple[str, int]]] | None:
        """Give the columns of these files with their types, and the places of superseded copies; None if not known."""
        if _is_small(files):
            return None
        try:
            found = json.loads(self.path.read_bytes())
            if found["listing"] != _digest(files):
                return None
            columns = {str(name): str(type_) for name, type_ in found["columns"].items()}
            return columns, [(str(file), int(row)) for file, row in found["superseded"]]
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None

    def save(
        self, files: Sequence[ArchiveFile], columns: Mapping[str, str], superseded: Sequence[tuple[str, int]]
    ) -> None:
        """Keep what was found out."""
        settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        young = any(max(file.modified, file.changed) > settled for file in files)
        if young or _is_small(files) or len(superseded) > _MOST_PLACES:
            return
        content = {"listing": _digest(files), "columns": dict(columns), "superseded": superseded}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.stem}.")
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(content, file)
                Path(name).replace(self.path)
            finally:
                Path(name).unlink(missing_ok=True)


def _is_small(files: Sequence[ArchiveFile]) -> bool:
    return len(files) < FEWEST_FILES and sum(file.size for file in files) < FEWEST_BYTES


def _digest(files: Sequence[ArchiveFile]) -> str:
    lines = (f"{f.relative}\t{f.size}\t{f.modified}\t{f.changed}\t{f.inode}\t{f.linked}" for f in files)
    return hashlib.sha256("\n".join([_FORMAT, *lines]).encode(errors="surrogateescape")).hexdigest()
