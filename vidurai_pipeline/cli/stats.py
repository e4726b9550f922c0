"""``vidurai-pipeline stats``: the hot store, the archive and the Q-table at a glance."""

import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
from rich import filesize

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cold.listing import list_settled, store_roots
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline.errors import PipelineError
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.settings import Settings, load_settings

_MONTHS = 24
_LONGEST_GAP = 600
#: What the figures are called on the terminal, where their names in JSON don't say it plainly.
_LABELS = {
    "avg_reward_per_episode": "average reward per episode",
    "avg_salience": "average salience (NOISE 1 to CRITICAL 5)",
    "bytes": "size",
    "epsilon": "random decisions",
    "growth_per_month": "memories per month",
    "newest_archive": "last archived",
    "q_table_size": "states",
    "total_memories": "memories",
    "waiting": "waiting to be archived",
}
#: What each store has in the archive, first the one whose last archived memory is the oldest.
_BY_STORE = """
    SELECT store, count(*) AS memories, coalesce(max_by(archived_at, archived_ts), max(archived_at)) AS newest_archive
    FROM history GROUP BY store ORDER BY max(archived_ts), store
"""
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@click.command()
@format_option("table", "json")
def stats(form: str) -> None:
    """Show the hot store, the archive and the Q-table at a glance.

    For example: vidurai-pipeline stats --format json
    """
    view = overview(load_settings())
    output.answer(form, view, print_overview, success=not any("error" in tier for tier in view.values()))


def overview(settings: Settings) -> dict[str, dict[str, Any]]:
    """Figures of each tier; a tier that can't be read has the reason under ``error`` instead."""
    view = {}
    for name, read in (("hot_store", of_hot_store), ("archive", of_archive), ("q_table", of_q_table)):
        try:
            view[name] = read(settings)
        except PipelineError as error:
            view[name] = {"error": str(error)}
    return view


def of_hot_store(settings: Settings) -> dict[str, Any]:
    """The memories by status, and what waits."""
    backlog = MemoryArchiver(settings.db_path, settings.archive_path).backlog()
    return {
        "path": str(settings.db_path),
        "bytes": backlog.bytes,
        "memories": backlog.total,
        "waiting": backlog.waiting,
        "by_status": backlog.by_status,
        "oldest_waiting": backlog.oldest,
        "newest_waiting": backlog.newest,
    }


def of_archive(settings: Settings) -> dict[str, Any]:
    """What the archive holds, month by month, and what was proved."""
    with RepoAnalyst() as analyst:
        stats = analyst.get_memory_stats()
        path, roots = settings.archive_address or settings.archive_path, [settings.archive_path]
        if analyst.stores.several:
            path = settings.archive or settings.archive_root
            roots = [*store_roots(settings.archive_root).values()]
            stats["by_store"] = {row.pop("store"): row for row in analyst.query_archive(_BY_STORE)}
    proofs = [Manifests(root).proofs(list_settled(root)) for root in roots]
    months = stats["by_month"]
    return {
        "path": str(path),
        **stats,
        "growth_per_month": round(sum(months.values()) / len(_without_gaps(months))) if months else 0,
        "oldest_proof": min((one.oldest for one in proofs if one.oldest), default=None),
        "files_never_proved": sum(len(one.unknown) for one in proofs),
    }


def of_q_table(settings: Settings) -> dict[str, Any]:
    """What the table knows."""
    policy = QLearningPolicy.load(
        settings.q_table_path,
        epsilon_max=settings.epsilon_max,
        epsilon_min=settings.epsilon_min,
        epsilon_decay=settings.epsilon_decay,
    )
    return {"path": str(settings.q_table_path), **policy.get_statistics(), "q_table_size": policy.states_tried}


def print_overview(view: dict[str, dict[str, Any]]) -> None:
    """Show the figures; the archive's months, salience and outcomes as small bar charts."""
    titles = {"hot_store": "Hot store", "archive": "Archive", "q_table": "Q-table"}
    for tier, figures in view.items():
        if "error" in figures:
            click.echo(f"{titles[tier]}\n  error: {figures['error']}")
            continue
        charts = {name: figures[name] for name in figures if name.startswith("by_")}
        if figures.get("archive_empty"):  # whose other figures are zeros
            shown = {"path": figures["path"], "memories": "none yet: `vidurai-pipeline run` archives those that wait"}
        elif tier == "q_table" and not Path(figures["path"]).exists():
            shown = {"path": figures["path"], "states": "none yet: `vidurai-pipeline dream` makes the table"}
        else:
            shown = {name: figures[name] for name in figures if name not in (*charts, "archive_empty")}
        facts = {_LABELS.get(name, name.replace("_", " ")): _readable(name, value) for name, value in shown.items()}
        output.print_facts(titles[tier], facts)
        for name, counts in charts.items():
            if counts:
                click.echo(f"  {name.replace('_', ' ')}")
                for line in _CHARTS.get(name, _shares)(counts):
                    click.echo(f"    {line}")


def _shares(counts: Mapping[str, int]) -> list[str]:
    """A chart with each count's share of all."""
    total = sum(counts.values()) or 1
    return output.bar_chart(counts, [f"{count / total:6.1%}" for count in counts.values()])


def _growth(counts: Mapping[str, int]) -> list[str]:
    """A chart of the last two years' months, those without a memory too, with what there was at the end of each."""
    months = _without_gaps(counts)
    totals = [f"{total:,} in all" for total in accumulate(months.values())]
    shown = dict(list(months.items())[-_MONTHS:])
    earlier = [f"({len(months) - _MONTHS} earlier months are not shown)"] if len(months) > _MONTHS else []
    return earlier + output.bar_chart(shown, totals[-len(shown) :])


def _last_archived(stores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A chart of the stores, with when a memory was last archived."""
    counts = {str(name): store["memories"] for name, store in stores.items()}
    return output.bar_chart(counts, [f"last archived {store['newest_archive']}" for store in stores.values()])


_CHARTS: dict[str, Callable[[Any], list[str]]] = {"by_month": _growth, "by_store": _last_archived}


def _without_gaps(counts: Mapping[str, int]) -> dict[str, int]:
    """The months from the first to the last; what is not a month stands before them."""
    numbers = [int(year) * 12 + int(month) - 1 for year, month in (m.split("-") for m in counts if _MONTH.fullmatch(m))]
    others = {name: count for name, count in counts.items() if not _MONTH.fullmatch(name)}
    if not numbers or max(numbers) - min(numbers) > _LONGEST_GAP:  # an odd date; who knows what is between
        return dict(counts)
    names = [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in range(min(numbers), max(numbers) + 1)]
    return others | {name: counts.get(name, 0) for name in names}


def _readable(name: str, value: Any) -> Any:
    if name == "bytes":
        return filesize.decimal(value)
    if name == "epsilon":
        return f"{value:.1%}"
    if name == "maturity":
        return f"{value:.1f}%"
    return f"{value:,.2f}" if isinstance(value, float) else value
