"""How far learning has come, and what to go on from when another program wrote the table meanwhile.

A dream notes its progress inside the table it writes, so that both change in one step. Vidurai's daemon doesn't know
that note and drops it when it saves a table of its own. Then the copy of the last dreamt table tells what happened:

- **continued**: the daemon's table has every value the dream's has (with news), and no fewer episodes. It was loaded
  from the dream's: it is taken as it is, and learning goes on from where the dream was.
- **merged**: something is missing in the daemon's table, so it began from nothing (Vidurai 2.2.0 always does: it can't
  load its own file). Each value that the daemon learned stays, for it saw what it did, where a dream infers; each value
  that only the dream had is put back. Episodes and rewards are added up, once for each table of the daemon.
- **adopted**: there is no copy, so no dream has been here. The archive is learned on top of the table that is there.

A table that isn't there has learned nothing, whatever the copy says: who deletes it starts anew.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.dataset import Watermark
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import DamagedTableError, Snapshot, TableContents
from vidurai_pipeline.settings import RewardProfile

FORMAT = 1
Order = Literal["chronological", "newest-first"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a table is trained with.

    Attributes:
        reward_profile: it sets the rewards.
        alpha: learning rate.
        gamma: discount.
        epsilon_max: share of random decisions at the beginning.
        epsilon_min: share of random decisions that remains.
        epsilon_decay: of that share, per episode.
    """

    reward_profile: RewardProfile
    alpha: float
    gamma: float
    epsilon_max: float = 0.3
    epsilon_min: float = 0.05
    epsilon_decay: float = 0.003

    def value_alike(self, other: "Parameters") -> bool:
        """Whether values learned with these and with others can stand in one table; epsilon has no part in them."""
        return (self.reward_profile, self.alpha, self.gamma) == (other.reward_profile, other.alpha, other.gamma)

    def policy(self) -> QLearningPolicy:
        """A policy that knows nothing yet."""
        return QLearningPolicy(self.epsilon_max, self.epsilon_min, self.epsilon_decay, self.alpha, self.gamma)

    @classmethod
    def of(cls, source: Any) -> Self:
        """Those of something that has the same attributes: the settings, say."""
        return cls(**{one.name: getattr(source, one.name) for one in fields(cls)})

    @classmethod
    def from_json(cls, noted: dict[str, Any]) -> Self:
        """Read the parameters of a note.

        Raises:
            TypeError, ValueError: they are none.
        """
        profile, numbers = RewardProfile(noted["reward_profile"]), {**noted}
        del numbers["reward_profile"]
        if not all(isinstance(value, int | float) for value in numbers.values()):
            raise TypeError
        return cls(profile, **numbers)


