"""Asset checks."""

import dagster as dg

from vidurai_pipeline.assets import POOL, parquet_archive
from vidurai_pipeline.resources import ArchiverResource, readable_failures

_SHOWN = 20


@dg.asset_check(asset=parquet_archive, blocking=True, pool=POOL)
def archive_equals_hot_store(archiver: ArchiverResource) -> dg.AssetCheckResult:
    """Reads the published files back and compares every column of every row with SQLite.

    It blocks: while it fails, nothing is purged. Run the job again to put a failure right: a file that was damaged
    before anything was purged is set aside, and its memories, which are still hot, are archived anew.
    """
    with readable_failures():
        found = archiver.archiver.verify()
    if found.passed:
        description = f"{found.rows:,} rows in {found.files} files equal their rows in the hot store"
        if found.changed:
            description += f", but for {found.changed:,} that the daemon has changed since; those stay hot"
    else:
        description = f"Nothing is purged: {len(found.problems)} of {found.files} files are not what was written"
    return dg.AssetCheckResult(
        passed=found.passed,
        description=description,
        metadata={
            "files": found.files,
            "rows": found.rows,
            "changed meanwhile": found.changed,
            "what differs": dg.MetadataValue.md(
                "\n".join(f"- {line}" for line in found.problems[:_SHOWN]) or "nothing"
            ),
        },
    )
