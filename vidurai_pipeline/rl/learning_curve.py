"""The learning curve: what came in and how well the table foretold it, over all dreams, in a bounded number of points.

Offline, learning does not change what happened, so the mean reward only says what happened. What learning improves is
the temporal-difference error before each experience is learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

MAX_POINTS = 200


@dataclass(frozen=True, slots=True)
class Point:
    """Some experiences that were learned one after the other.

    Attributes:
        archived_at: when the last of them in the order of learning was archived.
        experiences: how many they are.
        reward: their total reward, in points.
        squared_error: the sum of the squared temporal-difference errors before each was learned, in points squared.
        states: in which something was tried, after them.
        episode: the dream that learned them, counted in episodes of the table.
    """

    archived_at: str
    experiences: PositiveInt
    reward: float
    squared_error: NonNegativeFloat
    states: NonNegativeInt
    episode: NonNegativeInt

    @property
    def mean_reward(self) -> float:
        """Points for each experience."""
        return self.reward / self.experiences

    @property
    def rms_td_error(self) -> float:
        """Root mean squared temporal-difference error, in points."""
        return math.sqrt(self.squared_error / self.experiences)


def thin(curve: Sequence[Point], most: int = MAX_POINTS) -> tuple[Point, ...]:
    """A curve with at most the given number of points: neighbours are put together."""
    points = list(curve)
    while len(points) > most:
        for n in range(len(points) // 2):
            first, second = points[n : n + 2]
            points[n : n + 2] = [
                replace(
                    second,
                    experiences=first.experiences + second.experiences,
                    reward=first.reward + second.reward,
                    squared_error=first.squared_error + second.squared_error,
                )
            ]
    return tuple(points)
