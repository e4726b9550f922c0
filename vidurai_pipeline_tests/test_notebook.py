"""The notebook runs from its first cell to its last, shows what it printed then, and names no machine."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parent.parent / "docs" / "history.ipynb"


def outputs(notebook: Any) -> list[list[str]]:
    """What each cell prints and shows, as text."""
    return [
        [output.text if "text" in output else output.data["text/plain"] for output in cell.get("outputs", ())]
        for cell in notebook.cells
    ]


def test_it_runs_and_shows_what_it_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    kept = nbformat.read(NOTEBOOK, as_version=4)
    ran = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(ran, timeout=300, resources=resources, record_timing=False).execute()
    ran.metadata = kept.metadata
    if os.environ.get("RENEW_SNAPSHOT"):
        nbformat.write(ran, NOTEBOOK)
        kept = ran
    printed = outputs(ran)
    assert any("memories archived" in text for texts in printed for text in texts)
    assert any("«" in text for texts in printed for text in texts)
    assert outputs(kept) == printed, "make snapshot"


def test_it_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert all(folder not in text for folder in ("/home/", "/tmp", "/Users/", str(Path.home())))
