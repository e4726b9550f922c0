"""What each file of the archive was when it was verified, so that it can be proved to be the same years later.

Each folder that holds Parquet files has a manifest, ``.manifest.json``, with an entry for each file. An entry is
written when the file's memories have left the hot store, before its pending mark is removed. Manifests also name the
folders that have one, so that a whole folder that is gone is noticed: that of the archive's own folder names all of
them, and each month's those that were there when it was written, and the next month.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa

from vidurai_pipeline.cold.files import archive_errors, durable_write, make_present
from vidurai_pipeline.cold.listing import ArchiveFile, list_files, store_root, store_roots
from vidurai_pipeline.cold.pending import PendingMarks
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import store_folder

NAME = ".manifest.json"
FORMAT = 1

#: How a file came into the archive: written by a flush, rewritten from files that an earlier manifest knew, or found
#: there, written by another program or by a version of this one that kept no manifest.
Origin = Literal["written", "rewritten", "adopted"]


@dataclass(frozen=True)
class FileEntry:
    """What is recorded of one file.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        bytes: its size.
        modified: its time of modification, in nanoseconds since the epoch.
        rows: how many memories it holds.
        first_id: the lowest id in it; None where the file does not say.
        last_id: the highest id in it.
        schema: a digest of its columns' names and types.
        batch: the run that wrote it; None for a file of another program.
        store: the hot store its memories came from, as in a pending mark; None where that is not known.
        generation: 1 as first written, one more for each time that it was rewritten.
        origin: how it came into the archive.
        proved: when its bytes were last read and found to be these, in UTC.
    """

    sha256: str
    bytes: int
    modified: int
    rows: int
    first_id: int | None = None
    last_id: int | None = None
    schema: str = ""
    batch: str | None = None
    store: tuple[str, str] | None = None
    generation: int = 1
    origin: Origin = "written"
    proved: str = ""

    def same_file(self, file: ArchiveFile) -> bool:
        """Whether a listed file has the size and time that are recorded, so that it need not be read to be trusted."""
        return self.bytes == file.size and self.modified == file.modified

    def allows(self, sha256: str) -> bool:
        """Whether this is the file's digest."""
        return sha256 == self.sha256

    def difference(self, size: int) -> str:
        """What is wrong with a file of another digest, in words, given its size in bytes."""
        if self.bytes != size:
            return f"its size is {size:,} bytes, {self.bytes:,} were written"
        return "its content is not what was written: the SHA-256 differs"

    def proved_now(self, modified: int) -> Self:
        """The entry of a file that was read just now and found to be the same."""
        return replace(self, proved=utc_now(), modified=modified)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read an entry; fields of a later version are left out."""
        known = {name: values[name] for name in _FIELDS if name in values}
        if known.get("store") is not None:
            known["store"] = tuple(known["store"])
        return cls(**known)


_FIELDS = [found.name for found in fields(FileEntry)]


def utc_now() -> str:
    """This moment, as manifests write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def age_in_days(moment: str) -> float:
    """How long ago a moment was, as manifests write it."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() / 86_400


class Proofs(NamedTuple):
    """When the files of an archive were last proved to be what was written.

    Attributes:
        oldest: when the file whose proof is the oldest was last read, in UTC; None where no file is recorded.
        newest: when a file was last read.
        unknown: files of which nothing is recorded, so that nothing can prove them.
    """

    oldest: str | None
    newest: str | None
    unknown: list[str]


@dataclass
class Manifest:
    """The manifest of one folder.

    Attributes:
        folder: the folder.
        entries: what is recorded, by file name.
        folders: folders of the archive that are known to have a manifest, as relative paths.
        replaced: files whose rows were written anew, or left the archive on purpose: the SHA-256 by file name. Only
            these may go from a mirror.
        damaged: why the manifest can't be relied on; None if it is well, or not there yet.
    """

    folder: Path
    entries: dict[str, FileEntry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    damaged: str | None = None

    def knew(self, name: str) -> bool:
        """Whether there is, or ever was, a file of this name."""
        return name in self.entries or name in self.replaced

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's manifest; a missing one is empty, a damaged one is empty and says so.

        Raises:
            ArchiveError: it can't be read, or is of a later version of this program.
        """
        path = folder / NAME
        try:
            with archive_errors(path):
                text = path.read_bytes()
        except ArchiveError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return cls(folder)
            raise
        try:
            content = json.loads(text)
            if content["format"] > FORMAT:
                raise ArchiveError(f"{path} was written by a later version of vidurai-pipeline", hint="update this one")
            replaced = content.get("replaced", {})
            if content["sha256"] != _digest(content["files"], content["folders"], replaced):
                return cls(folder, damaged="it was altered: its own digest is another")
            entries = {name: FileEntry.from_json(values) for name, values in content["files"].items()}
            return cls(folder, entries, set(content["folders"]), replaced)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls(folder, damaged="it can't be read: it is not a manifest")

    def write(self) -> None:
        """Replace the folder's manifest, durably and at once. A damaged one is kept beside it.

        Raises:
            ArchiveError: it can't be written; the old one is untouched.
        """
        files = {name: asdict(entry) for name, entry in sorted(self.entries.items())}
        folders = sorted(self.folders)
        content = {"format": FORMAT, "files": files, "folders": folders, "replaced": self.replaced}
        content["sha256"] = _digest(files, folders, self.replaced)
        path = self.folder / NAME
        with archive_errors(path):
            if self.damaged:
                path.replace(path.with_name(f"{NAME}.damaged"))
                self.damaged = None
            durable_write(path, (json.dumps(content, indent=1) + "\n").encode())


