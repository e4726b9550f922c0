"""The four assets, in the order in which a memory passes through them.

``vidurai_store`` → ``archived_rows`` → ``parquet_archive`` → (check) → ``purged_rows`` → ``q_table`` →
``vidurai_agent``. The first and the last belong to Vidurai: they are shown, and never made here.

They hand each other nothing but order: what a step leaves for the next one stands on the disk, so each can be
run again alone, after a crash too.
"""

import time
from collections.abc import Sequence
from typing import TypedDict

import dagster as dg
from dagster_duckdb import DuckDBResource

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.health import archive_readable
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.partitions import store_of
from vidurai_pipeline.defs.resources import Dreams, Tiers, readable_failures
from vidurai_pipeline.errors import plural
from vidurai_pipeline.hot.salvage import Rejected
from vidurai_pipeline.rl.evaluation import Verdict
from vidurai_pipeline.rl.summary import PolicySummary

GROUP = "memory_lifecycle"
OWNERS = ["team:memory"]
#: Runs that hold this pool wait for each other in Dagster's queue.
POOL = "vidurai_archive"


class Common(TypedDict):
    """What the assets of a group have in common."""

    group_name: str
    owners: list[str]
    pool: str


LIFECYCLE: Common = {"group_name": GROUP, "owners": OWNERS, "pool": POOL}
NEEDS_NOBODY = "no_file_needs_a_person"
NONE_REJECTED = "no_memory_is_rejected"
WELL_FORMED = "q_table_is_well_formed"
NOT_WORSE = "q_table_is_not_worse"

vidurai_store = dg.AssetSpec(
    "vidurai_store",
    kinds={"sqlite"},
    group_name=GROUP,
    owners=OWNERS,
    description="Vidurai's SQLite store, the hot store. Vidurai writes to it all day; this pipeline never makes it. A "
    "memory waits to be archived once Vidurai sets its `status` to `ARCHIVED`.",
)


@dg.asset(deps=[vidurai_store], kinds={"sqlite"}, **LIFECYCLE)
def archived_rows(
    context: dg.AssetExecutionContext, archiver: dg.ResourceParam[MemoryArchiver]
) -> dg.MaterializeResult:
    """The memories that **wait** in Vidurai's SQLite store: their `status` is `ARCHIVED`.

    This step only looks. If it fails, the store is missing, damaged, or too old to have a `status` column. The error
    says which. Nothing was changed.

    **Next:** *Materialize all* in the job `maintenance` archives them now. The schedule `nightly` does every night.
    """
    with readable_failures():
        backlog = archiver.backlog()
    context.log.info(f"{plural(backlog.waiting, 'memory')} of {backlog.total:,} wait to be archived")
    return dg.MaterializeResult(metadata=metadata.of_backlog(backlog, archiver.store.path))


@dg.asset(
    deps=[archived_rows],
    kinds={"parquet", "pyarrow"},
    **LIFECYCLE,
    check_specs=[
        dg.AssetCheckSpec(
            NEEDS_NOBODY,
            asset="parquet_archive",
            description="Fails when a file that held the only copy of a memory is damaged or gone. It does not stop "
            "the run: undamaged memories are still archived.",
        ),
        dg.AssetCheckSpec(
            NONE_REJECTED,
            asset="parquet_archive",
            description="Warns when memories stay in SQLite because Parquet can't hold them exactly. An alert is sent "
            "if they are still there the next night.",
        ),
    ],
)
def parquet_archive(
    context: dg.AssetExecutionContext, archiver: dg.ResourceParam[MemoryArchiver]
) -> dg.MaterializeResult:
    """The archive: Parquet files, partitioned by the month in which the memories were archived.

    Each new file was synced to disk, read back and compared with the store before it became visible. Memories that
    Parquet can't hold exactly stay in SQLite and are listed under *rejected*. If an earlier run was interrupted, its
    work was finished first (*recovered*).

    **Next:** look at *Checks*. While `archive_equals_hot_store` fails, nothing is purged: run the job again. Correct
    *rejected* memories in SQLite, or leave them there. Query the archive with `vidurai-pipeline query` and `search`.
    """
    with readable_failures():
        began = time.monotonic()
        published = archiver.publish()
        seconds = time.monotonic() - began
        # The new files wait for the purge, and are not counted yet.
        _, settled = archive_readable(archiver.archive, thorough=False)
    files = [*settled.contents, *published.files]
    context.log.info(
        f"{plural(published.rows, 'memory')} written to {plural(len(published.files), 'new file')}, "
        f"{len(published.rejected):,} rejected; the archive holds {plural(sum(file.rows for file in files), 'memory')}"
    )
    for line in published.recovered.notes:
        context.log.warning(line)
    for line in (problems := published.recovered.problems):
        context.log.error(line)
    healthy = dg.AssetCheckResult(
        check_name=NEEDS_NOBODY,
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description=problems[0] if problems else "Every file of an interrupted run could be finished or written anew.",
    )
    return dg.MaterializeResult(
        metadata=metadata.of_publish(published, files, archiver.archive.root, seconds),
        check_results=[healthy, _rejection(context, published.rejected)],
    )


