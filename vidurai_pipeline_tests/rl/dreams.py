"""What tests of the dream share: generated memories, a dream that must succeed or fail, a daemon beside it."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.inference import SALIENCES
from vidurai_pipeline_tests.support.archives import experience

CHANGES = {"write", "fsync", "mkdir", "rename", "replace", "unlink"}
SECRET = "the user's password"
Rows = list[dict[str, Any]]


def generated(first: int, last: int, seed: int = 0) -> Rows:
    rng = random.Random(f"{seed} {first}")
    return [
        experience(
            n,
            rng.choice([1, -1, 1, 0]),
            verbatim="x" * rng.choice([rng.randrange(200), rng.randrange(5000), rng.randrange(60_000)]),
            salience=rng.choice([*SALIENCES, None]),
        )
        for n in range(first, last)
    ]


def dream(archive: Path, table: Path, *, rebuild: bool = False, order: Any = "chronological", **how: Any) -> Any:
    stats = DreamCycle(archive, table, **how).run(rebuild=rebuild, order=order)
    assert stats["success"], stats["error"]
    assert stats["error"] is None
    return stats


def failed(archive: Path, table: Path, *, rebuild: bool = False, order: Any = "chronological", **how: Any) -> str:
    stats = DreamCycle(archive, table, **how).run(rebuild=rebuild, order=order)
    assert not stats["success"]
    assert stats["completed_at"]
    return stats["error"]


def learned(table: Path) -> dict[str, Any]:
    return json.loads(table.read_text())["q_table"]


def daemon_writes(table: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The daemon saves a table of its own: in place, and with nothing in it but what it knows."""
    document = json.loads(table.read_text())
    change(document)
    table.write_text(
        json.dumps({key: document[key] for key in ("q_table", "episodes", "total_reward", "epsilon")}, indent=2)
    )


def starts_anew(document: dict[str, Any]) -> None:
    document.update(
        q_table={"9|9|9|5|5|1": {"consolidate": 3.0}, "2|1|0|5|5|1": {"compress_now": 1.25}},
        episodes=50,
        total_reward=500.0,
        epsilon=0.2,
    )


def goes_on(document: dict[str, Any]) -> None:
    document["q_table"]["9|9|9|5|5|1"] = {"consolidate": 3.0}
    document["episodes"] += 50
    document["total_reward"] += 500.0


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Do some work in a child process that is killed before its nth step that changes a file or a folder.

    Returns:
        Whether it was killed; False if the work ended, and well, before that call.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def profile(_frame: Any, event: str, called: Any) -> None:
            nonlocal calls
            if event == "c_call" and called.__name__ in CHANGES:
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
