"""The cold archive: a tree of Parquet files, partitioned by the month of archival.

A file is complete or invisible. It is written beside its place under a hidden name, synced to the disk, read back,
and only then given its name by a hard link, which fails where the name is taken. Until its memories have left the
hot store, a pending mark stands beside it (see :mod:`vidurai_pipeline.cold.pending`).

The states of a file, and what the next run makes of each:

========== ======================== =============================== ===================================================
state      the file                 its mark                        what the next run does
========== ======================== =============================== ===================================================
hidden     ``.NAME.HEX.part``       none                            removes it (``sweep``)
marked     ``.NAME.HEX.part``       ``purging`` false               removes file and mark: nothing was published
published  ``NAME``, as written     ``purging`` false               purges its memories; copies of rows that changed or
                                                                    went meanwhile leave the archive
purging    ``NAME``, as written     ``purging`` true                goes on; a row that is missing counts as purged, so
                                                                    its copy stays
rewritten  ``NAME``, without stale  ``purging`` true, two digests   goes on
           copies
void       none                     ``purging`` false, or no rows   removes the mark
settled    ``NAME``                 none; an entry in the manifest  nothing: its memories are in the archive alone
set aside  ``NAME.damaged``         none (was ``purging`` false)    archives its memories anew: they are all still hot
retired    damaged or gone          ``.damaged`` (was ``purging``)  nothing: a person restores the file from a backup
========== ======================== =============================== ===================================================
"""

import contextlib
import errno
import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidurai_pipeline.cold.contents import (
    OWN,
    READ_ROWS,
    REWRITTEN_GROUP_ROWS,
    ROW_GROUP_ROWS,
    FileContents,
    FileWriter,
    Footer,
    batches_of,
    id_range,
    own_metadata,
    shared_metadata,
)
from vidurai_pipeline.cold.erasures import Erasures
from vidurai_pipeline.cold.files import (
    archive_errors,
    discard,
    is_placeholder,
    make_folder,
    make_present,
    sync_file,
    sync_folder,
    written_beside,
)
from vidurai_pipeline.cold.generation import sweep_generations
from vidurai_pipeline.cold.intents import Intents
from vidurai_pipeline.cold.keys import SETTING, KeyRing
from vidurai_pipeline.cold.listing import ArchiveFile, list_files, require_archive, require_one_store
from vidurai_pipeline.cold.lock import RunLock
from vidurai_pipeline.cold.manifest import FileEntry, Manifests, digest_file
from vidurai_pipeline.cold.pending import Pending, PendingMarks
from vidurai_pipeline.cold.storage import ConflictError, Traffic
from vidurai_pipeline.cold.tombstones import Tombstones
from vidurai_pipeline.cold.working_copy import WorkingCopy
from vidurai_pipeline.errors import ArchiveError, ConfigError, VerificationError

if TYPE_CHECKING:
    from vidurai_pipeline.cold.mirror import Mirror

_HIDDEN_SUFFIX = ".part"


@dataclass(frozen=True)
class PublishedFile:
    """One file that a run made visible."""

    path: Path
    rows: int
    bytes: int