def _rejection(context: dg.AssetExecutionContext, rejected: Sequence[Rejected]) -> dg.AssetCheckResult:
    if not rejected:
        return dg.AssetCheckResult(check_name=NONE_REJECTED, passed=True, description="No memory was rejected.")
    first = rejected[0]
    since = metadata.rejected_since(
        context.instance, dg.AssetKey("parquet_archive"), time.time(), store_of(context.run)
    )
    return dg.AssetCheckResult(
        check_name=NONE_REJECTED,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{plural(len(rejected), 'memory')} can't be archived and stay in SQLite, such as id {first.id}: "
        f"column {first.column}: {first.reason}. See *rejected memories*, and correct them in SQLite.",
        metadata={metadata.STANDS_SINCE: dg.MetadataValue.timestamp(since)},
    )


@dg.op(ins={"parquet_archive": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), pool=POOL)
def purge(context: dg.OpExecutionContext, archiver: dg.ResourceParam[MemoryArchiver]) -> None:
    """Delete archived memories from the hot store, each only if it still equals its archived copy."""
    with readable_failures():
        columns = archiver.backlog().columns
        before = archiver.size()
        began = time.monotonic()
        traffic = archiver.archive.traffic
        purged = archiver.purge()
        seconds = time.monotonic() - began
        upkeep = archiver.keep_small(purged.purged)
        sizes = before, archiver.size()
        _, archive = archive_readable(archiver.archive, thorough=False)
    for line in purged.notes + upkeep.notes:
        context.log.warning(line)
    context.log.info(
        f"{plural(purged.purged, 'memory')} purged from SQLite, {purged.kept:,} kept because they changed meanwhile"
    )
    context.add_output_metadata(
        metadata.of_purge(purged, upkeep, columns, sizes=sizes, archive=archive, seconds=seconds)
        | metadata.of_traffic(archiver.archive, traffic)
    )


purged_rows = dg.AssetsDefinition.from_op(
    purge,
    keys_by_input_name={"parquet_archive": parquet_archive.key},
    keys_by_output_name={"result": dg.AssetKey("purged_rows")},
    group_name=GROUP,
    descriptions_by_output_name={
        "result": "The memories that are **gone** from Vidurai's SQLite store, with their search index entries and "
        "audience gists, and are now in the archive only.\n\nA memory is deleted only if its row still equals the copy "
        "read back from the archive; this is checked inside the deleting transaction. Memories that changed meanwhile "
        "(*kept*) stay in SQLite, and their copies are taken out of the archive. If this step fails, the memories that "
        "it had not deleted yet are still in SQLite.\n\n"
        "**Next:** nothing. If it failed, read the error, then run the job again: it continues where this run stopped."
    },
).map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, kinds={"sqlite"}))


