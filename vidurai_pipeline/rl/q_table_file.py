"""The file ``q_table.json``: Vidurai's own format, read with suspicion and replaced in one atomic step.

**Only what is ours.** A setting may name any file by mistake, Vidurai's hot store for one. So no file under this name,
or one of those beside it (see ``docs/learning.md``), is renamed, replaced or removed unless it is known to be ours: it
has the form of a Q-table, or it is the beginning of a table of which a whole copy lies beside it, as after a write that
was cut off. All else is refused.

Vidurai's daemon writes the same file without any lock, and in place. So a file that doesn't parse is read again for a
second before it counts as damaged, and a table is replaced only if it is still, byte for byte, the one that was read.
Between that comparison and the rename lie some microseconds in which a foreign write would be overtaken.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from vidurai_pipeline.cold.files import durable_write, sync_folder, written_beside
from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.states import Action

VERSIONS = 5
MAX_BYTES = 256 * 1024 * 1024
NOTE_KEY = "vidurai_pipeline"
#: Seconds between two readings of a file that another program may be writing.
REREAD_PAUSE = 0.2
_REREADS = 5
_MOST_REREADS = 50
_STALE_SECONDS = 3600
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_BEGINNING = b'{\n  "q_table": {'


class DamagedTableError(QTableError):
    """The file is a Q-table that can't be used."""


class ForeignFileError(QTableError):
    """The file is not known to be a Q-table: it is left alone."""


class TableChangedError(QTableError):
    """Another program wrote the file after it was read."""


