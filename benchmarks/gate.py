"""How often the gate refuses ordinary nights, and bad ones: the rates in docs/learning.md.

    python -m benchmarks.gate [--nights 600]

Each trial makes up some states with a chance of a good outcome each, a table that learned from them, and one more
night: ordinary, turned upside down (good and bad exchanged), or with nothing but bad outcomes.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from vidurai_pipeline.rl.evaluation import QTable, TransitionCount, compare
from vidurai_pipeline.rl.inference import Transition
from vidurai_pipeline.rl.states import Action

_REWARDS = {1: 80.0, -1: -35.0}
_ALPHA, _GAMMA = 0.1, 0.9


def refused(rng: np.random.Generator, states: int, before: int, night: int, kind: str) -> bool:
    """Whether the gate refuses one made-up night."""
    chances = np.full(states, 0.8) if kind == "all bad" else rng.uniform(0.05, 0.95, states)
    tonight = {"ordinary": chances, "upside down": 1 - chances, "all bad": np.zeros(states)}[kind]
    weights = rng.dirichlet(np.full(states, 0.7))
    state = rng.choice(states, before + night, p=weights)
    late = np.arange(before + night) >= before
    good = rng.random(before + night) < np.where(late, tonight[state], chances[state])
    held = rng.random(before + night) < 0.2
    old: dict[str, dict[Action, float]] = {}
    new: dict[str, dict[Action, float]] = {}
    seen: list[TransitionCount] = []
    for one in range(states):
        here = state == one
        if (here & ~late).any():
            old[str(one)] = {Action.COMPRESS_NOW: _learn(0.0, good[here & ~late])}
        begin = old.get(str(one), {}).get(Action.COMPRESS_NOW, 0.0)
        new[str(one)] = {Action.COMPRESS_NOW: _learn(begin, good[here & late & ~held])}
        for outcome, reward in _REWARDS.items():
            count = int((here & held & (good == (outcome > 0))).sum())
            if count:
                seen.append(TransitionCount(Transition(str(one), Action.COMPRESS_NOW, outcome, "next"), reward, count))
    return _refuses(old, new, seen)


def _refuses(old: QTable, new: QTable, seen: list[TransitionCount]) -> bool:
    return bool(seen) and compare(old, new, seen, _ALPHA, _GAMMA).not_worse is False


def _learn(value: float, outcomes: np.ndarray) -> float:
    for good in outcomes:
        value += _ALPHA * (_REWARDS[1 if good else -1] - value)
    return value


def main() -> None:
    """Run the simulations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=600, help="ordinary ones; of the others a quarter")
    nights = parser.parse_args().nights
    rng = np.random.default_rng(0)
    kinds = {"ordinary": nights, "upside down": nights // 4, "all bad": nights // 4}
    table = Table("states", "experiences before", "in the night", *(f"{kind}: refused" for kind in kinds))
    for states in (1, 3, 10, 60):
        for before, night in ((200, 10), (200, 100), (1_000, 50), (1_000, 300), (10_000, 1_000)):
            rates = [
                sum(refused(rng, states, before, night, kind) for _ in range(trials)) / trials
                for kind, trials in kinds.items()
            ]
            table.add_row(str(states), f"{before:,}", f"{night:,}", *(f"{rate:.1%}" for rate in rates))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
