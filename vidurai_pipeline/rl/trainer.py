"""Training by the batch: the table that comes out is the plain agent's, bit for bit, at many times its speed.

A state of an archived experience is never also the next state of one (see ``inference``), so no update depends on
another one's row: all updates of one value are made in a row, in their order, by the same floating-point operations.

Three numbers occur: an experience code says what the archive's row holds (see ``archive_query``), a transition id
stands for all codes that teach the same, a state-action id for all transitions that change the same value.
"""

import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vidurai_pipeline.rl.checkpoint import Visits
from vidurai_pipeline.rl.dataset import Experiences, Watermark
from vidurai_pipeline.rl.evaluation import TransitionCount
from vidurai_pipeline.rl.inference import MAX_TOKENS, TOKEN_STEP, Transition, all_transitions, infer_outcome
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.settings import RewardProfile

_POINTS = 50
_SMALLEST_POINT = 20

# There are some hundreds of transitions, and numpy sorts integers of 16 bits in linear time.
Ids = npt.NDArray[np.uint16]


class TransitionIndex:
    """Every transition that an archived memory can stand for, with ids.

    Args:
        profile: sets the rewards.

    Attributes:
        ids: the transition id of each experience code.
        transitions: each distinct transition; its place is its id.
        good: of each, whether its outcome is good.
        rewards: the reward of each, in points.
        state_action_ids: the state-action id of each.
    """

    def __init__(self, profile: RewardProfile) -> None:
        ids: dict[Transition, int] = {}
        ids_by_step = [[ids.setdefault(one, len(ids)) for one in step] for step in all_transitions()]
        self.ids: Ids = np.repeat(np.array(ids_by_step, np.uint16), TOKEN_STEP, axis=0)[: MAX_TOKENS + 1].ravel()
        self.transitions = list(ids)
        self.good = np.array([one.outcome > 0 for one in ids])
        self.rewards = np.array([infer_outcome(one.action, one.outcome).calculate_reward(profile) for one in ids])
        state_actions: dict[tuple[str, Action], int] = {}
        self.state_action_ids = np.array(
            [state_actions.setdefault(one[:2], len(state_actions)) for one in ids], np.uint16
        )

    def count(self, codes: Mapping[int, int]) -> list[TransitionCount]:
        """The transitions that experiences teach, from how many there are of each code."""
        totals: Counter[int] = Counter()
        for code, count in codes.items():
            totals[int(self.ids[code])] += count
        return [
            TransitionCount(self.transitions[one], float(self.rewards[one]), count)
            for one, count in sorted(totals.items())
        ]

    def teach(self, policy: QLearningPolicy, transition_ids: Ids) -> float:
        """Let a policy learn experiences in their order: the same as ``policy.learn`` for each of them.

        Returns:
            The sum of the squared temporal-difference errors, in points squared. Each is measured before its
            experience is learned, so their mean says how well the table foretold what it had not seen.
        """
        if not transition_ids.size:
            return 0.0
        alpha, gamma = policy.alpha, policy.gamma
        transitions, rewards = self.transitions, self.rewards
        targets = np.zeros(len(transitions))
        present, first = np.unique(transition_ids, return_index=True)
        # Rows are made in the order in which the plain agent would make them.
        for one in present[np.argsort(first)].tolist():
            policy.row(transitions[one].state)
            future = policy.row(transitions[one].next_state)
            targets[one] = rewards[one] + gamma * max(future.values(), default=0.0)
        policy.total_reward = _add_in_order(policy.total_reward, rewards[transition_ids])
        state_actions = self.state_action_ids[transition_ids]
        order = np.argsort(state_actions, kind="stable")
        bounds = np.flatnonzero(np.diff(state_actions[order], prepend=-1, append=-1)).tolist()
        ordered = targets[transition_ids[order]].tolist()
        squares = 0.0
        # Rows get their actions in the order in which they were first taken.
        for first_place, start, end in sorted(
            (int(order[start]), start, end) for start, end in itertools.pairwise(bounds)
        ):
            transition = transitions[transition_ids[first_place]]
            values = policy.row(transition.state)
            value = values.get(transition.action, 0.0)
            for target in ordered[start:end]:
                error = target - value
                squares += error * error
                value += alpha * error
            values[transition.action] = value
        return squares


class Trainer:
    """Trains policies on the experiences of an archive.

    Args:
        experiences: of the archive.
        profile: sets the rewards.
        policy: learns all experiences.
        shadow: learns all but the held-out ones; None for no shadow.

    Attributes:
        learned: experiences so far, also those that were learned again.
        positive: new experiences with a good outcome.
        negative: new experiences with a bad one.
        reward: of the new ones, in points.
        last: the place of the last one; None if there was none.
        points: of the learning curve.
    """

    def __init__(
        self,
        experiences: Experiences,
        profile: RewardProfile,
        policy: QLearningPolicy,
        shadow: QLearningPolicy | None = None,
    ) -> None:
        self.learned = self.positive = self.negative = 0
        self.reward = 0.0
        self.last: Watermark | None = None
        self.points: list[Point] = []
        self._experiences = experiences
        self._index = TransitionIndex(profile)
        self._policy, self._shadow = policy, shadow
        self._counts = np.zeros(len(self._index.transitions), np.int64)

    @property
    def episodes(self) -> int:
        """How many new experiences there were."""
        return self.positive + self.negative

    def held_out(self) -> list[TransitionCount]:
        """The experiences that tables are judged by."""
        return self._index.count(self._experiences.code_counts(held_out=True))

    def train(
        self,
        start: Watermark | None = None,
        end: Watermark | None = None,
        *,
        newest_first: bool = False,
        limit: int | None = None,
        again: bool = False,
    ) -> None:
        """Train on the experiences from one place up to another.

        With ``again``, the table in use has learned them; then the shadow learns the held-out ones too.
        """
        most = max(_SMALLEST_POINT, self._experiences.count(start, end) // _POINTS)
        stream = self._experiences.stream(start, end, newest_first=newest_first, limit=limit)
        for batch in (part for whole in stream for part in whole.slices(most)):
            ids = self._index.ids[batch.codes]
            squared_error = self._index.teach(self._policy, ids)
            if self._shadow is not None:
                self._index.teach(self._shadow, ids if again else ids[~batch.held_out])
            rewards = self._index.rewards[ids]
            if not again:
                positive = int(self._index.good[ids].sum())
                self.positive += positive
                self.negative += len(ids) - positive
                self.reward = _add_in_order(self.reward, rewards)
            self.learned += len(ids)
            self.last = batch.last
            self.points.append(
                Point(
                    archived_at=batch.last.archived_at,
                    experiences=len(ids),
                    reward=float(rewards.sum()),
                    squared_error=squared_error,
                    states=self._policy.states_tried,
                    episode=self._policy.episodes + 1,
                )
            )
            self._counts += np.bincount(ids, minlength=self._counts.size)

    def visits_after(self, before: Visits) -> Visits:
        """How many experiences stand behind each value, with those from before; these are not changed."""
        total = {state: dict(row) for state, row in before.items()}
        for transition, count in zip(self._index.transitions, self._counts.tolist(), strict=True):
            if count:
                row = total.setdefault(transition.state, {})
                row[transition.action] = row.get(transition.action, 0) + count
        return total


def _add_in_order(total: float, rewards: npt.NDArray[np.float64]) -> float:
    """A sum with more rewards, one after the other as the plain agent adds them: ``sum`` would keep to no order."""
    return float(np.add.accumulate(np.concatenate(([total], rewards)))[-1])
