"""The command line: in this process, or, where a fresh Python is the point, in one of its own."""

import contextvars
import json
import os
import subprocess
import sys
from typing import Any
from unittest import mock

from click.testing import CliRunner

from vidurai_pipeline.cli import limits
from vidurai_pipeline.cli.main import main

COMMAND = (sys.executable, "-m", "vidurai_pipeline")
Done = subprocess.CompletedProcess[str]


def cli(*arguments: str, **environment: str) -> Done:
    """Run a command in this process, and give what it printed. An error that users would see as a traceback is raised.

    The limits to the process are left out: they would hold for all tests that follow.
    """

    def invoke() -> Done:
        with mock.patch.multiple(limits, bound_memory=mock.DEFAULT, lower_priority=mock.DEFAULT):
            result = CliRunner().invoke(
                main, arguments, env=environment, prog_name="vidurai-pipeline", catch_exceptions=False
            )
        return Done(arguments, result.exit_code, result.stdout, result.stderr)

    # What a command keeps in context variables ends with it, as its process would.
    return contextvars.copy_context().run(invoke)


def cli_process(*arguments: str, **environment: str) -> Done:
    """Run a command in a Python of its own."""
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def loads(done: Done) -> Any:
    """The JSON of a command that went well and had nothing else to say."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)
