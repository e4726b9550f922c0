"""How the command line shows things: tables on a terminal, plain lines elsewhere, JSON and CSV on request."""

import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_SLOW_SECONDS = 1.0
_SHOWN = 20


class ProgressLine:
    """Shows how far a long step is, on a terminal, once it has taken a second. Call it as a ``Progress``."""

    def __init__(self) -> None:
        # A descriptor of its own: while a Dagster run goes on, Dagster captures the usual one.
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
        self._console = Console(file=self._stream)
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._stream.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell how many of how many memories a stage has dealt with."""
        if not self._console.is_terminal or time.monotonic() - self._began < _SLOW_SECONDS:
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
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=_plain)
    sys.stdout.write("\n")


def print_rows(names: Sequence[str], rows: Iterable[Sequence[Any]], form: str) -> None:
    """Print the rows of a query as ``table``, ``json`` or ``csv``; JSON and CSV are written as the rows come."""
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(value) for value in row] for row in rows)
    elif form == "json":
        _print_json_rows(names, rows)
    elif sys.stdout.isatty():
        table = Table(*(escape(name) for name in names), header_style="bold", row_styles=["", "dim"])
        count = 0
        for row in rows:
            table.add_row(*(escape(_cell(value, null="·")) for value in row))
            count += 1
        console = Console()
        if count > console.height - 6:
            with console.pager():
                console.print(table)
        else:
            console.print(table)
        console.print(f"[dim]{count:,} {'row' if count == 1 else 'rows'}")
    else:
        sys.stdout.write("\t".join(names) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(_flat(_cell(value)) for value in row) + "\n")


def _print_json_rows(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    first = True
    for row in rows:
        sys.stdout.write("[\n  " if first else ",\n  ")
        json.dump(dict(zip(names, row, strict=True)), sys.stdout, ensure_ascii=False, default=_plain)
        first = False
    sys.stdout.write("[]\n" if first else "\n]\n")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values: a small table on a terminal, ``name: value`` lines elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{title}\n")
        for name, value in facts.items():
            sys.stdout.write(f"  {name}: {_fact(value)}\n")
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(f"  {escape(name)}", escape(_fact(value)))
    Console().print(table)


def print_attention(rejected: Sequence[Mapping[str, Any]], notes: Sequence[str], errors: Sequence[str]) -> None:
    """Say on stderr which memories stay hot and why, what was put right, and what went wrong."""
    lines = [f"rejected: memory {row['id']}: {row['column']}: {row['reason']}" for row in rejected[:_SHOWN]]
    if (more := len(rejected) - len(lines)) > 0:
        lines.append(f"rejected: and {more:,} more; `--format json` lists them all")
    lines += [f"note: {line}" for line in notes]
    lines += [f"error: {line}" for line in errors]
    for line in lines:
        sys.stderr.write(f"{line}\n")


def bar_chart(counts: Mapping[str, int], width: int = 40) -> list[str]:
    """Lines of a horizontal bar chart."""
    most = max(counts.values(), default=0)
    label = max((len(name) for name in counts), default=0)
    return [
        f"{name:<{label}}  {'█' * max(1, round(count / most * width)) if count else '':<{width}}  {count:,}"
        for name, count in counts.items()
    ]


def human_bytes(size: int) -> str:
    """A number of bytes as people write it."""
    value = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _cell(value: Any, null: str = "") -> str:
    if value is None:
        return null
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(_plain(value)) if isinstance(value, datetime | date | bytes) else str(value)


def _flat(text: str) -> str:
    """A cell that can't break its line."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
