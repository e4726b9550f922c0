"""The four assets, in the order in which a memory passes through them.

``archived_rows`` → ``parquet_archive`` → (check) → ``purged_rows`` → ``q_table``

They hand each other nothing but order: what a step leaves for the next one stands on the disk, so each can be
run again alone, after a crash too.
"""

import base64
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster_duckdb import DuckDBResource

from vidurai_pipeline.cold.archive import PublishedFile
from vidurai_pipeline.defs.resources import ArchiverResource, DreamResource, readable_failures
from vidurai_pipeline.health import archive_readable
from vidurai_pipeline.hot.schema import MEANINGS, Column
from vidurai_pipeline.rl.plots import draw_curve, draw_heat_map

GROUP = "memory_lifecycle"
OWNERS = ["team:memory"]
#: Runs that hold this pool wait for each other in Dagster's queue.
POOL = "vidurai_archive"
NEEDS_NOBODY = "no_file_needs_a_person"
#: The entry of the Q-table's metadata that holds the gate's verdict.
GATE = "gate"
Q_TABLE_COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("state", "string", "buckets: working, episodic, tokens, entropy, importance, messages"),
        dg.TableColumn("action", "string", "what the memory layer can do in that state"),
        dg.TableColumn("value", "float64", "what that is worth, in points of reward"),
    ]
)
_SHOWN = 50
_LINKED = 5


@dg.asset(kinds={"sqlite"}, group_name=GROUP, owners=OWNERS, pool=POOL)
def archived_rows(archiver: ArchiverResource) -> dg.MaterializeResult:
    """The memories that wait in Vidurai's SQLite store to be archived: those whose `status` is `ARCHIVED`.

    This step only looks. If it fails, the store is missing, damaged, or of a schema from before `status` existed;
    the error says which, and nothing was touched.

    **Next:** *Materialize all* under *Lineage* archives them; by itself the schedule `nightly` does.
    """
    with readable_failures():
        backlog = archiver.archiver.backlog()
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": backlog.waiting,
            "dagster/column_schema": _hot_columns(backlog.columns),
            "hot store": dg.MetadataValue.path(archiver.hot_store),
            "hot store bytes": backlog.bytes,
            "memories in all": backlog.total,
            "by status": _counts("status", backlog.by_status),
            "waiting, by salience": _counts("salience", backlog.by_salience),
            "oldest waiting": backlog.oldest or "none",
            "newest waiting": backlog.newest or "none",
        }
    )


@dg.asset(
    deps=[archived_rows],
    kinds={"parquet", "pyarrow"},
    group_name=GROUP,
    owners=OWNERS,
    pool=POOL,
    check_specs=[
        dg.AssetCheckSpec(
            NEEDS_NOBODY,
            asset="parquet_archive",
            description="Fails when a file that held the only copy of a memory is damaged or gone. It does not block: "
            "what is whole goes on.",
        )
    ],
)
def parquet_archive(context: dg.AssetExecutionContext, archiver: ArchiverResource) -> dg.MaterializeResult:
    """The Parquet files that this run published, partitioned by the month of archival.

    Each file was written beside its place, synced, read back and compared with the store's snapshot before it
    became visible. Memories that Parquet can't hold faithfully stay hot and are named under *rejected*.
    If an earlier run was interrupted, its work was finished first (*recovered*).

    **Next:** look at *Checks*. While `archive_equals_hot_store` fails, nothing is purged: run the job again. Correct
    *rejected* memories in SQLite, or leave them there. Ask the archive: `vidurai-pipeline query` and `search`.
    """
    with readable_failures():
        began = time.monotonic()
        batch = archiver.archiver.publish()
        seconds = time.monotonic() - began
    for line in batch.recovered.notes:
        context.log.warning(line)
    for line in batch.recovered.problems:
        context.log.error(line)
    metadata: dict[str, Any] = {
        "dagster/row_count": batch.rows,
        "archive": dg.MetadataValue.path(archiver.archive),
        "bytes": sum(file.bytes for file in batch.files),
        "files": _table([{"file": _below(f.path, archiver), "rows": f.rows, "bytes": f.bytes} for f in batch.files]),
        "rejected": len(batch.rejected),
        "recovered": batch.recovered.purged,
        **_speed(batch.rows, seconds),
        **_links(batch.files),
        "dagster/column_schema": _file_columns(batch.schema),
        "dagster/column_lineage": _lineage(batch.schema),
    }
    metadata["report"] = dg.MetadataValue.json(
        {
            "files": [str(file.path) for file in batch.files],
            "rejected": [{"id": r.id, "column": r.column, "reason": r.reason} for r in batch.rejected],
            "notes": batch.recovered.notes,
            "problems": batch.recovered.problems,
        }
    )
    if batch.rejected:
        rows = [{"id": str(r.id), "column": r.column, "reason": r.reason} for r in batch.rejected[:_SHOWN]]
        metadata["rejected memories"] = _table(rows)
    if lines := batch.recovered.notes + batch.recovered.problems:
        metadata["attention"] = dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))
    problems = batch.recovered.problems
    healthy = dg.AssetCheckResult(
        check_name=NEEDS_NOBODY,
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description=problems[0] if problems else "no file of an interrupted run is beyond help",
    )
    return dg.MaterializeResult(metadata=metadata, check_results=[healthy])


