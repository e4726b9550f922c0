"""What each file of the archive was when it was verified, so that it can be proved to be the same years later.

Each folder that holds Parquet files has a manifest, ``.manifest.json``, with an entry for each file. An entry is
written when the file's memories have left the hot store, before its pending mark is removed. The manifest of the
archive's own folder also names the folders that have one, so that a whole folder that is gone is noticed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from vidurai_pipeline.cold.files import archive_errors, durable_write
from vidurai_pipeline.cold.listing import ArchiveFile
from vidurai_pipeline.cold.pending import PendingMarks
from vidurai_pipeline.errors import ArchiveError

NAME = ".manifest.json"
FORMAT = 1
_PIECE = 1024 * 1024

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


@dataclass
class Manifest:
    """The manifest of one folder.

    Attributes:
        folder: the folder.
        entries: what is recorded, by file name.
        folders: of the archive's own folder: the folders below it that have a manifest, as relative paths.
        replaced: files whose rows were written anew, or left the archive on purpose: the SHA-256 by file name. Only
            these may go from a mirror.
        damaged: why the manifest can't be relied on; None if it is well, or not there yet.
    """

    folder: Path
    entries: dict[str, FileEntry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    damaged: str | None = None

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


def digest_file(path: Path) -> tuple[str, int, int]:
    """Read a file of any size.

    Returns:
        its SHA-256 in hexadecimal; its size in bytes; its time of modification before it was read, in nanoseconds.

    Raises:
        OSError: it can't be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        modified = path.stat().st_mtime_ns
        buffer = bytearray(_PIECE)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
    return digest.hexdigest(), size, modified


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
    """All manifests of an archive.

    Args:
        root: the archive's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read: dict[str, tuple[object, Manifest]] = {}
        self._trusted: set[ArchiveFile] = set()

    def of(self, folder: str) -> Manifest:
        """The manifest of a folder, given relative to the archive; read again only when it has changed.

        Raises:
            ArchiveError: it can't be read.
        """
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

    def record(self, relative: str, entry: FileEntry) -> None:
        """Write what is known of a file, durably.

        Raises:
            ArchiveError: it can't be written; then nothing is recorded.
        """
        self.update({relative: entry})

    def update(self, entries: dict[str, FileEntry | None]) -> None:
        """Write, or with None remove, the entries of several files, durably, each folder in one step.

        Raises:
            ArchiveError: it can't be written.
        """
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
            manifest.write()
            # Afterwards: a folder that is announced and has no manifest is taken for one that lost its files.
            self._announce(folder)

    def _announce(self, folder: str) -> None:
        """Note in the archive's own manifest that a folder has one."""
        top = Manifest.read(self.root)
        if folder and folder not in top.folders:
            top.folders.add(folder)
            top.write()

    def forget_folder(self, folder: str) -> None:
        """Note that a folder is gone for good."""
        top = Manifest.read(self.root)
        if folder in top.folders:
            top.folders.remove(folder)
            top.write()

    def folders(self, files: Iterable[ArchiveFile] = ()) -> list[str]:
        """The folders that have a manifest, or files of a listing, relative to the archive."""
        return sorted({""} | self.of("").folders | {file.relative.rpartition("/")[0] for file in files})

    def damaged(self, files: Iterable[ArchiveFile] = ()) -> list[Flaw]:
        """What is wrong with the manifests themselves."""
        found = ((folder, self.of(folder).damaged) for folder in self.folders(files))
        return [Flaw(str(Path(folder, NAME)), reason, None) for folder, reason in found if reason is not None]

    def missing(self, files: Iterable[ArchiveFile]) -> list[Flaw]:
        """The files that are recorded but are not in a listing."""
        present = {file.relative for file in files}
        gone = []
        for folder in self.folders():
            manifest = self.of(folder)
            if folder and not manifest.entries and not (manifest.folder / NAME).exists() and not manifest.damaged:
                gone.append(Flaw(folder, "the folder, or its manifest, is gone", None))
            for name, entry in manifest.entries.items():
                relative = f"{folder}/{name}" if folder else name
                if relative not in present:
                    gone.append(Flaw(relative, "the file is gone", entry.rows))
        return gone

    def flaws(self, files: Iterable[ArchiveFile]) -> list[Flaw]:
        """Find the files of a listing that are not what is recorded of them, and those that are gone.

        Only a file whose size or time is not the recorded one is read; see :meth:`altered`. What no record knows is
        trusted.

        Raises:
            ArchiveError: a manifest, or a file, can't be read.
        """
        files = list(files)
        return [*self.missing(files), *self.altered(files)]

    def altered(self, files: Iterable[ArchiveFile]) -> Iterator[Flaw]:
        """Find the files of a listing whose bytes are not the recorded ones, reading those that may have changed.

        Raises:
            ArchiveError: a manifest, or a file, can't be read.
        """
        marks = PendingMarks(self.root)
        for file in files:
            if file in self._trusted:
                continue
            entry = self.entry(file.relative)
            mark = marks.of(file.name) if entry is None else None
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
