"""What tests of the dream share: generated memories, a dream that must succeed or fail, a daemon beside it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.inference import SALIENCES
from vidurai_pipeline_tests.rl.archives import memory

SECRET = "the user's password"
Rows = list[dict[str, Any]]


def generated(first: int, last: int, seed: int = 0) -> Rows:
    rng = random.Random(f"{seed} {first}")
    return [
        memory(
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
