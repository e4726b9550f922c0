"""How the command line shows things: tables on a terminal, plain lines elsewhere, JSON and CSV on request."""

import contextlib
import csv
import io
import itertools
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from vidurai_pipeline.cli import text
from vidurai_pipeline.errors import NAMED, plural

if TYPE_CHECKING:
    from vidurai_pipeline.archival.report import ChoiceReport


Report = TypeVar("Report")
_EXIT_CODE = "vidurai_pipeline.exit_code"
_LAST_STANDARD = 2
_ROWS_PER_TABLE = 1_000
# Of a column whose values are longer, this much must fit; the rest goes on below.
_READABLE = 16
_NULL = "·"
_SHORTEST_BAR, _LONGEST_BAR = 5, 40
# What stands left of a bar chart and between its columns.
_INDENT = 10
# What a step has done when Ctrl-C stops it, where its name doesn't say it.
_DONE = {"archiving": "written", "verifying": "verified", "purging": "purged", "writing": "written"}


def open_standard_streams() -> None:
    """Send what is printed nowhere if the caller (cron, some service managers) has closed the standard streams.

    Otherwise the next file that is opened, the archive's perhaps, would get the number of the standard output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def program() -> str:
    """What to type for this program: its name, or how it was started if that name is not on PATH."""
    if shutil.which("vidurai-pipeline"):
        return "vidurai-pipeline"
    if os.access(sys.argv[0], os.X_OK):
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m vidurai_pipeline"


def close_standard_streams() -> None:
    """Write what is still to be written; what nobody reads any more is dropped, and is no error at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class ProgressLine:
    """Shows how far a long step is, on a terminal, once it has taken a moment. Call it as a ``Progress``."""

    #: Seconds after which a step counts as long.
    slow_seconds = 0.2

    def __init__(self) -> None:
        try:
            # A descriptor of its own: while a Dagster run goes on, Dagster captures the usual one.
            self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
        except OSError:  # the standard error is no file: nobody looks on
            self._stream = io.StringIO()
        self._console = Console(file=self._stream)
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._reached: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt and self._reached:
            say("note", [f"done so far: {self.reached}"])
        self._stream.close()

    @property
    def reached(self) -> str:
        """How far each step has come, in words; empty if none has begun."""
        return ", ".join(self._reached.values())

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell how many of how many memories a stage has dealt with."""
        self._reached[stage] = f"{done:,}{f' of {total:,}' if total else ''} {_DONE.get(stage, stage)}"
        if not self._console.is_terminal or time.monotonic() - self._began < self.slow_seconds:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None)


def print_json(value: Any) -> None:
    """Print one JSON value, whatever types DuckDB put into it."""
    sys.stdout.write(text.to_json(value, indent=2) + "\n")


def print_rows(names: Sequence[str], rows: Iterable[Sequence[Any]], form: str) -> None:
    """Print the rows of a query as ``table``, ``json`` or ``csv``; JSON and CSV are written as the rows come."""
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([text.cell(value) for value in row] for row in rows)
    elif form == "json":
        _print_json_rows(names, rows)
    elif sys.stdout.isatty():
        console = Console()
        parts = _tables(console, names, rows)
        first = next(parts)
        following = next(parts, None)
        if following is None and first.count("\n") < console.height:
            sys.stdout.write(first)
        else:
            click.echo_via_pager(itertools.chain([first], [following] if following else [], parts))
    else:
        sys.stdout.write("\t".join(names) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(text.flat(text.cell(value)) for value in row) + "\n")


def _tables(console: Console, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The rows as tables, or one below the other where they are too wide; a part at a time, their number at the end."""
    rows = iter(rows)
    count = 0
    wide = None
    nulls = False
    while True:
        values = list(itertools.islice(rows, _ROWS_PER_TABLE))
        nulls = nulls or any(value is None for row in values for value in row)
        part = [[text.cell(value, null=_NULL) for value in row] for row in values]
        wide = _too_wide(console, names, part) if wide is None else wide
        with console.capture() as captured:
            if wide:
                _print_records(console, names, part, count)
            elif part or count == 0:
                table = Table(
                    *(Column(text.visible(name)) for name in names), header_style="bold", row_styles=["", "dim"]
                )
                for row in part:
                    table.add_row(*map(text.visible, row))
                console.print(table)
            count += len(part)
            last = len(part) < _ROWS_PER_TABLE
            if last:
                console.print(f"[dim]{plural(count, 'row')}{f'; {_NULL} is NULL' if nulls else ''}", highlight=False)
        yield captured.get()
        if last:
            return


