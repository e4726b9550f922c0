"""One pass over experiences: a policy learns them, and what the pass amounted to is noted."""

from dataclasses import dataclass, field

import numpy as np

from vidurai_pipeline.rl.dataset import Batch, Experiences, Watermark
from vidurai_pipeline.rl.evaluation import HeldOut
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.trainer import Codebook, Learner
from vidurai_pipeline.settings import RewardProfile

_POINTS = 50
_SMALLEST_POINT = 20

Visits = dict[str, dict[str, int]]


@dataclass(slots=True)
class Lesson:
    """What one pass amounted to.

    Attributes:
        positive: experiences with a good outcome.
        negative: experiences with a bad one.
        reward: the total, in points.
        last: the place of the last one; None if there was none.
        points: of the learning curve.
        visits: how many experiences stand behind each value, by state and action.
    """

    positive: int = 0
    negative: int = 0
    reward: float = 0.0
    last: Watermark | None = None
    points: list[Point] = field(default_factory=list)
    visits: Visits = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        """All experiences of the pass."""
        return self.positive + self.negative


class Teacher:
    """Teaches the experiences of an archive."""

    def __init__(self, experiences: Experiences, profile: RewardProfile) -> None:
        self._experiences = experiences
        self._codebook = Codebook(experiences.transition, profile)

    def held_out(self) -> list[HeldOut]:
        """The experiences that tables are judged by."""
        counts = self._experiences.held_out()
        codes = np.fromiter(counts, np.int32, len(counts))
        numbers = self._codebook.translate(codes)
        totals = np.bincount(numbers, weights=np.fromiter(counts.values(), np.int64, len(counts)))
        return [
            HeldOut(self._codebook.transitions[number], self._codebook.rewards[number], int(totals[number]))
            for number in np.flatnonzero(totals).tolist()
        ]

    def teach(
        self,
        policy: QLearningPolicy,
        shadow: QLearningPolicy | None = None,
        *,
        after: Watermark | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Lesson:
        """Teach all experiences, or those behind a place.

        Args:
            policy: learns all of them.
            shadow: learns all but the held-out ones.
            after: the place; default the beginning.
            newest_first: from the last to the first.
            limit: no more than this many.
        """
        lesson = Lesson()
        learner = Learner(policy, self._codebook)
        apprentice = None if shadow is None else Learner(shadow, self._codebook)
        counts = np.zeros(0, np.int64)
        total = self._experiences.total - self._experiences.count_up_to(after)
        stream = self._experiences.stream(after=after, newest_first=newest_first, limit=limit)
        most = max(_SMALLEST_POINT, total // _POINTS)
        for batch in (part for whole in stream for part in whole.slices(most)):
            numbers = self._codebook.translate(batch.codes)
            squares = learner.learn(numbers)
            if apprentice is not None:
                apprentice.learn(numbers[~batch.held_out])
            self._note(lesson, batch, numbers, squares, policy)
            found = np.bincount(numbers, minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        for number in np.flatnonzero(counts).tolist():
            transition = self._codebook.transitions[number]
            row = lesson.visits.setdefault(transition.state, {})
            row[transition.action.value] = row.get(transition.action.value, 0) + int(counts[number])
        return lesson

    def _note(self, lesson: Lesson, batch: Batch, numbers: np.ndarray, squares: float, policy: QLearningPolicy) -> None:
        rewards = np.array(self._codebook.rewards)[numbers]
        outcomes = np.array([transition.outcome for transition in self._codebook.transitions])[numbers]
        positive = int((outcomes > 0).sum())
        lesson.positive += positive
        lesson.negative += len(numbers) - positive
        # In their order, like the policy's own sum.
        lesson.reward = float(np.add.accumulate(np.concatenate(([lesson.reward], rewards)))[-1])
        lesson.last = batch.last
        lesson.points.append(
            Point(
                archived_at=batch.last.archived_at,
                experiences=len(numbers),
                reward=float(rewards.sum()),
                squared_error=squares,
                states=len(policy.q_table),
                episode=policy.episodes + 1,
            )
        )


def add_visits(first: Visits, second: Visits) -> Visits:
    """The sums of two counts; neither of them is changed."""
    total = {state: dict(row) for state, row in first.items()}
    for state, row in second.items():
        sums = total.setdefault(state, {})
        for action, count in row.items():
            sums[action] = sums.get(action, 0) + count
    return total
