"""The front door: what the package offers by name is there, is documented, and is found where it always was."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vidurai_pipeline

README = (Path(__file__).parent.parent / "README.md").read_text()
#: Where the README of the first version said that they are.
PATHS = {
    "DreamCycle": "vidurai_pipeline.rl.dreamer",
    "MemoryArchiver": "vidurai_pipeline.archival.archiver",
    "MemoryEraser": "vidurai_pipeline.archival.eraser",
    "MemoryRestorer": "vidurai_pipeline.archival.restorer",
    "RepoAnalyst": "vidurai_pipeline.analytics.engine",
    "VismritiRLAgent": "vidurai_pipeline.rl.agent",
}


def test_the_public_names_are_complete() -> None:
    assert set(vidurai_pipeline.__all__) == set(PATHS)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = vidurai_pipeline.Nonsense


@pytest.mark.parametrize("name", PATHS)
def test_each_is_documented_and_where_it_was(name: str) -> None:
    offered = getattr(vidurai_pipeline, name)
    assert getattr(import_module(PATHS[name]), name) is offered
    assert inspect.getdoc(offered)
    for member, value in vars(offered).items():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_the_readme_uses_the_front_door() -> None:
    for line in re.findall(r"^(?:from|import) vidurai_pipeline.*", README, re.MULTILINE):
        names = re.fullmatch(r"from vidurai_pipeline import (.*)", line)
        assert names, line
        assert set(names[1].split(", ")) <= set(vidurai_pipeline.__all__)


def test_the_front_door_is_light() -> None:
    code = "import sys, vidurai_pipeline; print(sorted({'dagster', 'duckdb', 'pandas', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_and_completion_wait_for_no_dagster() -> None:
    code = (
        "import sys; from vidurai_pipeline.cli.main import COMMANDS, main; "
        "assert all(main.get_command(None, name) for name in COMMANDS); print('dagster' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
