"""One run at a time on an archive, whoever starts it."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vidurai_pipeline.errors import ArchiveError, LockedError


class RunLock:
    """A lock on the archive's folder that the operating system frees when its holder dies.

    ``filelock`` locks ``.lock``; who holds it stands in ``.lock.json``, for the one who has to wait.

    Args:
        root: the archive's folder, which must exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # One for each path and thread: a run that holds it may take it again, another of the same process may not.
        self._lock = FileLock(root / ".lock", is_singleton=True, thread_local=True, mode=0o600)
        self._holder = root / ".lock.json"

    @contextlib.contextmanager
    def hold(self, purpose: str, timeout: float) -> Iterator[bool]:
        """Hold the lock; gives whether this run did not hold it before.

        Args:
            purpose: what the run does, told to those who wait.
            timeout: seconds to wait for another run.

        Raises:
            LockedError: the other run did not finish in time; the message says which it is.
        """
        outermost = not self._lock.is_locked
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            raise LockedError(self._describe()) from None
        except OSError as error:
            raise ArchiveError(f"{self._root}: can't be locked ({os.strerror(error.errno or 0)})") from error
        try:
            if outermost:
                self._sign(purpose)
            yield outermost
        finally:
            if outermost:
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _sign(self, purpose: str) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "purpose": purpose,
        }
        try:
            self._holder.touch(mode=0o600)
            self._holder.write_text(json.dumps(holder))
        except OSError as error:
            raise ArchiveError(f"{self._holder}: {os.strerror(error.errno or 0)}") from error

    def _describe(self) -> str:
        try:
            holder = json.loads(self._holder.read_text())
            who = f"process {holder['pid']} on {holder['host']} ({holder['purpose']}), since {holder['since']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        return f"another run is at work on {self._root}: {who}. Wait for it, or raise VIDURAI_LOCK_TIMEOUT"