def _digest(files: dict[str, Any], folders: list[str], replaced: dict[str, str]) -> str:
    # A manifest without replaced files has the digest that it had before there were any.
    content = [files, folders, *([replaced] if replaced else [])]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_file(path: Path, *, from_disk: bool = False) -> tuple[str, int, int]:
    """Read a file of any size.

    Args:
        path: the file.
        from_disk: read what the disk holds, not what memory still has of it, and leave nothing of it in memory.
            Where the operating system can't do that, it makes no difference.

    Returns:
        its SHA-256 in hexadecimal; its size in bytes; its time of modification before it was read, in nanoseconds.
    """
    make_present(path)

    def drop_from_cache() -> None:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    with path.open("rb", buffering=0) as file:
        modified = path.stat().st_mtime_ns
        drop_from_cache()
        digest = hashlib.file_digest(file, "sha256")
        drop_from_cache()
        return digest.hexdigest(), file.tell(), modified


def schema_digest(schema: pa.Schema) -> str:
    """A short digest of a file's columns' names and types, equal for files of the same columns."""
    columns = "\n".join(f"{name}: {schema.field(name).type}" for name in schema.names)
    return hashlib.sha256(columns.encode()).hexdigest()[:16]


class Flaw(NamedTuple):
    """A file that is not what is recorded of it.

    Attributes:
        file: its path below the archive.
        reason: what is wrong, in words.
        memories: how many memories it held; None where no record says.
    """

    file: str
    reason: str
    memories: int | None


