"""Several stores that share an archive: one question to all of them, memories known by store and id."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline import MemoryArchiver, MemoryRestorer, RepoAnalyst
from vidurai_pipeline.analytics.vector_index import update_vectors
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.cli.mcp_server import History
from vidurai_pipeline.cold.keys import add_key
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ArchiveError, ConfigError, QueryError
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.archives import flip, memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.stores import SCHEMA, small_store

Use = Callable[[str | None], Settings]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Sets the environment of a store: ``alice`` or ``bob``, who share an archive, or of none.

    Both have memories with the ids 1 to 3, made at the same times. 1 and 2 were archived, 3 is hot.
    """

    def settings_of(name: str | None) -> Settings:
        monkeypatch.setenv("VIDURAI_HOME", str(tmp_path / (name or "nobody")))
        monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "archive"))
        monkeypatch.setenv("VIDURAI_STORE_NAME", name or "")
        return load_settings()

    for name in ("alice", "bob"):
        settings = settings_of(name)
        rows = [
            {
                "id": id_,
                "project_id": 1,
                "verbatim": f"the shared text of {name}",
                "gist": "gist",
                "salience": "HIGH",
                "created_at": f"2026-01-0{id_}T00:00:00",
                "status": "ACTIVE" if id_ == 3 else "ARCHIVED",
                "outcome": 1,
            }
            for id_ in (1, 2, 3)
        ]
        small_store(
            settings.db_path, *rows, schema=SCHEMA.replace("outcome INTEGER", "outcome INTEGER, pinned INTEGER")
        )
        MemoryArchiver(settings=settings).flush()
    return settings_of


def _known(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((row["store"], row["id"], row["tier"]) for row in rows)


ALL_OF_ALICE = [("alice", 1, "cold"), ("alice", 2, "cold"), ("alice", 3, "hot")]
ARCHIVED_OF_BOB = [("bob", 1, "cold"), ("bob", 2, "cold")]


@pytest.mark.fast
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_one_question_reads_the_archives_of_all_stores(use: Use, tmp_path: Path, encrypted: bool, monkeypatch) -> None:
    settings = use("alice")
    if encrypted:
        key_file = tmp_path / "archive.key"
        add_key(key_file)
        monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(key_file))
        assert cli("rekey").returncode == 0
    assert settings.archive_path == tmp_path / "archive" / "store=alice"
    with RepoAnalyst() as analyst:
        assert _known(analyst.query_archive("SELECT store, id, tier FROM memories")) == ALL_OF_ALICE + ARCHIVED_OF_BOB
        texts = analyst.query_archive("SELECT store, verbatim FROM history WHERE id = 1 AND store = 'bob'")
        assert texts == [{"store": "bob", "verbatim": "the shared text of bob"}]
        assert len(analyst.query_archive("SELECT * FROM history_all")) == 4
        projects = analyst.query_archive("SELECT store, id, hot, cold FROM projects")
        assert projects == [
            {"store": "alice", "id": 1, "hot": 1, "cold": 2},
            {"store": "bob", "id": 1, "hot": 0, "cold": 2},
        ]


def test_only_the_newest_copy_within_a_store_counts(use: Use) -> None:
    """Two stores may give the same id at the same time, and one store may have archived a memory twice."""
    root = use("alice").archive_root
    for folder, stamp in ((root / "store=bob", "2030"), (root, "2031"), (root, "2032")):
        row = memory(1, created_at="2026-01-01T00:00:00", archived_at=f"{stamp}-01-01T00:00:00", verbatim=stamp)
        write_file(folder, [row], f"memories_{stamp}0101_000000.parquet", month="2030-01")
    with RepoAnalyst() as analyst:
        rows = analyst.query_archive("SELECT store, verbatim FROM history WHERE id = 1 ORDER BY ALL NULLS LAST")
    assert [(row["store"], row["verbatim"]) for row in rows] == [
        ("alice", "the shared text of alice"),
        ("bob", "2030"),
        (None, "2032"),
    ]


