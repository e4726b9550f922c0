"""Sample hot stores, for a machine without Vidurai, for tests and for benchmarks.

The memories are invented: six projects in five programming languages and several human ones. What matters to
archival is as in a real store: the schema with ``status``, ``decay_reason`` and ``outcome``, full-text rows,
audience gists, WAL mode, texts from a line to tens of kilobytes.
"""

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidurai_pipeline.errors import ConfigError, HotStoreError

STATUSES = ("ACTIVE", "PENDING_DECAY", "ARCHIVED")

_BATCH = 10_000
_SPAN_DAYS = 300  # the memories' dates end today and begin this many days earlier
_DAY = 16 * 3600  # people work from seven to eleven at night
_PENDING_SHARE = 0.13  # of what is not archived
_LARGE_EVERY = 701  # one memory in so many carries a whole log

_TABLES = """
CREATE TABLE projects (id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, last_active TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE memories (id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL, verbatim TEXT NOT NULL,
    event_type TEXT NOT NULL, file_path TEXT, line_number INTEGER, salience TEXT NOT NULL,
    access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, gist TEXT NOT NULL, tags TEXT,
    pinned INTEGER DEFAULT 0, pin_reason TEXT, pinned_at TIMESTAMP, occurrence_count INTEGER DEFAULT 1,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, expires_at TIMESTAMP,
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE);
ALTER TABLE memories ADD COLUMN status TEXT DEFAULT 'ACTIVE';
ALTER TABLE memories ADD COLUMN decay_reason TEXT; ALTER TABLE memories ADD COLUMN outcome INTEGER DEFAULT 0;
CREATE VIRTUAL TABLE memories_fts USING fts5(memory_id, gist, verbatim, tags);
CREATE TABLE active_state (file_path TEXT PRIMARY KEY, project_id INTEGER, has_errors BOOLEAN DEFAULT FALSE,
    error_count INTEGER DEFAULT 0, warning_count INTEGER DEFAULT 0,
    last_updated TIMESTAMP DEFAULT CURRENT_TIMESTAMP, error_summary TEXT,
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE);
CREATE TABLE audience_gists (id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id INTEGER NOT NULL, audience TEXT NOT NULL,
    gist TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    FOREIGN KEY (memory_id) REFERENCES memories(id) ON DELETE CASCADE, UNIQUE (memory_id, audience));
CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL); INSERT INTO metadata VALUES ('schema_version', '4');
"""

# Made after the rows: sorting once costs less than keeping five trees in order.
_INDEXES = """
CREATE INDEX idx_memories_project ON memories(project_id); CREATE INDEX idx_memories_salience ON memories(salience);
CREATE INDEX idx_memories_created ON memories(created_at DESC); CREATE INDEX idx_memories_file ON memories(file_path);
CREATE INDEX idx_memories_pinned ON memories(pinned) WHERE pinned = 1;
CREATE INDEX idx_active_state_project ON active_state(project_id);
CREATE INDEX idx_active_state_errors ON active_state(has_errors) WHERE has_errors = TRUE;
CREATE INDEX idx_audience_gists_memory ON audience_gists(memory_id);
CREATE INDEX idx_audience_gists_audience ON audience_gists(audience);
"""


class _Project(NamedTuple):
    path: str
    camel: bool  # loadInvoice rather than load_invoice
    file: str
    folders: str  # these and the tags parted by bars
    tags: str
    crash: str
    tests: str
    chat: str


_TRACEBACK = """Traceback (most recent call last):\n  File "{path}", line {line}, in {symbol}
    return {other}({noun}, retries={n})\n  File "/usr/lib/python3.12/contextlib.py", line {m}, in __exit__\n"""
_PYTEST = "$ pytest -q {path}\n{dots}F [{n}%]\nFAILED {path}::test_{symbol} - {fault}\n1 failed, {m} passed in {n}s\n"

