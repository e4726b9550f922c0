"""Sample hot stores, for a machine without Vidurai, for tests and for benchmarks.

The memories are invented: six projects in five programming languages and several human ones. What matters to
archival is as in a real store: the schema with ``status``, ``decay_reason`` and ``outcome``, full-text rows,
audience gists, WAL mode, texts from a line to tens of kilobytes.
"""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.fresh_store import new_store

STATUSES = ("ACTIVE", "PENDING_DECAY", "ARCHIVED")

_BATCH = 10_000
_SPAN_DAYS = 300  # the memories' dates end today and begin this many days earlier
_DAY = 16 * 3600  # people work from seven to eleven at night
_PENDING_SHARE = 0.13  # of what is not archived
_LARGE_EVERY = 701  # one memory in so many carries a whole log

_DATA = files("vidurai_pipeline.hot") / "sample"
_TEXTS: dict[str, Any] = json.loads((_DATA / "texts.json").read_text("utf-8"))
_PROJECTS, _KINDS = _TEXTS["projects"], _TEXTS["kinds"]
_VERBS, _NOUNS, _WHY, _THEN, _FAULTS = (_TEXTS[name] for name in ("verbs", "nouns", "why", "then", "faults"))
_EVENTS = [kind["event"] for kind in _KINDS]
_PIN_REASONS, _DECAY_REASONS = _TEXTS["pin_reasons"], _TEXTS["decay_reasons"]
_SALIENCE = ("NOISE", "LOW", "MEDIUM", "HIGH", "CRITICAL")
_SALIENCE_STEPS = np.cumsum([kind["salience"][:-1] for kind in _KINDS], axis=1)
_RETENTION_DAYS = np.array([1, 7, 30, 90, 0])  # by salience; a critical memory never expires
_AUDIENCE_SETS = (("developer",), ("ai",), ("developer", "manager"), ("developer", "ai", "manager"), *[()] * 8)
# By whether a project writes its names in camel case, and by project.
_SYMBOLS = [
    [f"{verb}_{noun}" for verb in _VERBS for noun in _NOUNS],
    [verb + noun.capitalize() for verb in _VERBS for noun in _NOUNS],
]
_FILES = [[(d, p["file"].format(d, noun)) for d in p["folders"] for noun in _NOUNS] for p in _PROJECTS]
_TAGS = [[None] * 2 + [json.dumps(p["tags"][:n]) for n in (1, 1, 2, 3, 4)] for p in _PROJECTS]
_LOG = [f"[{i:05d}] {_VERBS[i % 12]} {_NOUNS[i % 19]}: {i * 37 % 991} ms, {_WHY[i % 11]}\n" for i in range(1600)]
# How many choices there are for each random detail of a text, in the order in which _write_texts takes them.
_DRAWS = (
    *(len(_SYMBOLS[0]), len(_SYMBOLS[0]), 10_000, 800, 40, 90, len(_WHY), len(_THEN), len(_FAULTS), 2),
    *(len(_TAGS[0]), 100, len(_AUDIENCE_SETS)),
)


@dataclass(frozen=True)
class StoreSummary:
    """What a sample store holds."""

    path: Path
    rows: int
    by_status: dict[str, int]
    audience_gists: int
    bytes: int


def make_store(
    path: Path, rows: int = 2000, *, seed: int = 0, archived_share: float = 0.57, fts_shift: bool = False,
    progress: Callable[[int, int], None] | None = None, now: datetime | None = None,
) -> StoreSummary:  # fmt: skip
    """Make a sample hot store; the same arguments give the same tables.

    Args:
        path: the new SQLite file; its folder is created if need be.
        rows: how many memories.
        seed: another seed, other memories.
        archived_share: the share of memories that wait for archival, 0 to 1.
        fts_shift: leave the first memories out of the full-text index, so that its row ids are not the memories'.
        progress: called after each batch with the memories done and their total.
        now: the day on which the memories end; default today.

    Raises:
        ConfigError: an argument is out of range, a file exists at the path, or none can be created there.
        HotStoreError: SQLite could not write the store, for instance because the disk is full.
    """
    if rows < 0 or seed < 0 or not 0 <= archived_share <= 1:
        raise ConfigError("a sample store needs rows >= 0, seed >= 0 and an archived share from 0 to 1")
    today = (now or datetime.now()).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    with new_store(path) as db:
        rng = np.random.default_rng(seed)
        statuses = _draw_statuses(rows, rng, archived_share)
        gists = _fill(db, statuses, rng, today, progress or (lambda *_: None), skip=3 if fts_shift else 0)
    by_status = {status: int((statuses == code).sum()) for code, status in enumerate(STATUSES)}
    return StoreSummary(path, rows, by_status, gists, path.stat().st_size)


