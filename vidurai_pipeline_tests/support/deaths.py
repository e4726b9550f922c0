"""Deaths by SIGKILL in forked children, before each call that changes something outside of the process.

A death before a call that only reads leaves what a death before the next change leaves, so it is left out.
"""

import gc
import os
import signal
import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  (by read_table, and slow to import in every child)

FILE_EVENTS = {
    "ctypes.dlsym",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "sqlite3.connect",
}
READING = {"SELECT", "EXPLAIN"}


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# Those of the allocator and of the linear algebra, which know how to be forked.
THREADS_OF_IMPORTS = threads()


class KillSwitch:
    """Kills this process just before its nth change to the file system or to SQLite."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.calls = 0
        self.seen: Counter[str] = Counter()

    def step(self, name: str) -> None:
        self.calls += 1
        self.seen[name] += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        switch = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                switch.statement(sql)
                return super().execute(sql, *args)  # type: ignore[arg-type]

            def executemany(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
                switch.statement(sql)
                return super().executemany(sql, *args)  # type: ignore[arg-type]

        connect, fsync = sqlite3.connect, os.fsync

        def counted_connect(*args: object, **options: object) -> sqlite3.Connection:
            return connect(*args, **{**options, "factory": Connection})  # type: ignore[arg-type,call-overload]

        def counted_fsync(descriptor: int) -> None:
            switch.step("os.fsync")
            fsync(descriptor)

        sqlite3.connect = counted_connect  # type: ignore[assignment]
        os.fsync = counted_fsync
        sys.addaudithook(self.audit)

    def statement(self, sql: str) -> None:
        verb = sql.split(maxsplit=1)[0]
        if verb not in READING:
            self.step(f"sqlite: {verb}")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens_to_write = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opens_to_write or event in FILE_EVENTS:
            self.step(event)


def start_child(work: Callable[[], object]) -> int:
    """Run something in a forked child; gives its process id.

    The child has this thread only: a lock that another one holds at that moment would never be released. So this
    process starts none, and what would (reading Parquet) runs in children.
    """
    assert threads() <= THREADS_OF_IMPORTS
    gc.freeze()  # else each child's collections copy all pages of this process: half of what a death costs
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def run_child(work: Callable[[], object]) -> int:
    """Run something in a forked child to its end; gives the status that it ended with."""
    return os.waitpid(start_child(work), 0)[1]