# Each text is a template; _write_texts says what its fields mean.
# fmt: off
_PROJECTS = (
    _Project("/home/mira/code/harbor-api", False, "src/{}/{}.py", "berths|tariffs|pilots|http",
        "python|api|asyncio|postgres", _TRACEBACK, _PYTEST,
        'Mira asked whether "{noun}" may be None here. It may, {why}, so {symbol} has to check first. '),
    _Project("/home/mira/code/tidepool web", True, "packages/{}/{}.tsx", "ui|maps|login|charts", "typescript|react|css",
        "Uncaught (in promise) TypeError: can't read '{noun}' of undefined\n    at {symbol} ({path}:{line}:{m})\n"
        "    at {other} (packages/ui/render.tsx:{n}:7)\n    at async Promise.all (index {n})\n",
        "$ pnpm vitest run {path}\n ✓ {symbol} ({m} tests)\n ✗ {other} keeps the {noun}\n   → {fault}\n",
        "Übergabe an Jörg: {symbol} läuft wieder, »{noun}« wird erst beim zweiten Laden geprüft. Größe: {n} KB 👍 "),
    _Project("/home/mira/code/kettle", False, "crates/{}/src/{}.rs", "core|cli|boil-log|ffi", "rust|cli|perf|unsafe",
        "thread 'main' panicked at {path}:{line}:{m}:\ncalled `Option::unwrap()` on a `None` value: {noun}\n"
        "   {n}: kettle_core::{other}\n             at ./{path}:{m}\n   {m}: kettle_core::{symbol}::{{{{closure}}}}\n",
        "$ cargo test -p kettle\nrunning {m} tests\n{dots} ok\ntest {symbol}::{noun} ... FAILED\npanicked: {fault}\n",
        "¿Por qué falla {symbol} sólo en macOS? Señal: {n} hilos esperan a «{noun}». Mañana lo miro con Íñigo ☕ "),
    _Project("/home/mira/учёба/сейсмограф", False, "seismo/{}/{}.py", "filters|stations|plots|данные",
        "python|numpy|наука|signal", _TRACEBACK, _PYTEST,
        'Лена спросила, зачем в {symbol} двойной проход. Ответ: без него "{noun}" теряет {n} отсчётов 🍂 '),
    _Project("/home/mira/code/レシピ帳", True, "app/src/main/kotlin/{}/{}.kt", "search|sync|画面", "kotlin|android",
        "java.lang.IllegalStateException: {fault}\n\tat recipes.{symbol}({path}:{line})\n"
        "\tat recipes.sync.{other}(Worker.kt:{n})\n\tat java.base/java.lang.Thread.run(Thread.java:{m})\n",
        "$ ./gradlew testDebug\n> Task :app:testDebug FAILED\n  {symbol} > {noun}を保存する FAILED\n    {fault}\n",
        "{symbol}の結果が空になる原因は「{noun}」の文字コードでした。{n}件を直して、もう一度同期します 🎉 "),
    _Project("/home/mira/code/ledger & sons", True, "internal/{}/{}.go", "audit|queue", "go|kafka|naïve, with comma",
        "panic: runtime error: index out of range [{n}] with length {m}\n\ngoroutine {line} [running]:\n"
        "ledger/{folder}.{symbol}(0xc000{m:04x}, {n})\n\t{path}:{line} +0x{n:x}\ncreated by ledger.{other}\n",
        "$ go test ./internal/{folder}/... -count={n}\n--- FAIL: {symbol} (0.{m}s)\n    {path}:{line}: {fault}\n",
        'प्रिया बोली: "{noun}" को {symbol} में दो बार मत जोड़ो, {n} बिल गलत हो गए 😬 '),
)
_VERBS = ("load", "merge", "expire", "render", "queue", "split", "decode", "round", "retry", "sign", "trim", "watch")
_NOUNS = ("invoice", "tide", "cursor", "session", "waveform", "recipe", "tariff", "token", "window", "snapshot",
          "berth", "gauge", "batch", "locale", "payload", "ledger", "station", "thumbnail", "offset", "draft", "quota")
