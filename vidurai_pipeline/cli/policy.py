"""What the Q-table has learned, on the terminal."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidurai_pipeline.cli import output
from vidurai_pipeline.rl.learning_curve import thin
from vidurai_pipeline.rl.summary import IMPORTANCE, TOKENS, Insight, bucket_in_words, heat_map

_POINTS = 12
_BAR = 30
_LABEL, _CELL = 12, 5


def print_policy(insight: Insight, limit: int) -> None:
    """Print the policy, its heat map and its learning curve.

    Args:
        insight: what was learned.
        limit: how many states to list.
    """
    console = Console()
    profile = insight.parameters.reward_profile.value
    facts = {
        "table": insight.path,
        "trained for": f"{profile}, alpha {insight.parameters.alpha:g}, gamma {insight.parameters.gamma:g}",
        "dreams and conversations": insight.episodes,
        "total reward": f"{insight.total_reward:,.0f} points",
        "random decisions": f"{insight.epsilon:.1%}",
    }
    output.print_facts("Policy", facts)
    if insight.candidate is not None:
        sys.stderr.write(
            f"note: a newer table, {insight.candidate}, was found worse and is not in use; `vidurai-pipeline dream` "
            "tells why\n"
        )
    if not insight.states:
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
        for one in insight.states[:limit]
    ]
    output.print_rows(["state", "best action", "value (points)", "experiences", "instead"], rows, "table")
    if (more := len(insight.states) - limit) > 0:
        console.print(f"and {more:,} more states: --limit {len(insight.states)} lists them", highlight=False)
    console.print(f"in all of them: {insight.common}", highlight=False)
    _print_heat_map(console, insight)
    _print_curve(console, insight)


def _print_heat_map(console: Console, insight: Insight) -> None:
    grid = heat_map(insight.states, max(1, (console.width - _LABEL) // _CELL))
    most = max([1.0, *(abs(value) for row in grid.values for value in row if value is not None)])
    console.print("\n[bold]Value of the best action, in points[/bold] (· nothing learned)")
    for importance, row in zip(grid.importances, grid.values, strict=True):
        line = Text(f"{bucket_in_words(IMPORTANCE, importance):>{_LABEL - 1}} ")
        for value in row:
            line.append(f"{'·' if value is None else f'{value:+.0f}':>{_CELL - 1}} ", style=_style(value, most))
        console.print(line)
    labels = (f"{start * 500 / 1000:g}k" if start > 1 else str(start * 500) for start, _ in grid.tokens)
    console.print(Text("importance  " + "".join(f"{label:>{_CELL - 1}} " for label in labels)))
    last = bucket_in_words(TOKENS, grid.tokens[-1][1] - 1)
    console.print(
        f"across: tokens, from the number below each column; the last ends with {last}", style="dim", highlight=False
    )


def _style(value: float | None, most: float) -> str:
    if value is None:
        return "dim"
    share = min(1.0, abs(value) / most)
    red, green, blue = (0, 114, 178) if value > 0 else (213, 94, 0)
    mixed = [round(247 + share * (part - 247)) for part in (red, green, blue)]
    return f"{'white' if share > 0.75 else 'black'} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def _print_curve(console: Console, insight: Insight) -> None:
    if not insight.curve:
        return
    console.print("\n[bold]Learning curve[/bold]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("learned", justify="right")
    table.add_column("archived until")
    table.add_column("mean reward", justify="right")
    table.add_column("error before learning (points)")
    curve = thin(insight.curve, _POINTS)
    most = max(point.surprise for point in curve) or 1.0
    learned = 0
    for point in curve:
        learned += point.experiences
        bar = "█" * max(1, round(point.surprise / most * _BAR))
        table.add_row(
            f"{learned:,}", point.archived_at[:10], f"{point.mean_reward:+.1f}", f"{point.surprise:6.1f} {bar}"
        )
    console.print(table, highlight=False)


def save_pictures(insight: Insight, folder: Path) -> list[Path]:
    """Write the heat map and the learning curve as PNG files; returns where they are."""
    from vidurai_pipeline.rl.plots import draw_curve, draw_heat_map  # noqa: PLC0415  (matplotlib is slow to import)

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "policy.png", folder / "learning_curve.png"]
    for path, picture in zip(paths, (draw_heat_map(insight), draw_curve(insight)), strict=True):
        path.write_bytes(picture)
    return paths


def print_dream(stats: dict, table: Path) -> None:
    """Print what a dream did; what needs attention goes to stderr."""
    learned = f"{stats['episodes']:,} experiences"
    if stats["episodes"]:
        learned += f" ({stats['positive_rewards']:,} good, {stats['negative_rewards']:,} bad)"
    facts = {
        "learned": learned + (", the whole archive anew" if stats["rebuilt"] else ""),
        "reward": f"{stats['total_reward']:,.0f} points",
        "learned before": stats["already_learned"],
    }
    if stats["skipped"]:
        facts["can't be learned"] = "; ".join(f"{count:,} rows: {why}" for why, count in stats["skipped"].items())
    if stats["duplicates"]:
        facts["further copies"] = stats["duplicates"]
    if stats["missing"]:
        facts["no longer in the archive"] = f"{stats['missing']:,} experiences, still learned"
    if stats["gate"]:
        facts["judged"] = stats["gate"]["reason"]
    facts["table"] = f"{table}: {stats['states']:,} states, epsilon {stats['epsilon']:.3f}"
    output.print_facts("Dream", facts)
    if stats["notice"]:
        sys.stderr.write(f"note: {stats['notice']}\n")
