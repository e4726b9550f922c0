"""An archive moves into the folder of a store, whole, and can be read at every instant."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline import MemoryArchiver, RepoAnalyst
from vidurai_pipeline.cold import files, moving
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.moving import move_into_store
from vidurai_pipeline.errors import ArchiveError, LockedError
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.dagster_runs import holding
from vidurai_pipeline_tests.support.stores import change, small_store

WAITED = 2


class Died(BaseException):
    """The process is gone."""


@pytest.fixture
def archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store without a name, two of whose three memories were archived, with a mirror."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("VIDURAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VIDURAI_MIRROR", str(tmp_path / "disk" / "mirror"))
    monkeypatch.setenv("VIDURAI_LOCK_TIMEOUT", "0.1")
    settings = load_settings()
    small_store(
        settings.db_path,
        *({"id": id_, "status": "ACTIVE" if id_ == 1 else "ARCHIVED", "verbatim": "text"} for id_ in (1, 2, 3)),
    )
    MemoryArchiver(settings=settings).flush()
    return settings


def _count() -> int:
    with RepoAnalyst() as analyst:
        return analyst.query_archive("SELECT count(*) AS n FROM history")[0]["n"]


def _watch(monkeypatch: pytest.MonkeyPatch, step: Callable[[int], None]) -> None:
    """Call a function before each change of the file system that a move makes, with the change's number."""
    numbers = iter(range(1_000))
    for place, name in ((moving, "exchange_folders"), (moving, "sync_folder"), (files, "sync_folder")):
        original = getattr(place, name)

        def stepped(*arguments: Path, original: Callable[..., None] = original) -> None:
            step(next(numbers))
            original(*arguments)

        monkeypatch.setattr(place, name, stepped)


def _is_moved(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    root = settings.archive_root
    assert [path.name for path in root.iterdir()] == ["store=alice"]
    assert not (root / "store=alice").is_symlink()
    assert not [path for path in root.parent.iterdir() if path.name.endswith(".moving")]
    monkeypatch.setenv("VIDURAI_STORE_NAME", "alice")
    assert _count() == WAITED
    change(settings.db_path, "UPDATE memories SET status = 'ARCHIVED'")
    assert MemoryArchiver().flush().problems == []
    assert _count() == WAITED + 1


@pytest.mark.fast
def test_the_archive_and_its_mirror_move_with_all_that_belongs_to_them(
    archived: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loads(cli("move-into-store", "alice", "--format", "json")) == {
        "archive": str(archived.archive_root / "store=alice")
    }
    _is_moved(archived, monkeypatch)
    proved = cli("scrub", "--all", "--repair")
    assert (proved.returncode, proved.stderr) == (0, "")


STEPS = 13


def test_it_can_be_read_at_every_instant(archived: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    with monkeypatch.context() as here:
        _watch(here, lambda _: counts.append(_count()))
        move_into_store(archived, "alice")
    assert counts == [WAITED] * (STEPS + 1)


@pytest.mark.parametrize("last", range(STEPS))
def test_it_dies_at_any_step_and_goes_on(archived: Settings, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    def die(number: int) -> None:
        if number == last:
            raise Died

    with monkeypatch.context() as here:
        _watch(here, die)
        with pytest.raises(Died):
            move_into_store(archived, "alice")
    assert _count() == WAITED
    move_into_store(archived, "alice")
    _is_moved(archived, monkeypatch)


def test_a_store_of_that_name_is_not_replaced(archived: Settings) -> None:
    (archived.archive_root / "store=alice").mkdir()
    done = cli("move-into-store", "alice")
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {archived.archive_root}/store=alice is there already: give this store another name\n",
    )


def test_it_waits_for_no_run(archived: Settings) -> None:
    with holding(archived.archive_root), pytest.raises(LockedError):
        move_into_store(archived, "alice")


def test_a_run_that_waited_meanwhile_does_not_write_beside_the_stores(archived: Settings) -> None:
    archive = Archive(archived.archive_root)
    move_into_store(archived, "alice")
    with pytest.raises(ArchiveError, match="several stores"), archive.lock("test"):
        pass


def test_what_stands_in_the_way_is_left_alone(archived: Settings) -> None:
    way = archived.archive_root.with_name(".archive.store=alice.moving")
    (way / "precious").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="not empty"):
        move_into_store(archived, "alice")
    assert (way / "precious").is_dir()
    assert _count() == WAITED


def test_a_mirror_that_is_not_this_archives_is_left_alone(archived: Settings) -> None:
    folder = archived.mirror_path
    assert folder is not None
    folder.rename(folder.with_name("unmounted"))
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear")
    with pytest.raises(ArchiveError, match="not the mirror of"):
        move_into_store(archived, "alice")
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    assert not (archived.archive_root / "store=alice").exists()
