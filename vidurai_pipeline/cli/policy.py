"""``vidurai-pipeline policy``: what the Q-table has learned, on the terminal."""

import itertools
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.errors import ConfigError, plural, some_of
from vidurai_pipeline.rl.fleet import FleetReport
from vidurai_pipeline.rl.learning_curve import thin
from vidurai_pipeline.rl.report import DreamReport
from vidurai_pipeline.rl.summary import IMPORTANCE, TOKENS, PolicySummary, bucket_in_words, heat_map, read_summary
from vidurai_pipeline.settings import Hyperparameters, load_settings

_POINTS = 12
_BAR = 30
_LABEL, _CELL = 12, 5


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The most states to list.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Also write PNG files there.")
@format_option("table", "json")
def policy(limit: int, pictures: Path | None, form: str) -> None:
    """Show what was learned.

    The best action in each state, a heat map, and the learning curve.

    For example: vidurai-pipeline policy --limit 5
    """
    settings = load_settings()
    summary = read_summary(settings.q_table_path, Hyperparameters.of(settings))
    output.answer(form, summary, lambda summary: print_policy(summary, limit))
    for path in save_pictures(summary, pictures) if pictures is not None else []:
        click.echo(f"wrote {path}", err=True)


def print_policy(summary: PolicySummary, limit: int) -> None:
    """Print the policy, its heat map and its learning curve.

    Args:
        summary: what was learned.
        limit: how many states to list.
    """
    console = Console()
    profile = summary.hyperparameters.reward_profile.value
    facts = {
        "table": summary.path,
        "trained for": f"{profile}, alpha {summary.hyperparameters.alpha:g}, gamma {summary.hyperparameters.gamma:g}",
        "dreams and conversations": summary.episodes,
        "total reward": f"{summary.total_reward:,.0f} points",
        "random decisions": f"{summary.epsilon:.1%}",
    }
    output.print_facts("Policy", facts)
    if summary.candidate is not None:
        sys.stderr.write(
            f"note: a newer table, {summary.candidate}, was refused and is not in use: `vidurai-pipeline dream` says "
            "why\n"
        )
    if summary.notice is not None:
        sys.stderr.write(f"note: {summary.notice}\n")
    if not summary.states:
        sys.stderr.write("nothing learned yet: `vidurai-pipeline dream` learns from the archive\n")
        return
    console.print()
    rows = [
        (
            one.words,
            one.best_action.value,
            f"{one.value:+.1f}",
            f"{one.experiences:,}" if one.experiences else "-",
            ", ".join(f"{name} {value:+.1f}" for name, value in one.values.items() if name != one.best_action.value),
        )
        for one in summary.states[:limit]
    ]
    output.print_rows(["state", "best action", "value (points)", "experiences", "instead"], rows, "table")
    if (more := len(summary.states) - limit) > 0:
        console.print(f"and {more:,} more states: --limit {len(summary.states)} lists them", highlight=False)
    console.print(f"in all of them: {summary.common}", highlight=False)
    _print_heat_map(console, summary)
    _print_curve(console, summary)


