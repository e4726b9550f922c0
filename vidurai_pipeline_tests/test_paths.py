"""Settings that name the wrong place: nothing there changes, and one line says which settings are at odds."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from vidurai_pipeline_tests.support.archives import write_file
from vidurai_pipeline_tests.support.cli import Done, cli
from vidurai_pipeline_tests.support.stores import change

COMMANDS = (
    ("run",),
    ("flush",),
    ("flush", "--dry-run"),
    ("dream",),
    ("dream", "--rebuild"),
    ("policy",),
    ("stats",),
    ("query", "SELECT count(*) FROM history"),
    ("search", "error"),
    ("index",),
    ("erase", "--where", "true", "--yes"),
    ("restore", "--where", "true", "--yes"),
    ("scrub", "--all"),
    ("secrets",),
    ("scrub", "--forget"),
    ("salvage", __file__),
    ("compact",),
    ("new-key",),
    ("rekey",),
    ("expire",),
    ("expire", "--dry-run"),
    ("mcp",),
    ("move-into-store", "alice"),
    ("doctor",),
    ("ui",),
    ("home",),
)
#: Those that write to the tiers, or to Dagster's home.
WRITING = (("run",), ("flush",), ("ui",), ("home",))
SETTINGS = ("VIDURAI_DB", "VIDURAI_ARCHIVE", "VIDURAI_Q_TABLE", "DAGSTER_HOME", "VIDURAI_MIRROR")


class OpenedError(Exception):
    """The UI would open now."""


@pytest.fixture(autouse=True)
def _no_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise OpenedError

    monkeypatch.setattr(os, "execve", opened)
    monkeypatch.setattr(os, "chdir", lambda _: None)


@pytest.fixture(scope="module")
def _used(_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hot store, its archive, the mirror and the Q-table, after a flush and a dream."""
    folder = tmp_path_factory.mktemp("used")
    db = folder / "schema_v7" / "vidurai.db"
    db.parent.mkdir()
    shutil.copy(_stores / "schema_v7.db", db)
    environment = {"VIDURAI_HOME": str(db.parent), "VIDURAI_MIRROR": str(folder / "mirror")}
    for command in ("flush", "dream"):
        assert cli(command, **environment).returncode == 0
    for name in ("-wal", "-shm"):
        Path(f"{db}{name}").unlink(missing_ok=True)
    return folder


