"""The record of erasures, for audits: when, how many memories, and how they were chosen. It holds no text."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidurai_pipeline.cold.files import read_json, write_json

NAME = ".erasures.json"


@dataclass(frozen=True)
class Erasure:
    """One erasure.

    Attributes:
        at: when it was finished, in UTC.
        memories: how many memories it was for.
        chosen: how they were chosen: ``ids``, ``condition``, ``words``, or several of them.
        left: in how many places something was left.
        key: of its intent; a finished erasure is recorded once.
        taught: whether the Q-table may have learned from them.
    """

    at: str
    memories: int
    chosen: str
    left: int
    key: str
    taught: bool = False


class Erasures:
    """The erasures of one archive."""

    def __init__(self, root: Path) -> None:
        self._path = root / NAME

    def all(self) -> list[Erasure]:
        """All of them, oldest first."""

        def made(entries: Any) -> list[Erasure]:
            return [Erasure(**entry) for entry in entries]

        return read_json(self._path, made, "a record of erasures") or []

    def taught(self) -> int:
        """How many erasures there were of memories that the Q-table may have learned from."""
        return sum(entry.taught for entry in self.all())

    def add(self, erasure: Erasure) -> None:
        """Record an erasure, or record it anew."""
        entries = [entry for entry in self.all() if entry.key != erasure.key]
        write_json(self._path, [asdict(entry) for entry in [*entries, erasure]])