@dg.op(ins={"parquet_archive": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), pool=POOL)
def purge(context: dg.OpExecutionContext, archiver: ArchiverResource) -> None:
    """Delete archived memories from the hot store, each only if it still equals its archived copy."""
    with readable_failures():
        columns = archiver.archiver.backlog().columns
        before = archiver.archiver.size()
        began = time.monotonic()
        result = archiver.archiver.purge()
        seconds = time.monotonic() - began
        upkeep = archiver.archiver.keep_small(result.purged)
        after = archiver.archiver.size()
        _, holds = archive_readable(archiver.archiver.archive, thorough=False)
    notes = result.notes + upkeep.notes
    for line in notes:
        context.log.warning(line)
    context.add_output_metadata(
        {
            "dagster/row_count": result.purged,
            "dagster/column_schema": _hot_columns(columns),
            "kept": result.kept,
            "archive files": holds.files,
            "archive rows": holds.rows,
            "hot store bytes before": before.bytes,
            "hot store bytes": after.bytes,
            "hot store bytes in use": after.used_bytes,
            "files": _table([{"file": _below(path, archiver)} for path in result.files]),
            "longest lock (ms)": round(max(result.longest_hold, upkeep.longest_hold) * 1000, 1),
            "reclaimed bytes": upkeep.reclaimed_bytes,
            "search index merge steps": upkeep.merge_steps,
            "vacuum (seconds)": round(upkeep.vacuum_seconds, 3),
            **_speed(result.purged, seconds),
            "report": dg.MetadataValue.json({"notes": notes}),
        }
    )


purged_rows = dg.AssetsDefinition.from_op(
    purge,
    keys_by_input_name={"parquet_archive": parquet_archive.key},
    keys_by_output_name={"result": dg.AssetKey("purged_rows")},
    group_name=GROUP,
    descriptions_by_output_name={
        "result": "The memories that this run deleted from Vidurai's SQLite store, with their search index entries "
        "and audience gists.\n\nA memory goes only if, inside the deleting transaction, its row equals the copy read "
        "back from the archive. Those that changed meanwhile (*kept*) stay hot, and their copies leave the archive. "
        "If this step fails, nothing is lost: every memory is in the archive or still hot.\n\n"
        "**Next:** nothing. If it failed, run the job again: it goes on where this one stopped."
    },
).map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS, kinds={"sqlite"}))


