"""``vidurai-pipeline dream``."""

from typing import Any

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.options import format_option
from vidurai_pipeline.cli.policy import print_dream, print_fleet
from vidurai_pipeline.cold.listing import list_settled
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.stores import q_tables
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.fleet import learn_fleet
from vidurai_pipeline.settings import load_settings


@click.command()
@click.option("--rebuild", is_flag=True, help="Learn the whole archive again, from an empty table.")
@click.option(
    "--order",
    type=click.Choice(["chronological", "newest-first"]),
    default="chronological",
    show_default=True,
    help="The order of learning. newest-first needs --rebuild; it is how Vidurai's own dreamer learns.",
)
@click.option("--fleet", is_flag=True, help="Make one table from all stores of the archive, and judge it in each.")
@format_option("table", "json")
def dream(rebuild: bool, order: Any, fleet: bool, form: str) -> None:
    """Learn from the archive what is worth keeping.

    Trains the Q-table on the archived memories with an outcome that it has not learned yet. With --fleet, the stores'
    own tables stay as they are, and the common one is written to VIDURAI_FLEET_Q_TABLE.

    For example: vidurai-pipeline dream --rebuild
    """
    if order == "newest-first" and not rebuild:
        raise ConfigError("--order newest-first can't add to a table learned in another order", "add --rebuild")
    if fleet and (rebuild or order != "chronological"):
        raise ConfigError("--fleet goes with neither --rebuild nor --order", "it always counts everything, in no order")
    settings = load_settings()
    if fleet:
        common = learn_fleet(settings, q_tables(settings))
        output.answer(form, common, print_fleet, success=common.refused is None)
        if common.refused:
            output.end_with(1, f"{common.refused}; it is kept as {common.candidate}")
        return
    archive = open_archive(settings)
    empty = not list_settled(archive.root)
    with archive.lock("dream", settings.lock_timeout, make=False):
        report = DreamCycle(settings=settings).dream(rebuild=rebuild, order=order)
    if form == "json":
        output.print_json(report.to_dict())
    elif report.success:
        print_dream(report, settings.q_table_path)
    if not report.success:
        output.end_with(1, str(report.error))
    elif empty:
        output.say("note", [f"no archive in {settings.archive_path} yet: `vidurai-pipeline flush` makes it"])
