"""What was begun and must be finished: a restoration or an erasure that a crash may have cut short.

An intent is written, durably, before the first thing is changed, and removed when all is done. The next run that holds
the archive's lock goes on from it.
"""

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from vidurai_pipeline.cold.files import read_json, remove_durably, write_json
from vidurai_pipeline.cold.pending import same_store

#: A memory: its id, its ``created_at``, and of one version its ``archived_at``. The id alone can have been given to
#: another memory.
Identity = tuple[int, str | None, str | None]


@dataclass(frozen=True)
class Intent:
    """What is being done with some memories.

    Attributes:
        kind: what.
        memories: which; no text of theirs.
        store: the hot store, as in a pending mark.
        key: tells intents apart.
        removing: the memories are where they belong, and their other copies are being removed.
        options: of the kind.
    """

    kind: Literal["restore", "erase"]
    memories: tuple[Identity, ...]
    store: tuple[str, str]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    removing: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read an intent."""
        memories = tuple((int(id_), born, moved) for id_, born, moved in values["memories"])
        return cls(**{**values, "memories": memories, "store": tuple(values["store"])})

    def concerns(self, store: tuple[str, str]) -> bool:
        """Whether it is one of this hot store, given as ``store_identity`` gives it."""
        return same_store(self.store, store)


class Intents:
    """The intents of one archive."""

    def __init__(self, root: Path) -> None:
        self._folder = root / ".intents"

    def write(self, intent: Intent) -> None:
        """Write or replace an intent, durably and at once."""
        write_json(self._path(intent), asdict(intent))

    def all(self) -> list[Intent]:
        """All intents."""
        what, hint = "a record of a restoration or an erasure", "move it away, and restore or erase again"
        paths = sorted(self._folder.glob("*.json"))
        return [intent for path in paths if (intent := read_json(path, Intent.from_json, what, hint))]

    def remove(self, intent: Intent) -> None:
        """Remove an intent: all is done."""
        remove_durably(self._path(intent))

    def _path(self, intent: Intent) -> Path:
        return self._folder / f"{intent.kind}-{intent.key}.json"


class Grace:
    """The memories that were restored lately, and are left alone whatever their status."""

    def __init__(self, root: Path, store: tuple[str, str]) -> None:
        self._path = root / ".restored.json"
        self._store = store

    def add(self, ids: Iterable[int], until: datetime) -> None:
        """Leave memories alone until a moment; what has passed is forgotten."""
        entries = self._read()
        now = datetime.now(until.tzinfo).isoformat()
        entries = [entry for entry in entries if entry["until"] > now]
        entries.append({"store": self._store, "until": until.isoformat(), "ids": sorted(ids)})
        write_json(self._path, entries)

    def ids(self, now: datetime) -> set[int]:
        """The memories of this store that are left alone at a moment, in UTC."""
        return {
            id_
            for entry in self._read()
            if entry["until"] > now.isoformat() and same_store(entry["store"], self._store)
            for id_ in entry["ids"]
        }

    def _read(self) -> list[dict[str, Any]]:
        return read_json(self._path, list, "the list of restored memories") or []
