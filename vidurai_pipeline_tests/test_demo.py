import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from vidurai_pipeline.errors import ConfigError, HotStoreError
from vidurai_pipeline.hot.sample_store import STATUSES, StoreSummary, make_store

NOW = datetime(2025, 3, 14, 15, 9, 26)
TODAY = NOW.replace(hour=0, minute=0, second=0)
STAMP = "CURRENT_TIMESTAMP"

# name, declared type, NOT NULL, default, primary key: as PRAGMA table_info tells it of a guardian store.
COLUMNS = {
    "projects": [
        ("id", "INTEGER", 0, None, 1),
        ("path", "TEXT", 1, None, 0),
        ("name", "TEXT", 1, None, 0),
        ("created_at", "TIMESTAMP", 0, STAMP, 0),
        ("last_active", "TIMESTAMP", 0, STAMP, 0),
    ],
    "memories": [
        ("id", "INTEGER", 0, None, 1),
        ("project_id", "INTEGER", 1, None, 0),
        ("verbatim", "TEXT", 1, None, 0),
        ("event_type", "TEXT", 1, None, 0),
        ("file_path", "TEXT", 0, None, 0),
        ("line_number", "INTEGER", 0, None, 0),
        ("salience", "TEXT", 1, None, 0),
        ("access_count", "INTEGER", 0, "0", 0),
        ("last_accessed", "TIMESTAMP", 0, None, 0),
        ("gist", "TEXT", 1, None, 0),
        ("tags", "TEXT", 0, None, 0),
        ("pinned", "INTEGER", 0, "0", 0),
        ("pin_reason", "TEXT", 0, None, 0),
        ("pinned_at", "TIMESTAMP", 0, None, 0),
        ("occurrence_count", "INTEGER", 0, "1", 0),
        ("created_at", "TIMESTAMP", 0, STAMP, 0),
        ("expires_at", "TIMESTAMP", 0, None, 0),
        ("status", "TEXT", 0, "'ACTIVE'", 0),
        ("decay_reason", "TEXT", 0, None, 0),
        ("outcome", "INTEGER", 0, "0", 0),
    ],
    "audience_gists": [
        ("id", "INTEGER", 0, None, 1),
        ("memory_id", "INTEGER", 1, None, 0),
        ("audience", "TEXT", 1, None, 0),
        ("gist", "TEXT", 1, None, 0),
        ("created_at", "TIMESTAMP", 0, STAMP, 0),
    ],
    "active_state": [
        ("file_path", "TEXT", 0, None, 1),
        ("project_id", "INTEGER", 0, None, 0),
        ("has_errors", "BOOLEAN", 0, "FALSE", 0),
        ("error_count", "INTEGER", 0, "0", 0),
        ("warning_count", "INTEGER", 0, "0", 0),
        ("last_updated", "TIMESTAMP", 0, STAMP, 0),
        ("error_summary", "TEXT", 0, None, 0),
    ],
    "metadata": [("key", "TEXT", 0, None, 1), ("value", "TEXT", 1, None, 0)],
    "memories_fts": [
        ("memory_id", "", 0, None, 0),
        ("gist", "", 0, None, 0),
        ("verbatim", "", 0, None, 0),
        ("tags", "", 0, None, 0),
    ],
}
# table, column, descending, partial
INDEXES = {
    "idx_memories_project": ("memories", "project_id", 0, 0),
    "idx_memories_salience": ("memories", "salience", 0, 0),
    "idx_memories_created": ("memories", "created_at", 1, 0),
    "idx_memories_file": ("memories", "file_path", 0, 0),
    "idx_memories_pinned": ("memories", "pinned", 0, 1),
    "idx_active_state_project": ("active_state", "project_id", 0, 0),
    "idx_active_state_errors": ("active_state", "has_errors", 0, 1),
    "idx_audience_gists_memory": ("audience_gists", "memory_id", 0, 0),
    "idx_audience_gists_audience": ("audience_gists", "audience", 0, 0),
}
# table, column, referenced table, referenced column, on delete
FOREIGN_KEYS = {
    "memories": ("project_id", "projects", "id", "CASCADE"),
    "active_state": ("project_id", "projects", "id", "CASCADE"),
    "audience_gists": ("memory_id", "memories", "id", "CASCADE"),
}


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as db:
        yield db


