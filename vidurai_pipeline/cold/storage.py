"""Objects below one prefix of a bucket, in any store that obstore speaks to: S3 and its likes, Google's, Azure's.

Nothing is overwritten unseen. An object is made only where there is none, or in the place of exactly the one that was
read before; the store itself sees to that (``If-None-Match``, ``If-Match``). What was written is read back. A write
whose answer got lost is recognised: what is there already is what was to be written.
"""

import contextlib
import errno
import io
import os
import re
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from vidurai_pipeline.errors import ArchiveError, ConfigError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_Answer = TypeVar("_Answer")
_ATTEMPTS = 3
_PAGE = 1_000
_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2},
}
# A large file takes its time on a slow line: the second is for a whole request.
_CLIENT = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=600)}
_CODE = re.compile(r"<Code>(\w+)</Code>|\"reason\": ?\"(\w+)\"|\(code: (\w+)\)")
_STATUS = re.compile(r"status code: (\d{3})")


class StoredObject(NamedTuple):
    """One version of an object: its tag, its size in bytes, and when the store took it in."""

    etag: str
    size: int
    modified: datetime

    @classmethod
    def of(cls, meta: Any) -> Self:
        """An object, as the store's client describes it."""
        return cls(meta["e_tag"] or "", meta["size"], meta["last_modified"])


class ConflictError(ArchiveError):
    """An object is not what it was when it was last read."""


class UnreachableError(ArchiveError):
    """The store did not answer; what was asked of it may have been done."""


@dataclass
class Traffic:
    """The requests that were made of an object store, and the bytes of objects that went either way."""

    lists: int = 0
    reads: int = 0
    writes: int = 0
    deletes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def since(self, before: "Traffic") -> dict[str, int]:
        """What was added to an earlier count, by kind."""
        return {name: count - getattr(before, name) for name, count in asdict(self).items()}


