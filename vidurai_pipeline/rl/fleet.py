"""One policy for many stores, from counts alone, which add up whoever made them.

The table is the solution of the process that the counts of transitions describe (certainty equivalence: Sutton &
Barto, Reinforcement Learning, 2nd ed., 2018, section 6.3), found by value iteration (section 4.4). The formulas, and
what the gate does in each store, stand in ``docs/learning.md``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidurai_pipeline.errors import ArchiveError, ConfigError, PipelineError, plural
from vidurai_pipeline.rl.evaluation import QTable, TransitionCount, Verdict, compare, find_faults, value_bound
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import TableContents, TableFile
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.rl.stores import Store, count_with_duckdb, find_stores
from vidurai_pipeline.rl.trainer import TransitionIndex
from vidurai_pipeline.rl.training_run import judge
from vidurai_pipeline.settings import Hyperparameters, Settings

#: By how many points a value may still change when the table counts as solved.
TOLERANCE = 1e-9
_MOST_ITERATIONS = 100_000


class Solution(NamedTuple):
    """What value iteration ended with; the residual is the largest change of a value in the last one, in points."""

    q_table: dict[str, dict[Action, float]]
    iterations: int
    residual: float


def solve(counts: Iterable[TransitionCount], gamma: float) -> Solution:
    """The values of the process that counts describe, by value iteration.

    Raises:
        ConfigError: the values don't settle, because gamma is 1 or almost.
    """
    occurred = [one for one in counts if one.occurrences]
    if not occurred:
        return Solution({}, 0, 0.0)
    pairs: dict[tuple[str, Action], int] = {}
    of_pair = np.array([pairs.setdefault(one.transition[:2], len(pairs)) for one in occurred])
    states: dict[str, int] = {}
    state_of_pair = np.array([states.setdefault(state, len(states)) for state, _ in pairs])
    # Behind the states in which something was tried stands one place for all others, worth 0.
    next_state = np.array([states.get(one.transition.next_state, len(states)) for one in occurred])
    occurrences = np.array([one.occurrences for one in occurred], np.float64)
    share = occurrences / np.bincount(of_pair, occurrences)[of_pair]
    reward = np.bincount(of_pair, share * [one.reward for one in occurred])
    values = np.zeros(len(pairs))
    for iterations in range(1, _MOST_ITERATIONS + 1):
        best = np.full(len(states) + 1, -np.inf)
        np.maximum.at(best, state_of_pair, values)
        best[-1] = 0.0
        improved = reward + gamma * np.bincount(of_pair, share * best[next_state])
        residual, values = float(np.abs(improved - values).max()), improved
        if residual < TOLERANCE:
            q_table: dict[str, dict[Action, float]] = {}
            for (state, action), value in zip(pairs, values.tolist(), strict=True):
                q_table.setdefault(state, {})[action] = value
            return Solution(q_table, iterations, residual)
    raise ConfigError(f"the values of the fleet's Q-table don't settle with gamma {gamma}", "lower VIDURAI_GAMMA")


@dataclass(frozen=True, slots=True)
class StoreVerdict:
    """What the fleet's table is worth to one store.

    Attributes:
        experiences: how many it brought in.
        own_table: the table that the fleet's was compared with; None for one that was solved from the store's archive
            alone, because its own is not on this machine.
        verdict: the gate's.
    """

    experiences: int
    own_table: Path | None
    verdict: Verdict


@dataclass(slots=True)
class FleetReport:
    """What came of learning for the fleet.

    Attributes:
        table: where the table is, or would be.
        engine: what counted.
        experiences: of all stores.
        states: states in which something was tried.
        iterations: of value iteration.
        residual: the largest change of a value in the last one, in points.
        stores: what the table is worth to each store.
        left_out: stores whose archives can't be read, each with the reason.
        refused: why the table is kept as a candidate; None if it is in its place, or there is none.
        candidate: where the refused one is.
    """

    table: Path
    engine: str
    experiences: int = 0
    states: int = 0
    iterations: int = 0
    residual: float = 0.0
    stores: dict[str, StoreVerdict] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    candidate: Path | None = None

    @property
    def worse(self) -> list[str]:
        """The stores that should keep their own tables."""
        return [name for name, one in self.stores.items() if one.verdict.not_worse is False]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        stores = {
            name: {**asdict(one), "own_table": one.own_table and str(one.own_table), "verdict": one.verdict.to_dict()}
            for name, one in self.stores.items()
        }
        paths = {"table": str(self.table), "candidate": self.candidate and str(self.candidate)}
        return {**asdict(self), **paths, "stores": stores, "worse": self.worse}


def learn_fleet(settings: Settings, tables: Mapping[str, Path] | None = None) -> FleetReport:
    """Make the fleet's table from all stores of the archive.

    The same archives give the same file, byte for byte. Without any experience, the file is not touched.

    Args:
        settings: which archive, and what to train with.
        tables: the Q-tables of stores on this machine, by their names.

    Raises:
        PipelineError: no archive can be read, or the table can't be written.
    """
    if settings.spark_master is None:
        engine, count = "duckdb", count_with_duckdb
    else:
        from vidurai_pipeline.rl.spark import count_with_spark  # noqa: PLC0415  (an extra)

        engine, count = "spark", count_with_spark
    hyperparameters = Hyperparameters.of(settings)
    file = TableFile(settings.fleet_q_table_path, "VIDURAI_FLEET_Q_TABLE")
    file.require_ours()
    report = FleetReport(file.path, engine)
    stores = find_stores(settings, tables)
    if owners := [one.name for one in stores if one.q_table and TableFile(one.q_table).path == file.path]:
        raise ConfigError(f"VIDURAI_FLEET_Q_TABLE={file.path} is the own table of the store {owners[0]}", "change it")
    count(settings, stores)
    report.left_out = {store.name: store.left_out for store in stores if store.left_out is not None}
    if stores and len(report.left_out) == len(stores):
        raise ArchiveError(f"no store's archive can be read; of the store {stores[0].name}: {stores[0].left_out}")
    index = TransitionIndex(hyperparameters.reward_profile)
    total: Counter[int] = Counter()
    for store in stores:
        total.update(store.total)
    transitions = index.count(total)
    report.experiences = total.total()
    if not report.experiences:
        return report
    solution = solve(transitions, hyperparameters.gamma)
    report.states, report.iterations, report.residual = len(solution.q_table), solution.iterations, solution.residual
    for store in stores:
        if store.left_out is None:
            report.stores[store.name] = _judge(store, solution.q_table, index, hyperparameters)
    bound = value_bound(hyperparameters.reward_profile, hyperparameters.gamma)
    faults, _ = find_faults(solution.q_table, {}, bound)
    judged = sum(one.verdict.not_worse is not None for one in report.stores.values())
    if faults:
        report.refused = f"the fleet's table is not well-formed ({faults[0]})"
    elif len(report.worse) * 2 > judged:
        worse = f"{len(report.worse)} of {plural(judged, 'store')}"
        report.refused = f"the fleet's table is worse than the store's own in {worse}"
    policy = QLearningPolicy.of(hyperparameters)
    policy.adopt(TableContents(solution.q_table, 1, float(sum(one.reward * one.occurrences for one in transitions))))
    if report.refused:
        file.write_candidate(policy.contents())
        report.candidate = file.candidate_path
    else:
        file.write(policy.contents())
        file.drop_candidate()
    return report


def _judge(store: Store, table: QTable, index: TransitionIndex, hyperparameters: Hyperparameters) -> StoreVerdict:
    experiences, held_out = store.total.total(), index.count(store.held_out)
    own = None
    if store.q_table is not None:
        try:
            own = TableFile(store.q_table).read()
        except PipelineError as error:
            return StoreVerdict(experiences, store.q_table, Verdict(reason=f"not compared: {error}"))
    if own is not None:
        return StoreVerdict(experiences, store.q_table, judge(own, table, held_out, hyperparameters))
    alone = solve(index.count(store.total), hyperparameters.gamma).q_table
    verdict = compare(alone, table, held_out, hyperparameters.alpha, hyperparameters.gamma)
    return StoreVerdict(experiences, None, verdict)