def ask(path: Path, sql: str) -> list[tuple]:
    with opened(path) as db:
        return db.execute(sql).fetchall()


def dump(path: Path) -> str:
    """All tables as SQL; the full-text index's own tables are in it too."""
    with opened(path) as db:
        return "\n".join(db.iterdump())


def assert_sound(summary: StoreSummary, *, indexed: int | None = None) -> None:
    """What holds for every store, whatever its size and shares."""
    with opened(summary.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("SELECT count(*) FROM memories").fetchone() == (summary.rows,)
        counted = dict(db.execute("SELECT status, count(*) FROM memories GROUP BY status"))
        assert {status: counted.get(status, 0) for status in STATUSES} == summary.by_status
        assert db.execute("SELECT count(*) FROM audience_gists").fetchone() == (summary.audience_gists,)
        db.execute("INSERT INTO memories_fts (memories_fts) VALUES ('integrity-check')")
        pairs = db.execute(
            "SELECT count(*) FROM memories_fts f JOIN memories m ON m.id = f.memory_id "
            "WHERE f.gist IS m.gist AND f.verbatim IS m.verbatim AND f.tags IS m.tags"
        ).fetchone()
        assert pairs == (summary.rows if indexed is None else indexed,)
        assert db.execute("SELECT count(*) FROM memories_fts").fetchone() == pairs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreSummary:
    return make_store(tmp_path_factory.mktemp("demo") / "vidurai.db", now=NOW)


def test_columns_are_those_of_a_guardian_store(store: StoreSummary):
    with opened(store.path) as db:
        for table, columns in COLUMNS.items():
            assert [row[1:] for row in db.execute(f"PRAGMA table_info({table})")] == columns, table
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    shadows = {f"memories_fts_{part}" for part in ("data", "idx", "content", "docsize", "config")}
    assert tables == COLUMNS.keys() | shadows | {"sqlite_sequence"}


def test_indexes_are_those_of_a_guardian_store(store: StoreSummary):
    with opened(store.path) as db:
        found = {}
        for name, table in db.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"):
            [(column, descending)] = db.execute(f"SELECT name, \"desc\" FROM pragma_index_xinfo('{name}') WHERE key")
            [(partial,)] = db.execute(f"SELECT partial FROM pragma_index_list('{table}') WHERE name = '{name}'")
            found[name] = (table, column, descending, partial)
        partials = db.execute("SELECT sql FROM sqlite_master WHERE name = 'idx_memories_pinned'").fetchone()
        unique = db.execute("SELECT name FROM pragma_index_info('sqlite_autoindex_audience_gists_1')").fetchall()
    assert found == INDEXES
    assert partials[0].endswith("WHERE pinned = 1")
    assert unique == [("memory_id",), ("audience",)]


def test_foreign_keys_and_counters_are_those_of_a_guardian_store(store: StoreSummary):
    with opened(store.path) as db:
        for table, expected in FOREIGN_KEYS.items():
            [key] = db.execute(f'SELECT "from", "table", "to", on_delete FROM pragma_foreign_key_list(\'{table}\')')
            assert key == expected, table
        sequences = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
        metadata = db.execute("SELECT * FROM metadata").fetchall()
        fts_config = db.execute("SELECT * FROM memories_fts_config").fetchall()
    assert sequences == {"projects": 6, "memories": 2000, "audience_gists": store.audience_gists}
    assert metadata == [("schema_version", "4")]
    assert fts_config == [("version", 4)]


def test_the_store_is_sound_and_as_its_summary_says(store: StoreSummary):
    assert_sound(store)
    assert store.rows == sum(store.by_status.values()) == 2000
    assert store.by_status["ARCHIVED"] == 1140
    assert store.by_status["PENDING_DECAY"] > 0
    assert store.bytes == store.path.stat().st_size


def test_the_store_is_one_private_file_in_wal_mode(tmp_path: Path):
    folder = tmp_path / "new" / "home"
    path = make_store(folder / "vidurai.db", 50, now=NOW).path
    assert list(folder.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_nlink == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.read_bytes()[18:20] == b"\x02\x02"  # the file format's read and write version: 2 is WAL
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]


def test_an_existing_folder_keeps_its_mode(tmp_path: Path):
    tmp_path.chmod(0o755)
    make_store(tmp_path / "vidurai.db", 1)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_texts_are_varied(store: StoreSummary):
    texts = [text for (text,) in ask(store.path, "SELECT verbatim FROM memories")]
    assert len(set(texts)) > 1980
    everything = "".join(texts)
    for sign in ("Traceback", "panicked at", "é", "ü", "ч", "の", "प", "🎉", '"', "'", "\n", "\t", "“"):
        assert sign in everything, sign
    sizes = sorted(len(text.encode()) for text in texts)
    assert 200 < sum(sizes) / len(sizes) < 450
    assert sizes[-3] > 15_000
    assert sizes[-20] < 2000
    # A template whose fields were not all filled in would show.
    assert not [text for text in texts if "{own" in text or "{then" in text or "{noun" in text or "{symbol" in text]


def test_values_are_of_their_columns_types(store: StoreSummary):
    integers = ("project_id", "access_count", "pinned", "occurrence_count", "outcome")
    for column in integers:
        assert ask(store.path, f"SELECT DISTINCT typeof({column}) FROM memories") == [("integer",)], column
    for column in ("verbatim", "event_type", "salience", "gist", "created_at", "status"):
        assert ask(store.path, f"SELECT DISTINCT typeof({column}) FROM memories") == [("text",)], column
    for column in ("file_path", "tags", "last_accessed", "pin_reason", "pinned_at", "expires_at", "decay_reason"):
        kinds = {kind for (kind,) in ask(store.path, f"SELECT DISTINCT typeof({column}) FROM memories")}
        assert kinds == {"text", "null"}, column
    assert {kind for (kind,) in ask(store.path, "SELECT DISTINCT typeof(line_number) FROM memories")} == {
        "integer",
        "null",
    }


def test_domains(store: StoreSummary):
    def distinct(column: str) -> set:
        return {value for (value,) in ask(store.path, f"SELECT DISTINCT {column} FROM memories")}

    assert distinct("salience") == {"NOISE", "LOW", "MEDIUM", "HIGH", "CRITICAL"}
    assert distinct("outcome") == {-1, 0, 1}
    assert distinct("project_id") == {1, 2, 3, 4, 5, 6}
    assert distinct("event_type") == {"chat", "diagnostic", "error", "file_edit", "git_commit", "terminal_command"}
    assert distinct("pinned") == {0, 1}
    assert max(distinct("access_count")) > 5
    assert min(distinct("occurrence_count")) == 1
    assert len(distinct("file_path")) > 100


def test_tags_parse(store: StoreSummary):
    tags = [json.loads(text) for (text,) in ask(store.path, "SELECT tags FROM memories WHERE tags NOT NULL")]
    assert all(isinstance(tag, list) and tag and all(isinstance(word, str) for word in tag) for tag in tags)
    assert {"наука", "naïve, with comma"} <= {word for tag in tags for word in tag}


def test_dates_are_iso_text_that_rises_for_months_up_to_today(store: StoreSummary):
    created = [text for (text,) in ask(store.path, "SELECT created_at FROM memories ORDER BY id")]
    dates = [datetime.fromisoformat(text) for text in created]
    assert all("T" in text for text in created)
    assert all(earlier <= later for earlier, later in pairwise(dates))
    assert TODAY - timedelta(days=2) < dates[-1] < TODAY
    assert len({(date.year, date.month) for date in dates}) >= 9
    later = ask(store.path, "SELECT created_at, last_accessed, pinned_at FROM memories")
    assert all(made <= (date or made) <= TODAY.isoformat() for made, *dates in later for date in dates)


def test_expiry_follows_salience(store: StoreSummary):
    days = {"NOISE": 1, "LOW": 7, "MEDIUM": 30, "HIGH": 90}
    for salience, created, expires in ask(store.path, "SELECT salience, created_at, expires_at FROM memories"):
        if salience == "CRITICAL":
            assert expires is None
        else:
            kept = datetime.fromisoformat(expires) - datetime.fromisoformat(created)
            assert kept == timedelta(days=days[salience])


def test_only_what_decays_has_a_reason_and_only_what_is_active_a_pin(store: StoreSummary):
    rows = ask(
        store.path,
        "SELECT status, decay_reason, pinned, pin_reason, pinned_at, access_count, last_accessed FROM memories",
    )
    for status, decay_reason, pinned, pin_reason, pinned_at, reads, last_accessed in rows:
        assert (decay_reason is None) == (status == "ACTIVE")
        assert (pin_reason is None) == (pinned_at is None) == (pinned == 0)
        assert not pinned or status == "ACTIVE"
        assert (last_accessed is None) == (reads == 0)


def test_a_third_of_the_memories_has_audience_gists(store: StoreSummary):
    counts = ask(store.path, "SELECT count(*) FROM audience_gists GROUP BY memory_id")
    assert {count for (count,) in counts} == {1, 2, 3}
    assert 0.25 < len(counts) / store.rows < 0.42
    orphans = "SELECT count(*) FROM audience_gists WHERE memory_id NOT IN (SELECT id FROM memories)"
    assert ask(store.path, orphans) == [(0,)]
    audiences = ask(store.path, "SELECT DISTINCT audience FROM audience_gists ORDER BY 1")
    assert audiences == [("ai",), ("developer",), ("manager",)]


def test_full_text_search_finds_a_memory(store: StoreSummary):
    [(memory, word)] = ask(store.path, "SELECT id, 'panicked' FROM memories WHERE verbatim LIKE '%panicked%' LIMIT 1")
    hits = ask(store.path, f"SELECT memory_id FROM memories_fts WHERE memories_fts MATCH '{word}'")
    assert (memory,) in hits
    assert ask(store.path, "SELECT count(*) FROM memories_fts WHERE rowid != memory_id") == [(0,)]


def test_a_shifted_full_text_index_has_row_ids_of_its_own(tmp_path: Path):
    summary = make_store(tmp_path / "vidurai.db", 300, now=NOW, fts_shift=True)
    assert_sound(summary, indexed=297)
    assert ask(summary.path, "SELECT DISTINCT memory_id - rowid FROM memories_fts") == [(3,)]


def test_a_shifted_index_of_fewer_memories_than_the_shift_is_empty(tmp_path: Path):
    assert_sound(make_store(tmp_path / "vidurai.db", 2, fts_shift=True), indexed=0)


def test_the_same_arguments_give_the_same_tables(tmp_path: Path):
    first = make_store(tmp_path / "a" / "vidurai.db", 800, seed=7, archived_share=0.3, now=NOW)
    calls: list[tuple[int, int]] = []
    # Neither the hour nor whether someone watches makes a difference.
    again = make_store(
        tmp_path / "b" / "vidurai.db",
        800,
        seed=7,
        archived_share=0.3,
        now=NOW + timedelta(hours=2),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert dump(first.path) == dump(again.path)
    assert calls == [(800, 800)]


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"rows": 801}, {"archived_share": 0.31}, {"now": NOW + timedelta(days=1)}]
)
def test_other_arguments_give_another_store(tmp_path: Path, other: dict):
    arguments = {"rows": 800, "seed": 7, "archived_share": 0.3, "now": NOW}
    first = make_store(tmp_path / "a.db", **arguments)
    second = make_store(tmp_path / "b.db", **(arguments | other))
    assert dump(first.path) != dump(second.path)


