"""The hot stores that ``VIDURAI_STORES`` names, each with settings of its own."""

import csv
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.settings import Settings, require_store_name, store_in

_HEADER = b"SQLite format 3\0"
#: What Vidurai calls its file: then the folder's name tells the store.
_USUAL = ("vidurai.db", "memory.db")


@dataclass(frozen=True)
class StoreList:
    """The stores, and what is wrong with those that can't be used.

    Attributes:
        stores: the settings of each, by its name.
        problems: a line for each store that was left out.
        left_out: the names of those, as far as they have one.
        complete: whether all stores were looked at, so that one that is not named is gone.
    """

    stores: dict[str, Settings]
    problems: list[str]
    left_out: frozenset[str] = frozenset()
    complete: bool = True

    def settings_of(self, name: str) -> Settings:
        """The settings of one store.

        Raises:
            ConfigError: it is not among them.
        """
        if name in self.stores:
            return self.stores[name]
        reason = next((line for line in self.problems if f" {name}: " in line), None)
        raise ConfigError(reason or f"VIDURAI_STORES names no store {name!r}")


def find_stores(settings: Settings, only: str | None = None) -> StoreList:
    """Look for the stores; one that can't be used is left out, and said to be so in one line.

    Args:
        settings: they name the stores.
        only: the one store that is wanted; the others are not looked at.
    """
    try:
        named = list(_named(settings.stores or ""))
    except ConfigError as error:
        return StoreList({}, [str(error)], complete=False)
    stores: dict[str, Settings] = {}
    problems: list[str] = []
    left_out: set[str] = set()
    names, paths = _sharing(named, 0), _sharing(named, 1)
    for name, path in named:
        if only not in (None, name):
            continue
        try:
            if len(same := names[name.lower()]) > 1:
                raise ConfigError(f"{', '.join(same)} are stores of one name", hint="name each in a file")
            if len(same := paths[os.path.realpath(path)]) > 1:
                raise ConfigError(f"{path} is named as {' and as '.join(same)}", hint="name it once")
            stores[name] = _settings_of(settings, name, path)
        except ConfigError as error:
            problems.append(f"the store {name}: {error}")
            left_out.add(name)
    return StoreList(stores, problems, frozenset(left_out))


def q_tables(settings: Settings) -> dict[str, Path]:
    """The Q-tables of the stores, by the stores' names; none where ``VIDURAI_STORES`` is not set."""
    if settings.stores is None:
        return {}
    return {name: one.q_table_path for name, one in find_stores(settings).stores.items()}


def _sharing(named: list[tuple[str, Path]], which: int) -> dict[str, list[str]]:
    """What shares a name (0), whatever its case, or a file (1)."""
    found: dict[str, list[str]] = {}
    for name, path in named:
        key, other = (os.path.realpath(path), name) if which else (name.lower(), str(path))
        found.setdefault(key, []).append(other)
    return found


def _named(stores: str) -> Iterator[tuple[str, Path]]:
    pattern = os.path.expanduser(stores)  # noqa: PTH111  (a pattern is no path)
    if not _is_wild(pattern):
        yield from _listed(Path(pattern))
        return
    parts = Path(pattern).parts
    wild = [number for number, part in enumerate(parts) if _is_wild(part)]
    found = {Path(path) for path in glob.glob(pattern)}  # noqa: PTH207  (of an absolute pattern)
    for depth in range(wild[0] + 1, len(parts)):  # a store in a folder that can't be searched is not gone
        needed = os.X_OK | (os.R_OK if _is_wild(parts[depth]) else 0)
        for folder in glob.glob(str(Path(*parts[:depth]))):  # noqa: PTH207
            if Path(folder).is_dir() and not os.access(folder, needed) and Path(folder).name != "lost+found":
                found.add(Path(folder, *parts[depth:]))
    if not found:
        raise ConfigError(f"VIDURAI_STORES={stores} matches no file", hint="correct the pattern, or mount the folder")
    for path in sorted(found):
        own = [*path.parts[:-1], path.name if path.name in _USUAL else path.stem]
        yield "-".join(own[number] for number in wild), path


def _is_wild(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _listed(path: Path) -> Iterator[tuple[str, Path]]:
    try:
        lines = [line for line in csv.reader(path.read_text().splitlines()) if line and not line[0].startswith("#")]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not text of lines NAME,PATH"
        raise ConfigError(
            f"VIDURAI_STORES={path}: {reason}", hint="name a pattern, or a file of lines NAME,PATH"
        ) from None
    if not lines:
        raise ConfigError(f"VIDURAI_STORES={path} names no store", hint="write a line NAME,PATH for each")
    for line in lines:
        if len(line) != 2:
            raise ConfigError(f"VIDURAI_STORES={path}: {','.join(line)!r} is no line NAME,PATH")
        yield line[0].strip(), path.parent / os.path.expanduser(line[1].strip())  # noqa: PTH111


def _settings_of(settings: Settings, name: str, path: Path) -> Settings:
    try:
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
    except OSError as error:
        hint = "correct VIDURAI_STORES, or let this user read and write the file"
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    try:
        require_store_name(name)
    except ValueError as error:
        raise ConfigError(f"{path}: {name!r} is {error}", hint="name it in a file") from None
    if not header:
        raise ConfigError(f"{path} is empty", hint="start Vidurai once, or remove the file")
    if header != _HEADER:
        raise ConfigError(
            f"{path} is not an SQLite database", hint="name Vidurai's own file, or restore it from a backup"
        )
    q_table = path.with_name("q_table.json" if path == store_in(path.parent) else f"{path.stem}.q_table.json")
    own = {
        "db": path,
        "store_name": name,
        "archive": settings.archive or settings.archive_root,
        "q_table": q_table,
        "stores": None,
        "heartbeat_url": None,  # one store's good run does not say that all is well
    }
    try:
        return settings.model_copy(update=own).keep_apart()
    except ValueError as error:
        raise ConfigError(str(error)) from None