@pytest.fixture
def places(_used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """All of them, in use, each where its setting names it."""
    shutil.copytree(_used, tmp_path, dirs_exist_ok=True)
    db = tmp_path / "schema_v7" / "vidurai.db"
    monkeypatch.setenv("VIDURAI_HOME", str(db.parent))
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    found = {
        "VIDURAI_DB": db,
        "VIDURAI_ARCHIVE": db.parent / "archive",
        "VIDURAI_Q_TABLE": db.parent / "q_table.json",
        "DAGSTER_HOME": home,
        "VIDURAI_MIRROR": tmp_path / "mirror",
    }
    for name, path in found.items():
        monkeypatch.setenv(name, str(path))
    return found


def contents(folder: Path) -> dict[Path, bytes | None]:
    """All that is in a folder; SQLite's shared memory comes and goes with each reader."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(("-shm", "-wal"))
    }


def refused(done: Done, *names: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for name in names:
        assert name in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_setting_names_the_place_of_another(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    for name in SETTINGS:
        for other in SETTINGS:
            if name != other:
                with monkeypatch.context() as here:
                    here.setenv(name, str(places[other]))
                    refused(cli(*command), name, other)
                    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_links_lead_to_the_place_of_another(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "links").mkdir()
    for name in SETTINGS:
        for other in SETTINGS:
            if name == other:
                continue
            links = [tmp_path / "links" / f"{name}-{other}"]
            links[0].symlink_to(places[other])
            if places[other].is_file():
                links.append(tmp_path / "links" / f"{name}-{other}-hard")
                links[1].hardlink_to(places[other])
            before = contents(tmp_path)
            for link in links:
                with monkeypatch.context() as here:
                    here.setenv(name, str(link))
                    refused(cli(*command), name, other)
                    assert contents(tmp_path) == before
            for link in links:
                link.unlink()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_lies_in_the_archive_but_its_files(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (file,) = places["VIDURAI_ARCHIVE"].rglob("*.parquet")
    before = contents(tmp_path)
    for name in ("VIDURAI_DB", "VIDURAI_Q_TABLE", "DAGSTER_HOME"):
        for path in (file, places["VIDURAI_ARCHIVE"] / "new"):
            with monkeypatch.context() as here:
                here.setenv(name, str(path))
                refused(cli(*command), name, "VIDURAI_ARCHIVE")
    for root in ("/", str(tmp_path)):
        with monkeypatch.context() as here:
            here.setenv("VIDURAI_ARCHIVE", root)
            refused(cli(*command), "VIDURAI_DB", "VIDURAI_ARCHIVE")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_sqlite_and_dagster_put_beside_their_files_is_theirs(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    taken = {
        "VIDURAI_DB": [Path(f"{places['VIDURAI_DB']}-{suffix}") for suffix in ("wal", "shm", "journal")],
        "DAGSTER_HOME": [places["DAGSTER_HOME"] / name for name in ("dagster.yaml", "history/runs.db", "storage/new")],
    }
    for other, paths in taken.items():
        for name in set(SETTINGS) - {other}:
            for path in paths:
                with monkeypatch.context() as here:
                    here.setenv(name, str(path))
                    refused(cli(*command), name, other)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_address_is_no_path(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (*SETTINGS, "VIDURAI_HOME"):
        may_be_in_a_bucket = name in {"VIDURAI_ARCHIVE", "VIDURAI_MIRROR"}
        for address in ("file:///x", "ftp://b", *([] if may_be_in_a_bucket else ["s3://bucket/x", "gs://b"])):
            with monkeypatch.context() as here:
                here.setenv(name, address)
                refused(cli(*command), name, "an address")
    assert contents(tmp_path) == before


def other_files(folder: Path) -> Path:
    """A folder of somebody else's: no archive, no Dagster home."""
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear")
    change(folder / "other.db", "CREATE TABLE t (x)")
    write_file(folder / "data", [{"x": 1}], "part-0.parquet", schema=pa.schema([("x", pa.int64())]))
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", SETTINGS)
def test_other_peoples_files_are_left_alone(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: tuple[str, ...]
) -> None:
    folder = other_files(tmp_path / "theirs")
    before = contents(folder)
    concerned = {
        "VIDURAI_DB": command[0] in ("run", "flush", "ui", "home", "doctor", "stats"),
        "VIDURAI_ARCHIVE": command in (("run",), ("flush",)),
        "VIDURAI_MIRROR": command in (("run",), ("flush",), ("doctor",)),
        "VIDURAI_Q_TABLE": command[0] in ("dream", "policy", "doctor", "stats"),
        "DAGSTER_HOME": command[0] in ("run", "ui", "home"),
    }[name]
    paths = [folder, folder / "letter.txt", folder / "other.db", folder / "data"]
    for path in paths if concerned else paths[COMMANDS.index(command) % 2 :: 2]:
        with monkeypatch.context() as here:
            here.setenv(name, str(path))
            try:
                done = cli(*command)
            except OpenedError:
                assert name != "DAGSTER_HOME"
                continue
        assert contents(folder) == before, path
        if concerned:
            assert done.returncode != 0, (path, done)
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_is_made_for_a_store_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1")
    shutil.copy("/bin/true", tmp_path / "program")
    before = contents(tmp_path)
    for environment in (
        {"VIDURAI_HOME": str(tmp_path / "mistyped")},
        {"VIDURAI_DB": str(tmp_path / "etc"), "VIDURAI_HOME": ""},
        {"VIDURAI_DB": str(tmp_path / "etc/hosts"), "VIDURAI_HOME": ""},
        {"VIDURAI_DB": str(tmp_path / "etc/none.db"), "VIDURAI_HOME": ""},
        {"VIDURAI_DB": str(tmp_path / "program"), "VIDURAI_HOME": ""},
        {"VIDURAI_HOME": str(tmp_path / "etc/hosts")},
    ):
        done = cli(*command, **environment)
        assert contents(tmp_path) == before, environment
        if command in WRITING:
            assert done.returncode != 0
            assert "VIDURAI_DB" in done.stderr
            assert "Traceback" not in done.stderr
