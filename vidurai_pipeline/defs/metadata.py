"""What the assets report to Dagster: every label once, and how its value is shown.

A label is written by an asset and read by checks, sensors and the command line under its name here. :class:`Label` is
a type of its own, so the type checker refuses a label that was typed anew.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NewType

import dagster as dg

from vidurai_pipeline.analytics.vector_index import VectorReport
from vidurai_pipeline.analytics.word_index import IndexReport, Recall
from vidurai_pipeline.archival.erasing import EraseReport
from vidurai_pipeline.archival.report import ChoiceReport, PublishReport, PurgeReport, Verification
from vidurai_pipeline.archival.restoring import RestoreReport
from vidurai_pipeline.care.compaction import CompactionReport
from vidurai_pipeline.care.health import ArchiveSize
from vidurai_pipeline.care.retention import ExpiryReport
from vidurai_pipeline.care.scrub import ScrubReport
from vidurai_pipeline.cold.archive import Archive, PublishedFile
from vidurai_pipeline.cold.storage import Traffic
from vidurai_pipeline.errors import NAMED
from vidurai_pipeline.hot.backlog import Backlog
from vidurai_pipeline.hot.schema import MEANINGS, Column
from vidurai_pipeline.hot.store import StoreSize
from vidurai_pipeline.hot.upkeep import Upkeep
from vidurai_pipeline.rl.fleet import FleetReport
from vidurai_pipeline.rl.plots import draw_curve, draw_heat_map
from vidurai_pipeline.rl.report import DreamReport
from vidurai_pipeline.rl.summary import PolicySummary

Label = NewType("Label", str)

# Dagster's own labels, which its UI knows.

#: Rows of the table that the asset stands for, after the run.
ROW_COUNT = Label("dagster/row_count")
COLUMN_SCHEMA = Label("dagster/column_schema")
URI = Label("dagster/uri")

# Labels of several assets.

SECONDS = Label("seconds")
ROWS_PER_SECOND = Label("rows per second")
FILES = Label("files")
#: What was put right, one line each.
NOTES = Label("notes")

# archived_rows

HOT_STORE = Label("hot store")
HOT_STORE_FILE_MB = Label("hot store file (MB)")
MEMORIES = Label("memories in all")
BY_STATUS = Label("by status")
BY_SALIENCE = Label("waiting, by salience")
OLDEST_WAITING = Label("oldest waiting")
NEWEST_WAITING = Label("newest waiting")

# search_index

INDEXED = Label("memories indexed")
FILES_INDEXED = Label("files indexed")
#: How far the index was behind when the step began.
LAG = Label("files that were missing")
INDEX_MB = Label("index (MB)")
#: The share of some memories that their own words find.
INDEX_RECALL = Label("recall of a sample")
EMBEDDED = Label("memories embedded")
WITH_VECTOR = Label("memories with a vector")
#: What later runs embed, as long as `VIDURAI_EMBED_MINUTES` lets them.
WITHOUT_VECTOR = Label("memories without a vector")
VECTORS_MB = Label("vectors (MB)")
EMBEDDING_SECONDS = Label("embedding (s)")

# parquet_archive

ARCHIVE = Label("archive")
#: Memories that this run wrote to new files.
MEMORIES_ARCHIVED = Label("memories archived")
MB_WRITTEN = Label("written (MB)")
MONTHS = Label("month by month")
MONTHS_PLOT = Label("month by month, as a plot")
#: Memories that Parquet can't hold, and that stay hot.
REJECTED = Label("rejected")
REJECTED_MEMORIES = Label("rejected memories")
#: Memories that this run purged to finish an interrupted one.
RECOVERED = Label("recovered")
#: Memories that had expired, came back with a backup, and were purged without being archived.
TOMBSTONED = Label("tombstoned")
#: Files that need a person, one line each.
PROBLEMS = Label("problems")

# purged_rows

#: Memories that this run deleted from the hot store.
MEMORIES_PURGED = Label("memories purged")
#: Memories that changed meanwhile, and stay hot.
KEPT = Label("kept")
ARCHIVE_FILES = Label("archive files")
#: The hot store with its write-ahead log, as the next two.
HOT_MB_BEFORE = Label("hot store and log before (MB)")
HOT_MB_AFTER = Label("hot store and log after (MB)")
#: The hot store without its free pages.
HOT_MB_USED = Label("hot store in use (MB)")
LONGEST_LOCK = Label("longest lock (ms)")
RECLAIMED_MB = Label("reclaimed (MB)")
MERGE_STEPS = Label("search index merge steps")
VACUUM_SECONDS = Label("vacuum (seconds)")
#: What was asked of the object store that the archive is in; nothing of another archive.
OBJECT_STORE = Label("object store")

# q_table

Q_TABLE = Label("Q-table")
EXPERIENCES_LEARNED = Label("experiences learned")
POSITIVE = Label("positive")
NEGATIVE = Label("negative")
TOTAL_REWARD = Label("total reward")
STATES = Label("states")
EPISODES = Label("episodes")
EPSILON = Label("epsilon")
SKIPPED = Label("skipped")
HELD_BACK = Label("held back")
POLICY = Label("policy")
HEAT_MAP = Label("heat map")
LEARNING_CURVE = Label("learning curve")

# archive_is_proved

MB_READ = Label("read (MB)")
INTACT = Label("intact")
DAMAGED = Label("damaged")
MISSING = Label("missing")
ADOPTED = Label("adopted")
UNKNOWN = Label("unknown")
OLDEST_PROOF = Label("oldest proof (days)")
#: Files that are damaged or missing, one line each.
FLAWS = Label("damaged or missing files")

# expired_rows

EXPIRED = Label("memories expired")
#: With a rule of VIDURAI_RETENTION after it: what this rule let expire.
EXPIRED_BY = "expired by "
#: Memories that had expired before, and came back with a backup of the archive.
RETURNED = Label("expired before")
PINNED = Label("kept, pinned")
UNDATED = Label("kept, without a time")
MONTHS_REWRITTEN = Label("months rewritten")
MB_FREED = Label("freed (MB)")

# compact_archive and compacted_months

FILES_BEFORE = Label("files before")
FILES_AFTER = Label("files after")
MB_BEFORE = Label("size before (MB)")
MB_AFTER = Label("size after (MB)")
ROWS_REWRITTEN = Label("rows written anew")
LONGEST_ARCHIVE_LOCK = Label("longest archive lock (s)")

# restore and erase

RESTORED = Label("restored")
ERASED = Label("memories")
ALREADY_HOT = Label("already hot")
REFUSED = Label("refused")
#: Of some of them.
WHY_REFUSED = Label("why")
FILES_REWRITTEN = Label("files rewritten")
PLACES = Label("places")
LEFT = Label("left or refused")
DRY_RUN = Label("dry run")

# fleet_q_table

ITERATIONS = Label("iterations")
RESIDUAL = Label("residual (points)")
STORES = Label("stores")
STORES_LEFT_OUT = Label("stores left out")

# Checks

#: Stores without a good run for too long, and those that can't be used.
BEHIND = Label("behind")
UNUSABLE = Label("can't be used")
LEFT_BY_LAST_RUN = Label("left by the last run")
ROWS = Label("rows")
#: Memories that changed after they were archived.
CHANGED = Label("changed meanwhile")
VALUES = Label("values")
BOUND = Label("bound (points)")
INHERITED = Label("taught by another program only")
WHAT_IS_WRONG = Label("what is wrong")
HELD_OUT = Label("held-out experiences")
OLD_ERROR = Label("error of the table in use (points)")
NEW_ERROR = Label("error of the new table (points)")
MARGIN = Label("margin (points squared)")
WHAT_DIFFERS = Label("what differs")
#: Since when what a check warns of stands.
STANDS_SINCE = Label("stands since")

_Q_TABLE_COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("state", "string", "buckets: working, episodic, tokens, entropy, importance, messages"),
        dg.TableColumn("action", "string", "what the memory layer can do in that state"),
        dg.TableColumn("value", "float64", "what that is worth, in points of reward"),
    ]
)
_SHOWN = 50
_NIGHTS_LOOKED_AT = 100


def materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, runs: int, store: str | None = None
) -> Sequence[dg.EventLogRecord]:
    """An asset's last materializations, newest first; where there are several stores, those of one."""
    which = dg.AssetRecordsFilter(key, asset_partitions=[store]) if store else key
    return instance.fetch_materializations(which, limit=runs).records


