"""Learning by the batch: the table that comes out is the plain agent's, bit for bit, at many times its speed.

Archived experiences repeat: many thousands of them are the same transition, from one state by one action to another
state. So each batch is first translated into the numbers of its transitions. A state of an archived experience is never
also the next state of one (see ``inference``), so no update depends on another one's row: all updates of one value are
made in a row, in their order, by the same floating-point operations.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vidurai_pipeline.rl.inference import Transition, infer_outcome
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.settings import RewardProfile

Codes = npt.NDArray[np.int32]


class Codebook:
    """Numbers transitions as they come.

    Attributes:
        transitions: each distinct transition; its place is its number.
        rewards: the reward of each, in points.
    """

    def __init__(self, transition_of: Callable[[int], Transition], profile: RewardProfile) -> None:
        self._transition_of = transition_of
        self._profile = profile
        self._numbers: dict[Transition, int] = {}
        self._number_of_code: Codes = np.empty(0, np.int32)
        self.transitions: list[Transition] = []
        self.rewards: list[float] = []

    def translate(self, codes: Codes) -> Codes:
        """The number of each experience's transition."""
        highest = int(codes.max(initial=-1))
        if highest >= len(self._number_of_code):
            grown = np.full(max(highest + 1, 2 * len(self._number_of_code)), -1, np.int32)
            grown[: len(self._number_of_code)] = self._number_of_code
            self._number_of_code = grown
        numbers = self._number_of_code[codes]
        if (numbers < 0).any():
            for code in np.unique(codes[numbers < 0]).tolist():
                self._number_of_code[code] = self._number(self._transition_of(code))
            numbers = self._number_of_code[codes]
        return numbers

    def _number(self, transition: Transition) -> int:
        number = self._numbers.setdefault(transition, len(self.transitions))
        if number == len(self.transitions):
            self.transitions.append(transition)
            outcome = infer_outcome(transition.action, transition.outcome)
            self.rewards.append(outcome.calculate_reward(self._profile))
        return number


class _Step(NamedTuple):
    """A transition, looked up in a table: its two rows there, the action and the reward."""

    values: dict[Action, float]
    action: Action
    reward: float
    future: dict[Action, float]


class Learner:
    """Teaches a policy the experiences of a codebook."""

    def __init__(self, policy: QLearningPolicy, codebook: Codebook) -> None:
        self.policy = policy
        self._codebook = codebook
        self._steps: dict[int, _Step] = {}
        self._cells: dict[tuple[str, Action], int] = {}
        self._cell_of_number: npt.NDArray[np.uint32] = np.empty(0, np.uint32)

    def learn(self, numbers: Codes) -> float:
        """Learn experiences in their order; the same as ``policy.learn`` for each of them.

        Args:
            numbers: of their transitions.

        Returns:
            The sum of the squared temporal-difference errors, in points squared. Each is measured before its
            experience is learned, so their mean says how well the table foretold what it had not seen.
        """
        if not numbers.size:
            return 0.0
        present = self._meet(numbers)
        rewards = np.array(self._codebook.rewards)[numbers]
        # One after the other, as the plain agent adds them: accumulate, unlike sum, keeps to that order.
        self.policy.total_reward = float(np.add.accumulate(np.concatenate(([self.policy.total_reward], rewards)))[-1])
        return self._learn_by_value(numbers, present)

    def _meet(self, numbers: Codes) -> list[int]:
        """Look up transitions not met before, in the order in which the plain agent would make their rows."""
        present = np.flatnonzero(np.bincount(numbers)).tolist()
        if any(number not in self._steps for number in present):
            found, first = np.unique(numbers, return_index=True)
            for number in found[np.argsort(first)].tolist():
                if number not in self._steps:
                    transition = self._codebook.transitions[number]
                    values = self.policy.row(transition.state)
                    future = self.policy.row(transition.next_state)
                    self._steps[number] = _Step(values, transition.action, self._codebook.rewards[number], future)
        return present

    def _learn_by_value(self, numbers: Codes, present: list[int]) -> float:
        alpha, gamma = self.policy.alpha, self.policy.gamma
        targets = np.zeros(len(self._codebook.transitions))
        for number in present:
            step = self._steps[number]
            future = max(step.future.values()) if step.future else 0.0
            targets[number] = step.reward + gamma * future
        cells = self._cells_of(numbers)
        order = np.argsort(cells, kind="stable")
        bounds = np.flatnonzero(np.diff(cells[order], prepend=-1, append=-1)).tolist()
        ordered = targets[numbers[order]].tolist()
        squares = 0.0
        # Rows get their actions in the order in which they were first taken.
        for first, start, end in sorted((int(order[start]), start, end) for start, end in itertools.pairwise(bounds)):
            step = self._steps[int(numbers[first])]
            value = step.values.get(step.action, 0.0)
            for target in ordered[start:end]:
                error = target - value
                squares += error * error
                value += alpha * error
            step.values[step.action] = value
        return squares

    def _cells_of(self, numbers: Codes) -> npt.NDArray[np.integer]:
        """The number of the value (state and action) that each experience changes."""
        transitions = self._codebook.transitions
        if len(self._cell_of_number) < len(transitions):
            new = transitions[len(self._cell_of_number) :]
            cells = [self._cells.setdefault((t.state, t.action), len(self._cells)) for t in new]
            self._cell_of_number = np.concatenate([self._cell_of_number, np.array(cells, np.uint32)])
        cells = self._cell_of_number[numbers]
        # numpy sorts integers of 16 bits in linear time.
        return cells.astype(np.uint16) if len(self._cells) <= np.iinfo(np.uint16).max else cells
