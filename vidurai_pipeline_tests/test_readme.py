"""What the README says is so: its commands run, its Python works, its table of settings is the code's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dagster._cli import cli as dagster

from vidurai_pipeline.cli.main import COMMANDS as SUMMARIES
from vidurai_pipeline.cli.main import main
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.settings import Settings, unknown_variables
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.stores import QUICK, flush

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = {name: command for name in SUMMARIES if (command := main.get_command(click.Context(main), name))}


def test_the_readme_shows_every_command() -> None:
    assert {command[1] for command in commands("vidurai-pipeline")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_run(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(home)
    if name not in ("run", "flush"):
        flush(home / "vidurai.db")
    if name == "search":
        cli("index")
    if name == "policy":
        cli("dream")
    for command in commands("vidurai-pipeline"):
        if command[1] == name and name != "ui":  # which stays open, and has a test of its own
            done = cli(*command[1:])
            assert done.returncode == 0, command
            assert all(line.startswith("note: ") for line in done.stderr.splitlines()), command
            assert done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    done = cli(name, "--help")
    assert done.returncode == 0
    assert command.help
    assert command.help.partition("\n")[0] == SUMMARIES[name]
    assert command.help.split(".")[0].split()[0] in done.stdout
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.name)


def test_each_summary_is_whole() -> None:
    summaries = cli("--help").stdout.partition("Commands:")[2]
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", summaries, re.MULTILINE), name
    assert "..." not in summaries


@pytest.mark.slow
def test_the_blocks_work_when_they_are_pasted_in_order(tmp_path: Path, programs: Path) -> None:
    pasted = "\n".join(block for block in blocks("sh") if not block.startswith("make "))
    lines = [
        line for line in pasted.splitlines() if not line.startswith(("vidurai-pipeline ui", "vidurai-pipeline mcp"))
    ]  # stay open
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for program in (programs / "vidurai-pipeline", Path(sys.executable).with_name("dagster")):
        (tmp_path / ".venv/bin" / program.name).symlink_to(program)
    (tmp_path / "workspace.yaml").write_text((ROOT / "workspace.yaml").read_text())
    make_store(tmp_path / "sample/vidurai.db", 300)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VIDURAI_", "DAGSTER_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**environment, **QUICK, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".vidurai").exists()
    assert (tmp_path / "sample/q_table.json").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("vidurai-pipeline sea", "search"),
        ("vidurai-pipeline search --tie", "--tier"),
        ("vidurai-pipeline query --format js", "json"),
    ],
)
def test_bash_completes_as_the_readme_says(programs: Path, typed: str, offered: str) -> None:
    (line,) = re.findall(r"`(eval [^`]*)`", README)
    words = typed.split()
    script = f"""
        {line}
        COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
        "$(complete -p vidurai-pipeline | sed 's/.*-F \\([^ ]*\\).*/\\1/')" vidurai-pipeline
        echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-eu", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", [offered])


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_completion_script(programs: Path, shell: str) -> None:
    variable, name = "_VIDURAI_PIPELINE_COMPLETE", f"{shell}_source"
    assert name in README
    done = subprocess.run(
        [programs / "vidurai-pipeline"],
        env={**os.environ, variable: name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{variable}={shell}_complete" in done.stdout
    assert "compdef" in done.stdout or "complete --no-files" in done.stdout


def test_each_sample_of_the_readme_is_ignored_by_git() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    for command in commands("vidurai-pipeline"):
        if command[1] == "demo":
            assert f"/{command[2]}/" in ignored


def test_dagsters_commands_exist() -> None:
    for command in commands("dagster"):
        done = CliRunner().invoke(dagster, [*command[1:3], "--help"])
        assert done.exit_code == 0
        for option in command[3:]:
            if option.startswith("-"):
                assert option in done.output, option


def test_make_targets_exist_and_are_safe() -> None:
    targets = re.findall(r"(?:^|`|\s)make (run|test|\w+)(?=`|  )", README, re.MULTILINE)
    assert {"run", "test", "dev"} <= set(targets)
    for target in set(targets):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_make_run_never_takes_an_unnamed_store(tmp_path: Path) -> None:
    (tmp_path / ".vidurai").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIDURAI_", "DAGSTER_", "MAKE"))}
    done = subprocess.run(
        ["make", "-n", "--print-data-base", "run"],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"VIDURAI_HOME := {ROOT}/sample" in done.stdout
    assert str(tmp_path / ".vidurai") not in done.stdout


def test_make_sets_no_variable_that_the_pipeline_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIDURAI_", "MAKE"))}
    make = ["make", "--eval", "printed: ; @env", "printed"]
    printed = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    given = dict(line.split("=", 1) for line in printed.splitlines() if line.startswith("VIDURAI_"))
    assert given == {"VIDURAI_HOME": f"{ROOT}/sample"}
    for name in [name for name in os.environ if name.startswith("VIDURAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VIDURAI_HOME", given["VIDURAI_HOME"])
    assert unknown_variables() == []


def test_python_examples(home: Path, programs: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run([programs / "python", "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "memories" in done.stdout


def test_settings_table_is_the_codes() -> None:
    rows = dict(re.findall(r"^\| `(VIDURAI_\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    fields = {f"VIDURAI_{name.upper()}": (name, field) for name, field in Settings.model_fields.items()}
    assert set(rows) <= set(fields)
    for variable, said in rows.items():
        name, field = fields[variable]
        if isinstance(field.default, str | int | float) and name != "home":
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            assert said.strip("` ") == default