def test_a_memory_in_both_tiers_hides_its_own_copy_and_no_other_stores(use: Use) -> None:
    settings = use("alice")
    write_file(settings.archive_path, [memory(3, created_at="2026-01-03T00:00:00")], month="2026-02")
    write_file(settings.archive_root / "store=bob", [memory(3, created_at="2026-01-03T00:00:00")], month="2026-02")
    with RepoAnalyst() as analyst:
        rows = analyst.query_archive("SELECT store, id, tier FROM memories WHERE id = 3")
        assert _known(rows) == [("alice", 3, "hot"), ("bob", 3, "cold")]
        assert len(analyst.memory(3)) == 2
        assert {row["file"] == str(settings.db_path) for row in analyst.memory(3)} == {True, False}


@pytest.mark.parametrize("indexed", [(), ("alice",), ("alice", "bob")], ids=["no index", "one index", "both indexes"])
@pytest.mark.filterwarnings("ignore::vidurai_pipeline.errors.SearchIndexWarning")
def test_a_search_finds_the_memories_of_all_stores(use: Use, indexed: tuple[str, ...]) -> None:
    for name in indexed:
        archive = open_archive(use(name))
        WordIndex(archive.root).update(archive)
    use("alice")
    with RepoAnalyst() as analyst:
        found = analyst.search_archive("shared text", tier="all")
        assert _known(found) == ALL_OF_ALICE + ARCHIVED_OF_BOB
        assert list(found[0])[:2] == ["store", "id"]
        assert {row["store"] for row in analyst.search_archive("bob", tier="cold")} == {"bob"}


def test_a_search_by_meaning_finds_the_memories_of_all_stores(use: Use) -> None:
    for name in ("alice", "bob"):
        settings = use(name)
        assert update_vectors(open_archive(settings), settings, minutes=1)[1] is None
    use("alice")
    with RepoAnalyst() as analyst:
        found = analyst.search_archive("a common text", tier="cold", mode="meaning")
        assert sorted((row["store"], row["id"]) for row in found) == [(s, n) for s in ("alice", "bob") for n in (1, 2)]
        similar = analyst.query_archive("SELECT store, id FROM similar_memories('a text of bob', 2)")
        assert sorted((row["store"], row["id"]) for row in similar) == [("bob", 1), ("bob", 2)]
    with RepoAnalyst(store="bob") as analyst:
        assert {row["store"] for row in analyst.search_archive("text", tier="cold", mode="meaning")} == {"bob"}


def test_one_store_can_be_asked_alone_whatever_the_state_of_the_others(use: Use) -> None:
    settings = use("alice")
    flip(next((settings.archive_root / "store=bob").rglob("*.parquet")))
    with RepoAnalyst() as analyst, pytest.raises(ArchiveError, match="store=bob/year="):
        analyst.query_archive("SELECT * FROM history")
    assert cli("index").returncode == 0
    assert _known(loads(cli("search", "text", "--store", "alice", "--format", "json"))) == ALL_OF_ALICE
    assert "store,id" in cli("query", "SELECT store, id FROM memories", "--store", "alice", "--format", "csv").stdout
    skipped = cli("query", "SELECT count(*) AS n FROM history", "--skip-damaged", "--format", "json")
    assert (skipped.returncode, json.loads(skipped.stdout)) == (3, [{"n": 2}])
    assert "store=bob/year=" in skipped.stderr


def test_an_assistant_can_tell_the_memories_of_stores_apart(use: Use) -> None:
    history = History(use("alice"), timeout=60)
    with contextlib.closing(history):
        found = history.search_history(question="shared text")["memories"]
        assert sorted((hit["store"], hit["id"]) for hit in found) == [
            (store, id_) for store, id_, _ in ALL_OF_ALICE
        ] + [
            ("bob", 1),
            ("bob", 2),
        ]
        assert history.read_memory(id=1, store="bob")["memory"]["content"] == "the shared text of bob"
        with pytest.raises(QueryError, match="each of these stores has a memory 1: alice, bob"):
            history.read_memory(id=1)
        projects = history.history_stats()["projects"]
        assert sorted((one["store"], one["id"], one["cold"]) for one in projects) == [("alice", 1, 2), ("bob", 1, 2)]


