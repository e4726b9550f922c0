"""Fixtures that all tests share: real stores, and a safe environment."""

import lzma
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vidurai_pipeline.cold.keys import add_key
from vidurai_pipeline.settings import Settings, load_settings
from vidurai_pipeline_tests.support.archives import DATA
from vidurai_pipeline_tests.support.fork_server import fork_server
from vidurai_pipeline_tests.support.stores import QUICK, change

if TYPE_CHECKING:
    from dagster import DagsterInstance


def pytest_configure() -> None:
    # A shell's background job ignores Ctrl-C, and so does all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test may see, let alone touch, the memories of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("VIDURAI_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VIDURAI_HOME", str(home / ".vidurai"))
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for packed in DATA.glob("*.db.xz"):
        with lzma.open(packed) as source, (folder / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder


@pytest.fixture
def sample_store(_stores: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a sample store (``guardian``, ``pre_guardian``, ``schema_v7``) to ``vidurai.db`` in a new folder."""

    def copy(name: str) -> Path:
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        return Path(shutil.copy(_stores / f"{name}.db", home / "vidurai.db"))

    return copy


@pytest.fixture
def home(sample_store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sample store, which the environment names as Vidurai's."""
    folder = sample_store("guardian").parent
    monkeypatch.setenv("VIDURAI_HOME", str(folder))
    return folder


@pytest.fixture
def mirror_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment has the mirror of a home whose memories all wait; nothing is in it yet."""
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("VIDURAI_MIRROR", str(tmp_path / "disk" / "mirror"))
    monkeypatch.setenv("VIDURAI_ROWS_PER_FILE", "400")
    return tmp_path / "disk" / "mirror"


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key file with one key, which the environment names."""
    path = tmp_path / "secrets" / "archive.key"
    add_key(path)
    monkeypatch.setenv("VIDURAI_ARCHIVE_KEY_FILE", str(path))
    return path


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a home with a sample store, where no run waits for another."""
    monkeypatch.setenv("VIDURAI_LOCK_TIMEOUT", "0.1")
    return load_settings()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``vidurai-pipeline`` and ``python -c`` in it, as quick as calls in this process."""
    with fork_server(tmp_path_factory.mktemp("fork_server")) as folder:
        yield folder


@pytest.fixture(scope="session")
def _empty_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Dagster puts into a new home: to make its databases takes far longer than to copy them."""
    from dagster import instance_for_test  # noqa: PLC0415  (slow to import, and most tests need it not)

    folder = tmp_path_factory.mktemp("history")
    with instance_for_test(temp_dir=str(folder)) as instance:
        instance.get_runs()
        instance.all_asset_keys()
        instance.all_instigator_state()
    return folder


@pytest.fixture
def dagster_home(_empty_history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Dagster's in which nothing has happened yet, for ``instance_for_test``."""
    return Path(shutil.copytree(_empty_history, tmp_path_factory.mktemp("dagster") / "home"))


@pytest.fixture
def instance(dagster_home: Path) -> "Iterator[DagsterInstance]":
    """A Dagster instance in a folder of its own."""
    from dagster import instance_for_test  # noqa: PLC0415

    with instance_for_test(temp_dir=str(dagster_home)) as instance:
        yield instance