_WHY = (
    "because the upstream feed sends an empty list on Sundays", "since two workers can reach it at once",
    "because clocks on the boats drift by a few seconds", "as the old rows were written before the migration",
    "because the proxy strips that header", "since nobody flushes the buffer on shutdown",
    "as the mobile client still speaks version 2", "because rounding happens twice, once in each layer",
    "since the retry hides the first exception", "because the fixture shares state between tests",
    "as a café's name broke the ASCII check", 'because "optional" meant something else in the contract',
)
_THEN = (
    "Covered by a regression test now.", "The nightly job needs the same change.", "Ask Jonas before the release.",
    "Parked it for later; it's not urgent.", "Latency went from {m} ms to {n} ms.", "Rolled out to {n}% of the users.",
    "Docs still show the old call.", "Works locally, CI is still red 🔴.", "No change for existing data.",
    "Can be deleted once v{n} is gone.", "Reviewed by Ana and Tomasz ✅", "It took {n} attempts to reproduce.",
)
_FAULTS = (
    "expected {n} entries, got {m}", "timed out after {n} s", "'{noun}' isn't valid UTF-8 at byte {m}",
    'duplicate key "{noun}-{n}"', "connection reset by peer (attempt {n})", "no such column: {noun}_id",
)
# Of each kind of memory: its event type, how often, how salient (NOISE to CRITICAL), and pairs of verbatim and gist.
_KINDS: tuple[tuple[str, float, tuple[float, ...], tuple[tuple[str, str], ...]], ...] = (
    ("file_edit", 0.34, (0.3, 0.45, 0.2, 0.05, 0.0), (
        ("Edited {path}:{line}\n- {noun} = {other}({n})\n+ {noun} = {symbol}({other}({n}), limit={m})\n"
         "The guard sits in {symbol} now, {why}. {then}", "{symbol} guards the {noun}, {why}"),
        ("Renamed {other} to {symbol} in {path} and {n} call sites; its {noun} became keyword-only, {why}. {then}",
         "Renamed {other} to {symbol}"))),
    ("error", 0.18, (0.1, 0.3, 0.35, 0.2, 0.05), (
        ("{own}{fault}\nCause: {symbol} trusts the {noun}, {why}. {then}", "{symbol} crashed on a {noun}: {fault}"),)),
    ("terminal_command", 0.13, (0.25, 0.45, 0.25, 0.05, 0.0), (
        ("{own}Only {symbol} is affected, {why}.", "Test run: {symbol} failed, {m} passed"),)),
    ("terminal_command", 0.1, (0.6, 0.35, 0.05, 0.0, 0.0), (
        ("$ docker compose up -d {noun}\n ⠿ Container {noun}-{n}  Started  {m} ms\n{then}", "Started {noun}"),)),
    ("diagnostic", 0.1, (0.35, 0.4, 0.2, 0.05, 0.0), (
        ("{path}:{line}:{n}: warning: `{other}` is never used; did you mean `{symbol}`? The linter reports {m} more "
         "of these in {folder}, {why}.", "Unused {other} in {folder}"),)),
    ("git_commit", 0.07, (0.1, 0.35, 0.4, 0.15, 0.0), (
        ("commit {sha}\nfix({folder}): {symbol} keeps the {noun}\n\nIt was dropped {why}. {then}\n\n"
         " {path} | {n} ++--\n {n} insertions(+), {m} deletions(-)", "fix({folder}): {symbol} keeps the {noun}"),)),
    ("chat", 0.05, (0.2, 0.4, 0.3, 0.1, 0.0), (("{own}{then}", "Talk about {symbol} and the {noun}"),)),
    ("chat", 0.03, (0.0, 0.05, 0.3, 0.45, 0.2), (
        ("Decision: keep {symbol} synchronous and put the {noun} behind an interface, {why}.\nRejected: {other} with "
         "a queue of {n} (“too clever”), a second database. Revisit at {m} requests a second. {then}",
         "Decided: {symbol} stays synchronous, {noun} behind an interface"),)),
)
_SALIENCE = ("NOISE", "LOW", "MEDIUM", "HIGH", "CRITICAL")
_SALIENCE_STEPS = np.cumsum([weights[:-1] for _, _, weights, _ in _KINDS], axis=1)
_RETENTION_DAYS = np.array([1, 7, 30, 90, 0])  # by salience; a critical memory never expires
_DECAY_REASONS = ("not read for a month", "a later edit replaced it", "expired, nothing depends on it", "by hand")
_PIN_REASONS = ("needed for the release", "explains the architecture", 'the "why" behind the API', "ask me first 📌")
_AUDIENCES = {"developer": "{symbol} in {folder}: see the {noun} and {other}",
              "ai": "{{symbol: {symbol}, calls: {other}, about: {noun}}}",
              "manager": "Work on {noun} in {folder}; nothing to decide"}
_AUDIENCE_SETS = (("developer",), ("ai",), ("developer", "manager"), ("developer", "ai", "manager"), *[()] * 8)
# By whether a project writes its names in camel case, and by project.
_SYMBOLS = [[f"{verb}_{noun}" for verb in _VERBS for noun in _NOUNS],
            [verb + noun.capitalize() for verb in _VERBS for noun in _NOUNS]]
