"""What an archived row says itself about the decision behind it, where a Vidurai logs it.

Vidurai 2.2.0 logs nothing of the kind. A later one may archive, in any of three further columns:

- ``action``: the action's name, such as ``compress_now``;
- ``state``: the state in which it was taken, as its hash (``2|1|0|5|5|1``) or as JSON with the fields of
  ``MemoryState``;
- ``decision``: a JSON object with ``action``, ``state`` and ``next_state``, each optional; the two columns go first.

What is logged takes the place of what would be inferred. A value that can't be read is never replaced by an inferred
one: the row is counted by reason, and not learned.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from vidurai_pipeline.rl.inference import Transition, infer_action, infer_next_state, infer_state
from vidurai_pipeline.rl.states import Action, MemoryState, is_state_hash

COLUMNS = ("action", "state", "decision")
#: Why a row's own word can't be used.
REASONS = ("unknown action", "unreadable state", "unreadable decision")

_ACTIONS = tuple(Action)
_BY_NAME = {name.lower(): action for action in Action for name in (action.value, action.name)}
_SIZES = (11, 11, 21, 11, 11, 6)
_STATES = math.prod(_SIZES)


class UnreadableError(ValueError):
    """A logged value can't be used; the message is one of ``REASONS``."""


@dataclass(frozen=True, slots=True)
class LoggedTransition:
    """A transition of which something was logged.

    Attributes:
        transition: what it teaches.
        action_logged: whether its action was logged, not inferred.
        state_logged: whether its state was.
    """

    transition: Transition
    action_logged: bool
    state_logged: bool

    def to_number(self) -> int:
        """A number of its own, the same in every archive."""
        one = self.transition
        number = _state_number(one.state) * len(_ACTIONS) + _ACTIONS.index(one.action)
        number = (number * 2 + (one.outcome > 0)) * _STATES + _state_number(one.next_state)
        return number * 4 + self.action_logged * 2 + self.state_logged

    @classmethod
    def from_number(cls, number: int) -> "LoggedTransition":
        """The one of a number."""
        number, flags = divmod(number, 4)
        number, next_state = divmod(number, _STATES)
        number, good = divmod(number, 2)
        state, action = divmod(number, len(_ACTIONS))
        transition = Transition(_state_hash(state), _ACTIONS[action], 1 if good else -1, _state_hash(next_state))
        return cls(transition, bool(flags & 2), bool(flags & 1))


def read_logged(
    importance: float,
    tokens: int,
    outcome: int,
    *,
    action: str | None = None,
    state: str | None = None,
    decision: str | None = None,
) -> LoggedTransition:
    """The transition of a row that logs something.

    Args:
        importance: of its salience, 0 to 1.
        tokens: characters of its verbatim and gist, // 4.
        outcome: 1 or -1.
        action: its column, or None.
        state: its column, or None.
        decision: its column, or None.

    Raises:
        UnreadableError: a value can't be read.
    """
    logged = {} if decision is None else _read_json(decision, "unreadable decision")
    if not isinstance(logged, dict):
        raise UnreadableError("unreadable decision")
    named = action if action is not None else logged.get("action")
    found = state if state is not None else logged.get("state")
    follows = logged.get("next_state")
    taken = infer_action(importance, outcome) if named is None else _read_action(named)
    before = infer_state(importance, tokens) if found is None else _read_state(found)
    after = infer_next_state(before, outcome) if follows is None else _read_state(follows)
    transition = Transition(before.to_hash(), taken, outcome, after.to_hash())
    if not (is_state_hash(transition.state) and is_state_hash(transition.next_state)):
        raise UnreadableError("unreadable state")
    return LoggedTransition(transition, named is not None, found is not None)


def _read_action(named: Any) -> Action:
    action = _BY_NAME.get(named.strip().strip('"').lower()) if isinstance(named, str) else None
    if action is None:
        raise UnreadableError("unknown action")
    return action


def _read_state(found: Any) -> MemoryState:
    if isinstance(found, str):
        text = found.strip().strip('"')
        if is_state_hash(text):
            return _typical_state(text)
        found = _read_json(text, "unreadable state")
    if not isinstance(found, dict):
        raise UnreadableError("unreadable state")
    counts = [
        found.get("working_memory_count"),
        found.get("episodic_memory_count"),
        found.get("total_tokens"),
        found.get("messages_since_last_compression", 0),
    ]
    shares = [found.get("average_entropy", 0.5), found.get("average_importance", 0.5)]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise UnreadableError("unreadable state")
    if not all(isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1 for share in shares):
        raise UnreadableError("unreadable state")
    return MemoryState(counts[0], counts[1], counts[2], shares[0], shares[1], counts[3])


def _read_json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableError(reason) from None


def _typical_state(state_hash: str) -> MemoryState:
    """The smallest state of a hash; of the next one, which is inferred, it decides the buckets."""
    working, episodic, tokens, entropy, importance, messages = (int(part) for part in state_hash.split("|"))
    return MemoryState(working * 5, episodic * 100, tokens * 500, entropy / 10, importance / 10, messages * 3)


def _state_number(state_hash: str) -> int:
    number = 0
    for size, bucket in zip(_SIZES, state_hash.split("|"), strict=True):
        number = number * size + int(bucket)
    return number


def _state_hash(number: int) -> str:
    buckets = []
    for size in reversed(_SIZES):
        number, bucket = divmod(number, size)
        buckets.append(str(bucket))
    return "|".join(reversed(buckets))