class ObjectStorage:
    """The objects below a prefix. Credentials come by the cloud's usual means: the environment, or the machine's role.

    Args:
        url: such as ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://account/container/prefix``.

    Attributes:
        traffic: what was asked of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.traffic = Traffic()

    @cached_property
    def _store(self) -> "ObjectStore":
        # Who names an endpoint without TLS, in the environment, means it.
        client: Any = {**_CLIENT, "allow_http": True}
        retries: Any = _RETRIES
        try:
            return self._library.store.from_url(self.url, client_options=client, retry_config=retries)
        except (self._library.exceptions.BaseError, ValueError, TypeError):  # the text may hold what it was told
            pass
        raise ConfigError(
            f"{self.url}: the object store's settings can't be used",
            "check the address and the cloud's variables in the environment, such as AWS_ENDPOINT_URL",
        )

    @cached_property
    def _library(self) -> Any:
        try:
            import obstore.exceptions  # noqa: PLC0415  (optional)
            import obstore.store  # noqa: PLC0415
        except ImportError:
            raise ConfigError(
                f"{self.url}: object stores need the package obstore", "pip install 'vidurai-pipeline[s3]'"
            ) from None
        return obstore

    def objects(self) -> dict[str, StoredObject]:
        """All objects by key, which is relative to the prefix."""

        def pages() -> list[list[Any]]:
            return [list(page) for page in self._store.list(chunk_size=_PAGE)]

        found = self._asked(pages)
        self.traffic.lists += max(1, len(found))
        return {meta["path"]: StoredObject.of(meta) for page in found for meta in page}

    def folders(self) -> list[str]:
        """What the keys right below the prefix begin with, up to their first slash."""
        self.traffic.lists += 1
        return [name.strip("/") for name in self._asked(self._store.list_with_delimiter)["common_prefixes"]]

    def read(self, key: str) -> tuple[bytes, StoredObject]:
        """An object's bytes, and which version of it they are.

        Raises:
            FileNotFoundError: it is not there.
            ArchiveError: the store can't be asked.
        """

        def get() -> tuple[bytes, StoredObject]:
            answer = self._store.get(key)
            return bytes(answer.bytes()), StoredObject.of(answer.meta)

        self.traffic.reads += 1
        data, found = self._asked(get)
        self.traffic.bytes_read += len(data)
        return data, found

    def read_range(self, key: str, length: int, start: int) -> bytes:
        """Some of an object's bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        self.traffic.reads += 1
        data = bytes(self._asked(lambda: self._store.get_range(key, start=start, length=length)))
        self.traffic.bytes_read += len(data)
        return data

    def write(self, key: str, data: bytes, replaces: str | None = None) -> StoredObject:
        """Make an object, or replace a version of it, and read it back.

        Args:
            key: the object's key.
            data: its bytes.
            replaces: the tag of the version that it takes the place of; None if there is none.

        Raises:
            ConflictError: another version is there.
            ArchiveError: it could not be written, or did not read back equal.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self.traffic.writes += 1
            self.traffic.bytes_written += len(data)
            try:
                self._asked(lambda: self._put(key, data, replaces))
                break
            except UnreachableError:
                if attempt == _ATTEMPTS:
                    raise
            except (ConflictError, FileNotFoundError):  # also where an earlier attempt was done, and its answer lost
                break
        with contextlib.suppress(FileNotFoundError):
            found, version = self.read(key)
            if found == data:
                return version
        raise ConflictError(
            f"{self.url}/{key}: another machine changed it meanwhile, or it did not read back as it was written",
            "run again",
        )

    def _put(self, key: str, data: bytes, replaces: str | None) -> None:
        mode: Any = "create"
        if replaces is not None:
            mode = {"e_tag": replaces}
            if urlsplit(self.url).scheme == "gs":  # which goes by numbers of generations
                meta = self._store.head(key)
                if meta["e_tag"] != replaces:
                    raise ConflictError(f"{self.url}/{key}: another machine changed it meanwhile", "run again")
                mode["version"] = meta["version"]
        self._store.put(key, data, mode=mode, use_multipart=False)

    def clock(self) -> datetime:
        """What time it is for the store, by an object that is removed again."""
        key = f".probe-{uuid.uuid4().hex}"
        now = self.write(key, b"1").modified
        self.delete([key])
        return now

    def require_conditions(self) -> None:
        """Make sure, with an object that is removed again, that the store overwrites nothing unseen.

        Raises:
            ArchiveError: it does, or can't be asked.
        """
        key = f".probe-{uuid.uuid4().hex}"
        self.write(key, b"1")
        try:
            for replaces in (None, '"0"'):
                try:
                    self.write(key, b"2", replaces)
                except ConflictError:
                    continue
                raise ArchiveError(
                    f"{self.url}: the object store does not honour conditional writes (If-None-Match, If-Match), so "
                    "nothing would be safe in it",
                    "update it, or use another one",
                )
        finally:
            self.delete([key])

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; those that are not there are no matter."""
        for key in keys:
            self.traffic.deletes += 1
            try:
                self._asked(lambda key=key: self._store.delete(key))
            except FileNotFoundError:
                continue

    def _asked(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask the store, and tell what it refuses in one line without anything that it said of itself."""
        kinds = self._library.exceptions
        try:
            return ask()
        except (kinds.BaseError, OSError) as error:
            explained = self._explained(error)
        # Outside of the handler, so that no report of the error shows what the store's client said.
        raise explained

    def _explained(self, error: Exception) -> Exception:
        kinds = self._library.exceptions
        found = _STATUS.search(str(error))
        status, code = int(found[1]) if found else None, _code(error)
        name = f" ({code or status})" if code or status else ""
        if isinstance(error, (kinds.AlreadyExistsError, kinds.PreconditionError)):
            return ConflictError(f"{self.url}: an object was changed meanwhile", "run again")
        if code in {"NoSuchBucket", "ContainerNotFound"}:
            return ArchiveError(f"{self.url}: there is no such bucket", "make the bucket, or correct its name")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url)
        if status in {401, 403} or code == "AccessDenied":
            return ArchiveError(
                f"{self.url}: the object store denies access{name}",
                "check the credentials in the environment and what they may do; docs/deployment.md has a policy",
            )
        if status is None or status == 429 or status >= 500:
            return UnreachableError(
                f"{self.url}: the object store can't be reached, or is too busy{name}",
                "check the network and the endpoint, and run again; no memory is lost",
            )
        return ArchiveError(f"{self.url}: the object store refused a request{name}")


class Ranges(io.RawIOBase):
    """A file of which only what is asked for is read, and kept in another file at the same place.

    Args:
        get: gives a number of bytes from a place on.
        size: of the file.
        kept: the other file.
    """

    def __init__(self, get: Callable[[int, int], bytes], size: int, kept: BinaryIO) -> None:
        self._get, self._size, self._kept, self._at = get, size, kept, 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any place on."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read from here on."""
        if (length := min(len(buffer), self._size - self._at)) <= 0:
            return 0
        buffer[:length] = data = self._get(length, self._at)
        self._kept.seek(self._at)
        self._kept.write(data)
        self._at += length
        return length


def _code(error: Exception) -> str | None:
    found = _CODE.search(str(error))
    return next(filter(None, found.groups()), None) if found else None
