"""The command line: the list of its commands, and how each of them ends.

A command is the function of its own name in the module of that name. The module is loaded when the command is called,
since Dagster, DuckDB and Arrow are slow to import. A command calls one thing and shows what came back.
"""

import sys
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from vidurai_pipeline.cli import output
from vidurai_pipeline.errors import MORE_MEMORY, ConfigError, PipelineError, QueryError, QueryTimeoutError
from vidurai_pipeline.settings import unknown_variables

COMMANDS = {
    "compact": "Put the many small files of past months together.",
    "demo": "Make a sample hot store in FOLDER, for a machine without Vidurai.",
    "doctor": "Check settings, stores and files, and whether the tiers agree.",
    "dream": "Learn from the archive what is worth keeping.",
    "erase": "Erase memories for good, wherever they are, and prove it.",
    "expire": "Remove archived memories that are older than the rules allow.",
    "flush": "Archive and purge, without Dagster and without learning.",
    "home": "Print where Dagster keeps its history.",
    "index": "Bring the search index in line with the archive.",
    "mcp": "Let coding assistants search the memories (Model Context Protocol).",
    "move-into-store": "Move the archive into a folder of its own, so that other stores can share its place.",
    "new-key": "Make a key that new archive files are encrypted with.",
    "policy": "Show what was learned.",
    "query": "Run SQL over the memories.",
    "rekey": "Encrypt archived files with the newest key.",
    "restore": "Bring archived memories back into the hot store.",
    "run": "Archive, verify, purge and learn: the nightly job, now.",
    "salvage": "Save what can be read of a damaged file of the archive.",
    "scrub": "Prove that archived files are still what was written.",
    "search": "Find memories by words in their gist, text, tags or path.",
    "secrets": "List archived memories that look as if they hold credentials.",
    "show": "Show one memory, whole, and where it is.",
    "stats": "Show the hot store, the archive and the Q-table at a glance.",
    "ui": "Open Dagster's UI.",
}
#: Commands that go on where they were stopped.
RESUMABLE = {"compact", "dream", "erase", "expire", "flush", "index", "rekey", "restore", "run", "scrub"}


class CommandGroup(click.Group):
    """Shows the errors that users are meant to read as one line, and ends with the exit code that `--help` promises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        return getattr(import_module(f"vidurai_pipeline.cli.{name}"), name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary.removesuffix(".")) for name, summary in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [CompletionItem(name, help=said) for name, said in COMMANDS.items() if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; what click itself refuses is told in the same form as all other errors."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.UsageError as error:
            if error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
                click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
            output.say("error", [error.format_message()])
            code = error.exit_code
        except click.Abort:
            output.say("error", ["stopped"])
            code = 1
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> None:
        output.open_standard_streams()
        try:
            output.say("warning", unknown_variables())
            super().invoke(ctx)
        except PipelineError as error:
            wrong = 2 if isinstance(error, ConfigError | QueryError) else 1
            output.end_with(4 if isinstance(error, QueryTimeoutError) else wrong, str(error))
        except MemoryError:
            output.end_with(2, MORE_MEMORY)
        except KeyboardInterrupt:
            again = "; running it again goes on from there" if ctx.invoked_subcommand in RESUMABLE else ""
            output.end_with(1, f"stopped by Ctrl-C{again}")
        except BrokenPipeError:  # the reader (head, less) has seen enough
            pass
        except OSError as error:
            output.end_with(1, f"{error.filename or 'output'}: {error.strerror}")
        output.close_standard_streams()
        ctx.exit(output.exit_code())


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vidurai-pipeline")
def main() -> None:
    """Move archived memories from Vidurai's SQLite store to Parquet, query them, and learn from them.

    VIDURAI_HOME says where Vidurai's folder is (default ~/.vidurai). VIDURAI_DB, VIDURAI_ARCHIVE and VIDURAI_Q_TABLE
    name the hot store, the archive and the Q-table one by one.

    Exit code 0: done; 1: it failed; 2: the request was wrong; 3: answered without damaged files (`--skip-damaged`);
    4: the time was up.
    """


if __name__ == "__main__":
    main()
