"""Find what looks like a credential in archived memories, with the patterns of detect-secrets.

Each file is read once: what was found in it, ids and kinds, never a text, is kept in ``.secrets.json``. Patterns that
guess by randomness alone are left out, since hashes and ids of commits are no secrets.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, archive_errors, durable_write, no_progress
from vidurai_pipeline.cold.listing import ArchiveFile, list_settled, require_archive
from vidurai_pipeline.errors import ArchiveError

NAME = ".secrets.json"
#: Changed with the patterns that are used; a record of another format is made anew.
FORMAT = 1
_GUESSES = {"Base64 High Entropy String", "Hex High Entropy String", "Public IP (ipv4)"}
_TEXTS = ("verbatim", "gist", "tags")
_ROWS = 256


@dataclass(frozen=True)
class Suspect:
    """A memory that looks as if it held credentials, of kinds such as ``AWS Access Key``, and its file."""

    id: int
    kinds: tuple[str, ...]
    file: str


@dataclass
class SecretsReport:
    """What was found, in order of file and id; how many files were looked at, and how many were not yet."""

    suspects: list[Suspect] = field(default_factory=list)
    files: int = 0
    left: int = 0

    @property
    def kinds(self) -> dict[str, int]:
        """How many memories there are of each kind."""
        return dict(Counter(kind for suspect in self.suspects for kind in suspect.kinds).most_common())


def find_secrets(archive: Archive, *, seconds: float = float("inf"), progress: Progress = no_progress) -> SecretsReport:
    """Look for credentials in the files that were not looked at before.

    Args:
        archive: the archive.
        seconds: begin no further file after this time; the next call goes on.
        progress: told how far it is.

    Raises:
        ArchiveError: a file can't be read, or the record can't be written.
    """
    require_archive(archive.root)
    until = time.monotonic() + seconds
    files = {_key(file): file for file in list_settled(archive.root)}
    known = _read(archive.root)
    found = {key: known[key] for key in files if key in known}
    changed = found.keys() != known.keys()
    report = SecretsReport()
    try:
        for key, file in files.items():
            if key in found:
                continue
            if time.monotonic() > until:
                report.left += 1
                continue
            progress("looking for credentials", len(found), len(files))
            found[key] = _suspects(archive, file)
            changed = True
    finally:
        if changed:
            with archive_errors(archive.root):
                durable_write(archive.root / NAME, json.dumps({"format": FORMAT, "files": found}).encode())
    report.files = len(found)
    report.suspects = [Suspect(id_, tuple(kinds), files[key].relative) for key in found for id_, kinds in found[key]]
    return report


def _key(file: ArchiveFile) -> str:
    return f"{file.relative} {file.size} {file.modified}"


def _read(root: Path) -> dict[str, Any]:
    """What was found before, by file; nothing if the record is damaged, or of another version."""
    try:
        content = json.loads((root / NAME).read_bytes())
        if content["format"] == FORMAT:
            return {
                str(key): [(int(id_), list(kinds)) for id_, kinds in rows] for key, rows in content["files"].items()
            }
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ArchiveError(f"{root / NAME}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}


def _suspects(archive: Archive, file: ArchiveFile) -> list[tuple[int, list[str]]]:
    table = archive.columns(file, ("id", *_TEXTS))
    names = [name for name in _TEXTS if name in table.column_names]
    found = []
    for batch in table.to_batches(max_chunksize=_ROWS):
        columns = (batch.column(name).to_pylist() for name in names)
        for id_, *texts in zip(batch.column("id").to_pylist(), *columns, strict=True):
            text = "\n".join(str(part) for part in texts if part)
            if kinds := sorted(kind for kind, detect in _detectors().items() if detect(text)):
                found.append((id_, kinds))
    return found


@cache
def _detectors() -> dict[str, Callable[[str], bool]]:
    """By kind: whether a text holds a credential of it. Nothing is ever sent anywhere to verify it."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class  # noqa: PLC0415  (0.2 s)

    def detector(plugin: Any) -> Callable[[str], bool]:
        return lambda text: any(True for _ in plugin.analyze_string(text))

    kinds = get_mapping_from_secret_type_to_class()
    return {kind: detector(plugin()) for kind, plugin in kinds.items() if kind not in _GUESSES}
