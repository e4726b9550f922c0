"""What a dream says of itself."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from vidurai_pipeline.rl.evaluation import Verdict
from vidurai_pipeline.rl.policy import QLearningPolicy


@dataclass(slots=True)
class DreamReport:
    """What a dream did, and the table as it is now.

    Attributes:
        success: whether all went well.
        episodes: experiences learned.
        positive_rewards: those of them with a good outcome.
        negative_rewards: those with a bad one.
        total_reward: of those learned, in points.
        error: what went wrong, one line; None if nothing did.
        started_at: local time, as ISO text.
        completed_at: the same.
        skipped: rows of the archive that can't be learned, by reason.
        duplicates: further copies of experiences in the archive.
        already_learned: experiences that earlier dreams have learned.
        late: experiences that came late, before the place that learning had reached.
        missing: experiences that were learned and are no longer in the archive.
        rebuilt: whether the whole archive was learned anew.
        daemon: what another program did to the table (see ``checkpoint.Baseline``); None for nothing.
        replaced: values of ours in whose place another program's were taken.
        states: states in which something was tried, of the table as it is now.
        table_episodes: episodes of the table: dreams, and conversations of the daemon.
        epsilon: share of random decisions, 0 to 1; None if the dream failed.
        set_aside: where a damaged table was moved to.
        gate: the verdict on the new table; None if there is no new one.
        held_back: experiences of a new table that the gate refused.
        notice: what the user should know though nothing failed.
    """

    success: bool = False
    episodes: int = 0
    positive_rewards: int = 0
    negative_rewards: int = 0
    total_reward: float = 0.0
    error: str | None = None
    started_at: str = field(default_factory=lambda: datetime.now().isoformat())
    completed_at: str | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    already_learned: int = 0
    late: int = 0
    missing: int = 0
    rebuilt: bool = False
    daemon: str | None = None
    replaced: int = 0
    states: int = 0
    table_episodes: int = 0
    epsilon: float | None = None
    set_aside: str | None = None
    gate: Verdict | None = None
    held_back: int = 0
    notice: str | None = None

    def show_table(self, policy: QLearningPolicy) -> None:
        """Note what the table in use is like."""
        self.states = policy.states_tried
        self.table_episodes = policy.episodes
        self.epsilon = policy.get_epsilon()

    def to_dict(self) -> dict[str, Any]:
        """The specification's statistics and more, as plain values for JSON.

        ``logged_actions``, ``logged_states`` and ``logged_share`` are always 0: no Vidurai logs them.
        """
        return {
            **asdict(self),
            "gate": None if self.gate is None else self.gate.to_dict(),
            "logged_actions": 0,
            "logged_states": 0,
            "logged_share": 0.0,
        }
