"""Asset checks."""

from typing import Any

import dagster as dg

from vidurai_pipeline.assets import GATE, POOL, parquet_archive, q_table
from vidurai_pipeline.resources import ArchiverResource, DreamResource, readable_failures

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


@dg.asset_check(asset=q_table, pool=POOL)
def q_table_is_well_formed(context: dg.AssetCheckExecutionContext, dream: DreamResource) -> dg.AssetCheckResult:
    """Values are finite and within the bound that rewards and discount allow, actions known, states readable.

    It looks at the table in use, and at the one that the last dream learned. If that one is not well-formed, it stands
    beside the table in use as a candidate, and the table in use was not changed.
    """
    with readable_failures():
        found = dream.insight()
    values = sum(len(one.values) for one in found.states)
    faults = found.faults or list(_last_verdict(context).get("faults", ()))
    return dg.AssetCheckResult(
        passed=not faults,
        description=faults[0] if faults else f"{values:,} values in {len(found.states):,} states are well-formed",
        metadata={
            "states": len(found.states),
            "values": values,
            "bound (points)": found.bound,
            "taught by another program only": found.inherited,
            "what is wrong": dg.MetadataValue.md("\n".join(f"- {line}" for line in faults) or "nothing"),
        },
    )


@dg.asset_check(asset=q_table, pool=POOL)
def q_table_is_not_worse(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The new table foretells held-out experiences no worse than the one in use, within what chance explains.

    While it fails, the new table is a candidate beside the one in use, and nothing of what it learned counts as
    learned. See docs/learning.md for the method and its limits.
    """
    verdict = _last_verdict(context)
    if not verdict:
        return dg.AssetCheckResult(passed=True, description="no new table: there was nothing to learn")
    numbers = {
        "held-out experiences": verdict["held_out"],
        "error of the table in use (points)": verdict["old_error"],
        "error of the new table (points)": verdict["new_error"],
        "margin (points squared)": verdict["margin"],
    }
    return dg.AssetCheckResult(
        passed=verdict["not_worse"] is not False,
        severity=dg.AssetCheckSeverity.ERROR if verdict["enforced"] else dg.AssetCheckSeverity.WARN,
        description=verdict["reason"],
        metadata={name: value for name, value in numbers.items() if value is not None},
    )


def _last_verdict(context: dg.AssetCheckExecutionContext) -> dict[str, Any]:
    """What the gate said in the last dream that Dagster ran; nothing if it had no new table."""
    event = context.instance.get_latest_materialization_event(q_table.key)
    made = event.asset_materialization if event is not None else None
    found = made.metadata.get(GATE) if made is not None else None
    return found.value if isinstance(found, dg.JsonMetadataValue) and isinstance(found.value, dict) else {}
