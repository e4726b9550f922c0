"""How far learning has come, and what to go on from when another program wrote the table meanwhile.

A dream notes its checkpoint inside the table it writes, so that both change in one step. Vidurai's own programs don't
know that note and drop it when they save a table of their own. Then the copy of the last dreamt table tells what
happened:

- **continued**: the other table has every value that the dream's has (with news), and no fewer episodes. It was loaded
  from the dream's: it is taken as it is, and learning goes on from where the dream was.
- **merged**: something is missing in the other table, so it began from nothing (Vidurai 2.2.0 always does: it can't
  load its own file). Each value that the daemon learned stays, for it saw what it did, where a dream infers; each value
  that only the dream had is put back. Episodes and rewards are added up, once for each table of the daemon.
- **overwritten**: all of the other table's values are of states and actions that archived memories teach, and not ours:
  it is by Vidurai's own dreamer, which learns the newest memories of the archive from nothing. They are learned here
  already, so the table of the last dream takes its place again.
- **adopted**: there is no copy, so no dream has been here. The archive is learned on top of the table that is there.

A table that isn't there has learned nothing, whatever the copy says: who deletes it starts anew.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.dataset import Watermark
from vidurai_pipeline.rl.inference import archived_values
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.q_table_file import DamagedTableError, StoredTable, TableContents
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.settings import Hyperparameters

FORMAT = 1
Order = Literal["chronological", "newest-first"]
#: How many archived experiences stand behind each value, by state and action.
Visits = dict[str, dict[Action, NonNegativeInt]]
#: The names in the file, where they are not those of the attributes.
_STORED_NAMES = {"settled": "accounted", "archive_only": "pure", "hyperparameters": "parameters"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The note in the table.

    Attributes:
        watermark: the last experience behind us, in order of archived_at, id.
        settled: experiences up to the watermark that are dealt with: learned, or left out on purpose.
        order: the order that the table was begun in.
        archive_only: whether all that is in the table was learned from the archive, from an empty table on.
        hyperparameters: what it was trained with.
        table_digest: of what the table held when the note was written.
        foreign_episodes: episodes of the daemon's table that was merged in last.
        foreign_reward: its total reward, in points.
        visits: how many archived experiences stand behind each value, by state and action.
        curve: the learning curve since the table was begun.
    """

    # What the note must look like to be one: no key that is not known, and no text where a number is due.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    watermark: Watermark
    settled: NonNegativeInt
    order: Order
    archive_only: bool
    hyperparameters: Hyperparameters
    table_digest: str = ""
    foreign_episodes: NonNegativeInt = 0
    foreign_reward: float = 0.0
    visits: Visits = field(default_factory=dict)
    curve: tuple[Point, ...] = ()

    def stored_with(self, contents: TableContents) -> TableContents:
        """The contents of a file that holds a table and this note on it."""
        return replace(contents, note=replace(self, table_digest=contents.digest()).to_json())

    def to_json(self) -> dict[str, Any]:
        """The note as it stands in the file."""
        note = {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}
        return {"format": FORMAT, **note}

    @staticmethod
    def from_json(note: Any) -> "Checkpoint":
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
            noted.pop("ahead", None)  # other versions noted there what they had learned of the future
            attributes = {stored: name for name, stored in _STORED_NAMES.items()}
            named = {attributes.get(name, name): value for name, value in noted.items()}
            return _NOTE.validate_json(json.dumps(named))
        except (TypeError, ValueError, KeyError, RecursionError):
            raise DamagedTableError("its note on what it has learned can't be read") from None


_NOTE = TypeAdapter(Checkpoint)


def read_checkpoint(stored: StoredTable | None) -> Checkpoint | None:
    """The note in a table; None if there is none, or none that this version can read."""
    if stored is None or stored.contents.note is None:
        return None
    try:
        return Checkpoint.from_json(stored.contents.note)
    except QTableError:
        return None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a dream goes on from.

    Attributes:
        contents: the table to go on from.
        checkpoint: how far it has come; None if no dream has been here.
        daemon: what another program did since the last dream: ``continued``, ``merged``, ``overwritten``, ``adopted``
            (see above), ``edited`` (the table changed, the note is still there), or None for nothing.
        replaced: in a merge, values of the dream in whose place the daemon's own were taken.
        anew: whether the whole archive is to be learned from an empty table.
    """

    contents: TableContents
    checkpoint: Checkpoint | None = None
    daemon: str | None = None
    replaced: int = 0
    anew: bool = False


def find_baseline(live: StoredTable | None, remembered: StoredTable | None) -> Baseline:
    """Decide what a dream goes on from.

    Args:
        live: the table as it is.
        remembered: the copy of the last table that a dream wrote.

    Raises:
        DamagedTableError: the table's note can't be read.
    """
    if live is None:
        return Baseline(TableContents())
    if live.contents.note is None:
        return _after_another_program(live, remembered)
    checkpoint = Checkpoint.from_json(live.contents.note)
    if checkpoint.table_digest == live.contents.digest():
        return Baseline(live.contents, checkpoint)
    return Baseline(live.contents, replace(checkpoint, archive_only=False), "edited")


def _after_another_program(live: StoredTable, remembered: StoredTable | None) -> Baseline:
    own = read_checkpoint(remembered)
    if remembered is None or own is None:
        return Baseline(live.contents, None, "adopted")
    if _is_by_the_dreamer(live.contents) and not _holds(live.contents, remembered.contents):
        unknown = {**remembered.contents.unknown, **live.contents.unknown}
        return Baseline(replace(remembered.contents, note=None, unknown=unknown), own, "overwritten")
    mixed = replace(own, archive_only=False)
    if _continues(live.contents, remembered.contents):
        return Baseline(live.contents, mixed, "continued")
    return _merge(live.contents, remembered.contents, mixed)


def _is_by_the_dreamer(contents: TableContents) -> bool:
    values = {(state, action) for state, row in contents.q_table.items() for action in row}
    return bool(values) and values <= archived_values()


def _holds(live: TableContents, own: TableContents) -> bool:
    return all(row.items() <= live.q_table.get(state, {}).items() for state, row in own.q_table.items())


def _continues(live: TableContents, own: TableContents) -> bool:
    return live.episodes >= own.episodes and all(
        state in live.q_table and row.keys() <= live.q_table[state].keys() for state, row in own.q_table.items()
    )


def _merge(live: TableContents, own: TableContents, checkpoint: Checkpoint) -> Baseline:
    # Of a daemon that is still the same process, the earlier table's share is in the sum already.
    same_process = checkpoint.foreign_episodes <= live.episodes
    known_episodes = checkpoint.foreign_episodes if same_process else 0
    known_reward = checkpoint.foreign_reward if same_process else 0.0
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
    seen = replace(
        checkpoint,
        foreign_episodes=live.episodes,
        foreign_reward=live.total_reward,
        visits=visits_behind(contents, own, checkpoint.visits),
    )
    return Baseline(contents, seen, "merged", replaced)


def visits_behind(contents: TableContents, own: TableContents, visits: Visits) -> Visits:
    """The visits behind those values of a table that are still the ones that a dream learned."""
    return {
        state: kept
        for state, row in visits.items()
        if (
            kept := {
                action: count
                for action, count in row.items()
                if contents.q_table.get(state, {}).get(action) == own.q_table.get(state, {}).get(action)
            }
        )
    }