class Archive:
    """The cold archive in a folder, which need not exist yet.

    Args:
        root: the folder.
        compression: the codec of new files, ``"snappy"`` or ``"zstd"``.
        keys: encrypt and decrypt its files; by default new files are plain, and encrypted ones can't be read.

    Attributes:
        working_copy: what ties the folder to the bucket, if that is where the archive is.
        mirror: its second copy, if it has one; see :func:`vidurai_pipeline.cold.mirror.open_archive`.
    """

    mirror: "Mirror | None" = None

    def __init__(self, root: Path, compression: str = "snappy", keys: KeyRing | None = None) -> None:
        self.root = Path(root)
        self.working_copy = WorkingCopy.of(self.root)
        self.compression = compression
        self.keys = keys or KeyRing()
        self.pending = PendingMarks(self.root)
        self.manifests = Manifests(self.root)
        self.tombstones = Tombstones(self.root)
        self.intents = Intents(self.root)
        self.erasures = Erasures(self.root)

    @property
    def place(self) -> str:
        """Where it is, as a person knows it: its folder, or its address in an object store."""
        return self.working_copy.storage.url if self.working_copy else str(self.root)

    @property
    def traffic(self) -> Traffic:
        """What this process has asked of the object store that the archive is in."""
        return replace(self.working_copy.storage.traffic) if self.working_copy else Traffic()

    def files(self) -> list[Path]:
        """All published files, oldest first by name; see :func:`list_files`."""
        return sorted((self.root / file.relative for file in list_files(self.root)), key=lambda path: (path.name, path))

    def stats(self) -> dict[str, Any]:
        """Counts and sizes of the files: in all, and by partition."""
        files = list_files(self.root)
        size = sum(file.size for file in files)
        partitions = Counter(file.folder for file in files)
        return {
            "total_files": len(files),
            "total_size_bytes": size,
            "total_size_mb": size / (1024 * 1024),
            "partitions": dict(sorted(partitions.items())),
            "archive_base": str(self.root),
        }

    @contextlib.contextmanager
    def lock(self, purpose: str, timeout: float = 0.0, *, make: bool = True) -> Iterator[None]:
        """Hold the archive for one run; see :class:`RunLock`.

        Args:
            purpose: what the run does, told to those who wait.
            timeout: seconds to wait for another run.
            make: create the folder if it is not there; without it, nobody can be at work in it, and nothing is locked.

        Raises:
            LockedError: another run holds it and did not finish in time.
            ArchiveError: the folder can't be used, or holds what is no archive.
        """
        require_archive(self.root)
        if make:
            make_folder(self.root)
        elif not self.root.exists():
            yield
            return
        with RunLock(self.root).hold(purpose, timeout) as outermost, contextlib.ExitStack() as stack:
            if self.working_copy is not None and outermost:
                stack.enter_context(self.working_copy.session(purpose, timeout))
            require_one_store(self.root)  # it may have been moved while we waited
            yield

    def require_keys(self, files: Iterable[ArchiveFile]) -> None:
        """Refuse to begin where a file's key is not there."""
        for file in files:
            self.keys.get(self.root / file.relative)

    def new_path(self, moment: datetime) -> Path:
        """A name for a new file, by the moment of archival, that no file has yet.

        Raises:
            ConfigError: there is no key, although the archive is encrypted.
        """
        with contextlib.suppress(ArchiveError):  # what can't be listed must not keep new memories from the archive
            if self.keys.path is None and any(file.key for file in list_files(self.root)):
                raise ConfigError(
                    f"{self.root} holds encrypted files, but {SETTING} is not set: new files would be plain",
                    "set it to the archive's key file",
                )
        moment = moment.astimezone(UTC)
        partition = self.root / f"year={moment:%Y}" / f"month={moment:%m}"
        stem = f"memories_{moment:%Y%m%d_%H%M%S}"
        path, number = partition / f"{stem}{self.keys.suffix}", 1
        folder = str(partition.relative_to(self.root))
        while path.exists() or self.pending.knows(path.name) or self.manifests.of(folder).knew(path.name):
            number += 1
            path = partition / f"{stem}_{number:03d}{self.keys.suffix}"
        return path

    @contextlib.contextmanager
    def writer(self, path: Path, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> Iterator[FileWriter]:
        """Write a file beside its place; at the end it is complete and on the disk, but hidden.

        It is encrypted if its name names a key. The hidden file is removed if anything fails.
        """
        make_folder(path.parent)
        # No other process's name, not even one's whose run has died before it.
        hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_HIDDEN_SUFFIX}")
        with archive_errors(path.parent):
            os.close(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                writer = FileWriter(hidden, schema, self.compression, row_group_rows, self.keys.encryption(path))
                try:
                    yield writer
                finally:
                    writer.close()
                sync_file(hidden)
            except BaseException:
                discard(hidden)
                raise

    def publish(self, hidden: Path, path: Path, mark: Pending) -> None:
        """Mark a hidden file as pending, then make it visible, durably, never over another file.

        Raises:
            ArchiveError: it could not be published; nothing of it is left.
        """
        try:
            self.pending.write(mark)
            with archive_errors(path):
                _name_exclusively(hidden, path)
                sync_folder(path.parent)
        except BaseException:
            if not path.exists():
                discard(hidden)
                discard(self.pending.path(path.name))
            raise
        discard(hidden)

    def settle(self, contents: FileContents | None, mark: Pending) -> None:
        """Record what a pending file is, and remove its mark: its memories have left the hot store.

        Args:
            contents: the file as it was read; None if nothing of it is left.
            mark: its mark.

        Raises:
            ArchiveError: it could not be done; the mark stands.
        """
        if contents is not None:
            self.copy_to_mirror(contents, mark)
            self.manifests.record(mark.file, contents.entry(store=mark.store))
            self.push()
        else:
            if self.working_copy is not None:
                self.working_copy.withdraw(mark.file, mark.sha256)
            if self.mirror is not None:
                self.mirror.withdraw(mark)
        self.pending.remove(mark)

    def push(self) -> None:
        """Bring the archive's bucket in line, if it has one; the archive must be locked."""
        if self.working_copy is not None:
            self.working_copy.push()

    def copy_to_mirror(self, contents: FileContents, mark: Pending) -> None:
        """Have a pending file in the archive's bucket and in the mirror, as far as there are any.

        Nothing is done where it is there already.

        Raises:
            ArchiveError: the bucket or the mirror can't be used, or another machine has taken the file's name.
        """
        if self.working_copy is not None:
            self.push()  # its mark comes before it
            try:
                self.working_copy.upload(mark.file, contents.data, mark.sha256)
            except ConflictError:
                if not mark.purging:  # its memories are all still hot, and are archived under another name
                    discard(contents.path)
                    self.pending.remove(mark)
                raise
        if self.mirror is not None:
            self.mirror.copy(contents, mark)

    def sync_mirror(self, folder: str) -> None:
        """Bring a folder in line in the bucket and the mirror, as far as there are any; the archive must be locked."""
        self.push()
        if self.mirror is not None:
            self.mirror.sync(folder)

    def restore_pending(self, mark: Pending) -> bool:
        """Replace a damaged pending file by its copy in the bucket or mirror; it is kept itself as ``*.damaged``.

        Returns:
            whether one of them has it.
        """
        if self.working_copy is not None:
            with contextlib.suppress(FileNotFoundError):
                data = self.working_copy.read(mark.file)
                if mark.allows(digest := hashlib.sha256(data).hexdigest()):
                    self.put(mark.file, data, FileEntry(digest, len(data), time.time_ns(), mark.rows))
                    return True
        if self.mirror is None or not (copy := self.mirror.root / mark.file).exists():
            return False
        contents = self.contents(copy)
        if not mark.allows(contents.sha256):
            return False
        self.put(mark.file, contents.data, contents.entry())
        return True

    def put(self, relative: str, data: bytes, entry: FileEntry, replaces: Collection[str] = ()) -> None:
        """Put a recorded file in its place, in one step, after it was read back and held against its digest.

        Args:
            relative: its path below the archive.
            data: its bytes.
            entry: what is recorded of it.
            replaces: digests of files that may go; any other file in that place is kept as ``*.damaged``.

        Raises:
            VerificationError: it did not read back equal; nothing was changed.
        """
        path = self.root / relative
        make_folder(path.parent)
        with archive_errors(path), written_beside(path, data) as beside:
            os.utime(beside, ns=(entry.modified, entry.modified))
            if not entry.allows(digest_file(beside, from_disk=True)[0]):
                raise VerificationError(f"{path}: a copy did not read back equal; nothing was changed")
            here = path.exists() and not is_placeholder(path)
            if here and digest_file(path)[0] not in (entry.sha256, *replaces):
                _name_exclusively(path, _aside(path))
            beside.replace(path)
            sync_folder(path.parent)
        if self.working_copy is not None:
            self.working_copy.upload(relative, data, replaces, keep_damaged=True)

    def rewrite(self, contents: FileContents, mark: Pending, drop: set[int]) -> FileContents | None:
        """Replace a pending file by one without some of its memories; with none left, remove it.

        The new file is read back and compared, and the mark allows for it, before the old one is replaced.

        Returns:
            the new file; None if there is none.

        Raises:
            ArchiveError: it could not be done; the old file still stands.
        """
        path = contents.path
        with archive_errors(path), contents.parquet() as source:
            gone = pa.array(drop, pa.int64())
            kept = [
                batch.filter(pc.invert(pc.is_in(batch.column("id"), gone)))  # pyright: ignore
                for batch in contents.batches()
            ]
            rows = sum(batch.num_rows for batch in kept)
            if not rows:
                self.pending.write(replace(mark, rows=0))
                path.unlink()
                sync_folder(path.parent)
                return None
            with self.writer(path, source.schema_arrow) as writer:
                for batch in kept:
                    writer.write(batch)
                writer.annotate(own_metadata(source))
            try:
                rewritten = self.contents(writer.path)
                if pa.Table.from_batches(rewritten.batches()) != pa.Table.from_batches(kept):
                    raise ArchiveError(
                        f"{path}: its copy without stale memories did not read back equal; nothing was changed"
                    )
                self.pending.write(replace(mark, sha256=(*mark.sha256, rewritten.sha256), rows=rows))
                writer.path.replace(path)
            except BaseException:
                discard(writer.path)
                raise
            sync_folder(path.parent)
        return replace(rewritten, path=path)

    @contextlib.contextmanager
    def opened(self, file: ArchiveFile) -> Iterator[pq.ParquetFile]:
        """Open a file; see :meth:`KeyRing.open`."""
        path = self.root / file.relative
        with archive_errors(path), self.keys.open(path) as parquet:
            yield parquet

    def schema(self, file: ArchiveFile) -> pa.Schema:
        """A file's columns."""
        with self.opened(file) as parquet:
            return parquet.schema_arrow

    def footer(self, file: ArchiveFile) -> Footer:
        """Read a file's footer."""
        with self.opened(file) as parquet:
            columns = tuple((field.name, str(field.type), str(field.metadata)) for field in parquet.schema_arrow)
            groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
            return Footer(
                kind=(columns, tuple(sorted(shared_metadata(parquet).items()))),
                names=frozenset(parquet.schema_arrow.names),
                rows=parquet.metadata.num_rows,
                bytes=sum(group.total_byte_size for group in groups),
            )

    def write_rewritten(self, path: Path, table: pa.Table, like: ArchiveFile) -> FileContents:
        """Write rows of settled files to a new file in a work folder, and read it back.

        Args:
            path: of the new file.
            table: its rows.
            like: one of the files that the rows are from; the new one's footer says the same of them.
        """
        with self.opened(like) as parquet:
            metadata = shared_metadata(parquet)
        schema = table.schema.with_metadata(
            {key: value for key, value in (table.schema.metadata or {}).items() if not key.startswith(OWN)}
        )
        with self.writer(path, schema, REWRITTEN_GROUP_ROWS) as writer:
            for batch in table.to_batches(max_chunksize=READ_ROWS):
                writer.write(batch)
            writer.annotate(metadata)
        with archive_errors(path):
            writer.path.rename(path)
        return self.contents(path)

    def contents(self, path: Path) -> FileContents:
        """Read a file from the disk, once."""
        with archive_errors(path):
            make_present(path)
            return FileContents(path, path.read_bytes(), self.keys)

    def read_back(self, path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read a file of any size from the disk in batches, checking its pages' checksums."""
        with self.keys.open(path) as file:
            yield from batches_of(file, columns)

    def digest(self, file: ArchiveFile) -> tuple[str, int, int]:
        """Read a file from the disk, or from the bucket that the archive is in; see :func:`digest_file`."""
        path = self.root / file.relative
        if self.working_copy is None:
            return digest_file(path, from_disk=True)
        entry = self.manifests.entry(file.relative)
        try:
            data = self.working_copy.read(file.relative)
        except FileNotFoundError:
            if is_placeholder(path) or not path.exists() or entry is None:
                raise
            raise OSError(errno.EIO, "it is gone from the bucket; the next run puts it back from here") from None
        sha256 = hashlib.sha256(data).hexdigest()
        if entry is not None and entry.allows(sha256):
            self.working_copy.require_sound(path, sha256)
        return sha256, len(data), path.stat().st_mtime_ns

    def is_stored(self, file: ArchiveFile) -> bool:
        """Whether the bucket that the archive is in, if any, holds a file as it is here."""
        return self.working_copy is None or self.digest(file)[0] == digest_file(self.root / file.relative)[0]

    def count_rows(self, path: Path) -> int:
        """How many rows a file holds, by its footer; an error, whichever, if it is not a file of an archive."""
        with self.keys.open(path) as file:
            file.schema_arrow.field("id")
            return file.metadata.num_rows

    def is_void(self, mark: Pending) -> bool:
        """Whether a mark has no file and needs none: it was never published, or nothing of it is left."""
        return not (self.root / mark.file).exists() and (not mark.purging or mark.rows == 0)

    def read(self, mark: Pending) -> FileContents:
        """Read a pending file from the disk, once.

        Raises:
            VerificationError: it is not what was written; the message says why.
        """
        path = self.root / mark.file
        if not path.exists():
            raise VerificationError(f"{path}: the file is gone")
        contents = self.contents(path)
        try:
            file = contents.parquet()
        except (OSError, pa.ArrowException):
            problem = "the file was damaged after it was written: it can't be read as Parquet"
            raise VerificationError(f"{path}: {problem}") from None
        if not mark.allows(contents.sha256):
            rows = file.metadata.num_rows
            raise VerificationError(
                f"{path}: the file was altered after it was written: it holds {rows:,} rows, {mark.rows:,} were written"
            )
        if own_metadata(file).get("vidurai_pipeline.batch") != mark.batch:
            raise VerificationError(f"{path}: the file was not written by the run that its pending mark names")
        return contents

    def columns(self, file: ArchiveFile, names: Collection[str]) -> pa.Table:
        """Some columns of a file, as far as it has them; its pages' checksums are checked."""
        with self.opened(file) as parquet:
            return parquet.read([name for name in parquet.schema_arrow.names if name in names], use_threads=False)

    def may_hold_ids(self, file: ArchiveFile, lowest: int, highest: int) -> bool:
        """Whether a file can hold an id of a range, by its entry in the manifest or its own statistics.

        Raises:
            OSError, pyarrow.ArrowException: it can't be read.
        """
        entry = self.manifests.entry(file.relative)
        if entry is not None and entry.same_file(file):
            first, last = entry.first_id, entry.last_id
        else:
            with self.keys.open(self.root / file.relative) as parquet:
                if "id" not in parquet.metadata.schema.names:
                    return False
                first, last = id_range(parquet.metadata)
        return first is None or last is None or (first <= highest and last >= lowest)

    def sweep(self) -> int:
        """Remove what a killed run left half written; the lock must be held. Returns how many files it was."""
        swept = 0
        with archive_errors(self.root):
            for path in self.root.rglob(f".memories_*.parquet.*{_HIDDEN_SUFFIX}"):
                path.unlink(missing_ok=True)
                swept += 1
            sweep_generations(self.root)
            records = self.root.rglob(f"..*.json.*{_HIDDEN_SUFFIX}")
            folders = ((self.root / folder).glob(f"*{_HIDDEN_SUFFIX}") for folder in (".intents", ".pending"))
            for path in chain(records, *folders):
                path.unlink(missing_ok=True)
        self.tombstones.sweep()
        if self.working_copy is not None:
            self.working_copy.sweep()
        if self.mirror is not None:
            self.mirror.sweep()
        return swept

    def damaged_files(self) -> list[Path]:
        """The files that were set aside."""
        return [path for path in self.kept_aside() if path.suffix.startswith(".damaged")]

    def kept_aside(self) -> list[Path]:
        """Files that are no part of the archive any more, or not yet: damaged ones, and what was saved of them."""
        return sorted(
            path
            for path in self.root.rglob("*.parquet.*")
            if path.parent.name != ".pending" and path.suffix != _HIDDEN_SUFFIX and path.is_file()
        )

    def strip(self, path: Path, leave_out: Callable[[pa.Table], pa.Array]) -> int:
        """Write a file that is kept aside anew without some of its rows; returns how many those were.

        Raises:
            ArchiveError: it can't be read or written; it is untouched then.
        """
        with archive_errors(path), self.keys.open(path) as parquet:
            table = parquet.read(use_threads=False)
            schema = parquet.schema_arrow
        kept = table.filter(pc.invert(leave_out(table)))  # pyright: ignore[reportAttributeAccessIssue]
        if kept.num_rows < table.num_rows:
            with self.writer(path, schema) as writer:
                for batch in kept.to_batches():
                    writer.write(batch)
            with archive_errors(path):
                writer.path.replace(path)
                sync_folder(path.parent)
        return table.num_rows - kept.num_rows

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file so that no reader takes it for a part of the archive."""
        with archive_errors(path):
            aside = _aside(path)
            path.rename(aside)
            sync_folder(path.parent)
        return aside


def _aside(path: Path) -> Path:
    """A free name for a damaged file."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return aside


def _name_exclusively(hidden: Path, path: Path) -> None:
    """Give a hidden file its name in one step that fails where the name is taken."""
    try:
        os.link(hidden, path)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        # No hard links here (FAT, some network shares): the run's lock keeps other runs away in the meantime.
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        hidden.rename(path)
