"""What keeps the archive sound over the years: the job `care`, and the check that files are still what was written.

Its steps hold no lock from beginning to end, as those of `maintenance` do. Each takes the archive's own lock for one
month at a time, so that a flush waits for some seconds at most. An asset of the group `care` is a step of the job,
except the one that is partitioned by month.
"""

import dagster as dg

from vidurai_pipeline.care.healing import prove
from vidurai_pipeline.care.scrub import ADVICE
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import OWNERS, Common, parquet_archive, purged_rows
from vidurai_pipeline.defs.resources import Tiers, readable_failures
from vidurai_pipeline.errors import plural, some_of

GROUP = "care"
#: The asset of the group that has a partition for each month. A run of the job has no month.
BY_MONTH = "compacted_months"
#: Not that of the assets: a run of `maintenance` must not wait in Dagster's queue for care, nor care for a run.
POOL = "vidurai_care"
STEP_OF_CARE: Common = {"group_name": GROUP, "owners": OWNERS, "pool": POOL}
#: How long a step of care waits for a flush; nobody waits for it.
PATIENCE_SECONDS = 3_600.0


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows], pool=POOL)
def archive_is_proved(context: dg.AssetCheckExecutionContext, tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Reads a share of the archived files again and compares their SHA-256 with what was recorded when they were new.

    Each night reads a share, so that every file is read within `VIDURAI_SCRUB_DAYS`. The check fails when a file is
    damaged or missing and the mirror, if there is one, has no sound copy to heal it from. Queries then refuse to answer
    from it. Restore the file from a backup: docs/operations.md says how. `vidurai-pipeline scrub --all` reads the whole
    archive now.
    """
    with readable_failures():
        report = prove(tiers.cold, days=tiers.settings.scrub_days, repair=True, lock_timeout=PATIENCE_SECONDS)
    figures = metadata.of_scrub(report)
    # The UI plots the numbers of an asset, and not those of its checks.
    context.op_execution_context.log_event(dg.AssetObservation(parquet_archive.key, metadata=figures))
    flaws = report.flaws
    if flaws:
        names = some_of([f"{flaw.file}: {flaw.reason}" for flaw in flaws])
        description = f"{plural(len(flaws), 'file')} damaged or missing: {names}. {ADVICE}"
    else:
        description = f"{plural(report.files, 'file')} read, and nothing is damaged or missing"
        if report.healed:
            description += f"; {plural(len(report.healed), 'file')} healed: {some_of(report.healed)}"
        if report.adopted:
            description += f"; {len(report.adopted):,} had no record and have one now"
    return dg.AssetCheckResult(
        passed=report.sound,
        description=description,
        metadata={**figures, metadata.FLAWS: metadata.bullets([f"{flaw.file}: {flaw.reason}" for flaw in flaws])},
    )


care = dg.define_asset_job(
    "care",
    tags={"team": "memory", "tiers": "cold"},
    selection=(dg.AssetSelection.groups(GROUP) - dg.AssetSelection.key_substring(BY_MONTH))
    | dg.AssetSelection.checks(archive_is_proved),
    executor_def=dg.in_process_executor,
    description="Keeps the archive sound: reads a share of its files again and compares them with what was written, "
    "compacts months that are over, and removes for good what `VIDURAI_RETENTION` lets expire. It holds no lock for "
    "longer than some seconds, so the nightly run need not wait.",
)