def figures(
    instance: dg.DagsterInstance, key: dg.AssetKey, runs: int, store: str | None = None
) -> list[dict[Label, float]]:
    """The numbers that an asset's last materializations reported, newest first."""
    records = materializations(instance, key, runs, store)
    return [numbers(r.asset_materialization.metadata) for r in records if r.asset_materialization]


def numbers(metadata: Mapping[str, dg.MetadataValue]) -> dict[Label, float]:
    """The numbers among an asset's metadata."""
    return {
        Label(name): value.value
        for name, value in metadata.items()
        if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) and value.value is not None
    }


def lines(metadata: Mapping[str, dg.MetadataValue], label: Label) -> list[str]:
    """What :func:`bullets` made a list of; empty if it isn't there."""
    value = metadata.get(label)
    text = value.value or "" if isinstance(value, dg.TextMetadataValue) else ""
    return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]


def records(metadata: Mapping[str, dg.MetadataValue], label: Label) -> list[dict[str, Any]]:
    """The rows of a table; empty if it isn't there."""
    value = metadata.get(label)
    return [dict(record.data) for record in value.records] if isinstance(value, dg.TableMetadataValue) else []


def moment(metadata: Mapping[str, dg.MetadataValue], label: Label) -> float | None:
    """A moment among metadata, in seconds since the epoch."""
    value = metadata.get(label)
    return value.value if isinstance(value, dg.TimestampMetadataValue) else None