def _too_wide(console: Console, names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table of the rows would have to squeeze its columns until nothing in them can be read."""
    columns = zip(names, *rows, strict=True)
    needed = (min(_READABLE, max(map(cell_len, column))) + 3 for column in columns)
    return bool(rows) and sum(needed) + 1 > console.width


def _print_records(console: Console, names: Sequence[str], rows: Sequence[Sequence[str]], before: int) -> None:
    """Each row as a block of names and values, as psql's expanded mode shows it."""
    # The same text twice helps nobody.
    shown = [n for n, name in enumerate(names) if not (name == "content" and "verbatim" in names)]
    for number, row in enumerate(rows, before + 1):
        table = Table(show_header=False, box=None, pad_edge=False, expand=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for n in shown:
            table.add_row(text.visible(names[n]), text.visible(row[n]))
        console.rule(f"[dim]row {number:,}", align="left", style="dim")
        console.print(table)


def _print_json_rows(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    first = True
    for row in rows:
        sys.stdout.write("[\n  " if first else ",\n  ")
        sys.stdout.write(text.to_json(dict(zip(names, row, strict=True))))
        first = False
    sys.stdout.write("[]\n" if first else "\n]\n")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values: a small table on a terminal, ``name: value`` lines elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{title}\n")
        for name, value in facts.items():
            sys.stdout.write(f"  {name}: {text.fact(value)}\n")
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(text.visible(f"  {name}"), text.visible(text.fact(value)))
    Console().print(table)


def say(kind: str, lines: Iterable[str], most: int | None = None) -> None:
    """Print lines on stderr, each after its kind, such as ``note``; at most some of them."""
    lines = list(lines)
    shown = [text.one_line(line) for line in lines[:most]]
    if more := len(lines) - len(shown):
        shown.append(f"and {more:,} more; `--format json` lists them all")
    for line in shown:
        click.echo(f"{kind}: {line}", err=True)


def say_refused(report: "ChoiceReport") -> None:
    """Say with which of the chosen memories nothing was done, and why."""
    say("refused", [f"memory {one.id}: {one.reason}" for one in report.refused], NAMED)


def print_attention(rejected: Sequence[Mapping[str, Any]], notes: Sequence[str], errors: Sequence[str]) -> None:
    """Say which memories stay hot and why, what was put right, and what went wrong."""
    say("rejected", [f"memory {row['id']}: {row['column']}: {row['reason']}" for row in rejected], NAMED)
    say("note", notes)
    say("error", errors)


def end_with(code: int, error: str | None = None) -> None:
    """Let the command end with this exit code, also if nobody reads to the end what it prints from here on."""
    click.get_current_context().meta[_EXIT_CODE] = code
    if error is not None:
        with contextlib.suppress(BrokenPipeError):
            say("error", [error])


def exit_code() -> int:
    """The code that the command is to end with."""
    return click.get_current_context().meta.get(_EXIT_CODE, 0)


def answer(form: str, report: Report, show: Callable[[Report], None], *, success: bool = True) -> None:
    """Print a report as JSON (its ``to_dict()`` where it has one) or as ``show`` does; no success is exit code 1."""
    end_with(int(not success))
    if form == "json":
        print_json(getattr(report, "to_dict", lambda: report)())
    else:
        show(report)


def bar_chart(counts: Mapping[str, int], notes: Sequence[str]) -> list[str]:
    """Lines of a horizontal bar chart: name, bar, count and note."""
    most = max(counts.values(), default=0)
    label = max((len(name) for name in counts), default=0)
    digits = len(f"{most:,}")
    rest = label + digits + max(map(len, notes), default=0) + _INDENT
    width = min(_LONGEST_BAR, max(_SHORTEST_BAR, Console().width - rest)) if sys.stdout.isatty() else _LONGEST_BAR
    bars = ["█" * (max(1, round(count / most * width)) if count else 0) for count in counts.values()]
    return [
        f"{name:<{label}}  {bar:<{width}}  {count:>{digits},}  {note}"
        for (name, count), bar, note in zip(counts.items(), bars, notes, strict=True)
    ]
