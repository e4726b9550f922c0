"""The gate: whether a newly learned table may replace the one in use.

It must be well-formed, and not foretell held-out experiences worse than the table in use. ``docs/learning.md`` says
what this shows, what it can't, and whence the measures come.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vidurai_pipeline.errors import NAMED
from vidurai_pipeline.rl.inference import Transition, infer_outcome
from vidurai_pipeline.rl.states import Action, is_state_hash
from vidurai_pipeline.settings import RewardProfile

QTable = Mapping[str, Mapping[Action, float]]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: Fewer held-out experiences than this say nothing.
MIN_HELD_OUT = 30
# Standard deviations: what chance does in the choice of experiences is about normal, what it does in learning has
# heavier tails, for it is the square of an error.
_SIGMAS_CHOICE = 3.0
_SIGMAS_LEARNING = 4.0
_RESAMPLES = 500
_ROUNDING = 1e-6


class TransitionCount(NamedTuple):
    """A transition, its reward in points, and how often it occurred."""

    transition: Transition
    reward: float
    occurrences: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found.

    Attributes:
        faults: why the new table is not well-formed; empty if it is.
        inherited: states and values in it that only another program can have taught.
        not_worse: whether the new table passed the comparison; None if there was nothing to compare, or too little.
        reason: the outcome of the comparison, one line.
        held_out: experiences that both tables were judged by.
        old_error: root mean squared Bellman error of the table in use, in points.
        new_error: the same of the new one.
        margin: by how much more the new one's squared error may be, in points squared.
        enforced: whether a table that is worse is refused.
    """

    faults: list[str] = field(default_factory=list)
    inherited: int = 0
    not_worse: bool | None = None
    reason: str = ""
    held_out: int = 0
    old_error: float | None = None
    new_error: float | None = None
    margin: float | None = None
    enforced: bool = True

    @property
    def passed(self) -> bool:
        """Whether the new table may replace the old one."""
        return not self.faults and (self.not_worse is not False or not self.enforced)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {"passed": self.passed, "well_formed": not self.faults, **asdict(self)}


def value_bound(profile: RewardProfile, gamma: float) -> float:
    """The largest absolute value that learning from archived experiences can give, in points."""
    most = max(abs(infer_outcome(Action.DO_NOTHING, outcome).calculate_reward(profile)) for outcome in (1, -1))
    return most / (1 - gamma) if gamma < 1 else math.inf