def rejected_since(instance: dg.DagsterInstance, key: dg.AssetKey, now: float, store: str | None = None) -> float:
    """Since when each run has rejected memories, in seconds since the epoch: ``now`` if the last one did not."""
    for record in materializations(instance, key, _NIGHTS_LOOKED_AT, store):
        made = record.asset_materialization
        if made is None or not numbers(made.metadata).get(REJECTED):
            break
        now = record.timestamp
    return now


def of_backlog(backlog: Backlog, store: Path) -> dict[str, Any]:
    """What ``archived_rows`` reports."""
    return {
        ROW_COUNT: backlog.waiting,
        COLUMN_SCHEMA: _hot_columns(backlog.columns),
        HOT_STORE: dg.MetadataValue.path(store),
        HOT_STORE_FILE_MB: _mb(backlog.bytes),
        MEMORIES: backlog.total,
        BY_STATUS: _counts("status", backlog.by_status),
        BY_SALIENCE: _counts("salience", backlog.by_salience),
        OLDEST_WAITING: backlog.oldest or "none",
        NEWEST_WAITING: backlog.newest or "none",
    }


def of_publish(
    published: PublishReport, files: Sequence[PublishedFile], archive: Path, seconds: float
) -> dict[str, Any]:
    """What ``parquet_archive`` reports; ``files`` are all of the archive, the new ones among them."""
    recovered = published.recovered
    months = _by_month(files)
    metadata: dict[str, Any] = {
        ROW_COUNT: sum(file.rows for file in files),
        MEMORIES_ARCHIVED: published.rows,
        ARCHIVE: dg.MetadataValue.path(archive),
        MB_WRITTEN: _mb(sum(file.bytes for file in published.files)),
        FILES: _table(
            [
                {"file": str(file.path.relative_to(archive)), "rows": file.rows, "MB": _mb(file.bytes)}
                for file in published.files
            ]
        ),
        MONTHS: _table([{"month": m, "rows": rows, "files": n, "MB": mb} for m, rows, n, mb in reversed(months)]),
        MONTHS_PLOT: _picture("rows of the archive by month", _draw_months(months)),
        REJECTED: len(published.rejected),
        REJECTED_MEMORIES: _table(
            [{"id": one.id, "column": one.column, "reason": one.reason} for one in published.rejected]
        ),
        RECOVERED: recovered.purged,
        TOMBSTONED: recovered.tombstoned,
        **_speed(published.rows, seconds),
        COLUMN_SCHEMA: dg.TableSchema(
            [dg.TableColumn(field.name, str(field.type), MEANINGS.get(field.name)) for field in published.schema]
        ),
        NOTES: bullets(recovered.notes),
        PROBLEMS: bullets(recovered.problems),
    }
    if published.files:
        metadata[URI] = dg.MetadataValue.url(published.files[-1].path.as_uri())
    return metadata


def of_purge(
    purged: PurgeReport,
    upkeep: Upkeep,
    columns: Iterable[Column],
    *,
    sizes: tuple[StoreSize, StoreSize],
    archive: ArchiveSize,
    seconds: float,
) -> dict[str, Any]:
    """What ``purged_rows`` reports; ``sizes`` are the hot store's before the purge and after it."""
    before, after = sizes
    return {
        ROW_COUNT: archive.rows,
        COLUMN_SCHEMA: _hot_columns(columns),
        MEMORIES_PURGED: purged.purged,
        KEPT: purged.kept,
        ARCHIVE_FILES: archive.files,
        HOT_MB_BEFORE: _mb(before.bytes),
        HOT_MB_AFTER: _mb(after.bytes),
        HOT_MB_USED: _mb(after.used_bytes),
        LONGEST_LOCK: round(max(purged.longest_hold, upkeep.longest_hold) * 1000, 1),
        RECLAIMED_MB: _mb(upkeep.reclaimed_bytes),
        MERGE_STEPS: upkeep.merge_steps,
        VACUUM_SECONDS: round(upkeep.vacuum_seconds, 2),
        **_speed(purged.purged, seconds),
        NOTES: bullets(purged.notes + upkeep.notes),
    }


