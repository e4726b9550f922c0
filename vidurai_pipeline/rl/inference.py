"""What an archived memory teaches: the experience that its row stands for.

An archived row doesn't tell in which state the memory layer was, nor what it did; both are inferred, by Vidurai's own
rules (``vidurai.core.rl.dreamer``, 2.2.0). The state is a typical one, in which only tokens and importance are the
memory's; the action follows from salience and outcome. No state is another one's next state: 5 messages fall into
another bucket than 0 and 6 do. A table learned so says which rules the outcomes agree with,
not what would have happened under other actions.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

from vidurai_pipeline.rl.states import Action, MemoryState, Outcome

# Position is the memory's level in an archived experience; a salience that isn't here counts as medium.
SALIENCES = {"critical": 1.0, "high": 0.8, "medium": 0.5, "low": 0.3, "noise": 0.1}
IMPORTANCES = tuple(SALIENCES.values())
DEFAULT_LEVEL = list(SALIENCES).index("medium")

CHARACTERS_PER_TOKEN = 4
# Every bucket that an experience touches is the same for all memories of more tokens than this (see
# MemoryState.to_hash: the last token bucket begins at 10,000, and an outcome moves a state by 50).
MAX_TOKENS = 10_050
#: Memories whose tokens, divided by this and cut to an integer, are the same are in the same buckets before and after.
TOKEN_STEP = 50


def infer_state(importance: float, tokens: int) -> MemoryState:
    """The state in which a memory is assumed to have been archived, from its importance (0 to 1) and its tokens."""
    return MemoryState(
        working_memory_count=10,
        episodic_memory_count=100,
        total_tokens=tokens,
        average_entropy=0.5,
        average_importance=importance,
        messages_since_last_compression=5,
    )


def infer_next_state(state: MemoryState, outcome: int) -> MemoryState:
    """The state that followed: relieved after a good outcome (1), under more pressure after a bad one (-1)."""
    if outcome > 0:
        return replace(
            state,
            working_memory_count=max(1, state.working_memory_count - 2),
            episodic_memory_count=state.episodic_memory_count + 1,
            total_tokens=max(100, state.total_tokens - 50),
            average_importance=min(1.0, state.average_importance + 0.1),
            messages_since_last_compression=0,
        )
    return replace(
        state,
        working_memory_count=state.working_memory_count + 2,
        total_tokens=state.total_tokens + 50,
        average_importance=max(0.0, state.average_importance - 0.1),
        messages_since_last_compression=state.messages_since_last_compression + 1,
    )


def infer_action(importance: float, outcome: int) -> Action:
    """The action that is assumed to have led to the outcome."""
    if importance > 0.7 and outcome > 0:
        return Action.COMPRESS_CONSERVATIVE
    if importance < 0.3:
        return Action.DECAY_LOW_VALUE
    return Action.COMPRESS_NOW


def infer_outcome(action: Action, outcome: int) -> Outcome:
    """What a good (1) or a bad (-1) outcome says about retrieval, loss and satisfaction."""
    if outcome > 0:
        return Outcome(action, retrieval_accuracy=1.0, information_loss=0.0, user_satisfaction=1.0)
    return Outcome(action, retrieval_accuracy=0.5, information_loss=0.3, user_satisfaction=0.0)


class Transition(NamedTuple):
    """What an experience teaches, but for the reward, which depends on the profile; states are hashes."""

    state: str
    action: Action
    outcome: int
    next_state: str


def infer_transition(importance: float, tokens: int, outcome: int) -> Transition:
    """The transition of one archived memory, whose outcome is 1 or -1."""
    state = infer_state(importance, tokens)
    next_state = infer_next_state(state, outcome)
    return Transition(state.to_hash(), infer_action(importance, outcome), outcome, next_state.to_hash())


@cache
def all_transitions() -> list[list[Transition]]:
    """Every transition of archived memories: by tokens // ``TOKEN_STEP``, then by level of salience and outcome."""
    return [
        [infer_transition(importance, tokens, outcome) for importance in IMPORTANCES for outcome in (-1, 1)]
        for tokens in range(0, MAX_TOKENS + 1, TOKEN_STEP)
    ]