def test_another_seed_gives_other_memories(tmp_path: Path, store: StoreSummary):
    other = make_store(tmp_path / "vidurai.db", seed=1, now=NOW)
    query = "SELECT verbatim FROM memories"
    assert len(set(ask(store.path, query)) & set(ask(other.path, query))) < 20


def test_dates_end_today_unless_told_otherwise(tmp_path: Path):
    before = datetime.now() - timedelta(days=2)
    path = make_store(tmp_path / "vidurai.db", 2000).path
    [(last,)] = ask(path, "SELECT max(created_at) FROM memories")
    assert before < datetime.fromisoformat(last) < datetime.now()


def test_a_time_zone_is_taken_as_the_day_it_names(tmp_path: Path):
    naive = make_store(tmp_path / "a.db", 20, now=NOW)
    aware = make_store(tmp_path / "b.db", 20, now=NOW.replace(tzinfo=UTC))
    assert dump(naive.path) == dump(aware.path)


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
@pytest.mark.parametrize("share", [0, 0.57, 1])
def test_small_stores_and_extreme_shares(tmp_path: Path, rows: int, share: float):
    summary = make_store(tmp_path / "vidurai.db", rows, archived_share=share, now=NOW)
    assert_sound(summary)
    assert summary.rows == rows
    assert summary.by_status["ARCHIVED"] == round(rows * share)
    assert ask(summary.path, "SELECT count(*) FROM projects") == [(6,)]


