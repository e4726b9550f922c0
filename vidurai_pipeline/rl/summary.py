"""What was learned, for people: states in words, the best action of each, and what stands behind it."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vidurai_pipeline.rl.checkpoint import Visits, find_baseline, read_checkpoint, visits_behind
from vidurai_pipeline.rl.evaluation import QTable, find_faults, value_bound
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import TableContents, TableFile
from vidurai_pipeline.rl.states import Action, is_state_hash
from vidurai_pipeline.settings import Hyperparameters

#: The places of a state's hash, in order.
DIMENSIONS = ("working memories", "episodic memories", "tokens", "entropy", "importance", "messages")
TOKENS, IMPORTANCE = 2, 4
_NOTICES = {
    "adopted": "another program made this table; no dream has learned on it yet",
    "continued": "another program has gone on with this table since the last dream",
    "merged": "another program has begun a new table since the last dream; the next dream puts back what it lacks",
    "overwritten": "Vidurai's own dreamer has overwritten the table of the last dream; the next dream puts that back",
}
_COUNTED = {0: (5, 10), 1: (100, 10), 2: (500, 20), 5: (3, 5)}


@dataclass(frozen=True, slots=True)
class LearnedState:
    """One state in which something was tried.

    Attributes:
        state: its hash.
        words: what sets it apart from the others.
        best_action: the action of the highest value.
        value: of that action, in points.
        experiences: archived experiences behind that value; 0 where only the daemon tried it.
        values: of every action tried, in points.
    """

    state: str
    words: str
    best_action: Action
    value: float
    experiences: int
    values: dict[Action, float]

    @property
    def buckets(self) -> tuple[int, ...]:
        """The six numbers of the hash."""
        return tuple(int(part) for part in self.state.split("|"))


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """What a Q-table has learned.

    Attributes:
        path: of the table.
        states: those in which something was tried, most experiences first.
        common: in words, what all of them share.
        hyperparameters: what it is trained with.
        episodes: finished ones.
        total_reward: in points.
        epsilon: share of random decisions, 0 to 1.
        curve: the learning curve.
        bound: the largest absolute value that learning from the archive can give, in points.
        inherited: states and values that only another program can have taught.
        faults: why the table is not well-formed.
        candidate: a newer table that may not replace this one; None if there is none.
        notice: what another program did to the table since the last dream; None for nothing.
    """

    path: Path
    states: list[LearnedState]
    common: str
    hyperparameters: Hyperparameters
    episodes: int
    total_reward: float
    epsilon: float
    curve: Sequence[Point]
    bound: float
    inherited: int
    faults: list[str]
    candidate: Path | None
    notice: str | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "path": str(self.path),
            **asdict(self.hyperparameters),
            "episodes": self.episodes,
            "total_reward": self.total_reward,
            "epsilon": self.epsilon,
            "common": self.common,
            "states": [asdict(one) for one in self.states],
            "curve": [
                {**asdict(point), "mean_reward": point.mean_reward, "surprise": point.rms_td_error}
                for point in self.curve
            ],
            "candidate": None if self.candidate is None else str(self.candidate),
            "notice": self.notice,
        }


def read_summary(path: Path, hyperparameters: Hyperparameters) -> PolicySummary:
    """Read what a table has learned; nothing if there is no such file.

    Args:
        path: the table's file.
        hyperparameters: what it is trained with, if no dream noted it.

    Raises:
        QTableError: the table is damaged or can't be read.
    """
    file = TableFile(path)
    stored = file.read()
    contents = TableContents() if stored is None else stored.contents
    checkpoint = read_checkpoint(stored)
    archive_only = checkpoint is not None and checkpoint.archive_only
    daemon = None
    if stored is not None and contents.note is None:
        # Another program, which drops the note, has written the table since.
        remembered = file.remembered()
        daemon, checkpoint = find_baseline(stored, remembered).daemon, read_checkpoint(remembered)
        if checkpoint is not None and remembered is not None and daemon != "continued":
            visits = visits_behind(contents, remembered.contents, checkpoint.visits)
            checkpoint = replace(checkpoint, visits=visits)
    if checkpoint is not None:
        hyperparameters = checkpoint.hyperparameters
    bound = value_bound(hyperparameters.reward_profile, hyperparameters.gamma)
    faults, inherited = find_faults(contents.q_table, {} if archive_only else contents.q_table, bound)
    states, common = learned_states(contents.q_table, {} if checkpoint is None else checkpoint.visits)
    return PolicySummary(
        path=file.path,
        states=states,
        common=common,
        hyperparameters=hyperparameters,
        episodes=contents.episodes,
        total_reward=contents.total_reward,
        epsilon=QLearningPolicy.of(hyperparameters, contents).get_epsilon(),
        curve=() if checkpoint is None else checkpoint.curve,
        bound=bound,
        inherited=inherited,
        faults=faults,
        candidate=file.candidate_path if file.candidate_path.exists() else None,
        notice=_NOTICES.get(daemon or ""),
    )


def learned_states(table: QTable, visits: Visits) -> tuple[list[LearnedState], str]:
    """The states in which something was tried, most experiences first, and in words what they have in common."""
    rows = {state: row for state, row in table.items() if row and is_state_hash(state)}
    buckets = {state: [int(part) for part in state.split("|")] for state in rows}
    shown = [
        place
        for place in range(len(DIMENSIONS))
        if place in (TOKENS, IMPORTANCE) or len({parts[place] for parts in buckets.values()}) > 1
    ]
    states = []
    for state, row in rows.items():
        best = max(row, key=row.__getitem__)
        experiences = visits.get(state, {}).get(best, 0)
        states.append(LearnedState(state, _in_words(buckets[state], shown), best, row[best], experiences, dict(row)))
    states.sort(key=lambda one: (-one.experiences, one.buckets))
    rest = [place for place in range(len(DIMENSIONS)) if place not in shown]
    return states, _in_words(next(iter(buckets.values())), rest) if buckets else ""


def _in_words(buckets: Sequence[int], places: Sequence[int]) -> str:
    return ", ".join(f"{DIMENSIONS[place]} {bucket_in_words(place, buckets[place])}" for place in places)


def bucket_in_words(place: int, bucket: int) -> str:
    """The values that a bucket stands for, such as ``500-999``; see ``MemoryState.to_hash``."""
    if place in _COUNTED:
        width, last = _COUNTED[place]
        return f"{bucket * width:,}+" if bucket == last else f"{bucket * width:,}-{(bucket + 1) * width - 1:,}"
    return "1" if bucket == 10 else f"{bucket / 10:.1f}-{(bucket + 1) / 10:.1f}"


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The best values by tokens and importance; of several states in one place, the mean by experiences.

    Attributes:
        tokens: the buckets of the columns, each with the one after it that is no longer part of the column.
        importances: the buckets of the rows, the highest first.
        values: in points, by row and column; None where nothing was tried.
        actions: the best action of most experiences there.
    """

    tokens: list[tuple[int, int]]
    importances: list[int]
    values: list[list[float | None]]
    actions: list[list[Action | None]]


