"""The policy: a table of action values, learned by Q-learning, followed epsilon-greedily."""

import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from vidurai_pipeline.rl.q_table_file import TableContents, TableFile
from vidurai_pipeline.rl.states import Action, Experience, MemoryState
from vidurai_pipeline.settings import Hyperparameters

_ACTIONS = tuple(Action)
_MATURE_EPISODES = 1000


class QLearningPolicy:
    """Tabular Q-learning (Watkins & Dayan, "Q-learning", Machine Learning 8, 1992) with a decaying epsilon.

    Attributes:
        q_table: for each state's hash, the value of every action tried in it, in points of reward.
        episodes: finished episodes; they drive epsilon.
        total_reward: the sum of all rewards learned from, in points.
        epsilon_max: the share of random decisions at the beginning, 0 to 1.
        epsilon_min: the share of random decisions that remains for ever, 0 to 1.
        epsilon_decay: how fast it goes from one to the other, per episode.
        alpha: learning rate, 0 to 1: the share of an error that one experience corrects.
        gamma: discount, 0 to 1: what a reward is worth one step later.
        rng: the source of randomness.
    """

    def __init__(
        self,
        epsilon_max: float = Hyperparameters.epsilon_max,
        epsilon_min: float = Hyperparameters.epsilon_min,
        epsilon_decay: float = Hyperparameters.epsilon_decay,
        alpha: float = Hyperparameters.alpha,
        gamma: float = Hyperparameters.gamma,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.epsilon_max = epsilon_max
        self.epsilon_min = epsilon_min
        self.epsilon_decay = epsilon_decay
        self.alpha = alpha
        self.gamma = gamma
        self.rng = random.Random() if rng is None else rng  # noqa: S311 (exploration needs no secret)
        self.q_table: dict[str, dict[Action, float]] = {}
        self.episodes = 0
        self.total_reward = 0.0
        self._unknown: dict[str, Any] = {}

    @classmethod
    def of(cls, hyperparameters: Hyperparameters, contents: TableContents | None = None) -> Self:
        """A policy with some hyperparameters, over a file's contents or, without, over an empty table."""
        given = asdict(hyperparameters)
        del given["reward_profile"]
        policy = cls(**given)
        if contents is not None:
            policy.adopt(contents)
        return policy

    @classmethod
    def load(cls, path: Path, **parameters: Any) -> Self:
        """Read a policy from ``q_table.json``, which holds no parameters; it knows nothing if there is no such file.

        Raises:
            QTableError: the file is damaged or can't be read; nothing was changed.
        """
        policy = cls(**parameters)
        stored = TableFile(path).read()
        if stored is not None:
            policy.adopt(stored.contents)
        return policy

    def adopt(self, contents: TableContents) -> None:
        """Take over a copy of the table and the counters of a file's contents."""
        self.q_table = {state: dict(row) for state, row in contents.q_table.items()}
        self.episodes = contents.episodes
        self.total_reward = contents.total_reward
        self._unknown = contents.unknown

    def contents(self) -> TableContents:
        """What a file of this policy holds; the table is shared, not copied."""
        return TableContents(
            q_table=self.q_table,
            episodes=self.episodes,
            total_reward=self.total_reward,
            epsilon=self.get_epsilon(),
            unknown=self._unknown,
        )

    def save(self, path: Path) -> None:
        """Write ``q_table.json`` in one atomic step, whatever is in the file now.

        What a dream noted in the file is not kept: like Vidurai itself, this writes a table whose
        origin the next dream must find out.

        Raises:
            QTableError: the file can't be written, or a value is not a finite number; the old file is untouched.
        """
        TableFile(path).write(self.contents())

    @property
    def states_tried(self) -> int:
        """How many states something was tried in; the table also has empty rows, of states that only followed."""
        return sum(bool(row) for row in self.q_table.values())

    def get_epsilon(self) -> float:
        """The share of random decisions, 0 to 1: min + (max - min) x e^(-decay x episodes)."""
        return self.epsilon_min + (self.epsilon_max - self.epsilon_min) * math.exp(-self.epsilon_decay * self.episodes)

    def select_action(self, state: MemoryState) -> Action:
        """Choose epsilon-greedily: at random with probability epsilon, else the best action known."""
        if self.rng.random() < self.get_epsilon():
            return self.rng.choice(_ACTIONS)
        return self.best_action(state)

    def best_action(self, state: MemoryState) -> Action:
        """The action of the highest value; of equals the one learned first; ``DO_NOTHING`` where none was tried."""
        values = self.row(state.to_hash())
        return max(values, key=values.__getitem__, default=Action.DO_NOTHING)

    def learn(self, experience: Experience) -> None:
        """Correct one value: Q(s,a) + alpha x (r + gamma x max Q(s',.) - Q(s,a)) (Watkins & Dayan 1992, eq. 1).

        What was never tried is worth 0.
        """
        values = self.row(experience.state.to_hash())
        future = self.row(experience.next_state.to_hash())
        self.update(values, experience.action, experience.reward, future)

    def update(
        self, values: dict[Action, float], action: Action, reward: float, future_values: dict[Action, float]
    ) -> None:
        """The update rule of ``learn``, for rows of ``q_table`` that the caller has at hand."""
        value = values.get(action, 0.0)
        future = max(future_values.values()) if future_values else 0.0
        values[action] = value + self.alpha * (reward + self.gamma * future - value)
        self.total_reward += reward

    def row(self, state_hash: str) -> dict[Action, float]:
        """The values of a state; a state not met before gets an empty row, as it does in Vidurai."""
        return self.q_table.setdefault(state_hash, {})

    def end_episode(self) -> None:
        """Count an episode; nothing is written."""
        self.episodes += 1

    def get_statistics(self) -> dict[str, Any]:
        """Episodes, rewards in points, epsilon 0 to 1, states, and maturity in per cent of 1,000 episodes."""
        return {
            "episodes": self.episodes,
            "total_reward": self.total_reward,
            "avg_reward_per_episode": self.total_reward / max(self.episodes, 1),
            "epsilon": self.get_epsilon(),
            "q_table_size": len(self.q_table),
            "maturity": min((self.episodes / _MATURE_EPISODES) * 100, 100),
        }
