"""The options that several commands have."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from vidurai_pipeline.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")


def format_option(*forms: str) -> Callable[[Command], Command]:
    """The option ``--format``, with the forms that a command can print; the first is the default."""
    return click.option(
        "--format", "form", type=click.Choice(forms), default=forms[0], show_default=True, help="How to print it."
    )


def seconds_option(most: float, default: float | None, said: str) -> Callable[[Command], Command]:
    """The option ``--timeout``."""
    kind = click.FloatRange(min=0, min_open=True, max=most)
    shown = default is not None
    return click.option("--timeout", type=kind, default=default, show_default=shown, metavar="SECONDS", help=said)


def choice_options(verb: str) -> Callable[[Command], Command]:
    """The options by which memories are chosen, and ``--yes``; see :func:`confirm`."""

    def options(command: Command) -> Command:
        command = click.option("--yes", is_flag=True, help="Don't ask.")(dry_run_option(command))
        said = f"{verb.capitalize()} the memories that meet this condition over `memories`."
        command = click.option("--where", metavar="SQL", help=said)(command)
        said = f"A memory to {verb}. May be repeated."
        return click.option("--id", "ids", type=int, multiple=True, metavar="ID", help=said)(command)

    return options


def confirm(question: str) -> None:
    """Ask a person on a terminal, and stop if the answer is no.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether to go on", "add --yes, or --dry-run to look first")
    click.confirm(question, err=True, abort=True)
