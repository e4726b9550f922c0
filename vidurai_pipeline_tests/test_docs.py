"""The pages under docs/: their shell is shell, their links lead somewhere, their installation installs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vidurai_pipeline_tests.support.stores import Store

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_are_shell(page: Path) -> None:
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_modules_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", (ROOT / page).read_text())
    assert named
    for module in named:
        assert any(
            (ROOT / folder / module).exists() for folder in ("vidurai_pipeline", "vidurai_pipeline_tests", ".")
        ), module


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in readme, page


def test_installing_and_upgrading_the_services(tmp_path: Path, sample_store: Store, programs: Path) -> None:
    """What the page types, but for pip: the package is the one under test."""
    home, managers = tmp_path / "home", tmp_path / "bin"
    managers.mkdir()
    home.mkdir()
    sample_store("schema_v7").parent.rename(home / ".vidurai")
    for name in ("systemctl", "loginctl", "python3"):
        (managers / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/told\n')
        (managers / name).chmod(0o755)
    text = (ROOT / "docs/deployment.md").read_text().split("## Containers")[0]
    install, load, upgrade = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    environment = {
        "PATH": f"{managers}:{os.environ['PATH']}",
        "HOME": str(home),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }

    def sh(script: str, cwd: Path) -> None:
        lines = [line for line in script.replace("REPOSITORY", str(ROOT)).splitlines() if "/bin/pip " not in line]
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    installed = home / ".local/share/vidurai-pipeline"
    (installed / "bin").mkdir(parents=True)
    for program in (programs / "vidurai-pipeline", Path(sys.executable).with_name("dagster")):
        (installed / "bin" / program.name).symlink_to(program)
    sh(install, tmp_path)
    told = (tmp_path / "told").read_text()
    assert f"python3 -m venv {installed}" in told
    assert "systemctl --user enable --now vidurai-pipeline-daemon vidurai-pipeline-webserver" in told
    units = home / ".config/systemd/user"
    ours = {unit.name for unit in (ROOT / "deploy/systemd").glob("*.service")}
    assert {unit.name for unit in units.iterdir()} == ours

    settings = home / ".config/vidurai-pipeline/environment"
    assert settings.stat().st_mode & 0o777 == 0o600
    (home / ".vidurai").rename(tmp_path / "else where")
    text = f'VIDURAI_HOME="{tmp_path}/else where"\nVIDURAI_SCHEDULE="0 3 * * *"\n'
    settings.write_text(text)
    for _ in range(2):
        sh(load + upgrade, tmp_path / "vidurai-pipeline")
        assert settings.read_text() == text
        before = tmp_path / "else where/dagster.before"
        assert (before / "history/runs.db").exists()
        assert not (before / "dagster").exists()
    sh(f"{load}vidurai-pipeline home", tmp_path)
    assert not (home / ".vidurai").exists()
