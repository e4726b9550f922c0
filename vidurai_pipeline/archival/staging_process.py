"""Stage files in a process of its own, while this one purges.

Reading rows and comparing them is Python's work, of which one process does one piece at a time. ``multiprocessing``
would start the caller's main module anew, which a library can't expect to bear that.
"""

import contextlib
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidurai_pipeline.archival.staging import StagedFile, Stager
from vidurai_pipeline.errors import ArchiveError, PipelineError

# Arrow's and glibc's allocators keep for each thread what was freed; here one thread does most of the work.
_FRUGAL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from vidurai_pipeline.archival.staging_process import serve
serve()
"""


class StagingProcess(contextlib.AbstractContextManager["StagingProcess"]):
    """Does what a :class:`Stager` does, in a child process that ends with this one, however this one ends.

    Args:
        stager: does the work there.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, stager: Stager) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (this very Python)
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # or Ctrl-C would reach it while it starts, before it can ignore it
            env={**_FRUGAL, **os.environ},
        )
        self.moment, self.batch = stager.moment, stager.batch
        # Its pipes are there: they were asked for.
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        self._send(sys.path)
        self._send(stager)

    def _send(self, message: object) -> None:
        # That it has died is told when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._requests)
            self._requests.flush()

    def stage(self, path: Path, after: Any, progress: Callable[[int], None]) -> StagedFile:
        """See :meth:`Stager.stage`.

        Raises:
            HotStoreError, ArchiveError: nothing of the file is left, or the process died and what is left is hidden.
        """
        self._send((path, after))
        while True:
            try:
                answer = pickle.load(self._answers)  # noqa: S301  (our own child's)
            except (EOFError, pickle.UnpicklingError):
                raise ArchiveError(
                    f"{path}: the process that was writing it ended (exit code {self._process.wait()}) before the "
                    "file was published; no memory of it was purged. Run again"
                ) from None
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, StagedFile):
                return answer
            progress(answer)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def start_staging_process(stager: Stager) -> StagingProcess | None:
    """A process that does a stager's work, or None where none can be started (no memory, an embedded Python)."""
    if not sys.executable:
        return None
    try:
        return StagingProcess(stager)
    except OSError:
        return None


def serve() -> None:
    """The child's side: stage what is asked for, until there is no one left to ask."""
    # Whoever asked decides what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Rows hold no reference cycles; looking for some would take a fifth of the time.
    gc.disable()
    answers = os.fdopen(os.dup(1), "wb")
    # What anything prints must not get between the answers; there may be no stderr to send it to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    stager: Stager = requests.get()

    def answer(message: object) -> None:
        pickle.dump(message, answers)
        answers.flush()

    while True:
        path, after = requests.get()
        try:
            answer(stager.stage(path, after, answer))
        except PipelineError as error:
            answer(error)
        except Exception as error:  # whatever it is, the one who waits must hear of it
            place = traceback.extract_tb(error.__traceback__)[-1]
            # Its own text may quote a memory.
            answer(RuntimeError(f"{type(error).__name__} at {place.filename}:{place.lineno}, while writing {path}"))
        gc.collect()


def _listen(requests: queue.SimpleQueue) -> None:
    """Pass on what is asked for; end this process as soon as the other one is gone."""
    while True:
        try:
            requests.put(pickle.load(sys.stdin.buffer))  # noqa: S301  (our parent's)
        except EOFError:
            os._exit(0)