_FILES = [[(d, p.file.format(d, noun)) for d in p.folders.split("|") for noun in _NOUNS] for p in _PROJECTS]
_TAGS = [[None] * 2 + [json.dumps(p.tags.split("|")[:n]) for n in (1, 1, 2, 3, 4)] for p in _PROJECTS]
_LOG = [f"[{i:05d}] {_VERBS[i % 12]} {_NOUNS[i % 19]}: {i * 37 % 991} ms, {_WHY[i % 11]}\n" for i in range(1600)]
# How many choices there are for each random detail of a text, in the order in which _write_texts takes them.
_DRAWS = (len(_SYMBOLS[0]), len(_SYMBOLS[0]), 10_000, 800, 40, 90, len(_WHY), len(_THEN), len(_FAULTS), 2,
          len(_TAGS[0]), 100, len(_AUDIENCE_SETS))
# fmt: on


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
    # SQLite would replay a log left behind by an earlier store into the new one.
    for taken in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
        if os.path.lexists(taken):
            raise ConfigError(f"{taken} exists already; choose another place or move it away")
    today = (now or datetime.now()).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            draft.touch(mode=0o600)
            with closing(sqlite3.connect(draft, isolation_level=None)) as db:
                rng = np.random.default_rng(seed)
                statuses = _draw_statuses(rows, rng, archived_share)
                gists = _fill(db, statuses, rng, today, progress or (lambda *_: None), skip=3 if fts_shift else 0)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            path.hardlink_to(draft)  # unlike a rename, fails if a file has appeared there meanwhile
    except OSError as error:
        raise ConfigError(f"can't create {path}: {error.strerror}; choose another place") from error
    except sqlite3.Error as error:
        raise HotStoreError(f"can't write {path}: {error}; free some space or choose another place") from error
    by_status = {status: int((statuses == code).sum()) for code, status in enumerate(STATUSES)}
    return StoreSummary(path, rows, by_status, gists, path.stat().st_size)


def _fill(
    db: sqlite3.Connection, statuses: np.ndarray, rng: np.random.Generator, today: datetime,
    progress: Callable[[int, int], object], *, skip: int
) -> int:  # fmt: skip
    """Write all tables, without full-text rows for the first memories; return the number of audience gists."""
    # No journal, no fsync: what a crash leaves is a draft that nobody reads.
    db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-131072;" + _TABLES)
    db.execute("BEGIN")
    begun, ended = ((today - timedelta(days=days)).isoformat(" ") for days in (_SPAN_DAYS, 0))
    projects = [(project.path, project.path.rpartition("/")[2], begun, ended) for project in _PROJECTS]
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
    db.executescript(_INDEXES + "PRAGMA journal_mode=WAL;")
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
    kind = rng.choice(len(_KINDS), size, p=[share for _, share, _, _ in _KINDS])
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
        range(first + 1, first + size + 1), (project + 1).tolist(), verbatims, [_KINDS[index][0] for index in kind],
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
        memory, project, (event, _, _, forms) = first + row + 1, _PROJECTS[index], _KINDS[kind]
        folder, path = _FILES[index][place % len(_FILES[index])]
        values: dict[str, Any] = {
            "symbol": _SYMBOLS[project.camel][symbol], "other": _SYMBOLS[project.camel][other],
            "noun": _NOUNS[symbol % len(_NOUNS)], "folder": folder, "path": path, "line": line + 1, "n": n + 2,
            "m": m + 10, "why": _WHY[why], "sha": hashes[row * 10 : row * 10 + 10], "dots": "." * (n + 2),
        }  # fmt: skip
        values["then"] = _THEN[then].format_map(values)
        values["fault"] = _FAULTS[fault].format_map(values)
        own = {"error": project.crash, "terminal_command": project.tests, "chat": project.chat}.get(event, "")
        values["own"] = own.format_map(values)
        verbatim, gist = (text.format_map(values) for text in forms[form % len(forms)])
        if memory % _LARGE_EVERY == _LARGE_EVERY // 2:
            verbatim += "\n--- full log ---\n" + "".join(_LOG[line : line + 300 + 10 * n])
        # Talk and commits belong to no file, and not every tool says where it was.
        here = located > (60 if event in ("chat", "git_commit") else 12)
        number = line + 1 if here and located > 40 else None
        texts.append((verbatim, gist, path if here else None, number, _TAGS[index][labels]))
        for audience in _AUDIENCE_SETS[audiences]:
            gists.append((memory, audience, _AUDIENCES[audience].format_map(values), times[row]))
    return texts, gists


def _iso(times: np.ndarray) -> list[str]:
    return np.datetime_as_string(times, unit="us").tolist()


def _where(known: np.ndarray, values: list[str]) -> list[str | None]:
    return [value if keep else None for value, keep in zip(values, known, strict=True)]