class Manifests:
    """All manifests of an archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, tuple[object, Manifest]] = {}
        self._trusted: set[ArchiveFile] = set()

    def of(self, folder: str) -> Manifest:
        """The manifest of a folder, given relative to the archive; read again only when it has changed."""
        path = self.root / folder / NAME
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            version = None
        known = self._read.get(folder)
        if known is None or known[0] != version:
            known = self._read[folder] = (version, Manifest.read(self.root / folder))
        return known[1]

    def entry(self, relative: str) -> FileEntry | None:
        """What is recorded of a file, given relative to the archive; None if nothing is."""
        folder, _, name = relative.rpartition("/")
        return self.of(folder).entries.get(name)

    def proofs(self, files: Iterable[ArchiveFile]) -> Proofs:
        """When the files of a listing were last proved."""
        entries = {file.relative: manifest.entries.get(file.name) for manifest, file in self._each(files)}
        moments = [entry.proved for entry in entries.values() if entry is not None]
        unknown = [name for name, entry in entries.items() if entry is None]
        return Proofs(min(moments, default=None), max(moments, default=None), unknown)

    def _each(self, files: Iterable[ArchiveFile]) -> Iterator[tuple[Manifest, ArchiveFile]]:
        """The files of a listing, each with its folder's manifest, which is looked for once for each folder."""
        for folder, group in groupby(files, lambda file: file.folder):
            manifest = self.of(folder)
            for file in group:
                yield manifest, file

    def record(self, relative: str, entry: FileEntry) -> None:
        """Write what is known of a file, durably.

        Raises:
            ArchiveError: it can't be written; then nothing is recorded.
        """
        self.update({relative: entry})

    def update(self, entries: dict[str, FileEntry | None]) -> None:
        """Write, or with None remove, the entries of several files, durably, each folder in one step."""
        folders: dict[str, dict[str, FileEntry | None]] = {}
        for relative, entry in entries.items():
            folder, _, name = relative.rpartition("/")
            folders.setdefault(folder, {})[name] = entry
        for folder, changed in folders.items():
            manifest = Manifest.read(self.root / folder)
            for name, entry in changed.items():
                if entry is None:
                    manifest.entries.pop(name, None)
                else:
                    manifest.entries[name] = entry
            manifest.folders |= self.of("").folders
            manifest.write()
            # Afterwards: a folder that is announced and has no manifest is taken for one that lost its files.
            if folder and folder not in self.of("").folders:
                self._announce(folder)

    def _announce(self, folder: str) -> None:
        """Note in the archive's own manifest that a folder has one, and in the month before, should that one go too."""
        try:
            known = self.folders(list_files(self.root))
        except ArchiveError:  # what can't be listed must not keep new memories from the archive
            known = self.folders(())
        have = [one for one in known if one not in ("", folder) and (self.root / one / NAME).exists()]
        named = set[str]().union(*(self.of(one).folders for one in ("", *have)))
        for place in ["", *have[-1:]]:
            manifest = Manifest.read(self.root / place)
            # Not those whose files nobody has recorded yet: they never had a manifest.
            manifest.folders |= named | {*have, folder}
            manifest.write()

    def forget_folder(self, folder: str) -> None:
        """Note that a folder is gone for good."""
        for place in self.folders(list_files(self.root)):
            manifest = Manifest.read(self.root / place)
            if folder in manifest.folders:
                manifest.folders.remove(folder)
                manifest.write()

    def folders(self, files: Iterable[ArchiveFile]) -> list[str]:
        """The folders of a listing's files, and those that their manifests name, relative to the archive."""
        named = {"", *(file.folder for file in files)}
        return sorted(named.union(*(self.of(folder).folders for folder in named)))

    def damaged(self, files: Iterable[ArchiveFile]) -> list[Flaw]:
        """What is wrong with the manifests themselves."""
        found = ((folder, self.of(folder).damaged) for folder in self.folders(files))
        return [Flaw(str(Path(folder, NAME)), reason, None) for folder, reason in found if reason is not None]

    def set_aside(self) -> list[Path]:
        """The manifests that were damaged, and have been replaced."""
        return sorted(self.root.rglob(f"{NAME}.damaged"))

    def missing(self, files: Iterable[ArchiveFile]) -> list[Flaw]:
        """The files that are recorded but are not in a listing, nor were put there since."""
        files = list(files)
        present = {file.relative for file in files}
        filled = {file.folder for file in files}
        announced = set[str]().union(*(self.of(folder).folders for folder in filled | {""}))
        return [
            flaw for folder in sorted(announced | filled | {""}) for flaw in self._missing(folder, present, announced)
        ]

    def _missing(self, folder: str, present: set[str], announced: set[str]) -> list[Flaw]:
        while True:
            manifest = self.of(folder)
            if folder in announced and not (self.root / folder / NAME).exists():
                return [Flaw(folder, "the folder, or its manifest, is gone", None)]
            paths = {f"{folder}/{name}" if folder else name: entry for name, entry in manifest.entries.items()}
            gone = [
                Flaw(path, "the file is gone", entry.rows)
                for path, entry in paths.items()
                if path not in present and not (self.root / path).exists()
            ]
            # Else another run has changed the folder meanwhile.
            if not gone or self.of(folder) is manifest:
                return gone

    def flaws(self, files: Iterable[ArchiveFile]) -> list[Flaw]:
        """Find what is wrong with manifests, which files of a listing are not as recorded, and which ones are gone.

        Only a file whose size or time is not the recorded one is read; see :meth:`altered`. What no record knows is
        trusted.
        """
        files = list(files)
        return [*self.missing(files), *self.damaged(files), *self.altered(files)]

    def altered(self, files: Iterable[ArchiveFile]) -> Iterator[Flaw]:
        """Find the files of a listing whose bytes are not the recorded ones, reading those that may have changed."""
        marks = PendingMarks(self.root)
        for manifest, file in self._each(file for file in files if file not in self._trusted):
            entry = manifest.entries.get(file.name)
            mark = None if entry else marks.of(file.name)
            if entry is None and mark is None:  # settled since the manifest was read?
                entry = self.entry(file.relative)
            known = entry or mark
            if known is not None and (entry is None or not entry.same_file(file)):
                with archive_errors(self.root / file.relative):
                    try:
                        sha256, size, _ = digest_file(self.root / file.relative)
                    except FileNotFoundError:  # withdrawn since it was listed
                        continue
                if not known.allows(sha256):
                    reason = "it was altered after it was written" if entry is None else entry.difference(size)
                    yield Flaw(file.relative, reason, known.rows)
                    continue
            self._trusted.add(file)


class StoreManifests:
    """The manifests of an archive, and of all stores that share its folder: each store's are its own."""

    def __init__(self, base: Path, only: str | None = None) -> None:
        self._base = base
        self._only = only
        self._of: dict[str | None, Manifests] = {}

    def of_store(self, store: str | None) -> Manifests:
        """Those of one store's archive; None for what lies in the folder without a store."""
        if store not in self._of:
            self._of[store] = Manifests(store_root(self._base, store))
        return self._of[store]

    def entry(self, relative: str) -> FileEntry | None:
        """What is recorded of a file, given relative to the folder; None if nothing is."""
        file = ArchiveFile(relative, 0, 0, 0, 0)
        return self.of_store(file.store).entry(file.within_store().relative)

    def find(
        self, look: Callable[[Manifests, list[ArchiveFile]], Iterable[Flaw]], files: Iterable[ArchiveFile]
    ) -> list[Flaw]:
        """Ask each store's manifests about its own files, such as by :meth:`Manifests.flaws`.

        A store that has lost all of its files is asked too.
        """
        stores = [self._only] if self._only else [None, *store_roots(self._base)]
        own: dict[str | None, list[ArchiveFile]] = {store: [] for store in stores}
        for file in files:
            own.setdefault(file.store, []).append(file.within_store())
        return [
            flaw._replace(file=f"{store_folder(store)}/{flaw.file}") if store else flaw
            for store, those in own.items()
            for flaw in look(self.of_store(store), those)
        ]
