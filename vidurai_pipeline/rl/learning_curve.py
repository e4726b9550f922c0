"""The learning curve: what came in and how well the table foretold it, over all dreams, in a bounded number of points.

Offline, learning does not change what happened, so the mean reward only says what happened. What learning improves is
the temporal-difference error before each experience is learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def extend(curve: Sequence[Point], points: Sequence[Point]) -> tuple[Point, ...]:
    """A curve with more points; where they become too many, neighbours are put together, the older ones too."""
    return thin([*curve, *points], MAX_POINTS)


def thin(curve: Sequence[Point], most: int) -> tuple[Point, ...]:
    """A curve of no more than so many points, from neighbours put together."""
    points = tuple(curve)
    while len(points) > most:
        points = tuple(_together(points[n : n + 2]) for n in range(0, len(points), 2))
    return points


def _together(points: Sequence[Point]) -> Point:
    last = points[-1]
    return Point(
        archived_at=last.archived_at,
        experiences=sum(point.experiences for point in points),
        reward=sum(point.reward for point in points),
        squared_error=sum(point.squared_error for point in points),
        states=last.states,
        episode=last.episode,
    )