@dg.asset(
    deps=[purged_rows],
    kinds={"python", "json"},
    **LIFECYCLE,
    check_specs=[
        dg.AssetCheckSpec(
            WELL_FORMED,
            asset="q_table",
            description="Fails when a value is not finite or not possible, an action is unknown, or a state can't be "
            "read. It looks at the table in use and at a new one, which does not replace the one in use if it fails.",
        ),
        dg.AssetCheckSpec(
            NOT_WORSE,
            asset="q_table",
            description="Fails when the new table predicts held-out experiences worse than the table in use. The new "
            "table is then kept as a candidate, the table in use stays, and the next dream learns the same experiences "
            "again. `docs/learning.md` explains the method and its limits.",
        ),
    ],
)
def q_table(
    context: dg.AssetExecutionContext,
    dream: dg.ResourceParam[Dreams],
    tiers: dg.ResourceParam[Tiers],
    duckdb: DuckDBResource,
) -> dg.MaterializeResult:
    """What Vidurai's agent has learned about keeping memories: a Q-table, trained offline, in Vidurai's own format.

    Each archived memory with an outcome (-1 or 1) trains it once, in the order of archival.

    A new table that is damaged, or predicts held-out experiences worse than the one in use, does not replace it. It is
    kept beside it as a candidate, and the checks say why.

    **Next:** nothing. If it failed, the archive was only read: `vidurai-pipeline dream` tries again, and
    `vidurai-pipeline dream --rebuild` learns the whole archive from the beginning.
    """
    began = time.monotonic()
    with readable_failures(), duckdb.get_connection() as connection:
        report = dream(connection).dream()
    if report.gate is not None and not report.gate.passed:
        context.log.error(report.error)
    elif not report.success:
        raise dg.Failure(description=report.error, allow_retries=False)
    with readable_failures():
        policy = tiers.policy()
    if report.skipped:
        context.log.warning(f"memories that could not be learned from, by reason: {report.skipped}")
    context.log.info(
        f"{plural(report.episodes, 'experience')} learned; the table knows {plural(len(policy.states), 'state')}"
    )
    return dg.MaterializeResult(
        metadata=metadata.of_dream(report, policy, time.monotonic() - began),
        check_results=[_well_formed(policy, report.gate), _not_worse(report.gate)],
    )


def _well_formed(policy: PolicySummary, gate: Verdict | None) -> dg.AssetCheckResult:
    faults = policy.faults or (gate.faults if gate else [])
    values = sum(len(one.values) for one in policy.states)
    return dg.AssetCheckResult(
        check_name=WELL_FORMED,
        passed=not faults,
        description=faults[0]
        if faults
        else f"{plural(values, 'value')} in {plural(len(policy.states), 'state')} are well-formed",
        metadata={
            metadata.VALUES: values,
            metadata.BOUND: round(policy.bound, 2),
            metadata.INHERITED: policy.inherited,
            metadata.WHAT_IS_WRONG: metadata.bullets(faults),
        },
    )


def _not_worse(gate: Verdict | None) -> dg.AssetCheckResult:
    if gate is None:
        return dg.AssetCheckResult(
            check_name=NOT_WORSE, passed=True, description="no new table: there was nothing to learn"
        )
    numbers = {
        metadata.HELD_OUT: gate.held_out,
        metadata.OLD_ERROR: gate.old_error,
        metadata.NEW_ERROR: gate.new_error,
        metadata.MARGIN: gate.margin,
    }
    return dg.AssetCheckResult(
        check_name=NOT_WORSE,
        passed=gate.not_worse is not False,
        severity=dg.AssetCheckSeverity.ERROR if gate.enforced else dg.AssetCheckSeverity.WARN,
        description=gate.reason,
        metadata={name: round(value, 2) for name, value in numbers.items() if value is not None},
    )


vidurai_agent = dg.AssetSpec(
    "vidurai_agent",
    deps=[q_table],
    kinds={"python"},
    group_name=GROUP,
    owners=OWNERS,
    description="Vidurai's agent, which reads the Q-table to decide what to do with new memories. It belongs to "
    "Vidurai; this pipeline never runs it.",
)
