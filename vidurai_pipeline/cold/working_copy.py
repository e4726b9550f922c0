"""An archive in an object store, and the folder that is this machine's working copy of it.

The bucket is the archive. It holds the same files as an archive's folder: Parquet files, manifests, tombstones, pending
marks, intents. The working copy is a folder of that layout too, so that everything else works on a folder. Where the
content of a Parquet file is in the bucket alone, a placeholder of its size and time, which nobody may read, stands for
it until someone needs it.

A rewriting takes effect when the month's manifest is replaced, under the condition that it is still the one that was
read. A file that a flush wrote counts as soon as it is there, and its pending mark is there before it. A lease keeps
two machines from working at the same time, but nothing rests on it: a machine that was held up and lost its lease fails
at the condition.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO, NamedTuple, Self
from weakref import WeakSet

import pyarrow as pa
from filelock import FileLock, Timeout

from vidurai_pipeline.cold.erasures import NAME as ERASURES
from vidurai_pipeline.cold.files import (
    archive_errors,
    durable_write,
    fetchers,
    has_parts,
    is_placeholder,
    make_folder,
    make_placeholder,
    written_beside,
)
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import INDEX, ArchiveFile, list_files, store_roots
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.cold.manifest import Manifest, Manifests, digest_file
from vidurai_pipeline.cold.pending import MACHINE, PendingMarks
from vidurai_pipeline.cold.storage import ConflictError, ObjectStorage, Ranges, StoredObject, Traffic
from vidurai_pipeline.errors import ArchiveError, LockedError
from vidurai_pipeline.settings import store_folder

#: What a memory is known by, and which of its versions is the newest.
IDENTIFYING = ("id", "created_at", "archived_at")
RECORD = ".bucket.json"
LEASE = ".lease.json"
_PARQUET = re.compile(r"(?:(?!\.)[^/\0]+/)*(?!\.)[^/\0]+\.parquet")
_STATE = re.compile(
    r"(?:(?!\.)[^/\0]+/)*\.manifest\.json|\.(?:mirror(?:\.\w+)?|restored|erasures|secrets)\.json"
    r"|\.(?:pending|intents|tombstones)/(?!\.)[^/\0]+(?<!\.part)"
)
#: Stands in the new place of an archive while it is moved there.
MOVING = ".moving"
#: The name of a file that a rewriting made: it counts only once the manifest names it.
_REWRITTEN = re.compile(r"memories(?:_\d{8}_\d{6})?_[0-9a-f]{8}_\d{3}\b[^/]*")
#: Locked, for sharing, by each process that reads files.
_READERS = ".readers"
#: What belongs to the working copy itself.
_KEPT = {RECORD, MACHINE, _READERS, ".copy.lock", ".lock", ".lock.json"}
_AT_ONCE = 8
#: How often files may be rewritten while they are brought, before that is an error.
_CHANGES = 20
#: Seconds to wait for what another process does with the working copy.
_PATIENCE = 60.0

_Stamp = tuple[int, int, int]


class Synced(NamedTuple):
    """A small file as it was when it was last the same here and in the bucket."""

    etag: str
    stamp: _Stamp | None


class WorkingCopy:
    """This machine's working copy of an archive in an object store; get it by :meth:`open` or :meth:`of`.

    Args:
        root: its folder.
        url: the archive's address.

    Attributes:
        storage: the objects.
        readers: who in this process still reads files of it.
    """

    #: After this many seconds without renewal, a lease's machine counts as dead.
    lease_seconds = 90.0
    #: So many bytes of files' content stay here after a run.
    most_bytes = 20_000_000_000
    #: A smaller file is brought as a whole: that takes one request.
    worth_parts = 1_000_000

    _known: dict[Path, "WorkingCopy"] = {}  # noqa: RUF012

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.storage = ObjectStorage(url)
        self._manifests = Manifests(root)
        self._marks = PendingMarks(root)
        self._synced: dict[str, Synced] = {}
        self._objects: dict[str, StoredObject] = {}
        #: The digests of files that this run wrote to the bucket and read back.
        self._uploaded: dict[str, str] = {}
        self._lost_lease = False
        self._keeping = threading.Lock()
        self._kept: int | None = None
        self.readers: WeakSet[object] = WeakSet()

    @property
    def machine(self) -> str:
        """This machine's id."""
        return (self.root / MACHINE).read_text()

    def __reduce__(self) -> tuple:
        """In another process it is opened anew."""
        return WorkingCopy.of, (self.root,)

    @classmethod
    def open(cls, root: Path, url: str, machine: Path) -> Self:
        """The working copy in a folder, which is made if it is not there.

        Args:
            root: the folder.
            url: the archive's address.
            machine: a file that holds this machine's id, outside of the working copy; made if it is not there.
        """
        make_folder(root)
        for path, content in ((machine, uuid.uuid4().hex), (root / RECORD, json.dumps({"url": url, "synced": {}}))):
            if not path.exists():
                make_folder(path.parent)
                with archive_errors(path):
                    durable_write(path, content.encode())
        with archive_errors(machine):
            id_ = machine.read_bytes()
        with archive_errors(root / MACHINE):
            if not (root / MACHINE).exists() or (root / MACHINE).read_bytes() != id_:
                durable_write(root / MACHINE, id_)
        copy = cls.of(root)
        assert copy is not None  # noqa: S101 - its record is there
        return copy

    @classmethod
    def of(cls, root: Path) -> Self | None:
        """The working copy in a folder; None if it is another folder."""
        root = root.absolute()
        record = root / RECORD
        if not record.exists():
            return None
        if root not in cls._known:
            with archive_errors(record):
                url = json.loads(record.read_bytes())["url"]
            cls._known[root] = cls(root, url)
            fetchers[root] = cls._known[root].fetch
        return cls._known[root]  # pyright: ignore[reportReturnType]

    # One run

    @contextlib.contextmanager
    def session(self, purpose: str, timeout: float) -> Iterator[None]:
        """Within: no other machine works on the archive, and the working copy is what the bucket holds.

        At the end the bucket holds what was done.

        Raises:
            LockedError: another machine is at work, and did not finish in time.
            ArchiveError: the bucket can't be used.
        """
        self.keep()
        with self._guard(_PATIENCE):
            objects = self.storage.objects()
            self._require_place(objects)
            self._require_ours(objects)
            with self._lease(purpose, timeout):
                self._pull()
                self._push()
                yield
                self._push()
                self.evict(self.most_bytes)

    @contextlib.contextmanager
    def moving(self, timeout: float) -> Iterator[None]:
        """Within: no machine works on the archive, whose objects are moved to another place.

        Raises:
            LockedError: a run is at work, and did not finish in time.
        """
        with self._guard(timeout), self._lease("moving the archive", timeout):
            yield
        self.storage.delete([LEASE])

    @contextlib.contextmanager
    def _guard(self, timeout: float) -> Iterator[None]:
        """Within: no other process or thread of this machine changes the working copy's record."""
        lock = FileLock(self.root / ".copy.lock", is_singleton=True, thread_local=True, mode=0o600)
        try:
            with archive_errors(self.root):
                lock.acquire(timeout=timeout)
        except ArchiveError as error:
            if isinstance(error.__cause__, Timeout):
                raise LockedError(f"another process of this machine is at work on {self.storage.url}") from None
            raise
        try:
            self._load()
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _lease(self, purpose: str, timeout: float) -> Iterator[None]:
        holder = {
            "machine": self.machine,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "purpose": purpose,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        etag = self._take_lease(holder, timeout)
        self._lost_lease, ended = False, threading.Event()

        def renew() -> None:
            nonlocal etag
            while not ended.wait(self.lease_seconds / 6):
                try:
                    etag = self.storage.write(LEASE, _lease(holder), etag).etag
                except ConflictError:
                    self._lost_lease = True
                    return
                except ArchiveError:  # the next one may come through
                    continue

        heartbeat = threading.Thread(target=renew, daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            ended.set()
            heartbeat.join()
            with contextlib.suppress(ArchiveError):
                self.storage.write(LEASE, _lease(None), etag)

    def _take_lease(self, holder: dict[str, object], timeout: float) -> str:
        until, ahead = monotonic() + timeout, None
        while True:
            other, found = {}, None
            with contextlib.suppress(FileNotFoundError, ValueError):
                data, found = self.storage.read(LEASE)
                other = json.loads(data)
            # One of this machine's can't be alive: its process would hold the lock of the working copy.
            free = not other.get("machine") or all(other.get(name) == holder[name] for name in ("machine", "host"))
            if found is not None and not free:
                # The clocks of two machines may differ, so the store's counts.
                ahead = ahead or self.storage.clock() - datetime.now(UTC)
                age = datetime.now(UTC) + ahead - found.modified
                free = age.total_seconds() >= self.lease_seconds
            if free:
                with contextlib.suppress(ConflictError):
                    return self.storage.write(LEASE, _lease(holder), found and found.etag).etag
            if monotonic() > until:
                raise LockedError(
                    f"another machine is at work on {self.storage.url}: process {other.get('pid')} on "
                    f"{other.get('host')} ({other.get('purpose')}), since {other.get('since')}. Wait for it, or raise "
                    "VIDURAI_LOCK_TIMEOUT"
                )
            sleep(0.5)

    # From the bucket

    def pull(self) -> None:
        """Bring the working copy in line with the bucket, unless a run of this machine is at work, which does that."""
        self._load()
        seen = bool(self._synced)
        try:
            with self._guard(0.0 if seen else _PATIENCE):
                self._pull()
        except LockedError:
            if not seen:  # nothing is here yet, so there would be an empty answer
                raise

    def _pull(self) -> None:
        before = dict(self._synced)
        with archive_errors(self.root):
            for attempt in (1, 2):
                # The archives of named stores, which may share the prefix, have working copies of their own.
                all_ = self.storage.objects()
                self._objects = {key: found for key, found in all_.items() if not key.startswith(store_folder(""))}
                if self._synced and len(all_) > len(self._objects) and not any(map(belongs_to_archive, self._objects)):
                    self._forget()
                self._require_ours(self._objects)
                self._uploaded.clear()
                for key in sorted({key for key in self._objects if _STATE.fullmatch(key)} | set(self._synced)):
                    self._pull_state(key)
                # What a manifest names came after the listing, perhaps.
                if attempt == 2 or self._recorded() <= self._objects.keys():
                    break
            self._place_files()
        if self._synced != before:
            self._save()

    def _forget(self) -> None:
        """Let go of what is here: the archive was moved into the folder of a store."""
        for path in self.root.iterdir():
            if path.name not in _KEPT and not path.name.startswith(store_folder("")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._synced = {}

    def _require_ours(self, objects: dict[str, StoredObject]) -> None:
        if MOVING in objects:
            raise ArchiveError(
                f"{self.storage.url}: the archive is being moved there",
                "wait; if it was interrupted, run `vidurai-pipeline move-into-store NAME` again, with its name",
            )
        ours = any(key == LEASE or _STATE.fullmatch(key) for key in objects)
        if objects and not ours:
            raise ArchiveError(
                f"{self.storage.url} holds other objects and no archive", "name a prefix that nothing else uses"
            )
        if not ours and self._synced:
            raise ArchiveError(
                f"{self.storage.url} is empty, but this machine has seen an archive there",
                f"restore the bucket; or remove the folder {self.root} to begin a new archive",
            )

    def _require_place(self, objects: Collection[str]) -> None:
        """Refuse to have the archive of a store without a name beside those of named ones."""
        stores = store_folder("")
        if named := min((key.partition("/")[0] for key in objects if key.startswith(stores)), default=None):
            raise ArchiveError(
                f"{self.storage.url} holds the archives of several stores, such as {named.removeprefix(stores)}",
                "set VIDURAI_STORE_NAME to the name of this one",
            )
        place, _, name = self.storage.url.rpartition("/")
        if objects or not name.startswith(stores):
            return
        beside = [folder for folder in ObjectStorage(place).folders() if not folder.startswith(".")]
        if any(folder.startswith(stores) for folder in beside):
            return
        # Some object stores go on listing a folder when nothing is in it any more.
        beside = [folder for folder in beside if ObjectStorage(f"{place}/{folder}").objects()]
        if any(folder.startswith("year=") for folder in beside):
            raise ArchiveError(
                f"{place} is the archive of one store without a name", "name another prefix for stores with names"
            )
        if beside:
            raise ArchiveError(f"{place} holds other objects and no archive", "name a prefix that nothing else uses")

    def _pull_state(self, key: str) -> None:
        there, known, path = self._objects.get(key), self._synced.get(key), self.root / key
        here = _stamp(path)
        if there is None:
            if known is not None:
                del self._synced[key]
                if key.startswith(".") and here == known.stamp and MANIFEST not in key:
                    path.unlink(missing_ok=True)  # another machine removed it
            return
        if known is not None and known.etag == there.etag and (here is not None or self._may_go(key)):
            return  # what was changed here goes to the bucket with the next run
        try:
            data, found = self.storage.read(key)
        except FileNotFoundError:
            return
        ours = path.read_bytes() if here else None
        if ours is not None and key.startswith(".pending/") and self._is_own_mark(ours) and self._is_own_mark(data):
            self._synced[key] = Synced(found.etag, None)  # no other machine writes it, so what is here is newer
            return
        if ours != data:
            make_folder(path.parent)
            durable_write(path, data)
            if key == ERASURES:  # an index still has words of what another machine erased
                for index in (self.root / INDEX).glob("words-*"):
                    shutil.rmtree(index, ignore_errors=True)
        self._synced[key] = Synced(found.etag, _stamp(path))

    def _is_own_mark(self, data: bytes) -> bool:
        with contextlib.suppress(ValueError, TypeError, LookupError):
            return json.loads(data)["store"][0].startswith(self.machine)
        return False

    def _recorded(self) -> set[str]:
        folders = {"", *(key.rpartition("/")[0] for key in self._objects if _PARQUET.fullmatch(key))}
        folders = folders.union(*(self._manifests.of(folder).folders for folder in folders))
        return {_key(folder, name) for folder in folders for name in self._manifests.of(folder).entries}

    def _place_files(self) -> None:
        """Let a placeholder stand for each file of the bucket whose content is not here, and for no other."""
        here = {file.relative: file for file in list_files(self.root)}
        for key, found in self._objects.items():
            folder, _, name = key.rpartition("/")
            if not _PARQUET.fullmatch(key) or not self._counts(folder, name):
                continue
            entry, file = self._manifests.of(folder).entries.get(name), here.pop(key, None)
            size = entry.bytes if entry else found.size
            modified = entry.modified if entry else int(found.modified.timestamp() * 1e9)
            path, mark = self.root / key, self._marks.path(name)
            own = mark.exists() and not is_placeholder(path) and self._is_own_mark(mark.read_bytes())
            if file is None or not (own or (file.size, file.modified) == (size, modified)):
                make_folder(path.parent)
                make_placeholder(path, size, modified)
        for key in here:
            folder, _, name = key.rpartition("/")
            manifest = self._manifests.of(folder)
            kept = self._marks.path(name).exists() or name in manifest.entries
            withdrawn = name in manifest.replaced or _REWRITTEN.fullmatch(name)
            if is_placeholder(self.root / key) or (withdrawn and not kept):
                (self.root / key).unlink(missing_ok=True)

    def _counts(self, folder: str, name: str) -> bool:
        """Whether an object is a file of the archive, and not waste of a rewriting that was cut short."""
        manifest = self._manifests.of(folder)
        if name in manifest.entries:
            return True
        if name in manifest.replaced:
            return False
        lost = manifest.damaged or not (self.root / folder / MANIFEST).exists()
        return bool(lost) or not _REWRITTEN.fullmatch(name)

    def fetch(self, path: Path) -> None:
        """Bring the content of a placeholder.

        Raises:
            FileNotFoundError: the bucket does not have it.
            ArchiveError: it can't be brought, or is not what was recorded.
        """
        self.keep()
        relative = str(path.absolute().relative_to(self.root))
        data = self.read(relative)
        known = self._manifests.entry(relative) or self._marks.of(path.name)
        if known is not None and not known.allows(hashlib.sha256(data).hexdigest()):
            raise ArchiveError(
                f"{self.storage.url}/{relative} is damaged: the SHA-256 differs",
                "run `vidurai-pipeline scrub`, which says what can be done",
            )
        with archive_errors(path), written_beside(path, data) as beside:
            now, modified = datetime.now(UTC).timestamp(), path.stat().st_mtime_ns
            os.utime(beside, ns=(int(now * 1e9), modified))
            if is_placeholder(path):
                beside.replace(path)

    def fetch_parts(self, path: Path) -> None:
        """Bring of a placeholder what its memories are known by: the footer, and the columns ``IDENTIFYING``."""
        relative = str(path.absolute().relative_to(self.root))
        with archive_errors(path):
            _keep_parts(path, partial(self.storage.read_range, relative))

    def fetch_all(self, needed: Callable[[ArchiveFile], bool] = lambda _: True, *, damaged: bool = False) -> None:
        """Bring the content of files that the bucket holds now and is not here, several at a time.

        Args:
            needed: says of which files it is needed; of others that are large, :meth:`fetch_parts` will do.
            damaged: go on with the others where one can't be brought.
        """
        self.keep()
        for _ in range(_CHANGES):
            self.pull()
            absent = [file for file in list_files(self.root) if is_placeholder(self.root / file.relative)]
            withdrawn = False
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for answer in [pool.submit(fetch, path) for fetch, path in self._fetches(absent, needed)]:
                    try:
                        answer.result()
                    except (ArchiveError, FileNotFoundError) as error:
                        if isinstance(error.__cause__ or error, FileNotFoundError):
                            withdrawn = True  # by another machine, which rewrote it
                        elif not damaged:
                            raise
            if not withdrawn:
                return
        raise ArchiveError(f"{self.storage.url}: files go as fast as they are read", "ask again")

    def _fetches(
        self, absent: Iterable[ArchiveFile], needed: Callable[[ArchiveFile], bool]
    ) -> Iterator[tuple[Callable[[Path], None], Path]]:
        for file in absent:
            path = self.root / file.relative
            if file.key is not None or file.size < self.worth_parts or needed(file):
                yield self.fetch, path
            elif not has_parts(path):
                yield self.fetch_parts, path

    def read(self, relative: str) -> bytes:
        """A file as the bucket holds it.

        Raises:
            FileNotFoundError: it is not there.
            ArchiveError: it can't be read.
        """
        return self.storage.read(relative)[0]

    def require_sound(self, path: Path, sha256: str) -> None:
        """Give up the content of a file that is damaged here alone.

        Args:
            path: the file.
            sha256: its digest in the bucket.
        """
        if not is_placeholder(path) and digest_file(path)[0] != sha256:
            with archive_errors(path):
                make_placeholder(path, (found := path.stat()).st_size, found.st_mtime_ns)

    def keep(self) -> None:
        """Keep the content of files here until this process gives it up itself, or ends."""
        with self._keeping:
            if self._kept is None:
                kept = self._open_readers()
                fcntl.flock(kept, fcntl.LOCK_SH)
                self._kept = kept

    def _open_readers(self) -> int:
        with archive_errors(self.root / _READERS):
            return os.open(self.root / _READERS, os.O_RDWR | os.O_CREAT, 0o600)

    def evict(self, most: int) -> None:
        """Give up the content of files, those that were not used for the longest time first, until few bytes are left.

        Where others still read them, the last one of these does it.

        Args:
            most: how many bytes may stay.
        """
        with self._keeping:
            if self.readers or not self.root.exists():
                return
            kept = self._open_readers() if self._kept is None else self._kept
            self._kept = None
            try:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._evict(most)
            finally:
                os.close(kept)

    def _evict(self, most: int) -> None:
        yesterday = datetime.now(UTC).timestamp() - 86_400
        for path in self.root.rglob(".*.parquet.*.part"):  # of a process that died while it brought a file
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime < yesterday:
                    path.unlink()
        found = []
        for file in list_files(self.root):
            path, entry = self.root / file.relative, self._manifests.entry(file.relative)
            in_bucket = entry is not None and entry.same_file(file) and file.relative in self._objects
            if in_bucket and not is_placeholder(path):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_atime_ns, file))
        size = sum(file.size for _, file in found)
        for _, file in sorted(found):
            if size <= most:
                break
            path = self.root / file.relative
            if file.key is None and file.size >= self.worth_parts:
                with contextlib.suppress(OSError, pa.ArrowException), path.open("rb") as content:
                    _keep_parts(path, partial(os.pread, content.fileno()))
            if not is_placeholder(path):
                with archive_errors(path):
                    make_placeholder(path, file.size, file.modified)
            size -= file.size

    # To the bucket

    def push(self) -> None:
        """Bring the bucket in line with what this run has done; within a session.

        Raises:
            LockedError: another machine took over.
            ArchiveError: it could not be done; the next run does the rest.
        """
        with self._guard(_PATIENCE):
            self._push()

    def _push(self) -> None:
        self._require_lease()
        with archive_errors(self.root):
            folders = self._manifests.folders(list_files(self.root))
            local = {key: stamp for key in self._state_files(folders) if (stamp := _stamp(self.root / key))}
            changed = [
                key for key, stamp in local.items() if key not in self._synced or self._synced[key].stamp != stamp
            ]
            before = dict(self._synced)
            if changed and not self._synced:
                self.storage.require_conditions()
            try:
                states = [key for key in changed if not key.endswith(MANIFEST)]
                for key in sorted(states):
                    self._write_state(key)
                # Also what someone removed from the bucket, and is still here.
                self._upload_recorded(folders)
                # The archive's own manifest comes after those of the months that it names.
                for key in sorted(set(changed) - set(states), key=lambda key: (key == MANIFEST, key)):
                    self._write_state(key)
                self._remove_replaced()
                for key in self._synced.keys() - local.keys():
                    if self._may_go(key):
                        self.storage.delete([key])
                        del self._synced[key]
            finally:
                if self._synced != before:
                    self._save()

    def _require_lease(self) -> None:
        if self._lost_lease:
            raise LockedError(f"another machine took over the archive {self.storage.url}; run again")
        if not (self.root / RECORD).exists():
            raise ArchiveError(f"{self.root}: the working copy was removed during a run", "run again")

    def _state_files(self, folders: Collection[str]) -> Iterator[str]:
        for folder in {"", ".pending", ".intents", ".tombstones", *folders}:
            with contextlib.suppress(FileNotFoundError):
                yield from (
                    key for path in (self.root / folder).iterdir() if _STATE.fullmatch(key := _key(folder, path.name))
                )

    def _write_state(self, key: str) -> None:
        path, known = self.root / key, self._synced.get(key)
        stamp, data = _stamp(path), path.read_bytes()
        self._synced[key] = Synced(self.storage.write(key, data, known.etag if known else None).etag, stamp)

    def _upload_recorded(self, folders: Collection[str]) -> None:
        """Have in the bucket what the manifests name, as far as it is here."""
        for folder in folders:
            for name, entry in self._manifests.of(folder).entries.items():
                key, path = _key(folder, name), self.root / _key(folder, name)
                if key not in self._objects and path.exists() and not is_placeholder(path):
                    data = path.read_bytes()
                    if entry.allows(hashlib.sha256(data).hexdigest()):  # what is damaged is no copy
                        self.upload(key, data)

    def _remove_replaced(self) -> None:
        """Remove what the manifests, as the bucket has them, say was replaced."""
        gone = []
        for key in filter(_PARQUET.fullmatch, self._objects):
            folder, _, name = key.rpartition("/")
            manifest = self._manifests.of(folder)
            if name in manifest.replaced.keys() - manifest.entries.keys() and not self._marks.path(name).exists():
                gone.append(key)
        self.remove(gone)

    def _may_go(self, key: str) -> bool:
        """Whether a small file that is no longer here was removed on purpose."""
        folder, _, name = key.rpartition("/")
        if folder == ".intents":
            return True
        if folder == ".tombstones":
            month = name.partition(".")[0]
            return any(path.name.startswith(f"{month}.") for path in (self.root / folder).glob("*"))
        if folder == ".pending" and name.endswith(".json"):
            file = name.removesuffix(".json")
            objects = [found for found in self._objects if found.rpartition("/")[2] == file]
            retired = (self.root / folder / name).with_suffix(".damaged").exists()
            return retired or all(self._manifests.entry(found) for found in objects)
        return False

    def upload(self, relative: str, data: bytes, replaces: Collection[str] = (), *, keep_damaged: bool = False) -> None:
        """Have a Parquet file in the bucket, read back and found equal.

        Args:
            relative: its path below the archive.
            data: its bytes.
            replaces: the digests that another file in that place may have.
            keep_damaged: replace any other file too, and keep it in the working copy as ``*.damaged``.

        Raises:
            ConflictError: another file is there.
            ArchiveError: it could not be done.
        """
        self._require_lease()
        etag, digest = None, hashlib.sha256(data).hexdigest()
        if self._uploaded.get(relative) == digest:
            return
        if relative in self._objects:
            with contextlib.suppress(FileNotFoundError):
                found, (etag, *_) = self.storage.read(relative)
                if found == data:
                    return
                if hashlib.sha256(found).hexdigest() not in replaces:
                    if not keep_damaged:
                        raise ConflictError(f"{self.storage.url}/{relative}: another file is there", "run again")
                    with archive_errors(self.root / relative):
                        durable_write(self.root / f"{relative}.damaged-{uuid.uuid4().hex[:8]}", found)
        self._objects[relative] = self.storage.write(relative, data, etag)
        self._uploaded[relative] = digest

    def withdraw(self, relative: str, allowed: Collection[str]) -> None:
        """Remove a pending file of which nothing is left, if it has one of some digests."""
        if relative in self._objects:
            with contextlib.suppress(FileNotFoundError):
                if hashlib.sha256(self.read(relative)).hexdigest() in allowed:
                    self.remove([relative])

    def remove(self, keys: Iterable[str]) -> None:
        """Remove Parquet files that no manifest in the bucket names any more."""
        for key in list(keys):
            self.storage.delete([key])
            self._objects.pop(key, None)
            self._uploaded.pop(key, None)

    def sweep(self) -> None:
        """Remove the waste of rewritings that were cut short; within a session.

        The manifest says so first: a machine that was held up amid such a rewriting can't take it up again.
        """
        waste: dict[str, list[str]] = {}
        for key in self._objects:
            folder, _, name = key.rpartition("/")
            manifest = self._manifests.of(folder)
            if _PARQUET.fullmatch(key) and name not in manifest.replaced and not self._counts(folder, name):
                waste.setdefault(folder, []).append(name)
        for folder, names in waste.items():
            manifest = Manifest.read(self.root / folder)
            manifest.replaced |= dict.fromkeys(names, "")
            make_folder(manifest.folder)
            manifest.write()
        if waste:
            self.push()

    # The record

    def _load(self) -> None:
        try:
            synced = json.loads((self.root / RECORD).read_bytes())["synced"]
            self._synced = {
                key: Synced(etag, None if stamp is None else tuple(stamp)) for key, (etag, stamp) in synced.items()
            }
        except (OSError, ValueError, TypeError, KeyError):  # all is compared anew
            self._synced = {}

    def _save(self) -> None:
        make_folder(self.root)
        with archive_errors(self.root / RECORD):
            durable_write(self.root / RECORD, json.dumps({"url": self.storage.url, "synced": self._synced}).encode())


def refresh(
    root: Path,
    reader: object = None,
    needed: Callable[[ArchiveFile], bool] = lambda _: True,
    *,
    damaged: bool = False,
) -> None:
    """Have in an archive's folder what its bucket holds, with its content; nothing is to be done for other archives.

    Args:
        root: the archive's folder.
        reader: reads files until :func:`evict` is called for it, or it is gone.
        needed: says of which files the content is needed; see :meth:`WorkingCopy.fetch_all`.
        damaged: leave damaged files as they are.
    """
    for copy in _copies_in(root):
        if reader is not None:
            copy.readers.add(reader)
        copy.fetch_all(needed, damaged=damaged)


def evict(root: Path, reader: object) -> None:
    """Give up what exceeds ``VIDURAI_CACHE_SIZE`` in an archive's folder; nothing is to be done for other archives.

    Args:
        root: the archive's folder, or that of the archives of several stores.
        reader: reads nothing more.
    """
    copies = _copies_in(root)
    for copy in copies:
        copy.readers.discard(reader)
        copy.evict(copy.most_bytes // len(copies))


def traffic_of(root: Path) -> Traffic:
    """What this process has asked of the object store that an archive's folder belongs to; nothing for others.

    Args:
        root: the archive's folder, or that of the archives of several stores.
    """
    counts = [asdict(copy.storage.traffic) for copy in _copies_in(root)]
    return Traffic(**{name: sum(count[name] for count in counts) for name in asdict(Traffic())})


def _copies_in(root: Path) -> list[WorkingCopy]:
    return [copy for folder in (root, *store_roots(root).values()) if (copy := WorkingCopy.of(folder)) is not None]


def belongs_to_archive(key: str) -> bool:
    """Whether an object is part of an archive."""
    return bool(_PARQUET.fullmatch(key) or _STATE.fullmatch(key)) and not key.startswith(store_folder(""))


def _keep_parts(path: Path, get: Callable[[int, int], bytes]) -> None:
    """Make a file a placeholder with what its memories are known by."""
    found = path.stat()

    def fill(kept: BinaryIO) -> None:
        with KeyRing().open(path, Ranges(get, found.st_size, kept)) as parquet:
            names = parquet.schema_arrow.names
            parquet.read([name for name in IDENTIFYING if name in names], use_threads=False)

    make_placeholder(path, found.st_size, found.st_mtime_ns, fill)


def _lease(holder: dict[str, object] | None) -> bytes:
    # Never twice the same: the tag of an object may be a digest of it.
    return json.dumps({**(holder or {}), "renewed": uuid.uuid4().hex}).encode()


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _key(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