@dataclass(slots=True)
class TableContents:
    """What ``q_table.json`` holds.

    Attributes:
        q_table: for each state's hash the value of every action tried, in points.
        episodes: finished episodes.
        total_reward: the sum of rewards, in points.
        epsilon: the share of random decisions when the file was written, for the human reader: it follows from
            ``episodes``, and nobody reads it back.
        note: what a dream noted about the archive it has learned (see ``checkpoint``); None in a file by Vidurai
            itself.
        unknown: other top-level entries, kept as they are.
    """

    q_table: dict[str, dict[Action, _Number]] = field(default_factory=dict)
    episodes: Annotated[int, Field(strict=True, ge=0, le=2**53)] = 0
    total_reward: _Number = 0.0
    epsilon: _Number = 0.0
    note: Any = None
    unknown: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 of what was learned (values in their order, episodes, total reward), in hexadecimal."""
        learned = [self.q_table, self.episodes, self.total_reward]
        return hashlib.sha256(json.dumps(learned, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredTable:
    """The file as it was at one moment."""

    contents: TableContents
    raw: bytes


def encode(contents: TableContents) -> bytes:
    """Contents as the bytes of a file: the same contents, the same bytes.

    Raises:
        QTableError: a value is not a finite number.
    """
    document: dict[str, Any] = {
        "q_table": contents.q_table,
        "episodes": contents.episodes,
        "total_reward": contents.total_reward,
        "epsilon": contents.epsilon,
    }
    if contents.note is not None:
        document[NOTE_KEY] = contents.note
    document.update(contents.unknown)
    try:
        return json.dumps(document, indent=2, allow_nan=False).encode()
    except ValueError:
        raise QTableError("the Q-table has a value that is not a finite number: it is not written") from None


_CONTENTS = TypeAdapter(TableContents)
_FORM = TypeAdapter(dict[str, dict[Action, Any]])


def decode(raw: bytes) -> TableContents:
    """Read the bytes of a file.

    Raises:
        DamagedTableError: they are no Q-table; the message says in what way, without quoting them.
    """
    try:
        document = json.loads(raw, parse_constant=_finite, parse_float=_finite)
        q_table, note = document.pop("q_table"), document.pop(NOTE_KEY, None)
        known = {name: document.pop(name) for name in ("episodes", "total_reward", "epsilon") if name in document}
        return _CONTENTS.validate_python({"q_table": q_table, "note": note, "unknown": document, **known})
    except ValidationError as error:
        raise DamagedTableError(f"`{error.errors()[0]['loc'][0]}` has a wrong type or value") from None
    except (AttributeError, KeyError, TypeError):
        raise DamagedTableError("it has no `q_table`") from None
    except (ValueError, RecursionError):
        raise DamagedTableError("it is not JSON of finite numbers" if raw else "it is empty") from None


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError


class TableFile:
    """One ``q_table.json`` and the files beside it.

    What changes a file raises a ``QTableError`` if it can't be written, and a ``ForeignFileError`` if another
    program's file stands in its place; then nothing is changed.
    """

    def __init__(self, path: Path, setting: str = "VIDURAI_Q_TABLE") -> None:
        #: The setting that names it.
        self.setting = setting
        # Where the name is a symbolic link (to a synchronised folder, say), the rename must replace its target.
        self.path = Path(os.path.realpath(path))

    @property
    def remembered_path(self) -> Path:
        """Where the copy of the last table that a dream wrote is kept."""
        return self.path.with_name(f"{self.path.stem}.state.json")

    @property
    def candidate_path(self) -> Path:
        """Where a table that may not replace the one in use is kept."""
        return self.path.with_name(f"{self.path.stem}.candidate.json")

    def version_path(self, number: int) -> Path:
        """Where an older table is kept: 1 is the one before this, 5 the oldest."""
        return self.path.with_name(f"{self.path.name}.{number}")

    def read(self) -> StoredTable | None:
        """Read the table, and wait for a program that is writing it; None if there is no file.

        Raises:
            DamagedTableError: it is a Q-table that can't be used, and stayed so for a second.
            ForeignFileError: it is not known to be a Q-table.
            QTableError: it can't be read.
        """
        unchanged = 0
        raw = self._bytes(self.path)
        for _ in range(_MOST_REREADS):
            if raw is None:
                return None
            try:
                return StoredTable(decode(raw), raw)
            except DamagedTableError as error:
                if unchanged == _REREADS or raw.lstrip()[:1] not in (b"", b"{"):
                    raise self.unusable(raw, str(error)) from None
            time.sleep(REREAD_PAUSE)
            again = self._bytes(self.path)
            unchanged = unchanged + 1 if again == raw else 0
            raw = again
        raise QTableError(f"{self.path} changes too often: another program keeps writing it", "try again later")

    def require_ours(self) -> None:
        """Make sure that no other program's file stands under a name that a dream may write."""
        for path in (self.path, *self._copies()):
            self._require_ours(path)

    def write(self, contents: TableContents, *, expected: StoredTable | Literal[True] | None = True) -> StoredTable:
        """Replace the table, and keep the old one as version 1 if it was another.

        Args:
            contents: the new table.
            expected: what the table must still be: as it was read, None for no file, or True for any Q-table.

        Raises:
            TableChangedError: it is something else by now; the file is untouched.
        """
        new = StoredTable(contents, encode(contents))
        decode(new.raw)  # what can't be read back must not replace what can
        with self._write_errors(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.require_ours()
            self._remove_stale()
            with written_beside(self.path, new.raw) as beside:
                for last in (False, True):  # twice, for what is written while the old one is kept
                    old = self._bytes(self.path)
                    if expected is not True and old != (expected and expected.raw):
                        raise TableChangedError(f"{self.path} was written by another program meanwhile")
                    if not last and old is not None and old != new.raw:
                        self._keep_version(old)
                beside.replace(self.path)
            sync_folder(self.path.parent)
        return new

    def remember(self, raw: bytes) -> None:
        """Keep a copy of the table that a dream wrote, if it isn't kept already."""
        if self._bytes(self.remembered_path) != raw:
            self._replace(self.remembered_path, raw)

    def remembered(self) -> StoredTable | None:
        """The last table that a dream wrote; None if there is none, or it can't be used."""
        return self._stored(self.remembered_path)

    def write_candidate(self, contents: TableContents) -> None:
        """Keep a table that may not replace the one in use; it takes the place of an earlier candidate."""
        self._replace(self.candidate_path, encode(contents))

    def drop_candidate(self) -> None:
        """Remove the candidate, if there is one: the table in use has learned what it had, or its cause is gone."""
        self._require_ours(self.candidate_path)
        with self._write_errors(self.candidate_path):
            self.candidate_path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Move a damaged table out of the way, under a name that says when; returns that name."""
        self._require_ours(self.path)
        target = self.path.with_name(f"{self.path.name}.damaged-{datetime.now():%Y%m%dT%H%M%S.%f}")
        with self._write_errors(self.path):
            self.path.rename(target)
            sync_folder(self.path.parent)
        return target

    def unusable(self, raw: bytes, reason: str) -> QTableError:
        """The error for a file that can't be used as a Q-table, with what to do about it."""
        if not self._is_ours(raw):
            return self._foreign(self.path, reason)
        older = next(
            (f"put {path.name} from beside it in its place, or " for path in self._copies() if self._stored(path)), ""
        )
        hint = f"{older}learn the archive again with `vidurai-pipeline dream --rebuild`"
        return DamagedTableError(f"{self.path} is damaged ({reason})", hint)

    def _foreign(self, path: Path, reason: str) -> ForeignFileError:
        if path == self.path:
            return ForeignFileError(
                f"{self.setting}: {path} is no Q-table ({reason}), so it is left as it is",
                f"set {self.setting} to another file, or move this one away if it is a Q-table that another program "
                "left unfinished",
            )
        return ForeignFileError(
            f"{path} is in the way, because vidurai-pipeline uses this name beside {self.path.name}, but it is no "
            f"Q-table ({reason})",
            f"move it away, or set {self.setting} to another file",
        )

    def _require_ours(self, path: Path) -> None:
        raw = self._bytes(path)
        if raw is None:
            return
        try:
            decode(raw)
        except DamagedTableError as error:
            if not self._is_ours(raw):
                raise self._foreign(path, str(error)) from None

    def _is_ours(self, raw: bytes) -> bool:
        """Whether bytes have a Q-table's form, or are the beginning of a table that lies whole under another name."""
        with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
            _FORM.validate_python(json.loads(raw)["q_table"])
            return True
        whole = (self._stored(path) for path in (self.path, *self._copies()))
        return any(table is not None and table.raw.startswith(raw) for table in whole)

    def _copies(self) -> list[Path]:
        """Where whole tables may lie beside this one, the most useful first."""
        if not self.path.name:
            return []
        versions = [self.version_path(number) for number in range(1, VERSIONS + 1)]
        return [self.remembered_path, *versions, self.candidate_path]

    def _bytes(self, path: Path) -> bytes | None:
        try:
            # A pipe would be waited for, and a device may have no end.
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(None, "not a regular file")
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise self._foreign(path, f"it is larger than {MAX_BYTES // 1024**2} MiB")
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise QTableError(
                f"{self.setting}: {path} can't be read: {error.strerror}", "set it to a Q-table's file"
            ) from error

    def _stored(self, path: Path) -> StoredTable | None:
        try:
            raw = self._bytes(path)
            return None if raw is None else StoredTable(decode(raw), raw)
        except QTableError:
            return None

    def _replace(self, path: Path, raw: bytes) -> None:
        self._require_ours(path)
        with self._write_errors(path):
            durable_write(path, raw)

    def _keep_version(self, raw: bytes) -> None:
        # A copy, not a hard link: the daemon writes in place and would change the version with the table.
        first = self.version_path(1)
        if self._bytes(first) == raw:
            return
        with written_beside(first, raw) as beside:
            for number in range(VERSIONS - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self.version_path(number).replace(self.version_path(number + 1))
            beside.replace(first)

    def _remove_stale(self) -> None:
        leftover = re.compile(rf"\.{re.escape(self.path.name)}(\.\d)?\.\w{{8}}\.part")
        for path in self.path.parent.iterdir():
            if not leftover.fullmatch(path.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # the program that wrote it has just renamed it
                if path.is_file() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    with path.open("rb") as file:
                        ours = _BEGINNING.startswith(file.read(len(_BEGINNING)))
                    if ours:
                        path.unlink()

    @contextlib.contextmanager
    def _write_errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise QTableError(
                f"{path} can't be written: {error.strerror}; it is unchanged",
                f"free some space, make it writable for this user, or set {self.setting}",
            ) from error