def _fill(
    db: sqlite3.Connection, statuses: np.ndarray, rng: np.random.Generator, today: datetime,
    progress: Callable[[int, int], object], *, skip: int
) -> int:  # fmt: skip
    """Write all tables, without full-text rows for the first memories; return the number of audience gists."""
    db.execute("PRAGMA journal_mode = OFF")  # nothing is ever rolled back
    db.execute("BEGIN")
    begun, ended = ((today - timedelta(days=days)).isoformat(" ") for days in (_SPAN_DAYS, 0))
    projects = [(project["path"], project["path"].rpartition("/")[2], begun, ended) for project in _PROJECTS]
    db.executemany("INSERT INTO projects VALUES (NULL, ?, ?, ?, ?)", projects)
    gist_count = 0
    for first in range(0, len(statuses), _BATCH):
        memories, gists = _make_batch(first, statuses, rng, today)
        db.executemany(f"INSERT INTO memories VALUES ({', '.join('?' * 20)})", memories)
        db.executemany("INSERT INTO audience_gists VALUES (NULL, ?, ?, ?, ?)", gists)
        # Now, while the batch is still in the page cache.
        fresh = "SELECT id, gist, verbatim, tags FROM memories WHERE id > ? ORDER BY id"
        db.execute(f"INSERT INTO memories_fts {fresh}", (max(first, skip),))
        gist_count += len(gists)
        progress(min(first + _BATCH, len(statuses)), len(statuses))
    db.execute("COMMIT")
    return gist_count


