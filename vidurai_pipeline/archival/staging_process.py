"""Stage a file in a process of its own, while this one purges the one before.

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
from typing import Any, Self

from vidurai_pipeline.archival.staging import StagedFile, Stager, StagingRequest
from vidurai_pipeline.errors import ArchiveError, PipelineError

# Arrow's and glibc's allocators keep for each thread what was freed; here one thread does most of the work.
_FRUGAL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from vidurai_pipeline.archival.staging_process import serve
serve()
"""


class Staging:
    """Stages one file after the other, each begun at one moment and finished at a later one.

    In between, a child process does the work, if there is one; otherwise it is done when the file is finished. The
    first file is always staged here: the child takes as long to start.

    Args:
        stager: does the work.
        apart: start a child process, where one can be started.
    """

    def __init__(self, stager: Stager, *, apart: bool) -> None:
        self.apart = apart
        self._stager = stager
        self._process: StagingProcess | None = None
        if apart and sys.executable:
            with contextlib.suppress(OSError):  # there is no memory for one, perhaps
                self._process = StagingProcess(stager)
        self._request: StagingRequest | None = None

    @property
    def begun(self) -> bool:
        """Whether a file was begun and is not finished."""
        return self._request is not None

    def begin(self, request: StagingRequest) -> None:
        """Begin with a file; the one before must be finished."""
        self._request = request
        if self._is_apart(request):
            self._process.send(request)  # pyright: ignore[reportOptionalMemberAccess]

    def finish(self, progress: Callable[[int], None]) -> StagedFile:
        """Wait for the file that was begun, and tell how many of its memories were read.

        Raises:
            HotStoreError, ArchiveError: what is left of the file is hidden.
        """
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError("no file was begun")
        if self._is_apart(request):
            return self._process.receive(request, progress)  # pyright: ignore[reportOptionalMemberAccess]
        return self._stager.stage(request, progress)

    def _is_apart(self, request: StagingRequest) -> bool:
        return self._process is not None and request.after is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child, also amid a file, whose hidden part the caller sweeps away."""
        if self._process is not None:
            self._process.close()
        self._stager.close()


class StagingProcess:
    """Does what a :class:`Stager` does, in a child process that ends with this one, however this one ends."""

    def __init__(self, stager: Stager) -> None:
        self.process = subprocess.Popen(  # noqa: S603  (this very Python)
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # or Ctrl-C would reach it while it starts, before it can ignore it
            env={**_FRUGAL, **os.environ},
        )
        # Its pipes are there: they were asked for.
        self._requests: Any = self.process.stdin
        self._answers: Any = self.process.stdout
        self.send(sys.path)
        self.send(stager)

    def send(self, message: object) -> None:
        """Ask for a file; the answer is for :meth:`receive`."""
        # That it has died is told when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._requests)
            self._requests.flush()

    def receive(self, request: StagingRequest, progress: Callable[[int], None]) -> StagedFile:
        """Wait for the file that was asked for.

        Raises:
            HotStoreError, ArchiveError: as the stager has it, or the process died.
        """
        while True:
            try:
                answer = pickle.load(self._answers)  # noqa: S301  (our own child's)
            except (EOFError, pickle.UnpicklingError):
                raise ArchiveError(
                    f"{request.path}: the process that was writing it ended (exit code {self.process.wait()}) before "
                    "the file was published; no memory of it was purged. Run again"
                ) from None
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, StagedFile):
                return answer
            progress(answer)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def serve() -> None:
    """The child's side: stage what is asked for, until there is no one left to ask."""
    # The process that asked decides what an interruption means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Rows hold no reference cycles; looking for some would take a fifth of the time.
    gc.disable()
    sys.meta_path.insert(0, _WithoutPandas())
    answers = os.fdopen(os.dup(1), "wb")
    # What anything prints must not get between the answers; there may be no stderr to send it to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    stager: Stager = requests.get()

    def answer(message: object) -> None:
        try:
            pickle.dump(message, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # no one is left to hear it

    while True:
        request: StagingRequest = requests.get()
        try:
            answer(stager.stage(request, answer))
        except PipelineError as error:
            answer(error)
        except Exception as error:  # whatever it is, the one who waits must hear of it
            place = traceback.extract_tb(error.__traceback__)[-1]
            # Its own text may quote a memory.
            what = f"{type(error).__name__} at {place.filename}:{place.lineno}, while writing {request.path}"
            answer(RuntimeError(what))
        gc.collect()


class _WithoutPandas:
    """Keeps out pandas, which Arrow imports with its first array: that takes longer than all else here."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def _listen(requests: queue.SimpleQueue) -> None:
    """Pass on what is asked for; end this process as soon as the other one is gone."""
    while True:
        try:
            requests.put(pickle.load(sys.stdin.buffer))  # noqa: S301  (our parent's)
        except EOFError:
            os._exit(0)
