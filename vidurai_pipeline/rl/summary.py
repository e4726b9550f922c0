"""What was learned, for people: states in words, the best action of each, and what stands behind it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
        shown = asdict(self)
        for name in ("hyperparameters", "bound", "inherited", "faults"):
            del shown[name]
        curve = [{**asdict(one), "mean_reward": one.mean_reward, "surprise": one.rms_td_error} for one in self.curve]
        paths = {"path": str(self.path), "candidate": self.candidate and str(self.candidate)}
        return shown | asdict(self.hyperparameters) | paths | {"curve": curve}


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
    in_words = {
        state: [f"{name} {bucket_in_words(place, parts[place])}" for place, name in enumerate(DIMENSIONS)]
        for state, parts in buckets.items()
    }
    states = []
    for state, row in rows.items():
        best = max(row, key=row.__getitem__)
        experiences = visits.get(state, {}).get(best, 0)
        words = ", ".join(in_words[state][place] for place in shown)
        states.append(LearnedState(state, words, best, row[best], experiences, dict(row)))
    states.sort(key=lambda one: (-one.experiences, one.buckets))
    common = next(iter(in_words.values()), [])
    return states, ", ".join(words for place, words in enumerate(common) if place not in shown)


def bucket_in_words(place: int, bucket: int) -> str:
    """The values that a bucket stands for, such as ``500-999``; see ``MemoryState.to_hash``."""
    if place in _COUNTED:
        width, last = _COUNTED[place]
        return f"{bucket * width:,}+" if bucket == last else f"{bucket * width:,}-{(bucket + 1) * width - 1:,}"
    return "1" if bucket == 10 else f"{bucket / 10:.1f}-{(bucket + 1) / 10:.1f}"


class Cell(NamedTuple):
    """What was learned in one place of the heat map: the mean value by experiences, and the commonest best action."""

    value: float
    action: Action


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The best values by tokens and importance.

    Attributes:
        tokens: the buckets of the columns, each with the one after it that is no longer part of the column.
        importances: the buckets of the rows, the highest first.
        cells: by row and column; None where nothing was tried.
    """

    tokens: list[tuple[int, int]]
    importances: list[int]
    cells: list[list[Cell | None]]

    @property
    def most(self) -> float:
        """The largest absolute value, at least 1."""
        return max([1.0, *(abs(cell.value) for row in self.cells for cell in row if cell is not None)])


def heat_map(states: Sequence[LearnedState], columns: int = 21) -> HeatMap:
    """Lay out states on a map of at most this many columns."""
    if not states:
        return HeatMap([], [], [])
    tokens = {one.buckets[TOKENS] for one in states}
    first, last = min(tokens), max(tokens)
    width = math.ceil((last - first + 1) / columns)
    bounds = [(start, min(start + width, last + 1)) for start in range(first, last + 1, width)]
    importances = sorted({one.buckets[IMPORTANCE] for one in states}, reverse=True)

    def cell(importance: int, start: int, end: int) -> Cell | None:
        actions: Counter[Action] = Counter()
        total = 0.0
        for one in states:
            if one.buckets[IMPORTANCE] == importance and start <= one.buckets[TOKENS] < end:
                actions[one.best_action] += one.experiences or 1
                total += one.value * (one.experiences or 1)
        return Cell(total / actions.total(), actions.most_common(1)[0][0]) if actions else None

    return HeatMap(bounds, importances, [[cell(row, *column) for column in bounds] for row in importances])
