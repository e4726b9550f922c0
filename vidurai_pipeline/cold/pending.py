"""Pending marks: which files' memories may still be in the hot store as well.

A mark is written before its file becomes visible and removed when its file's memories have left the hot store.
A run that finds one holds the lock, so the writer is dead, and goes on where that one stopped.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vidurai_pipeline.cold.files import archive_errors, read_json, remove_durably, sync_folder, write_json

#: In an archive that several machines share, the file that holds this machine's id.
MACHINE = ".machine"


@dataclass(frozen=True)
class Pending:
    """One mark.

    Attributes:
        file: the file's path below the archive.
        sha256: the digests that the file may have: as published, and as rewritten without stale copies.
        rows: how many memories it holds.
        store: the hot store's real path, and its path relative to the archive.
        batch: identifies the run that wrote the file; stands in the file's own metadata too.
        purging: its purge has begun, so that the file may hold the only copy of a memory.
    """

    file: str
    sha256: tuple[str, ...]
    rows: int
    store: tuple[str, str]
    batch: str
    purging: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.rpartition("/")[2]

    def allows(self, sha256: str) -> bool:
        """Whether the file may have this digest."""
        return sha256 in self.sha256

    def concerns(self, store: tuple[str, str]) -> bool:
        """Whether it is a mark of this hot store, given as :func:`store_identity` gives it."""
        return same_store(self.store, store)


def store_identity(store: Path, archive: Path) -> tuple[str, str]:
    """What marks know a hot store by: its real path, and its path relative to the archive.

    One of them is enough: a store that was moved alone keeps neither, one that was moved with its archive the second.
    Where machines share an archive, both begin with the machine's id.
    """
    real = os.path.realpath(store)
    if (archive / MACHINE).exists():
        machine = (archive / MACHINE).read_text()
        return f"{machine}:{real}", f"{machine}:{os.path.relpath(real, os.path.realpath(archive))}"
    return real, os.path.relpath(real, os.path.realpath(archive))


def same_store(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two identities, as :func:`store_identity` gives them, are those of one hot store."""
    return one[0] == other[0] or one[1] == other[1]


class PendingMarks:
    """The marks of one archive."""

    def __init__(self, root: Path) -> None:
        self._folder = root / ".pending"

    def path(self, file_name: str) -> Path:
        """Where the mark of a file stands."""
        return self._folder / f"{file_name}.json"

    def knows(self, file_name: str) -> bool:
        """Whether a file is pending, for whichever hot store, or was when it was found damaged."""
        path = self.path(file_name)
        return path.exists() or _retired(path).exists()

    def write(self, mark: Pending) -> None:
        """Write or replace a mark, durably and at once."""
        write_json(self.path(mark.name), asdict(mark))

    def all(self) -> list[Pending]:
        """All marks, oldest file first."""
        return [mark for path in sorted(self._folder.glob("*.json")) if (mark := _read(path))]

    def of(self, file_name: str) -> Pending | None:
        """The mark of a file; None if it has none."""
        return _read(self.path(file_name))

    def remove(self, mark: Pending) -> None:
        """Remove a mark: its file and the hot store overlap no longer."""
        remove_durably(self.path(mark.name))

    def retire(self, mark: Pending) -> Path:
        """Set the mark of a file that is beyond help aside, for the record; no later run tries that file again."""
        path = self.path(mark.name)
        aside = _retired(path)
        with archive_errors(path):
            path.replace(aside)
            sync_folder(self._folder)
        return aside

    def retired(self) -> list[Path]:
        """The marks that were set aside: a memory may have been lost with each one's file."""
        return sorted(self._folder.glob("*.damaged"))


def _read(path: Path) -> Pending | None:
    return read_json(
        path,
        lambda values: Pending(**{**values, "sha256": tuple(values["sha256"]), "store": tuple(values["store"])}),
        "a pending mark",
        "move it away and run `vidurai-pipeline doctor`, which shows whether a memory is in both tiers",
    )


def _retired(path: Path) -> Path:
    return path.with_suffix(".damaged")