def heat_map(states: Sequence[LearnedState], columns: int = 21) -> HeatMap:
    """Lay out states on a map of at most this many columns."""
    if not states:
        return HeatMap([], [], [], [])
    tokens = {one.buckets[TOKENS] for one in states}
    first, last = min(tokens), max(tokens)
    width = math.ceil((last - first + 1) / columns)
    bounds = [(start, min(start + width, last + 1)) for start in range(first, last + 1, width)]
    importances = sorted({one.buckets[IMPORTANCE] for one in states}, reverse=True)
    cells = [
        [
            [one for one in states if one.buckets[IMPORTANCE] == importance and start <= one.buckets[TOKENS] < end]
            for start, end in bounds
        ]
        for importance in importances
    ]
    values = [[_mean(cell) if cell else None for cell in row] for row in cells]
    actions = [[_most(cell) if cell else None for cell in row] for row in cells]
    return HeatMap(bounds, importances, values, actions)


def _mean(states: Sequence[LearnedState]) -> float:
    return statistics.fmean((one.value for one in states), [one.experiences or 1 for one in states])


def _most(states: Sequence[LearnedState]) -> Action:
    counts: Counter[Action] = Counter()
    for one in states:
        counts[one.best_action] += one.experiences or 1
    return counts.most_common(1)[0][0]
