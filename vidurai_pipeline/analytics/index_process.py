"""Keep the search index in line with the archive while a flush is at work, in a process of its own.

A large flush waits for SQLite most of the time, with one of the machine's cores at most. What the index costs is hidden
there: each file is read as soon as its memories have left the hot store.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from vidurai_pipeline.analytics.word_index import Progress, WordIndex
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_settled
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ArchiveError, PipelineError
from vidurai_pipeline.settings import Settings, load_settings

_LOOK_SECONDS = 0.5
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from vidurai_pipeline.analytics.index_process import follow
follow(sys.argv[2])
"""


class FlushIndexing:
    """Updates the search index during a flush, and after it. It never makes the flush fail."""

    #: Of so many waiting memories or more, a second process indexes while this one purges.
    rows_worth_a_process = 20_000

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._archive = open_archive(settings)
        self._progress = progress
        self._child: subprocess.Popen[str] | None = None
        self._tried = False

    def progress(self, stage: str, done: int, total: int) -> None:
        """Pass on how far the flush is; a large one has the index updated beside it from now on."""
        if not self._tried and total >= self.rows_worth_a_process and _wanted(self._archive):
            self._tried = True
            with contextlib.suppress(OSError):  # without one, the index is updated at the end
                self._child = _start(self._archive.root)
        self._progress(stage, done, total)

    def finish(self) -> str | None:
        """Wait until the index is in line with the archive; returns why that could not be done."""
        if not _wanted(self._archive):
            return None
        reason = None
        if self._child is not None:
            reason = self._wait(self._child)
        else:
            try:
                WordIndex(self._archive.root).update(self._archive, progress=self._progress)
            except ArchiveError as error:
                reason = str(error)
        return reason and f"the search index was not updated: {reason}"

    def _wait(self, child: subprocess.Popen[str]) -> str | None:
        assert child.stdin is not None  # noqa: S101  (it was asked for)
        assert child.stdout is not None  # noqa: S101
        child.stdin.close()
        for line in child.stdout:
            message = json.loads(line)
            if isinstance(message, str):
                return message
            self._progress(*message)
        return None if child.wait() == 0 else f"the process that did it ended with exit code {child.returncode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child, also amid an update, which is then as if it had not begun."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()


def _wanted(archive: Archive) -> bool:
    return bool(sys.executable) and archive.keys.path is None


def _start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  (this very Python)
        [sys.executable, "-c", _START, json.dumps(sys.path), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for the flush, which ends it
    )


def follow(root: str) -> None:
    """The child's side: update the index until the standard input ends, and once more then.

    It tells each step of its progress, and at last, if it failed, why, as lines of JSON.
    """
    os.nice(10)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What anything prints must not get between the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(*message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(message[0] if len(message) == 1 else message) + "\n")

    def more() -> bool:
        nonlocal flushing
        was_flushing = flushing
        flushing = flushing and not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]
        return was_flushing

    flushing = True
    try:
        archive = open_archive(load_settings(), Path(root))
        while not list_settled(archive.root) and more():
            pass
        WordIndex(archive.root).update(archive, progress=tell, more=more)
    except PipelineError as error:
        tell(str(error))
