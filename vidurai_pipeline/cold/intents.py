"""What was begun and must be finished: a restoration or an erasure that a crash may have cut short.

An intent is written, durably, before the first thing is changed, and removed when all is done. The next run that holds
the archive's lock goes on from it.
"""

import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vidurai_pipeline.cold.files import archive_errors, durable_write, make_folder, sync_folder
from vidurai_pipeline.cold.pending import same_store
from vidurai_pipeline.errors import ArchiveError

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

    def concerns(self, store: tuple[str, str]) -> bool:
        """Whether it is one of this hot store, given as ``store_identity`` gives it."""
        return same_store(self.store, store)


class Intents:
    """The intents of one archive."""

    def __init__(self, root: Path) -> None:
        self._folder = root / ".intents"

    def write(self, intent: Intent) -> None:
        """Write or replace an intent, durably and at once."""
        make_folder(self._folder)
        path = self._path(intent)
        with archive_errors(path):
            durable_write(path, json.dumps(asdict(intent)).encode())

    def all(self) -> list[Intent]:
        """All intents."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with archive_errors(path):
                text = path.read_text()
            try:
                values = json.loads(text)
                memories = tuple((int(id_), born, moved) for id_, born, moved in values["memories"])
                found.append(Intent(**{**values, "memories": memories, "store": tuple(values["store"])}))
            except (ValueError, TypeError, KeyError):
                raise ArchiveError(
                    f"{path} is not a record of a restoration or an erasure",
                    hint="move it away, and restore or erase again",
                ) from None
        return found

    def remove(self, intent: Intent) -> None:
        """Remove an intent: all is done."""
        with archive_errors(self._path(intent)):
            self._path(intent).unlink(missing_ok=True)
            sync_folder(self._folder)

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
        with archive_errors(self._path):
            durable_write(self._path, json.dumps(entries).encode())

    def ids(self, now: datetime) -> set[int]:
        """The memories of this store that are left alone at a moment, in UTC."""
        return {
            id_
            for entry in self._read()
            if entry["until"] > now.isoformat() and same_store(entry["store"], self._store)
            for id_ in entry["ids"]
        }

    def _read(self) -> list[dict[str, Any]]:
        try:
            with archive_errors(self._path):
                return json.loads(self._path.read_text())
        except ArchiveError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        except ValueError:
            raise ArchiveError(
                f"{self._path} can't be read: it is not the list of restored memories", hint="move it away"
            ) from None
