"""The keys that archived files are encrypted with, and the one place where a Parquet file of the archive is opened.

A key file holds one key a line, ``ID BASE64``; new files are encrypted with the last one. A key's id is a digest of the
key, so a damaged or swapped line is noticed when the file is read. A file's name says which key it needs, as in
``memories_20261127_020003.key-1f3a9c07.parquet``; a name without a key means a plain file.
"""

import base64
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import encryption

from vidurai_pipeline.cold.files import archive_errors, durable_write, make_folder, make_present
from vidurai_pipeline.errors import ArchiveError, MissingKeyError

SETTING = "VIDURAI_ARCHIVE_KEY_FILE"
_KEY_BYTES = 32
_NAMED = re.compile(r"\.key-([0-9a-f]{8})\.parquet(?:\.|$)")
_ENCRYPTED = b"PARE"


def key_of(name: str) -> str | None:
    """The id of the key that a file of this name needs; None for a plain one."""
    found = _NAMED.search(name)
    return found.group(1) if found else None


class KeyRing:
    """The keys of a key file. It is read when a key is needed, and again when it has changed.

    Args:
        path: the key file; None if the archive is not encrypted.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._version: object = None
        self._keys: dict[str, bytes] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the keys: another process reads them from the file."""
        return {**vars(self), "_version": None, "_keys": {}}

    @property
    def keys(self) -> dict[str, bytes]:
        """The keys by id, the newest last.

        Raises:
            MissingKeyError: the key file can't be used.
        """
        if self.path is None:
            return {}
        try:
            status = self.path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
            if version != self._version:
                self._keys, self._version = _read(self.path, status.st_mode), version
        except OSError as error:
            raise MissingKeyError(
                f"{SETTING}={self.path} can't be read: {error.strerror}",
                "restore the key file from its backup, or run `vidurai-pipeline new-key` to make the first one",
            ) from None
        if not self._keys:
            raise MissingKeyError(f"{SETTING}={self.path} holds no key", "run `vidurai-pipeline new-key`")
        return self._keys

    @property
    def newest(self) -> str | None:
        """The id of the key for new files; None if they are not encrypted."""
        return next(reversed(self.keys), None)

    @property
    def suffix(self) -> str:
        """How the name of a new file ends."""
        return f".key-{self.newest}.parquet" if self.path else ".parquet"

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of some files' names whose key is not there."""
        return [name for name in names if (key := key_of(name)) is not None and key not in self.keys]

    def get(self, path: Path) -> bytes | None:
        """The key that a file needs; None for a plain one.

        Raises:
            MissingKeyError: it is not there.
        """
        id_ = key_of(path.name)
        if id_ is None:
            return None
        if id_ not in self.keys:
            where = f"{SETTING}={self.path} does not hold it" if self.path else f"{SETTING} is not set"
            raise MissingKeyError(
                f"{path} is encrypted with the key {id_}, but {where}",
                "put the key back into the key file" if self.path else "set it to the archive's key file",
            )
        return self.keys[id_]

    def encryption(self, path: Path) -> Any:
        """How a file of this name is to be written, as pyarrow has it; None for a plain one."""
        key = self.get(path)
        return None if key is None else encryption.create_encryption_properties(key)

    def open(self, path: Path, data: bytes | io.RawIOBase | None = None) -> pq.ParquetFile:
        """Open a file of the archive; its pages are held against their checksums when they are read.

        Args:
            path: where it is; its name says which key it needs.
            data: its bytes, if they were read before; or what reads them.

        Raises:
            ArchiveError: it is encrypted, but its name names no key.
            OSError, pyarrow.ArrowException: it can't be read.
        """
        key = self.get(path)
        if data is None:
            make_present(path)
        source = pa.BufferReader(data) if isinstance(data, bytes) else data
        try:
            return pq.ParquetFile(
                path if source is None else source,
                page_checksum_verification=True,
                decryption_properties=None if key is None else encryption.create_decryption_properties(key),
            )
        except (OSError, pa.ArrowException):
            if key is None and not isinstance(data, io.RawIOBase) and is_encrypted(path, data):
                raise ArchiveError(f"{path} is encrypted, but its name names no key", "give it its old name") from None
            raise


def is_encrypted(path: Path, data: bytes | None = None) -> bool:
    """Whether a file says of itself that its footer is encrypted."""
    if data is None:
        try:
            with path.open("rb") as file:
                data = file.read(len(_ENCRYPTED))
        except OSError:
            return False
    return data.startswith(_ENCRYPTED)


def add_key(path: Path) -> str:
    """Make a key and add it to a key file, which is made if it is not there.

    Returns:
        the key's id.

    Raises:
        MissingKeyError: what is there is not a key file, or other users can read it.
    """
    path = Path(os.path.realpath(path))
    key = secrets.token_bytes(_KEY_BYTES)
    make_folder(path.parent)
    with archive_errors(path):
        keys = _read(path, path.stat().st_mode) if path.exists() else {}
        keys[_id(key)] = key
        lines = [f"{id_} {base64.b64encode(key).decode()}\n" for id_, key in keys.items()]
        durable_write(path, "".join(lines).encode())
    return _id(key)


def _id(key: bytes) -> str:
    return hashlib.sha256(b"vidurai-pipeline archive key\n" + key).hexdigest()[:8]


def _read(path: Path, mode: int) -> dict[str, bytes]:
    if not stat.S_ISREG(mode):
        raise MissingKeyError(f"{SETTING}={path} is not a file", "name the key file")
    if mode & 0o077:
        raise MissingKeyError(f"{SETTING}={path} can be read or changed by other users", f"chmod 600 {path}")
    keys = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            id_, text = line.split()
            key = base64.b64decode(text, validate=True)
        except ValueError:
            id_, key = b"", b""
        if len(key) != _KEY_BYTES or id_.decode(errors="replace") != _id(key):
            # Without a word of the line: it is, or was, a key.
            raise MissingKeyError(
                f"{SETTING}={path}: line {number} is damaged: it is not a key with its id",
                "restore the key file from its backup",
            )
        keys[_id(key)] = key
    return keys
