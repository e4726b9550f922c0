"""The agent: it observes a state, decides on an action, and learns from what came of it."""

import random
from collections import deque
from typing import Any

from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import (
    REWARD_WEIGHTS,
    Action,
    Experience,
    MemoryState,
    Outcome,
    RewardProfile,
    RewardWeights,
)

__all__ = [
    "REWARD_WEIGHTS",
    "Action",
    "Experience",
    "MemoryState",
    "Outcome",
    "RewardProfile",
    "RewardWeights",
    "VismritiRLAgent",
]


class VismritiRLAgent:
    """Learns when to compress, when to forget and when to leave memory alone.

    It is the plain counterpart of Vidurai's agent of the same name: same decisions from the same random numbers, same
    table from the same experiences. It keeps everything in memory and writes nothing unless ``policy.save`` is called.

    Args:
        reward_profile: what its user wants most.
        policy: the policy to follow and to train; default one that knows nothing yet.
        rng: the source of randomness of that default policy; a policy that is passed in has its own.
        remembered: how many of the latest experiences ``experiences`` keeps.
    """

    def __init__(
        self,
        reward_profile: RewardProfile = RewardProfile.BALANCED,
        policy: QLearningPolicy | None = None,
        *,
        rng: random.Random | None = None,
        remembered: int = 10_000,
    ) -> None:
        self.reward_profile = reward_profile
        self.policy = QLearningPolicy(rng=rng) if policy is None else policy
        self.experiences: deque[Experience] = deque(maxlen=remembered)
        self.current_state: MemoryState | None = None
        self.current_action: Action | None = None
        self.actions_taken = 0

    def decide(self, state: MemoryState) -> Action:
        """Choose an action by the policy, and remember both until ``learn`` is told what came of it."""
        action = self.policy.select_action(state)
        self.current_state = state
        self.current_action = action
        self.actions_taken += 1
        return action

    def learn(self, outcome: Outcome, next_state: MemoryState) -> None:
        """Learn what came of the latest decision; without one, or for the second time, nothing happens."""
        if self.current_state is None or self.current_action is None:
            return
        experience = Experience(
            state=self.current_state,
            action=self.current_action,
            reward=outcome.calculate_reward(self.reward_profile),
            next_state=next_state,
        )
        self.experiences.append(experience)
        self.policy.learn(experience)
        self.current_state = None
        self.current_action = None

    def end_episode(self) -> None:
        """End a conversation: from now on the policy explores a little less."""
        self.policy.end_episode()

    def get_statistics(self) -> dict[str, Any]:
        """The policy's statistics and ``reward_profile``, ``actions_taken``, ``experiences_stored``."""
        return {
            **self.policy.get_statistics(),
            "reward_profile": self.reward_profile.value,
            "actions_taken": self.actions_taken,
            "experiences_stored": len(self.experiences),
        }