def of_traffic(archive: Archive, before: Traffic) -> dict[str, Any]:
    """What ``purged_rows`` reports of an archive in an object store, since it had that traffic."""
    return {OBJECT_STORE: archive.traffic.since(before)} if archive.working_copy else {}


def of_dream(report: DreamReport, policy: PolicySummary, seconds: float) -> dict[str, Any]:
    """What ``q_table`` reports; ``policy`` is that of the table in use."""
    return {
        ROW_COUNT: sum(len(one.values) for one in policy.states),
        COLUMN_SCHEMA: _Q_TABLE_COLUMNS,
        Q_TABLE: dg.MetadataValue.path(policy.path),
        EXPERIENCES_LEARNED: report.episodes,
        **_speed(report.episodes, seconds),
        POSITIVE: report.positive_rewards,
        NEGATIVE: report.negative_rewards,
        TOTAL_REWARD: round(report.total_reward, 2),
        STATES: len(policy.states),
        EPISODES: report.table_episodes,
        EPSILON: None if report.epsilon is None else round(report.epsilon, 4),
        SKIPPED: sum(report.skipped.values()),
        HELD_BACK: report.held_back,
        POLICY: _table(
            [
                {
                    "state": one.words,
                    "best action": one.best_action.value,
                    "value (points)": round(one.value, 1),
                    "experiences": one.experiences,
                }
                for one in policy.states[:_SHOWN]
            ]
        ),
        HEAT_MAP: _picture("the best action's value by tokens and importance", draw_heat_map(policy)),
        LEARNING_CURVE: _picture("error and reward over the experiences learned", draw_curve(policy)),
    }


def of_fleet(report: FleetReport, seconds: float) -> dict[str, Any]:
    """What ``fleet_q_table`` reports: what was counted, how it was solved, and the gate's verdict in each store."""
    rows = [
        {"store": name, "experiences": one.experiences, "not worse": one.verdict.not_worse, "why": one.verdict.reason}
        for name, one in report.stores.items()
    ]
    return {
        Q_TABLE: dg.MetadataValue.path(report.candidate or report.table),
        EXPERIENCES_LEARNED: report.experiences,
        **_speed(report.experiences, seconds),
        STATES: report.states,
        ITERATIONS: report.iterations,
        RESIDUAL: report.residual,
        STORES: _table(rows[:_SHOWN]),
        STORES_LEFT_OUT: bullets([f"{name}: {reason}" for name, reason in report.left_out.items()]),
    }


def of_restoration(report: RestoreReport) -> dict[str, Any]:
    """What the job ``restore`` reports."""
    return {
        RESTORED: report.restored,
        ALREADY_HOT: report.already_hot,
        REFUSED: len(report.refused),
        WHY_REFUSED: bullets(_refused(report)),
        FILES_REWRITTEN: report.files,
        DRY_RUN: report.dry_run,
    }


def of_erasure(report: EraseReport) -> dict[str, Any]:
    """What the job ``erase`` reports."""
    left = [f"{place.place}: {place.how}" for place in report.places if place.left]
    return {
        ERASED: report.erased,
        REFUSED: len(report.refused),
        PLACES: bullets([f"{place.place}: {place.found:,}, {place.how}" for place in report.places]),
        LEFT: bullets([*left, *_refused(report)]),
        DRY_RUN: report.dry_run,
    }


def _refused(report: ChoiceReport) -> list[str]:
    return [f"memory {one.id}: {one.reason}" for one in report.refused[:NAMED]]


def of_verification(found: Verification) -> dict[str, Any]:
    """What the check before the purge reports."""
    return {
        FILES: found.files,
        ROWS: found.rows,
        CHANGED: found.changed,
        WHAT_DIFFERS: bullets(found.problems[:_SHOWN]),
    }


