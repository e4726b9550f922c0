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
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.dataset import Watermark
from vidurai_pipeline.rl.inference import all_transitions
from vidurai_pipeline.rl.learning_curve import Point
from vidurai_pipeline.rl.q_table_file import DamagedTableError, StoredTable, TableContents
from vidurai_pipeline.rl.states import Action
from vidurai_pipeline.settings import Hyperparameters

FORMAT = 1
Order = Literal["chronological", "newest-first"]
#: How many archived experiences stand behind each value, by state and action.
Visits = dict[str, dict[Action, NonNegativeInt]]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The table before it learned what is dated later than the dream, as by a clock that was wrong once.

    Such experiences are the last in order for years, while every night brings others that come before them. Learning
    goes on from this table then, and learns them again in their place.

    Attributes:
        first: the place of the first of them.
        reached: the last experience learned before them; None if there was none.
        settled: experiences before them that are dealt with.
        table: the table.
        total_reward: of that table, in points.
        visits: behind its values.
        curve: its learning curve.
    """

    first: Watermark
    reached: Watermark | None
    settled: NonNegativeInt
    table: dict[str, dict[Action, float]] | None = None
    total_reward: float = 0.0
    visits: Visits = field(default_factory=dict)
    curve: tuple[Point, ...] = ()


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
        ahead: the table without what is dated in the future; None if nothing is, or the table can't be learned again.
        erasures: erasures of the archive that the table knows nothing of any more.
    """

    # What the note must look like to be one: no key that is not known, and no text where a number is due.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    watermark: Watermark
    settled: Annotated[NonNegativeInt, Field(alias="accounted")]
    order: Order
    archive_only: Annotated[bool, Field(alias="pure")]
    hyperparameters: Annotated[Hyperparameters, Field(alias="parameters")]
    table_digest: str = ""
    foreign_episodes: NonNegativeInt = 0
    foreign_reward: float = 0.0
    visits: Visits = field(default_factory=dict)
    curve: tuple[Point, ...] = ()
    ahead: Ahead | None = None
    erasures: NonNegativeInt = 0

    def stored_with(self, contents: TableContents) -> TableContents:
        """The contents of a file that holds a table and this note on it."""
        note = _NOTE.dump_python(replace(self, table_digest=contents.digest()), by_alias=True, mode="json")
        for name in ("ahead", "erasures"):  # which earlier versions don't know
            if not note[name]:
                del note[name]
        return replace(contents, note={"format": FORMAT, **note})

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
                    "the Q-table was written by another version of vidurai-pipeline",
                    "use that one, or learn the archive again with `vidurai-pipeline dream --rebuild`",
                )
            return _NOTE.validate_json(json.dumps(noted))
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
    """

    contents: TableContents
    checkpoint: Checkpoint | None = None
    daemon: str | None = None
    replaced: int = 0


def find_baseline(live: StoredTable | None, remembered: StoredTable | None) -> Baseline:
    """Decide what a dream goes on from, given the table as it is and the copy of the last one that a dream wrote.

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
    checkpoint = read_checkpoint(remembered)
    if remembered is None or checkpoint is None:
        return Baseline(live.contents, None, "adopted")
    theirs, own = live.contents.q_table, remembered.contents.q_table
    values = {(state, action) for state, row in theirs.items() for action in row}
    holds_ours = all(row.items() <= theirs.get(state, {}).items() for state, row in own.items())
    archived = {one[:2] for step in all_transitions() for one in step}
    if values and values <= archived and not holds_ours:
        unknown = {**remembered.contents.unknown, **live.contents.unknown}
        return Baseline(replace(remembered.contents, note=None, unknown=unknown), checkpoint, "overwritten")
    checkpoint = replace(checkpoint, archive_only=False)
    lacks_none = all(state in theirs and row.keys() <= theirs[state].keys() for state, row in own.items())
    if lacks_none and live.contents.episodes >= remembered.contents.episodes:
        return Baseline(live.contents, checkpoint, "continued")
    return _merge(live.contents, remembered.contents, checkpoint)


def _merge(live: TableContents, own: TableContents, checkpoint: Checkpoint) -> Baseline:
    # Of a daemon that is still the same process, the earlier table's share is in the sum already.
    same_process = checkpoint.foreign_episodes <= live.episodes
    q_table = {state: dict(row) for state, row in live.q_table.items()}
    replaced = 0
    for state, row in own.q_table.items():
        merged = q_table.setdefault(state, {})
        for action, value in row.items():
            replaced += merged.setdefault(action, value) != value
    contents = TableContents(
        q_table=q_table,
        episodes=own.episodes + live.episodes - (checkpoint.foreign_episodes if same_process else 0),
        total_reward=own.total_reward + live.total_reward - (checkpoint.foreign_reward if same_process else 0.0),
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
    remaining: Visits = {}
    for state, row in visits.items():
        theirs, ours = contents.q_table.get(state, {}), own.q_table.get(state, {})
        if kept := {action: count for action, count in row.items() if theirs.get(action) == ours.get(action)}:
            remaining[state] = kept
    return remaining
