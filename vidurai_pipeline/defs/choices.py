"""The jobs ``restore`` and ``erase``: what is done with memories that a person chooses in the Launchpad."""

import dagster as dg
from pydantic import Field

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.archival.restorer import MemoryRestorer
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import POOL
from vidurai_pipeline.defs.resources import readable_failures
from vidurai_pipeline.errors import plural
from vidurai_pipeline.hot.restoring import RestoreOptions
from vidurai_pipeline.rl.dreamer import DreamCycle


class ChoiceConfig(dg.Config):
    """Which memories, and whether to change anything.

    There is no search by words: Dagster keeps the configuration of its runs.
    """

    ids: list[int] = Field(default=[], description="Ids of memories.")
    where: str | None = Field(
        default=None,
        description="An SQL condition over the columns of `memories`, such as `salience_score >= 4`. Dagster keeps it: "
        "put nothing secret in it.",
    )
    dry_run: bool = Field(default=True, description="Only say what would be done. Set it to false to do it.")


class RestoreConfig(ChoiceConfig):
    """Which memories, and what to do about what the hot store lacks."""

    make_projects: bool = Field(default=False, description="Make projects anew that the hot store no longer has.")
    drop_columns: bool = Field(default=False, description="Leave out what the hot store has no column or table for.")


@dg.op(pool=POOL, out=dg.Out(dg.Nothing))
def restore_memories(
    context: dg.OpExecutionContext, config: RestoreConfig, archiver: dg.ResourceParam[MemoryArchiver]
) -> None:
    """Insert archived memories into Vidurai's store, compare them, then take their copies out of the archive."""
    options = RestoreOptions(drop_columns=config.drop_columns, make_projects=config.make_projects)
    with readable_failures():
        restorer = MemoryRestorer(settings=archiver.settings, archiver=archiver)
        report = restorer.restore(config.ids, config.where or None, dry_run=config.dry_run, options=options)
    done = "would be restored" if config.dry_run else "restored"
    context.log.info(f"{plural(report.restored, 'memory')} {done}, {len(report.refused):,} refused")
    context.add_output_metadata(metadata.of_restoration(report))
    if report.refused and not config.dry_run:
        first = report.refused[0]
        raise dg.Failure(
            description=f"{plural(len(report.refused), 'memory')} could not be restored, such as {first.id}: "
            f"{first.reason}. The others are back.",
            allow_retries=False,
        )


@dg.op(pool=POOL, out=dg.Out(dg.Nothing))
def erase_memories(
    context: dg.OpExecutionContext, config: ChoiceConfig, archiver: dg.ResourceParam[MemoryArchiver]
) -> None:
    """Erase memories from Vidurai's store, the archive and its mirror, then search the files for their text."""
    with readable_failures():
        eraser = MemoryEraser(settings=archiver.settings, archiver=archiver)
        forget = DreamCycle(settings=archiver.settings).forget
        report = eraser.erase(config.ids, config.where or None, dry_run=config.dry_run, forget=forget)
    done = "would be erased" if config.dry_run else "erased"
    context.log.info(f"{plural(report.erased, 'memory')} {done}, {len(report.refused):,} refused")
    figures = metadata.of_erasure(report)
    context.add_output_metadata(figures)
    if not (report.success or config.dry_run):
        left = "; ".join(metadata.lines(figures, metadata.LEFT))
        raise dg.Failure(description=f"Not everything could be erased: {left}", allow_retries=False)


@dg.job(
    name="restore",
    description="Brings archived memories back into Vidurai's store. In the **Launchpad**, name them by `ids` or "
    "by a condition in `where`. Look at the dry run first; then set `dry_run` to `false`.",
    executor_def=dg.in_process_executor,
    tags={"vidurai/job": "restore"},
)
def restore_job() -> None:
    """Bring memories back."""
    restore_memories()


@dg.job(
    name="erase",
    description="Erases memories **for good**, from Vidurai's store, the archive and its mirror. In the **Launchpad**, "
    "name them by `ids` or by a condition in `where`. Look at the dry run first; then set `dry_run` to `false`. "
    "Backups are out of its reach.",
    executor_def=dg.in_process_executor,
    tags={"vidurai/job": "erase"},
)
def erase_job() -> None:
    """Erase memories."""
    erase_memories()
