"""What the learner sees, does and gets: states, actions, outcomes and rewards.

The numbers are Vidurai's own (``vidurai.core.rl_agent_v2``, 2.2.0): tables learned here and there can be mixed, so
every formula keeps Vidurai's order of operations, down to the last bit of a float.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from vidurai_pipeline.settings import RewardProfile


class Action(StrEnum):
    """What the memory layer can do; the value is the action's name in ``q_table.json``."""

    COMPRESS_NOW = "compress_now"
    COMPRESS_AGGRESSIVE = "compress_aggressive"
    COMPRESS_CONSERVATIVE = "compress_conservative"
    DECAY_LOW_VALUE = "decay_low_value"
    DECAY_THRESHOLD_HIGH = "decay_high"
    DECAY_THRESHOLD_LOW = "decay_low"
    CONSOLIDATE = "consolidate"
    DO_NOTHING = "do_nothing"


class RewardWeights(NamedTuple):
    """The weights of the three parts of a reward that a profile sets; without unit."""

    tokens: float
    quality: float
    loss: float


REWARD_WEIGHTS = {
    RewardProfile.BALANCED: RewardWeights(tokens=1.0, quality=1.0, loss=2.0),
    RewardProfile.COST_FOCUSED: RewardWeights(tokens=3.0, quality=0.5, loss=0.5),
    RewardProfile.QUALITY_FOCUSED: RewardWeights(tokens=0.3, quality=2.0, loss=5.0),
}


@dataclass(frozen=True, slots=True)
class MemoryState:
    """The memory layer at one moment.

    Attributes:
        working_memory_count: memories in working memory.
        episodic_memory_count: memories in episodic memory.
        total_tokens: tokens in working memory, estimated as characters // 4.
        average_entropy: mean information content of a memory, 0 to 1.
        average_importance: mean importance of a memory, 0 to 1.
        messages_since_last_compression: messages.
        time_since_last_action: seconds; not part of the hash.
        recent_compressions: a count; not part of the hash.
        recent_decays: a count; not part of the hash.
    """

    working_memory_count: int
    episodic_memory_count: int
    total_tokens: int
    average_entropy: float = 0.5
    average_importance: float = 0.5
    messages_since_last_compression: int = 0
    time_since_last_action: float = 0.0
    recent_compressions: int = 0
    recent_decays: int = 0

    def to_hash(self) -> str:
        """The state's row in the Q-table: six buckets, joined by ``|``.

        In this order: working memories by 5 up to bucket 10, episodic memories by 100 up to 10, tokens by 500 up to
        20, entropy by 0.1, importance by 0.1, messages by 3 up to 5. The two fractions are cut, not rounded, in
        floating point: an importance of 0.3 - 0.1 falls in bucket 1, not 2, here as in Vidurai.
        """
        working = min(self.working_memory_count // 5, 10)
        episodic = min(self.episodic_memory_count // 100, 10)
        tokens = min(self.total_tokens // 500, 20)
        entropy = int(self.average_entropy * 10)
        importance = int(self.average_importance * 10)
        messages = min(self.messages_since_last_compression // 3, 5)
        return f"{working}|{episodic}|{tokens}|{entropy}|{importance}|{messages}"


_STATE_HASH = re.compile(r"(?:[0-9]|10)\|(?:[0-9]|10)\|(?:1?[0-9]|20)\|(?:[0-9]|10)\|(?:[0-9]|10)\|[0-5]")


def is_state_hash(text: str) -> bool:
    """Whether a text is one that ``MemoryState.to_hash`` can give."""
    return _STATE_HASH.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action.

    Attributes:
        action: what was done.
        tokens_saved: tokens.
        retrieval_accuracy: share of later look-ups that were answered right, 0 to 1.
        information_loss: share of what was known that is gone, 0 to 1.
        user_satisfaction: 0 (none) to 1.
    """

    action: Action
    tokens_saved: int = 0
    retrieval_accuracy: float = 1.0
    information_loss: float = 0.0
    user_satisfaction: float = 0.5

    def calculate_reward(self, profile: RewardProfile) -> float:
        """The reward in points: tokens/10 x w1 + accuracy x 50 x w2 - loss x 100 x w3 + satisfaction x 30.

        The weights w1 to w3 are the profile's in ``REWARD_WEIGHTS``; the formula is Vidurai's.
        """
        weights = REWARD_WEIGHTS[profile]
        saving = (self.tokens_saved / 10) * weights.tokens
        quality = self.retrieval_accuracy * 50 * weights.quality
        loss = self.information_loss * 100 * weights.loss
        satisfaction = self.user_satisfaction * 30
        return saving + quality - loss + satisfaction


@dataclass(frozen=True, slots=True)
class Experience:
    """One step of learning: in a state an action was taken, which earned a reward and led to the next state."""

    state: MemoryState
    action: Action
    reward: float
    next_state: MemoryState