def test_the_figures_are_of_all_stores_and_say_which_is_behind(use: Use) -> None:
    root = use("alice").archive_root
    (root / "store=alice").rename(root / "store=late")
    write_file(root / "store=new", [memory(1, archived_at="2031-01-01T00:00:00")], "memories_20310101_000000.parquet")
    archive = json.loads(cli("stats", "--format", "json").stdout)["archive"]
    assert (archive["path"], archive["total_memories"], archive["files"]) == (str(root), 5, 3)
    assert [(store, one["memories"]) for store, one in archive["by_store"].items()] == [
        ("late", 2),
        ("bob", 2),
        ("new", 1),
    ]
    assert "new   █" in (shown := cli("stats").stdout)
    assert "1  last archived 2031-01-01T00:00:00" in shown


def test_another_stores_archive_shows_no_hot_memories_of_this_machine(use: Use) -> None:
    use("alice")
    with RepoAnalyst(store="bob") as analyst:
        assert _known(analyst.query_archive("SELECT store, id, tier FROM memories")) == ARCHIVED_OF_BOB
        assert _known(analyst.search_archive("shared", tier="all", mode="exact")) == ARCHIVED_OF_BOB
        with pytest.raises(QueryError, match="hot store of 'bob'"):
            analyst.search_archive("shared", tier="hot")
    with pytest.raises(ConfigError, match=r"no archive of a store 'carol'.*there are those of alice, bob"):
        RepoAnalyst(store="carol")


def test_what_changes_the_archive_keeps_to_its_own_store(use: Use) -> None:
    bob = {path: path.read_bytes() for path in (use("bob").archive_path).rglob("*") if path.is_file()}
    settings = use("alice")
    restored = MemoryRestorer(settings=settings).restore(ids=[1])
    assert (restored.restored, restored.refused) == (1, [])
    assert cli("erase", "--id", "2", "--yes").returncode == 0
    assert cli("scrub", "--all").returncode == 0
    assert cli("doctor").returncode == 0
    assert {path: path.read_bytes() for path in (use("bob").archive_path).rglob("*") if path.is_file()} == bob
    use("alice")
    with RepoAnalyst() as analyst:
        rows = analyst.query_archive("SELECT store, id, tier FROM memories")
    assert _known(rows) == [("alice", 1, "hot"), ("alice", 3, "hot"), *ARCHIVED_OF_BOB]


def test_hidden_projects_are_known_by_id_in_the_own_store_alone(use: Use) -> None:
    use("alice")
    with RepoAnalyst(exclude_projects=["1"]) as analyst:
        assert _known(analyst.query_archive("SELECT store, id, tier FROM memories")) == ARCHIVED_OF_BOB


def test_an_archive_of_several_stores_takes_no_store_without_a_name(use: Use) -> None:
    settings = use(None)
    small_store(settings.db_path)
    for command in ("flush", "dream", "scrub", "doctor"):
        refused = cli(command)
        assert refused.returncode == 1
        assert "several stores, such as alice: set VIDURAI_STORE_NAME" in refused.stderr + refused.stdout
    with RepoAnalyst() as analyst:  # but it can be read
        rows = analyst.query_archive("SELECT store, id, tier FROM memories")
    assert _known(rows) == [("alice", 1, "cold"), ("alice", 2, "cold"), *ARCHIVED_OF_BOB]


@pytest.mark.parametrize("name", ["../bob", "a/b", "", " ", "ä", ".hidden", "x" * 65])
def test_a_name_that_no_folder_can_have_is_refused(use: Use, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use("alice")
    assert cli("move-into-store", name).returncode == 2
    if name:
        monkeypatch.setenv("VIDURAI_STORE_NAME", name)
        with pytest.raises(ConfigError, match=r"VIDURAI_STORE_NAME=.*not a store's name"):
            load_settings()
