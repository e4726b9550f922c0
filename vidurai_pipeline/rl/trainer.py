"""Training by the batch: the table that comes out is the plain agent's, bit for bit, at many times its speed.

Archived experiences repeat: many thousands of them are the same transition, from one state by one action to another
state. So each batch is first translated into the ids of its transitions. A state of an archived experience is never
also the next state of one (see ``inference``), so no update depends on another one's row: all updates of one value are
made in a row, in their order, by the same floating-point operations.

Three ids occur: an experience code is what the archive's row says (see ``archive_query``); a transition id stands for
all codes that teach the same; a state-action id stands for all transitions that change the same value.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vidurai_pipeline.rl.archive_query import EXPERIENCE_CODES, decode_experience
from vidurai_pipeline.rl.checkpoint import Visits
from vidurai_pipeline.rl.dataset import Experiences, Watermark
from vidurai_pipeline.rl.evaluation import HeldOut
from vidurai_pipeline.rl.inference import Transition, infer_outcome, infer_transition
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.settings import RewardProfile

_POINTS = 50
_SMALLEST_POINT = 20

# There are some hundreds of transitions, and numpy sorts integers of 16 bits in linear time.
Ids = npt.NDArray[np.uint16]


class TransitionIndex:
    """Gives transitions ids as they come.

    Args:
        profile: sets the rewards.

    Attributes:
        transitions: each distinct transition; its place is its id.
        rewards: the reward of each, in points.
        state_action_ids: the state-action id of each.
    """

    def __init__(self, profile: RewardProfile) -> None:
        self._profile = profile
        self._id_of_code = np.full(EXPERIENCE_CODES, -1, np.int32)
        self._id_of_transition: dict[Transition, int] = {}
        self._id_of_state_action: dict[tuple[str, Action], int] = {}
        self.transitions: list[Transition] = []
        self.rewards: list[float] = []
        self.state_action_ids: list[int] = []

    def look_up(self, experience_codes: npt.NDArray[np.int32]) -> Ids:
        """The transition id of each experience."""
        for code in np.unique(experience_codes[self._id_of_code[experience_codes] < 0]).tolist():
            self._id_of_code[code] = self._add(infer_transition(*decode_experience(code)))
        return self._id_of_code[experience_codes].astype(np.uint16)

    def _add(self, transition: Transition) -> int:
        transition_id = self._id_of_transition.setdefault(transition, len(self.transitions))
        if transition_id == len(self.transitions):
            self.transitions.append(transition)
            outcome = infer_outcome(transition.action, transition.outcome)
            self.rewards.append(outcome.calculate_reward(self._profile))
            state_actions = self._id_of_state_action
            self.state_action_ids.append(state_actions.setdefault(transition[:2], len(state_actions)))
        return transition_id


class BatchLearner:
    """Teaches one policy the transitions of an index."""

    def __init__(self, policy: QLearningPolicy, index: TransitionIndex) -> None:
        self.policy = policy
        self._index = index

    def learn(self, transition_ids: Ids) -> float:
        """Learn experiences in their order; the same as ``policy.learn`` for each of them.

        Returns:
            The sum of the squared temporal-difference errors, in points squared. Each is measured before its
            experience is learned, so their mean says how well the table foretold what it had not seen.
        """
        if not transition_ids.size:
            return 0.0
        alpha, gamma = self.policy.alpha, self.policy.gamma
        transitions, rewards = self._index.transitions, np.array(self._index.rewards)
        targets = np.zeros(len(transitions))
        present, first = np.unique(transition_ids, return_index=True)
        # Rows are made in the order in which the plain agent would make them.
        for one in present[np.argsort(first)].tolist():
            self.policy.row(transitions[one].state)
            future = self.policy.row(transitions[one].next_state)
            targets[one] = rewards[one] + gamma * max(future.values(), default=0.0)
        self.policy.total_reward = _add_in_order(self.policy.total_reward, rewards[transition_ids])
        state_actions = np.array(self._index.state_action_ids, np.uint16)[transition_ids]
        order = np.argsort(state_actions, kind="stable")
        bounds = np.flatnonzero(np.diff(state_actions[order], prepend=-1, append=-1)).tolist()
        ordered = targets[transition_ids[order]].tolist()
        squares = 0.0
        # Rows get their actions in the order in which they were first taken.
        for first_place, start, end in sorted(
            (int(order[start]), start, end) for start, end in itertools.pairwise(bounds)
        ):
            transition = transitions[transition_ids[first_place]]
            values = self.policy.row(transition.state)
            value = values.get(transition.action, 0.0)
            for target in ordered[start:end]:
                error = target - value
                squares += error * error
                value += alpha * error
            values[transition.action] = value
        return squares


@dataclass(slots=True)
class TrainingResult:
    """What training on some experiences amounted to.

    Attributes:
        positive: experiences with a good outcome.
        negative: experiences with a bad one.
        reward: the total, in points.
        last: the place of the last one; None if there was none.
        points: of the learning curve.
        visits: how many experiences stand behind each value.
    """

    positive: int = 0
    negative: int = 0
    reward: float = 0.0
    last: Watermark | None = None
    points: list[Point] = field(default_factory=list)
    visits: Visits = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        """How many experiences they were."""
        return self.positive + self.negative


class Trainer:
    """Trains policies on the experiences of an archive.

    Args:
        experiences: of the archive.
        profile: sets the rewards.
        policy: learns all experiences.
        shadow: learns all but the held-out ones; None for no shadow.
    """

    def __init__(
        self,
        experiences: Experiences,
        profile: RewardProfile,
        policy: QLearningPolicy,
        shadow: QLearningPolicy | None = None,
    ) -> None:
        self._experiences = experiences
        self._index = TransitionIndex(profile)
        self._policy = BatchLearner(policy, self._index)
        self._shadow = None if shadow is None else BatchLearner(shadow, self._index)

    def held_out(self) -> list[HeldOut]:
        """The experiences that tables are judged by."""
        counts = self._experiences.held_out()
        codes = np.fromiter(counts, np.int32, len(counts))
        ids = self._index.look_up(codes)
        totals = np.bincount(ids, weights=np.fromiter(counts.values(), np.int64, len(counts)))
        return [
            HeldOut(self._index.transitions[one], self._index.rewards[one], int(totals[one]))
            for one in np.flatnonzero(totals).tolist()
        ]

    def train(
        self, start: Watermark | None = None, *, newest_first: bool = False, limit: int | None = None
    ) -> TrainingResult:
        """Train on all experiences, or on those from one place on.

        Args:
            start: the place of the first; default the beginning.
            newest_first: from the last to the first.
            limit: no more than this many.
        """
        result = TrainingResult()
        counts = np.zeros(np.iinfo(np.uint16).max + 1, np.int64)
        most = max(_SMALLEST_POINT, self._experiences.count(start) // _POINTS)
        stream = self._experiences.stream(start, newest_first=newest_first, limit=limit)
        for batch in (part for whole in stream for part in whole.slices(most)):
            ids = self._index.look_up(batch.codes)
            squared_error = self._policy.learn(ids)
            if self._shadow is not None:
                self._shadow.learn(ids[~batch.held_out])
            rewards = np.array(self._index.rewards)[ids]
            good = np.array([transition.outcome > 0 for transition in self._index.transitions])[ids]
            result.positive += int(good.sum())
            result.negative += int((~good).sum())
            result.reward = _add_in_order(result.reward, rewards)
            result.last = batch.last
            result.points.append(
                Point(
                    archived_at=batch.last.archived_at,
                    experiences=len(ids),
                    reward=float(rewards.sum()),
                    squared_error=squared_error,
                    states=self._policy.policy.states_tried,
                    episode=self._policy.policy.episodes + 1,
                )
            )
            counts += np.bincount(ids, minlength=counts.size)
        for transition, count in zip(self._index.transitions, counts.tolist(), strict=False):
            if count:
                row = result.visits.setdefault(transition.state, {})
                row[transition.action] = row.get(transition.action, 0) + count
        return result


def _add_in_order(total: float, rewards: npt.NDArray[np.float64]) -> float:
    """A sum with more rewards, one after the other as the plain agent adds them: ``sum`` would keep to no order."""
    return float(np.add.accumulate(np.concatenate(([total], rewards)))[-1])


def add_visits(first: Visits, second: Visits) -> Visits:
    """The sums of two counts; neither of them is changed."""
    total = {state: dict(row) for state, row in first.items()}
    for state, row in second.items():
        sums = total.setdefault(state, {})
        for action, count in row.items():
            sums[action] = sums.get(action, 0) + count
    return total
