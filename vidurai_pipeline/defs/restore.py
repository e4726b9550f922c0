"""The job ``restore``: bring archived memories back, from the Launchpad."""

import dagster as dg
from pydantic import Field

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.restorer import MemoryRestorer
from vidurai_pipeline.defs.assets import POOL
from vidurai_pipeline.defs.metadata import bullets
from vidurai_pipeline.defs.resources import readable_failures
from vidurai_pipeline.errors import NAMED, plural
from vidurai_pipeline.hot.restoring import RestoreOptions


class RestoreConfig(dg.Config):
    """Which memories to restore."""

    ids: list[int] = Field(default=[], description="Ids of memories to restore.")
    where: str = Field(
        default="", description="An SQL condition over the columns of `memories`, such as `salience_score >= 4`."
    )
    dry_run: bool = Field(default=True, description="Only say what would be restored. Set it to false to restore.")
    make_projects: bool = Field(default=False, description="Make projects anew that the hot store no longer has.")
    drop_columns: bool = Field(default=False, description="Leave out what the hot store has no column or table for.")


@dg.op(pool=POOL, out=dg.Out(dg.Nothing))
def restore_memories(
    context: dg.OpExecutionContext, config: RestoreConfig, archiver: dg.ResourceParam[MemoryArchiver]
) -> None:
    """Insert archived memories into Vidurai's store, compare them, then take their copies out of the archive."""
    with readable_failures():
        restorer = MemoryRestorer(settings=archiver.settings, archiver=archiver)
        report = restorer.restore(
            config.ids,
            config.where or None,
            dry_run=config.dry_run,
            options=RestoreOptions(drop_columns=config.drop_columns, make_projects=config.make_projects),
        )
    done = "would be restored" if config.dry_run else "restored"
    context.log.info(f"{plural(report.restored, 'memory')} {done}, {len(report.refused):,} refused")
    context.add_output_metadata(
        {
            "restored": report.restored,
            "already hot": report.already_hot,
            "refused": len(report.refused),
            "why": bullets([f"memory {one.id}: {one.reason}" for one in report.refused[:NAMED]]),
            "files rewritten": report.files,
            "dry run": report.dry_run,
        }
    )
    if report.refused and not config.dry_run:
        raise dg.Failure(
            description=f"{plural(len(report.refused), 'memory')} could not be restored, such as "
            f"{report.refused[0].id}: {report.refused[0].reason}. The others are back.",
            allow_retries=False,
        )


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