@dg.asset(deps=[purged_rows], kinds={"python", "json"}, group_name=GROUP, owners=OWNERS, pool=POOL)
def q_table(
    context: dg.AssetExecutionContext,
    archiver: ArchiverResource,  # noqa: ARG001  (for its lock)
    dream: DreamResource,
    duckdb: DuckDBResource,
) -> dg.MaterializeResult:
    """What Vidurai's agent has learned about keeping memories: a Q-table, trained offline.

    Each archived memory with an outcome (-1 or 1) trains it once, in order of archival. The file is
    in Vidurai's own format.

    A table that is damaged, or foretells held-out experiences worse than the one in use, does not replace it: it is
    kept beside it as a candidate, and the checks say why.

    **Next:** nothing. If it failed, the archive is safe all the same: `vidurai-pipeline dream` tries again,
    `vidurai-pipeline dream --rebuild` learns the whole archive anew.
    """
    began = time.monotonic()
    with readable_failures(), duckdb.get_connection() as connection:
        stats = dream.dream_cycle(connection).run()
    refused = stats["gate"] is not None and not stats["gate"]["passed"]
    if refused:
        context.log.error(stats["error"])
    elif not stats["success"]:
        raise dg.Failure(description=stats["error"], allow_retries=False)
    with readable_failures():
        insight = dream.insight()
    if stats["skipped"]:
        context.log.warning(f"memories that could not be learned from, by reason: {stats['skipped']}")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": stats["states"],
            "dagster/column_schema": Q_TABLE_COLUMNS,
            "Q-table": dg.MetadataValue.path(dream.q_table),
            "experiences learned": stats["episodes"],
            **_speed(stats["episodes"], time.monotonic() - began),
            "positive": stats["positive_rewards"],
            "negative": stats["negative_rewards"],
            "total reward": stats["total_reward"],
            "states": stats["states"],
            "episodes": stats["table_episodes"],
            "epsilon": stats["epsilon"],
            "skipped": sum(stats["skipped"].values()),
            "held back": stats["held_back"],
            GATE: dg.MetadataValue.json(stats["gate"] or {}),
            "policy": _table(
                [
                    {
                        "state": one.words,
                        "best action": one.best_action.value,
                        "value (points)": round(one.value, 1),
                        "experiences": one.experiences,
                    }
                    for one in insight.states[:_SHOWN]
                ]
            ),
            "heat map": _picture("the best action's value by tokens and importance", draw_heat_map(insight)),
            "learning curve": _picture("error and reward over the experiences learned", draw_curve(insight)),
        }
    )


def _speed(rows: int, seconds: float) -> dict[str, float]:
    return {"seconds": round(seconds, 3), "rows per second": round(rows / seconds, 1) if seconds else 0.0}


def _links(files: Sequence[PublishedFile]) -> dict[str, dg.MetadataValue]:
    """The first files as paths, which the UI copies at a click, and the newest one under Dagster's own name."""
    links = {f"file {n}": dg.MetadataValue.path(file.path) for n, file in enumerate(files[:_LINKED], 1)}
    return {**links, "dagster/uri": dg.MetadataValue.url(files[-1].path.as_uri())} if files else {}


def _counts(name: str, counts: dict[str, int]) -> dg.MetadataValue:
    return _table([{name: key, "memories": count} for key, count in counts.items()])


def _picture(title: str, png: bytes) -> dg.MetadataValue:
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _table(rows: Sequence[dict[str, Any]]) -> dg.MetadataValue:
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])


def _below(path: Path, archiver: ArchiverResource) -> str:
    """A file's path as the archive's reader knows it, short enough for a table."""
    return os.path.relpath(path, archiver.archive)


def _lineage(schema: pa.Schema) -> dg.TableColumnLineage:
    """Which column of the hot store each column of the files was read from; what has none was made here."""
    return dg.TableColumnLineage(
        {
            field.name: [dg.TableColumnDep(archived_rows.key, field.metadata[b"sqlite_column"].decode())]
            for field in schema
            if field.metadata and b"sqlite_column" in field.metadata
        }
    )


def _hot_columns(columns: Iterable[Column]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(c.name, c.declared or "any", MEANINGS.get(c.field)) for c in columns])


def _file_columns(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type), MEANINGS.get(field.name)) for field in schema])
