"""Asset checks: the one before the purge, and those of the tiers' health. Those of `q_table` are its own."""

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care import health
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import POOL, archived_rows, parquet_archive, purged_rows
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.resources import Tiers, readable_failures
from vidurai_pipeline.defs.runs import stuck_runs
from vidurai_pipeline.defs.search import index_agrees_with_archive
from vidurai_pipeline.errors import plural

_RUNS_LOOKED_AT = 3
_SECONDS_FOR_CREDENTIALS = 60.0


@dg.asset_check(asset=parquet_archive, blocking=True, pool=POOL)
def archive_equals_hot_store(archiver: dg.ResourceParam[MemoryArchiver]) -> dg.AssetCheckResult:
    """Reads the new files back and compares every column of every row with SQLite.

    While it fails, nothing is purged. Run the job again to repair it: a file that was damaged before anything was
    purged is set aside, and its memories, which are still in SQLite, are archived again.
    """
    with readable_failures():
        found = archiver.verify()
    if found.passed:
        description = f"{plural(found.rows, 'row')} in {plural(found.files, 'file')} equal what the hot store holds"
        if found.changed:
            description += f", but for {found.changed:,} that the daemon has changed since; those stay hot"
    else:
        description = f"Nothing is purged: {len(found.problems)} of {plural(found.files, 'file')} not as written"
    return dg.AssetCheckResult(passed=found.passed, description=description, metadata=metadata.of_verification(found))


# The checks below hold no lock and wait for no run: they never stand in the purge's way. The job `health` makes them.
# Where a run makes them too, most of them come after its purge: they are about what the run leaves behind.


@dg.asset_check(asset=archived_rows)
def hot_store_is_sound(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Runs SQLite's `quick_check` on the hot store. It reads the whole file and delays no writer."""
    return _result(health.store_integrity(tiers.store))


@dg.asset_check(asset=archived_rows, additional_deps=[purged_rows])
def backlog_shrinks(context: dg.AssetCheckExecutionContext, tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether the runs keep up: fewer memories wait than when the last run began, and it left few behind."""
    waited, left = (
        [
            int(numbers[label])
            for numbers in metadata.figures(context.instance, key, _RUNS_LOOKED_AT, store_of(context.run))
            if label in numbers
        ]
        for key, label in ((archived_rows.key, metadata.ROW_COUNT), (parquet_archive.key, metadata.REJECTED))
    )
    details: dict[str, Any] | None = {metadata.LEFT_BY_LAST_RUN: left[0]} if left else None
    return _result(health.backlog_shrinks(tiers.store, waited, left), details)


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows])
def archive_is_readable(context: dg.AssetCheckExecutionContext, tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether every file of the archive can be opened, and whether it still holds as much as after the last run.

    `vidurai-pipeline doctor` also reads the data in each file.
    """
    known = next(iter(metadata.figures(context.instance, purged_rows.key, 1, store_of(context.run))), {})
    before = (
        health.ArchiveSize(int(known[metadata.ARCHIVE_FILES]), int(known[metadata.ROW_COUNT]))
        if {metadata.ARCHIVE_FILES, metadata.ROW_COUNT} <= known.keys()
        else None
    )
    finding, size = health.archive_readable(tiers.cold, before, thorough=False)
    return _result(finding, {metadata.FILES: size.files, metadata.ROWS: size.rows})


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows])
def no_version_twice(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether the archive holds each version of a memory only once."""
    return _result(health.no_duplicates(tiers.cold))


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows])
def disk_has_room(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether the disks have enough room for the next run."""
    return _result(health.disk_room(tiers.store, tiers.cold))


@dg.asset_check(asset=purged_rows)
def memories_are_in_one_tier(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether no memory is both in the hot store and in the archive."""
    return _result(health.one_tier(tiers.store, tiers.cold))


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows])
def no_run_is_stuck(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Whether no run has been queued or unfinished for too long. Later runs would wait for it."""
    return _result(stuck_runs(context.instance, time.time()))


@dg.asset_check(asset=parquet_archive, additional_deps=[purged_rows])
def no_credentials_are_archived(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Looks in new archive files for what looks like passwords, keys and tokens, and counts it by kind.

    No text is shown. `vidurai-pipeline secrets` lists the memories, and `vidurai-pipeline erase --id` erases one for
    good. `VIDURAI_SECRETS_CHECK=false` turns this check off.
    """
    if not tiers.settings.secrets_check:
        return dg.AssetCheckResult(passed=True, description="turned off by VIDURAI_SECRETS_CHECK")
    return _result(health.no_credentials(tiers.cold, _SECONDS_FOR_CREDENTIALS))


HEALTH_CHECKS = [
    hot_store_is_sound,
    backlog_shrinks,
    archive_is_readable,
    no_version_twice,
    no_credentials_are_archived,
    disk_has_room,
    memories_are_in_one_tier,
    no_run_is_stuck,
    index_agrees_with_archive,
]


def _result(finding: health.Finding, details: Mapping[str, Any] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=finding.status == "ok",
        severity=dg.AssetCheckSeverity.ERROR if finding.status == "failed" else dg.AssetCheckSeverity.WARN,
        description=finding.detail,
        metadata=details,
    )
