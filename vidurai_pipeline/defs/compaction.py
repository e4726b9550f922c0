"""Compaction: every night by the job `care`, or month by month from the UI."""

import dagster as dg

from vidurai_pipeline.care.compaction import CompactionReport, compact
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import parquet_archive
from vidurai_pipeline.defs.care import PATIENCE_SECONDS, STEP_OF_CARE
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.resources import Tiers, readable_failures
from vidurai_pipeline.errors import plural

#: All months that are over, in UTC as in the archive's folders. Vidurai is younger than the first.
MONTHS = dg.MonthlyPartitionsDefinition(start_date="2020-01", fmt="%Y-%m", timezone="UTC")


@dg.asset(deps=[parquet_archive], partitions_def=MONTHS, kinds={"parquet", "pyarrow"}, **STEP_OF_CARE)
def compacted_months(context: dg.AssetExecutionContext, tiers: dg.ResourceParam[Tiers]) -> dg.MaterializeResult:
    """The past months of the archive, each with few large files instead of many small ones.

    The job `care` compacts a month as soon as it is over, and marks it here. No memory is changed: the same rows are
    read back and compared before the new files take the place of the old ones.

    **Next:** nothing. To compact a month now, materialize its partition. A month that is compact, or that has no files,
    is left as it is. If it fails, the error says why, and the month's files are as they were.
    """
    report = _compacted(context, tiers, context.partition_key)
    _fail(report)
    return dg.MaterializeResult(metadata=metadata.of_compaction(report))


@dg.asset(deps=[parquet_archive], kinds={"parquet", "pyarrow"}, **STEP_OF_CARE)
def compact_archive(context: dg.AssetExecutionContext, tiers: dg.ResourceParam[Tiers]) -> dg.MaterializeResult:
    """All months that are over, with their small files put together.

    A query takes time for each file that it opens. When a month is over, its small files become few. The current month
    is left alone. The plots show how many files the past months have, and their size.

    **Next:** nothing. If it failed, the error names the month and the reason; the other months were compacted. Correct
    that, then run the job `care` or `vidurai-pipeline compact`. To compact one month, use `compacted_months`.
    """
    report = _compacted(context, tiers, None)
    for month in [] if store_of(context.run) else report.months:  # there is no asset of each store's months
        if month.rows and MONTHS.has_partition_key(month.month):
            figures = metadata.of_compaction(CompactionReport(months=[month]))
            context.log_event(dg.AssetMaterialization(compacted_months.key, partition=month.month, metadata=figures))
    _fail(report)
    return dg.MaterializeResult(metadata=metadata.of_compaction(report))


def _compacted(context: dg.AssetExecutionContext, tiers: Tiers, month: str | None) -> CompactionReport:
    with readable_failures():
        report = compact(tiers.cold, month=month, lock_timeout=PATIENCE_SECONDS)
    for done in report.months:
        if done.rows:
            files = f"{plural(done.files_before, 'file')} became {done.files_after:,}"
            context.log.info(f"{done.month}: {files}, with {plural(done.rows, 'row')} written anew")
    return report


def _fail(report: CompactionReport) -> None:
    """Let the step fail, at its end, if a month could not be compacted."""
    if failed := [month for month in report.months if month.error]:
        more = f" (and {plural(len(failed) - 1, 'more month')})" if len(failed) > 1 else ""
        raise dg.Failure(description=f"{failed[0].month}: {failed[0].error}{more}", allow_retries=False)
