"""Which hot stores VIDURAI_STORES names, by a pattern or a file, and what is wrong with those that can't be used."""

import os
from pathlib import Path

import pytest

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.stores import StoreList, find_stores
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.stores import small_store
from vidurai_pipeline_tests.support.users import open_to_all


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stores of alice and bob."""
    for name in ("alice", "bob"):
        small_store(tmp_path / name / "vidurai.db")
    monkeypatch.setenv("VIDURAI_ARCHIVE", str(tmp_path / "shared"))
    return tmp_path


def _found(monkeypatch: pytest.MonkeyPatch, stores: object) -> StoreList:
    monkeypatch.setenv("VIDURAI_STORES", str(stores))
    return find_stores(load_settings())


def test_a_pattern_names_stores_by_what_it_leaves_open(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _found(monkeypatch, team / "*/vidurai.db")
    assert (list(found.stores), found.problems) == (["alice", "bob"], [])
    bob = found.settings_of("bob")
    assert (bob.db_path, bob.archive_path) == (team / "bob/vidurai.db", team / "shared/store=bob")
    assert (bob.q_table_path, bob.stores) == (team / "bob/q_table.json", None)


def test_each_store_archives_to_the_bucket_that_they_share(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_ARCHIVE", "s3://bucket/shared")
    monkeypatch.setenv("VIDURAI_MIRROR", "s3://other/shared")
    bob = _found(monkeypatch, team / "*/vidurai.db").settings_of("bob")
    assert bob.archive_address == "s3://bucket/shared/store=bob"
    assert bob.mirror_address == "s3://other/shared/store=bob"
    assert bob.archive_root == load_settings().archive_root


def test_stores_in_one_folder_are_called_as_their_files(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store(team / "all/carol.db")
    small_store(team / "all/dave.db")
    found = _found(monkeypatch, team / "all/*.db")
    assert {name: one.q_table_path.name for name, one in found.stores.items()} == {
        "carol": "carol.q_table.json",
        "dave": "dave.q_table.json",
    }


def test_two_stores_in_a_folder_have_a_q_table_each(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store(team / "bob/memory.db")
    found = _found(monkeypatch, team / "bob/*.db")
    assert {name: one.q_table_path.name for name, one in found.stores.items()} == {
        "memory.db": "memory.q_table.json",
        "vidurai.db": "q_table.json",
    }


def test_a_file_lists_names_and_paths(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (team / "stores.csv").write_text(f"# the team\n\nally, alice/vidurai.db\nrob,{team}/bob/vidurai.db\n")
    found = _found(monkeypatch, team / "stores.csv")
    assert {name: one.db_path for name, one in found.stores.items()} == {
        "ally": team / "alice/vidurai.db",
        "rob": team / "bob/vidurai.db",
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("eve,eve.db", "the store eve: {team}/eve.db: No such file or directory: correct VIDURAI_STORES"),
        ("eve,notes.db", "the store eve: {team}/notes.db is not an SQLite database: name Vidurai's own file"),
        ("eve,empty.db", "the store eve: {team}/empty.db is empty: start Vidurai once"),
        ("eve,alice", "the store eve: {team}/alice: Is a directory"),
        ("e/ve,eve/vidurai.db", "the store e/ve: {team}/eve/vidurai.db: 'e/ve' is not a store's name"),
        ("eve,shared/vidurai.db", "the store eve: VIDURAI_DB={team}/shared/vidurai.db lies in the archive"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_and_the_others_go_on(
    team: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str
) -> None:
    (team / "notes.db").write_text("Dear")
    (team / "empty.db").touch()
    small_store(team / "eve/vidurai.db")
    small_store(team / "shared/vidurai.db")
    (team / "stores.csv").write_text(f"{line}\nbob,bob/vidurai.db\n")
    found = _found(monkeypatch, team / "stores.csv")
    assert list(found.stores) == ["bob"]
    (said,) = found.problems
    assert said.startswith(problem.format(team=team))
    assert "\n" not in said
    name = line.partition(",")[0]
    assert found.left_out == {name}
    with pytest.raises(ConfigError, match=name):
        found.settings_of(name)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("Bob,alice/vidurai.db\nbob,bob/vidurai.db", "alice/vidurai.db, {team}/bob/vidurai.db are stores of one name"),
        ("one,bob/vidurai.db\ntwo,./bob/vidurai.db", "bob/vidurai.db is named as one and as two"),
    ],
)
def test_what_is_named_twice_is_used_for_neither(
    team: Path, monkeypatch: pytest.MonkeyPatch, lines: str, problem: str
) -> None:
    small_store(team / "eve/vidurai.db")
    (team / "stores.csv").write_text(f"{lines}\neve,eve/vidurai.db\n")
    found = _found(monkeypatch, team / "stores.csv")
    assert list(found.stores) == ["eve"]
    assert [problem.format(team=team) in said for said in found.problems] == [True, True]


def test_a_store_in_a_folder_that_cannot_be_read_is_not_taken_for_gone(
    team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (team / "alice/archive").mkdir()
    open_to_all(team / "alice/vidurai.db")
    (team / "bob").chmod(0)
    as_root = os.geteuid() == 0
    if as_root:  # whom no permissions bind
        os.setresuid(12_345, 12_345, 0)
    try:
        found = _found(monkeypatch, team / "*/vidurai.db")
    finally:
        if as_root:
            os.setresuid(0, 0, 0)
        (team / "bob").chmod(0o700)
    assert (list(found.stores), found.left_out) == (["alice"], {"bob"})
    assert found.problems[0].startswith(f"the store bob: {team}/bob/vidurai.db: Permission denied: correct VIDURAI_STO")


@pytest.mark.parametrize(
    ("stores", "problem"),
    [
        ("nowhere/*/vidurai.db", "matches no file"),
        ("none.csv", "No such file or directory"),
        ("empty.csv", "names no store"),
        ("wrong.csv", "'alice' is no line NAME,PATH"),
    ],
)
def test_where_no_store_is_named_none_is_taken_for_gone(
    team: Path, monkeypatch: pytest.MonkeyPatch, stores: str, problem: str
) -> None:
    (team / "empty.csv").write_text("# nobody\n")
    (team / "wrong.csv").write_text("alice\n")
    found = _found(monkeypatch, team / stores)
    assert (found.stores, found.complete) == ({}, False)
    (said,) = found.problems
    assert said.startswith(f"VIDURAI_STORES={team / stores}")
    assert problem in said