def of_scrub(report: ScrubReport) -> dict[str, Any]:
    """What ``archive_is_proved`` reports: numbers alone."""
    age = report.oldest_proof_days
    return {
        FILES: report.files,
        MB_READ: _mb(report.bytes),
        INTACT: report.intact,
        DAMAGED: len(report.damaged),
        MISSING: len(report.missing),
        ADOPTED: len(report.adopted),
        UNKNOWN: len(report.unknown),
        **({} if age is None else {OLDEST_PROOF: round(age, 2)}),
    }


def of_expiry(report: ExpiryReport) -> dict[str, Any]:
    """What ``expired_rows`` reports: numbers alone, one for each rule among them."""
    return {
        EXPIRED: report.expired,
        **{f"{EXPIRED_BY}{rule}": count for rule, count in report.rules.items()},
        RETURNED: report.returned,
        PINNED: report.pinned,
        UNDATED: report.undated,
        MONTHS_REWRITTEN: len(report.months),
        MB_FREED: _mb(report.bytes_freed),
    }


def of_index(report: IndexReport, recall: Recall, vectors: VectorReport) -> dict[str, Any]:
    """What ``search_index`` reports."""
    return {
        INDEXED: report.documents,
        FILES_INDEXED: report.files,
        LAG: report.added,
        INDEX_MB: _mb(report.bytes),
        SECONDS: report.seconds,
        **({INDEX_RECALL: recall.found / recall.asked} if recall.asked else {}),
        EMBEDDED: vectors.embedded,
        WITH_VECTOR: vectors.vectors,
        WITHOUT_VECTOR: vectors.memories - vectors.vectors,
        VECTORS_MB: _mb(vectors.bytes),
        EMBEDDING_SECONDS: vectors.seconds,
    }


def of_compaction(report: CompactionReport) -> dict[str, Any]:
    """What a compaction reports: the months' files and their size before and after."""
    return {
        FILES_BEFORE: sum(month.files_before for month in report.months),
        FILES_AFTER: sum(month.files_after for month in report.months),
        MB_BEFORE: _mb(sum(month.bytes_before for month in report.months)),
        MB_AFTER: _mb(sum(month.bytes_after or 0 for month in report.months)),
        ROWS_REWRITTEN: sum(month.rows for month in report.months),
        LONGEST_ARCHIVE_LOCK: report.longest_hold,
    }


def bullets(texts: Sequence[str]) -> dg.MetadataValue:
    """Lines as a list; ``nothing`` if there are none. The UI shows a text in its place, and Markdown at a click."""
    return dg.MetadataValue.text("\n".join(f"- {text}" for text in texts) or "nothing")


def _speed(rows: int, seconds: float) -> dict[str, float]:
    return {SECONDS: round(seconds, 2), ROWS_PER_SECOND: round(rows / seconds) if seconds else 0}


def _mb(size: int) -> float:
    return round(size / 1e6, 3)


def _by_month(files: Iterable[PublishedFile]) -> list[tuple[str, int, int, float]]:
    """Each month with its rows, files and megabytes, in the order of time."""

    def month(file: PublishedFile) -> str:
        found = re.search(r"year=(\d+)/month=(\d+)/[^/]+$", str(file.path))
        return f"{int(found[1]):04}-{int(found[2]):02}" if found else "in no month's folder"

    groups = [(name, list(group)) for name, group in groupby(sorted(files, key=month), month)]
    return [(name, sum(f.rows for f in group), len(group), _mb(sum(f.bytes for f in group))) for name, group in groups]


def _draw_months(months: Sequence[tuple[str, int, int, float]]) -> bytes:
    from matplotlib.figure import Figure  # noqa: PLC0415  (slow to import)
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    names = [name for name, *_ in months]
    figure = Figure(figsize=(9.0, 4.2), dpi=90, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, values, label in ((upper, [m[1] for m in months], "rows"), (lower, [m[3] for m in months], "MB")):
        axes.bar(range(len(months)), values, width=0.8 if len(months) > 1 else 0.2)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    lower.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    lower.xaxis.set_major_formatter(lambda at, _: names[int(at)] if at in range(len(names)) else "")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _counts(name: str, counts: Mapping[str, int]) -> dg.MetadataValue:
    return _table([{name: key, "memories": count} for key, count in counts.items()])


def _table(rows: Sequence[dict[str, Any]]) -> dg.MetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows]) if rows else dg.MetadataValue.text("none")


def _picture(title: str, png: bytes) -> dg.MetadataValue:
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _hot_columns(columns: Iterable[Column]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(c.name, c.declared or "any", MEANINGS.get(c.field)) for c in columns])