def _print_heat_map(console: Console, summary: PolicySummary) -> None:
    grid = heat_map(summary.states, max(1, (console.width - _LABEL) // _CELL))
    console.print("\n[bold]Value of the best action, in points[/bold] (· nothing learned)")
    for importance, row in zip(grid.importances, grid.cells, strict=True):
        line = Text(f"{bucket_in_words(IMPORTANCE, importance):>{_LABEL - 1}} ")
        for cell in row:
            value = None if cell is None else cell.value
            line.append(f"{'·' if value is None else f'{value:+.0f}':>{_CELL - 1}} ", style=_style(value, grid.most))
        console.print(line)
    labels = (f"{start * 500 / 1000:g}k" if start > 1 else str(start * 500) for start, _ in grid.tokens)
    console.print(Text("importance  " + "".join(f"{label:>{_CELL - 1}} " for label in labels)))
    last = bucket_in_words(TOKENS, grid.tokens[-1][1] - 1)
    console.print(
        f"each column begins at the number of tokens below it; the last includes {last}", style="dim", highlight=False
    )


def _style(value: float | None, most: float) -> str:
    if value is None:
        return "dim"
    share = min(1.0, abs(value) / most)
    red, green, blue = (0, 114, 178) if value > 0 else (213, 94, 0)
    mixed = [round(247 + share * (part - 247)) for part in (red, green, blue)]
    return f"{'white' if share > 0.75 else 'black'} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def _print_curve(console: Console, summary: PolicySummary) -> None:
    curve = thin(summary.curve, _POINTS)
    most = max((point.rms_td_error for point in curve), default=0) or 1.0
    learned = itertools.accumulate(point.experiences for point in curve)
    rows = [
        (
            f"{total:,}",
            point.archived_at[:10],
            f"{point.mean_reward:+.1f}",
            f"{point.rms_td_error:6.1f} {'█' * max(1, round(point.rms_td_error / most * _BAR))}",
        )
        for total, point in zip(learned, curve, strict=True)
    ]
    if rows:
        console.print("\n[bold]Learning curve[/bold]")
        names = ["learned", "archived until", "mean reward", "error before learning (points)"]
        output.print_rows(names, rows, "table")


def save_pictures(summary: PolicySummary, folder: Path) -> list[Path]:
    """Write the heat map and the learning curve as PNG files; returns where they are."""
    from vidurai_pipeline.rl.plots import draw_curve, draw_heat_map  # noqa: PLC0415  (matplotlib is slow to import)

    paths = [folder / "policy.png", folder / "learning_curve.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, picture in zip(paths, (draw_heat_map(summary), draw_curve(summary)), strict=True):
            path.write_bytes(picture)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror}"
        raise ConfigError(f"--pictures: {reason}", "name a folder that you may write") from None
    return paths


def print_fleet(report: FleetReport) -> None:
    """Print what the fleet's table is like, and what it is worth to each store."""
    facts = {
        "counted": f"{plural(report.experiences, 'experience')} of {plural(len(report.stores), 'store')}",
        "table": f"{report.table}: {plural(report.states, 'state')}, solved in {report.iterations} iterations",
    }
    if not report.experiences:
        facts["table"] = "none: there is nothing to learn from yet"
    output.print_facts("Fleet", facts)
    rows = [(name, f"{one.experiences:,}", one.verdict.reason) for name, one in report.stores.items()]
    output.print_rows(["store", "experiences", "the fleet's table, judged in this store"], rows, "table")
    if report.worse:
        sys.stderr.write(f"note: these stores should keep their own tables: {some_of(report.worse)}\n")
    for name, reason in report.left_out.items():
        sys.stderr.write(f"note: the store {name} was left out: {reason}\n")


def print_dream(report: DreamReport, table: Path) -> None:
    """Print what a dream did; what needs attention goes to stderr."""
    learned = plural(report.episodes, "experience")
    if report.episodes:
        learned += f" ({report.positive_rewards:,} good, {report.negative_rewards:,} bad)"
    facts = {
        "learned": learned + (", the whole archive anew" if report.rebuilt else ""),
        "reward": f"{report.total_reward:,.0f} points",
        "learned before": report.already_learned,
    }
    if report.skipped:
        facts["can't be learned"] = "; ".join(f"{count:,} rows: {why}" for why, count in report.skipped.items())
    if report.duplicates:
        facts["further copies"] = report.duplicates
    if report.missing:
        facts["no longer in the archive"] = f"{report.missing:,} experiences, still learned"
    if report.gate:
        facts["judged"] = report.gate.reason
    facts["table"] = f"{table}: {report.states:,} states, epsilon {report.epsilon:.3f}"
    output.print_facts("Dream", facts)
    if report.notice:
        sys.stderr.write(f"note: {report.notice}\n")