@dataclass(frozen=True, slots=True)
class Progress:
    """The note in the table.

    Attributes:
        watermark: the last experience behind us, in order of archived_at, id.
        accounted: experiences up to the watermark that are settled: learned, or left out on purpose.
        order: the order that the table was begun in.
        pure: whether all that is in the table was learned from the archive, from an empty table on.
        parameters: what it was trained with.
        table_digest: of what the table held when the note was written.
        foreign_episodes: episodes of the daemon's table that was merged in last.
        foreign_reward: its total reward, in points.
        visits: how many archived experiences stand behind each value, by state and action.
        curve: the learning curve since the table was begun.
    """

    watermark: Watermark
    accounted: int
    order: Order
    pure: bool
    parameters: Parameters
    table_digest: str
    foreign_episodes: int = 0
    foreign_reward: float = 0.0
    visits: dict[str, dict[str, int]] = field(default_factory=dict)
    curve: tuple[Point, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The note as it stands in the file."""
        note = asdict(self)
        note["watermark"] = self.watermark._asdict()
        note["parameters"]["reward_profile"] = self.parameters.reward_profile.value
        return {"format": FORMAT, **note}

    @classmethod
    def from_json(cls, note: Any) -> Self:
        """Read the note.

        Raises:
            DamagedTableError: it is not one of ours.
            QTableError: it is from another version of this program.
        """
        try:
            noted = dict(note)
            if noted.pop("format") != FORMAT:
                raise QTableError(
                    "the Q-table was written by another version of vidurai-pipeline: use that one, or learn the "
                    "archive again with `vidurai-pipeline dream --rebuild`"
                )
            progress = cls(
                **{
                    **noted,
                    "watermark": Watermark(**noted["watermark"]),
                    "parameters": Parameters.from_json(noted["parameters"]),
                    "curve": tuple(Point.from_json(point) for point in noted.get("curve", ())),
                }
            )
        except (TypeError, ValueError, KeyError):
            raise DamagedTableError("its note on progress can't be read") from None
        if not progress._is_sound():
            raise DamagedTableError("its note on progress can't be read")
        return progress

    def _is_sound(self) -> bool:
        return (
            isinstance(self.watermark.archived_at, str)
            and _is_count(self.watermark.id, negative=True)
            and _is_count(self.accounted)
            and _is_count(self.foreign_episodes)
            and isinstance(self.foreign_reward, int | float)
            and isinstance(self.pure, bool)
            and self.order in ("chronological", "newest-first")
            and isinstance(self.visits, dict)
            and all(isinstance(row, dict) and all(map(_is_count, row.values())) for row in self.visits.values())
        )


@dataclass(frozen=True, slots=True)
class Start:
    """What a dream goes on from.

    Attributes:
        contents: the table to go on from.
        progress: how far it has come; None if no dream has been here.
        daemon: what another program did since the last dream: ``continued``, ``merged``, ``adopted`` (see above),
            ``edited`` (the table changed, the note is still there), or None for nothing.
        replaced: in a merge, values that the dream had learned and the daemon's own took the place of.
    """

    contents: TableContents
    progress: Progress | None
    daemon: str | None = None
    replaced: int = 0


def find_start(live: Snapshot | None, remembered: Snapshot | None) -> Start:
    """Decide what a dream goes on from.

    Args:
        live: the table as it is.
        remembered: the copy of the last table that a dream wrote.

    Raises:
        DamagedTableError: the table's note can't be read.
    """
    if live is None:
        return Start(TableContents(), None)
    if live.contents.progress is not None:
        progress = Progress.from_json(live.contents.progress)
        if progress.table_digest == live.contents.digest():
            return Start(live.contents, progress)
        return Start(live.contents, replace(progress, pure=False), "edited")
    own = _own_progress(remembered)
    if remembered is None or own is None:
        return Start(live.contents, None, "adopted")
    impure = replace(own, pure=False)
    if _continues(live.contents, remembered.contents):
        return Start(live.contents, impure, "continued")
    return _merge(live.contents, remembered.contents, impure)


def _own_progress(remembered: Snapshot | None) -> Progress | None:
    if remembered is None or remembered.contents.progress is None:
        return None
    try:
        return Progress.from_json(remembered.contents.progress)
    except QTableError:
        return None


def _continues(live: TableContents, own: TableContents) -> bool:
    return live.episodes >= own.episodes and all(
        state in live.q_table and row.keys() <= live.q_table[state].keys() for state, row in own.q_table.items()
    )


def _merge(live: TableContents, own: TableContents, progress: Progress) -> Start:
    # Of a daemon that is still the same process, the earlier table's share is in the sum already.
    same_process = progress.foreign_episodes <= live.episodes
    known_episodes = progress.foreign_episodes if same_process else 0
    known_reward = progress.foreign_reward if same_process else 0.0
    q_table = {state: dict(row) for state, row in live.q_table.items()}
    replaced = 0
    for state, row in own.q_table.items():
        merged = q_table.setdefault(state, {})
        for action, value in row.items():
            replaced += merged.setdefault(action, value) != value
    contents = TableContents(
        q_table=q_table,
        episodes=own.episodes + live.episodes - known_episodes,
        total_reward=own.total_reward + live.total_reward - known_reward,
        unknown={**own.unknown, **live.unknown},
    )
    seen = replace(progress, foreign_episodes=live.episodes, foreign_reward=live.total_reward)
    return Start(contents, seen, "merged", replaced)


def _is_count(value: Any, *, negative: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (negative or value >= 0)
