"""The hot store, the archive and the Q-table at a glance."""

from collections.abc import Callable
from typing import Any

import click

from vidurai_pipeline import display
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.config import Settings
from vidurai_pipeline.errors import PipelineError
from vidurai_pipeline.rl.policy import QLearningPolicy


def overview(settings: Settings) -> dict[str, dict[str, Any]]:
    """Figures of each tier; a tier that can't be read has the reason under ``error`` instead."""
    return {
        "hot_store": _or_error(lambda: _hot_store(settings)),
        "archive": _or_error(lambda: _archive(settings)),
        "q_table": _or_error(lambda: _q_table(settings)),
    }


def _or_error(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except PipelineError as error:
        return {"error": str(error)}


def _hot_store(settings: Settings) -> dict[str, Any]:
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


def _archive(settings: Settings) -> dict[str, Any]:
    with RepoAnalyst(settings.archive_path) as analyst:
        return {"path": str(settings.archive_path), **analyst.get_memory_stats()}


def _q_table(settings: Settings) -> dict[str, Any]:
    policy = QLearningPolicy.load(
        settings.q_table_path,
        epsilon_max=settings.epsilon_max,
        epsilon_min=settings.epsilon_min,
        epsilon_decay=settings.epsilon_decay,
    )
    return {"path": str(settings.q_table_path), **policy.get_statistics()}


def print_overview(view: dict[str, dict[str, Any]]) -> None:
    """Show the figures; the archive's months, salience and outcomes as small bar charts."""
    titles = {"hot_store": "Hot store", "archive": "Archive", "q_table": "Q-table"}
    for tier, figures in view.items():
        if "error" in figures:
            click.echo(f"{titles[tier]}\n  error: {figures['error']}")
            continue
        charts = {name: figures[name] for name in figures if name.startswith("by_")}
        facts = {
            name.replace("_", " "): _readable(name, value) for name, value in figures.items() if name not in charts
        }
        display.print_facts(titles[tier], facts)
        for name, counts in charts.items():
            if counts:
                click.echo(f"  {name.replace('_', ' ')}")
                for line in display.bar_chart(counts):
                    click.echo(f"    {line}")


def _readable(name: str, value: Any) -> Any:
    if name == "bytes":
        return display.human_bytes(value)
    return f"{value:.3f}" if isinstance(value, float) else value