def test_several_batches_are_one_store(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    summary = make_store(
        tmp_path / "vidurai.db", 20_001, now=NOW, progress=lambda done, total: calls.append((done, total))
    )
    assert_sound(summary)
    assert calls == [(10_000, 20_001), (20_000, 20_001), (20_001, 20_001)]
    assert summary.by_status["ARCHIVED"] == round(20_001 * 0.57)
    [(early, late)] = ask(
        summary.path,
        "SELECT avg(status = 'ARCHIVED') FILTER (WHERE id <= 10000), avg(status = 'ARCHIVED') FILTER (WHERE id > 10000)"
        "FROM memories",
    )
    assert early > late + 0.1


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_nothing_is_overwritten(tmp_path: Path, suffix: str):
    taken = tmp_path / f"vidurai.db{suffix}"
    taken.write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"exists already; choose another place"):
        make_store(tmp_path / "vidurai.db", 10)
    assert taken.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [taken]


def test_a_folder_and_a_dangling_link_are_in_the_way_too(tmp_path: Path):
    (tmp_path / "link.db").symlink_to(tmp_path / "gone.db")
    for taken in (tmp_path, tmp_path / "link.db"):
        with pytest.raises(ConfigError, match="exists already"):
            make_store(taken, 10)
    assert not (tmp_path / "gone.db").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "vidurai.db"

    def intrude(*_: int) -> None:
        path.write_bytes(b"precious")

    with pytest.raises(ConfigError, match=r"can't create .*File exists"):
        make_store(path, 10, progress=intrude)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stands_at_the_path_until_the_store_is_complete(tmp_path: Path):
    path = tmp_path / "vidurai.db"
    seen = []
    make_store(path, 10, progress=lambda *_: seen.append(path.exists()))
    assert seen == [False]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path):
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path / "vidurai.db", 10, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't create .*file/vidurai\.db: .*; choose another place"):
        make_store(tmp_path / "file" / "vidurai.db", 10)


def test_a_failure_of_sqlite_is_one_readable_line(tmp_path: Path):
    def fail(*_: int) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(HotStoreError, match=r"can't write .*vidurai\.db: database or disk is full; free some space"):
        make_store(tmp_path / "vidurai.db", 10, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"rows": -1}, {"seed": -1}, {"archived_share": -0.1}, {"archived_share": 1.1}, {"archived_share": math.nan}],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, wrong: dict):
    with pytest.raises(ConfigError, match="rows >= 0"):
        make_store(tmp_path / "new" / "vidurai.db", **wrong)
    assert list(tmp_path.iterdir()) == []