def _draw_statuses(rows: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """Give each memory a status, as an index of STATUSES: exact shares, the old rather archived than the new."""
    order = np.argsort(np.linspace(0, 1, rows) + rng.normal(0, 0.4, rows), kind="stable")
    archived = round(rows * share)
    pending = round((rows - archived) * _PENDING_SHARE)
    statuses = np.zeros(rows, dtype=np.int8)
    statuses[order[:archived]] = 2
    statuses[order[archived : archived + pending]] = 1
    return statuses


def _make_batch(
    first: int, all_statuses: np.ndarray, rng: np.random.Generator, today: datetime
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Make the batch of memories whose ids come after ``first``, and their audience gists."""
    statuses = all_statuses[first : first + _BATCH]
    size = len(statuses)
    archived, active = statuses == 2, statuses == 0
    second = (np.arange(first, first + size) + rng.random(size)) / len(all_statuses) * _SPAN_DAYS * _DAY
    day, clock = np.divmod(second, _DAY)
    start = np.datetime64(today - timedelta(days=_SPAN_DAYS), "us")
    created = start + ((day * 24 + 7) * 3600_000_000 + clock * 1_000_000).astype("timedelta64[us]")
    until_now = np.datetime64(today, "us") - created
    visits, pins = (created + (until_now * rng.random(size)).astype("timedelta64[us]") for _ in range(2))
    project = rng.choice(len(_PROJECTS), size, p=(0.3, 0.2, 0.15, 0.1, 0.1, 0.15))
    kind = rng.choice(len(_KINDS), size, p=[each["share"] for each in _KINDS])
    salience = (rng.random(size)[:, None] > _SALIENCE_STEPS[kind]).sum(axis=1)
    faded = archived & (rng.random(size) < 0.5)
    salience[faded] = np.minimum(salience[faded], 1)
    retention = _RETENTION_DAYS[salience]
    expires = created + retention.astype("timedelta64[D]")
    reads = rng.exponential(np.where(archived, 0.5, 1.2) * (0.6 + salience)).astype(np.int64)
    # What was salient or often read tends to have been useful, so that there is something to learn.
    luck = rng.random(size)
    useful, harmful = luck < 0.08 + 0.06 * salience + 0.05 * np.minimum(reads, 6), luck > 0.78 + 0.05 * salience
    pinned = active & (rng.random(size) < 0.03)
    occurrences = np.where(rng.random(size) < 0.18, 1 + rng.geometric(0.4, size), 1)
    reasons = rng.integers(0, 4, size).tolist()
    texts, gists = _write_texts(first, project.tolist(), kind.tolist(), created, rng)
    verbatims, summaries, paths, lines, tags = zip(*texts, strict=True)
    columns = (  # in the table's order
        range(first + 1, first + size + 1), (project + 1).tolist(), verbatims, [_EVENTS[index] for index in kind],
        paths, lines, [_SALIENCE[level] for level in salience], reads.tolist(), _where(reads > 0, _iso(visits)),
        summaries, tags, pinned.astype(int).tolist(), _where(pinned, [_PIN_REASONS[reason] for reason in reasons]),
        _where(pinned, _iso(pins)), occurrences.tolist(), _iso(created), _where(retention > 0, _iso(expires)),
        [STATUSES[code] for code in statuses], _where(~active, [_DECAY_REASONS[reason] for reason in reasons]),
        np.where(useful, 1, np.where(harmful, -1, 0)).tolist(),
    )  # fmt: skip
    return list(zip(*columns, strict=True)), gists


def _write_texts(
    first: int, projects: list[int], kinds: list[int], created: np.ndarray, rng: np.random.Generator
) -> tuple[list[tuple[str, str, str | None, int | None, str | None]], list[tuple[Any, ...]]]:
    """Write each memory's verbatim, gist, file path, line number and tags, and the audience gists."""
    texts, gists = [], []
    times = [time.replace("T", " ") for time in np.datetime_as_string(created, unit="s").tolist()]
    hashes = rng.bytes(len(kinds) * 5).hex()
    draws = rng.integers(0, _DRAWS, (len(kinds), len(_DRAWS))).tolist()
    for row, (index, kind, draw) in enumerate(zip(projects, kinds, draws, strict=True)):
        symbol, other, place, line, n, m, why, then, fault, form, labels, located, audiences = draw
        memory, project, event, forms = first + row + 1, _PROJECTS[index], _EVENTS[kind], _KINDS[kind]["forms"]
        folder, path = _FILES[index][place % len(_FILES[index])]
        values: dict[str, Any] = {
            "symbol": _SYMBOLS[project["camel"]][symbol], "other": _SYMBOLS[project["camel"]][other],
            "noun": _NOUNS[symbol % len(_NOUNS)], "folder": folder, "path": path, "line": line + 1, "n": n + 2,
            "m": m + 10, "why": _WHY[why], "sha": hashes[row * 10 : row * 10 + 10], "dots": "." * (n + 2),
        }  # fmt: skip
        values["then"] = _THEN[then].format_map(values)
        values["fault"] = _FAULTS[fault].format_map(values)
        own = {"error": project["crash"], "terminal_command": project["tests"], "chat": project["chat"]}.get(event, "")
        values["own"] = own.format_map(values)
        verbatim, gist = (text.format_map(values) for text in forms[form % len(forms)])
        if memory % _LARGE_EVERY == _LARGE_EVERY // 2:
            verbatim += "\n--- full log ---\n" + "".join(_LOG[line : line + 300 + 10 * n])
        # Talk and commits belong to no file, and not every tool says where it was.
        here = located > (60 if event in ("chat", "git_commit") else 12)
        number = line + 1 if here and located > 40 else None
        texts.append((verbatim, gist, path if here else None, number, _TAGS[index][labels]))
        for audience in _AUDIENCE_SETS[audiences]:
            gists.append((memory, audience, _TEXTS["audiences"][audience].format_map(values), times[row]))
    return texts, gists


def _iso(times: np.ndarray) -> list[str]:
    return np.datetime_as_string(times, unit="us").tolist()


def _where(known: np.ndarray, values: list[str]) -> list[str | None]:
    return [value if keep else None for value, keep in zip(values, known, strict=True)]
