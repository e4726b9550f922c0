"""One Q-table for all stores: there only if ``VIDURAI_FLEET_Q_TABLE`` is set."""

import time

import dagster as dg

from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import OWNERS, q_table
from vidurai_pipeline.defs.resources import Fleet, readable_failures
from vidurai_pipeline.errors import plural, some_of
from vidurai_pipeline.rl.fleet import FleetReport

NOT_WORSE = "fleet_q_table_is_not_worse"


@dg.asset(
    deps=[q_table],
    kinds={"python", "json"},
    group_name="fleet",
    owners=OWNERS,
    check_specs=[
        dg.AssetCheckSpec(
            NOT_WORSE,
            asset="fleet_q_table",
            description="Warns when stores would be better off with their own tables, and names them. Fails when most "
            "of them would, or when the table is not well-formed. It is then kept as a candidate.",
        )
    ],
)
def fleet_q_table(context: dg.AssetExecutionContext, fleet: dg.ResourceParam[Fleet]) -> dg.MaterializeResult:
    """What all stores of the archive have learned together: one Q-table, in Vidurai's own format.

    It is solved from the counts of all their archived experiences, by value iteration. The gate then compares it with
    each store's own table, by the experiences that the store holds out. No store's own table is changed.

    **Next:** look at *stores*. `docs/learning.md` says how an agent is given this table.
    """
    began = time.monotonic()
    with readable_failures():
        report = fleet.learn()
    for name, reason in report.left_out.items():
        context.log.warning(f"The store {name} was left out: {reason}")
    context.log.info(f"{plural(report.experiences, 'experience')} of {plural(len(report.stores), 'store')} counted")
    return dg.MaterializeResult(
        metadata=metadata.of_fleet(report, time.monotonic() - began), check_results=[_not_worse(report)]
    )


def _not_worse(report: FleetReport) -> dg.AssetCheckResult:
    worse = report.worse
    warning = f"these stores should keep their own tables: {some_of(worse)}" if worse else None
    return dg.AssetCheckResult(
        check_name=NOT_WORSE,
        passed=not (report.refused or worse),
        severity=dg.AssetCheckSeverity.ERROR if report.refused else dg.AssetCheckSeverity.WARN,
        description=report.refused or warning or "It is not worse in any store than the store's own table.",
    )


fleet_job = dg.define_asset_job(
    "fleet",
    tags={"team": "memory", "tiers": "cold"},
    selection=dg.AssetSelection.assets(fleet_q_table),
    executor_def=dg.in_process_executor,
    description="Makes one Q-table from the archived experiences of all stores. It only reads the archive.",
)