def find_faults(table: QTable, begun_with: QTable, bound: float) -> tuple[list[str], int]:
    """Whether a new table is well-formed.

    Q-learning can't leave the larger of the bound and what it began with (Gosavi, "Boundedness of iterates in
    Q-learning", Systems & Control Letters 55, 2006).

    Returns:
        What is wrong, and how many states and values only another program can have taught, before learning began.
    """
    reachable = max(bound, max((abs(value) for row in begun_with.values() for value in row.values()), default=0.0))
    faults: list[str] = []
    inherited = 0
    for state, row in table.items():
        if not is_state_hash(state):
            if state in begun_with:
                inherited += 1
            else:  # the name may be anything, so it is not repeated
                faults.append("a state: its name is not six buckets")
            continue
        for action, value in row.items():
            if not isinstance(action, Action):
                faults.append(f"{state}: unknown action")
            elif not math.isfinite(value):
                faults.append(f"{state}: {action.value} is not a finite number")
            elif abs(value) > reachable * (1 + _ROUNDING):
                faults.append(f"{state}: {action.value} is beyond {reachable:,.0f} points")
            else:
                inherited += abs(value) > bound * (1 + _ROUNDING)
    return faults[:NAMED] + ([f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []), inherited


def compare(old: QTable, new: QTable, held_out: list[TransitionCount], alpha: float, gamma: float) -> Verdict:
    """Compare how well two tables foretell held-out experiences, by their mean squared Bellman errors.

    The new one is worse if its error is larger by more than three to four standard deviations of chance, which acts in
    the choice of the experiences (bootstrap) and in the learning.

    Returns:
        The verdict, without faults. The same arguments give the same verdict.
    """
    ids: dict[tuple[str, Action], int] = {}
    state_actions = np.array([ids.setdefault(one.transition[:2], len(ids)) for one in held_out], np.intp)
    counts = np.array([one.occurrences for one in held_out], np.int64)
    sizes = np.bincount(state_actions, weights=counts.astype(np.float64), minlength=len(ids))
    usable = int(sizes[sizes > 1].sum())
    if usable < MIN_HELD_OUT:
        return Verdict(
            reason=f"not compared: {usable} usable held-out experiences are too few, {MIN_HELD_OUT} are needed",
            held_out=usable,
        )
    errors = old_errors, new_errors = [_errors(table, held_out, gamma) for table in (old, new)]
    old_mean, new_mean = (_bellman_error(one, counts, state_actions) for one in errors)
    resampled = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=_RESAMPLES)
    chance = np.std(np.diff([[_bellman_error(one, again, state_actions) for one in errors] for again in resampled]))
    learning = _learning_noise(new_errors, new_errors != old_errors, counts, state_actions, alpha)
    margin = math.hypot(_SIGMAS_CHOICE * float(chance), _SIGMAS_LEARNING * learning)
    old_error, new_error = (math.sqrt(max(0.0, mean)) for mean in (old_mean, new_mean))
    not_worse = new_mean - old_mean <= margin + _ROUNDING
    return Verdict(
        not_worse=not_worse,
        reason=f"its error on {usable:,} held-out experiences is {new_error:.1f} points, of the table in use "
        f"{old_error:.1f}: {'not worse' if not_worse else 'worse by more than chance explains'}",
        held_out=usable,
        old_error=old_error,
        new_error=new_error,
        margin=margin,
    )


def _errors(table: QTable, held_out: list[TransitionCount], gamma: float) -> Floats:
    """The temporal-difference error of each transition, in points."""
    errors = []
    for (state, action, _, next_state), reward, _ in held_out:
        future = max(table.get(next_state, {}).values(), default=0.0)
        errors.append(reward + gamma * future - table.get(state, {}).get(action, 0.0))
    return np.array(errors)


def _bellman_error(errors: Floats, counts: Counts, state_actions: npt.NDArray[np.intp]) -> float:
    """The mean squared Bellman error, in points squared.

    For a state and an action it is the mean of the products of the errors of two different experiences, an unbiased
    estimate of the squared expected error (double sampling: Baird, "Residual algorithms", ICML 1995).
    """
    size, first, second = (np.bincount(state_actions, weights=counts * power) for power in (1.0, errors, errors**2))
    usable = size > 1
    size, first, second = size[usable], first[usable], second[usable]
    return float(((first**2 - second) / (size - 1)).sum() / max(size.sum(), 1.0))


def _learning_noise(
    errors: Floats,
    changed: npt.NDArray[np.bool_],
    counts: Counts,
    state_actions: npt.NDArray[np.intp],
    alpha: float,
) -> float:
    """The standard deviation of the difference between two tables that learned the same, in points squared.

    Each value e off its target has the variance v = alpha / (2 - alpha) x s^2, where s^2 is that of the targets. The
    difference of e^2 between two tables then has the variance 4 v^2. Values that both tables have have none.
    """
    sizes, sums, squares, changes = (
        np.bincount(state_actions, weights=weights)
        for weights in (counts.astype(np.float64), counts * errors, counts * errors**2, changed)
    )
    within = squares - sums**2 / sizes
    pooled = within.sum() / max(1.0, (sizes - 1).sum())
    # Few experiences may happen to be all alike: then the others' variance is the better guess.
    variance = np.maximum(within / np.maximum(sizes - 1, 1), pooled)
    noise = alpha / (2 - alpha) * variance
    weight = np.where((sizes > 1) & (changes > 0), sizes, 0.0) / max(1.0, sizes[sizes > 1].sum())
    return float(np.sqrt((weight**2 * 4 * noise**2).sum()))
