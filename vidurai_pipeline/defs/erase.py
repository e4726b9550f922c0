"""The job ``erase``: erase memories for good, from the Launchpad."""

import dagster as dg
from pydantic import Field

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.defs.assets import POOL
from vidurai_pipeline.defs.metadata import bullets
from vidurai_pipeline.defs.resources import readable_failures
from vidurai_pipeline.errors import NAMED, plural
from vidurai_pipeline.rl.dreamer import DreamCycle


class EraseConfig(dg.Config):
    """Which memories to erase. There is no search by words: Dagster keeps the configuration of its runs."""

    ids: list[int] = Field(default=[], description="Ids of memories to erase.")
    where: str | None = Field(
        default=None,
        description="An SQL condition over the columns of `memories`. Dagster keeps it: put nothing secret in it.",
    )
    dry_run: bool = Field(default=True, description="Only count what would be erased. Set it to false to erase.")


@dg.op(pool=POOL, out=dg.Out(dg.Nothing))
def erase_memories(
    context: dg.OpExecutionContext, config: EraseConfig, archiver: dg.ResourceParam[MemoryArchiver]
) -> None:
    """Erase memories from Vidurai's store, the archive and its mirror, then search the files for their text."""
    with readable_failures():
        eraser = MemoryEraser(settings=archiver.settings, archiver=archiver)
        forget = DreamCycle(settings=archiver.settings).forget
        report = eraser.erase(config.ids, config.where, dry_run=config.dry_run, forget=forget)
    done = "would be erased" if config.dry_run else "erased"
    context.log.info(f"{plural(report.erased, 'memory')} {done}, {len(report.refused):,} refused")
    left = [f"{place.place}: {place.how}" for place in report.places if place.left]
    left += [f"memory {refusal.id}: {refusal.reason}" for refusal in report.refused[:NAMED]]
    context.add_output_metadata(
        {
            "memories": report.erased,
            "refused": len(report.refused),
            "places": bullets([f"{place.place}: {place.found:,}, {place.how}" for place in report.places]),
            "left or refused": bullets(left),
            "dry run": report.dry_run,
        }
    )
    if left and not config.dry_run:
        raise dg.Failure(description=f"Not everything could be erased: {'; '.join(left)}", allow_retries=False)


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
