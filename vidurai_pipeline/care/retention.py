"""Remove archived memories that are older than the rules of ``VIDURAI_RETENTION`` allow.

A memory's age counts from its `created_at`, which is UTC where it names no zone. A memory that is pinned, or whose
`created_at` is missing or no time, never expires. If several rules fit, the longest counts.

Month by month, under the archive's lock: first the tombstones are written, then the month's files are rewritten without
the rows that have one. A run that dies in between leaves tombstones whose rows are still there; the next run removes
them, and so it does with rows that came back with a backup of the archive.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import Progress, archive_errors, no_progress
from vidurai_pipeline.cold.listing import ArchiveFile, by_folder, list_settled, quote_literal, require_archive
from vidurai_pipeline.cold.rewriting import read_recorded, rewrite_folder
from vidurai_pipeline.cold.tombstones import DIGESTED, SCHEMA, UTC_FOOTER, digests
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.settings import RetentionRule

_BYTES_PER_FILE = 64 * 1024 * 1024
_JUDGED = ("id", "created_at", "salience", "event_type", "project_name", "pinned")
_TAUGHT = ("archived_at", "outcome")


@dataclass
class _Leaving:
    """Rows of a folder that are to leave; the fields are those of the report."""

    files: list[ArchiveFile] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    returned: int = 0
    pinned: int = 0
    undated: int = 0
    bytes: int = 0


@dataclass
class ExpiryReport:
    """What an expiry removed, or in a dry run would remove.

    Attributes:
        expired: memories that left the archive because of a rule.
        rules: how many of them each rule removed.
        returned: memories that no rule fits any more, but that expired before and came back with a backup.
        pinned: memories that a rule would have removed, had they not been pinned.
        undated: memories that a rule fits, but whose `created_at` is missing or no time.
        months: the folders whose files were rewritten.
        bytes_freed: how much smaller these files are now.
        problems: folders that could not be dealt with, and why.
        dry_run: nothing was changed.
    """

    expired: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    returned: int = 0
    pinned: int = 0
    undated: int = 0
    months: list[str] = field(default_factory=list)
    bytes_freed: int = 0
    problems: list[str] = field(default_factory=list)
    dry_run: bool = False

    @property
    def success(self) -> bool:
        """Whether every folder could be dealt with."""
        return not self.problems

    def add(self, folder: str, leaving: _Leaving) -> None:
        """Count what leaves, or has left, a folder."""
        if leaving.files:
            self.months.append(folder)
        for rule, count in leaving.rules.items():
            self.rules[rule] += count
        self.expired += leaving.rules.total()
        self.returned += leaving.returned
        self.pinned += leaving.pinned
        self.undated += leaving.undated
        self.bytes_freed += leaving.bytes

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return asdict(self)


def expire(
    archive: Archive,
    rules: Sequence[RetentionRule],
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    rows_per_file: int = 50_000,
    lock_timeout: float = 0.0,
    progress: Progress = no_progress,
) -> ExpiryReport:
    """Remove expired memories from the archive.

    Args:
        archive: the archive.
        rules: how long which memories are kept; without any, only what came back with a backup leaves.
        dry_run: only count.
        now: the moment that ages are counted to, with a zone; by default this one.
        rows_per_file: rewritten files are closed when they hold this many rows.
        lock_timeout: seconds to wait for another run, each time the archive is to be changed.
        progress: told how far it is.

    Raises:
        MissingKeyError: a file's key is not there; nothing was changed.
        ArchiveError: the archive can't be read.
        LockedError: another run did not finish in time; months before it are done.
    """
    require_archive(archive.root)
    listed = list_settled(archive.root)
    archive.require_keys(listed)
    report = ExpiryReport(rules={rule.text: 0 for rule in rules}, dry_run=dry_run)
    if not dry_run:
        with archive.lock("expire", lock_timeout, make=False):
            archive.sweep()
    judge = _Judge(archive, rules, now or datetime.now(UTC))
    months = by_folder(listed)
    for done, (folder, files) in enumerate(months.items()):
        progress("expiring months", done, len(months))
        try:
            leaving = judge.examine(files)
            if leaving.files and not dry_run:
                with archive.lock("expire", lock_timeout):
                    leaving = judge.remove(folder, rows_per_file)
        except ArchiveError as error:
            report.problems.append(f"{folder}: {error}")
        else:
            report.add(folder, leaving)
    return report


class _Judge:
    """Decides which rows leave."""

    def __init__(self, archive: Archive, rules: Sequence[RetentionRule], now: datetime) -> None:
        self._archive = archive
        # The first that fits is the longest that does.
        self._rules = sorted(rules, key=lambda rule: -rule.days)
        self._now = now.astimezone(UTC).replace(tzinfo=None)
        self._con = duckdb.connect(config={"threads": 1})

    def examine(self, files: Sequence[ArchiveFile]) -> _Leaving:
        """Find the files that rows are to leave, and count these rows; only a few columns are read."""
        leaving = _Leaving()
        for file in files:
            rows = self._archive.columns(file, _JUDGED)
            if "id" not in rows.column_names:
                raise ArchiveError(
                    f"{self._archive.root / file.relative} has no column id", hint="move it out of the archive"
                )
            judged = self._judge(rows)
            if self._archive.tombstones.ids(rows["id"]):
                rows = self._archive.columns(file, DIGESTED)
            marked = self._archive.tombstones.stand_for(rows)
            columns = (judged[name].to_pylist() for name in ("rule", "expired", "pinned", "undated"))
            found = Counter(zip(*columns, marked.to_pylist(), strict=True))
            for (rule, expired, pinned, undated, mark), count in found.items():
                if expired:
                    leaving.rules[self._rules[rule].text] += count
                leaving.returned += count * (mark and not expired)
                leaving.pinned += count * pinned
                leaving.undated += count * undated
            if any(expired or mark for _, expired, *_, mark in found):
                leaving.files.append(file)
        return leaving

    def remove(self, folder: str, rows_per_file: int) -> _Leaving:
        """Remove the rows of a folder that are to leave. The archive must be locked."""
        # Another run may have changed it meanwhile.
        leaving = self.examine(by_folder(list_settled(self._archive.root)).get(folder, []))
        if leaving.files:
            self._record(leaving.files)
            done = rewrite_folder(
                self._archive,
                folder,
                leaving.files,
                rows_per_file=rows_per_file,
                bytes_per_file=_BYTES_PER_FILE,
                leave_out=self._archive.tombstones.stand_for,
            )
            leaving.bytes = done.bytes_before - done.bytes_after
        return leaving

    def _record(self, files: Sequence[ArchiveFile]) -> None:
        """Write tombstones for the rows of some files that expire, and have none yet."""
        made: dict[bool, list[pa.Table]] = {}
        for file in files:
            contents = read_recorded(self._archive, file)
            with archive_errors(contents.path), contents.parquet() as parquet:
                wanted = [n for n in parquet.schema_arrow.names if n in {*_JUDGED, *_TAUGHT, *DIGESTED}]
                rows = parquet.read(wanted, use_threads=False)
                utc = (parquet.metadata.metadata or {}).items() >= UTC_FOOTER.items()
            made.setdefault(utc, []).append(self._records(rows))
        for utc, records in made.items():
            if (table := pa.concat_tables(records)).num_rows:
                self._archive.tombstones.add(table, utc=utc)

    def _judge(self, rows: pa.Table) -> pa.Table:
        """For each row: the rule that fits, whether it expires, and whether only a pin or a missing time keeps it."""
        text = _columns(rows)
        fits = [
            f"WHEN {f'upper(trim({text[rule.column]}))' if rule.column == 'salience' else text[rule.column]}"
            f" = {quote_literal(rule.value)} THEN {number}"
            for number, rule in enumerate(self._rules)
        ]
        oldest = ", ".join(f"TIMESTAMP '{self._now - timedelta(days=rule.days)}'" for rule in self._rules)
        return self._query(
            rows,
            f"""
            SELECT rule, created IS NULL AND rule IS NOT NULL AS undated, old AND pinned AS pinned,
                old AND NOT pinned AS expired
            FROM (
                SELECT *, coalesce(id IS NOT NULL AND created <= [{oldest or "NULL"}][rule + 1], false) AS old
                FROM (
                    SELECT position, TRY_CAST({text["id"]} AS BIGINT) AS id,
                        CASE {" ".join(fits) or "WHEN false THEN 0"} END AS rule,
                        {utc_timestamp(text["created_at"])} AS created,
                        coalesce(TRY_CAST({text["pinned"]} AS DOUBLE) <> 0, {text["pinned"]} <> 'false', false)
                            AS pinned
                    FROM rows
                )
            )
            ORDER BY position
            """,
        )

    def _records(self, rows: pa.Table) -> pa.Table:
        """The tombstones of those of some rows that expire, and have none yet."""
        judged = self._judge(rows)
        wanted = pc.and_not(judged["expired"], self._archive.tombstones.stand_for(rows))  # pyright: ignore[reportAttributeAccessIssue]
        rows = rows.append_column("rule", judged["rule"]).filter(wanted)
        rows = rows.append_column("digest", pa.array(digests(rows), pa.binary()))
        text = _columns(rows)
        reasons = ", ".join(quote_literal(f"expired: {rule.text}") for rule in self._rules)
        return self._query(
            rows,
            f"""
            SELECT TRY_CAST({text["id"]} AS BIGINT) AS id, {text["created_at"]} AS created_at, digest,
                {quote_literal(self._now.isoformat(timespec="seconds"))} AS removed_at,
                [{reasons or "NULL"}][rule + 1] AS reason,
                CASE WHEN {text["outcome"]} IS NOT NULL AND TRY_CAST({text["outcome"]} AS DOUBLE) IS DISTINCT FROM 0
                THEN struct_pack(
                    archived_at := {text["archived_at"]}, outcome := {text["outcome"]}, salience := {text["salience"]},
                    characters := coalesce(length({text["verbatim"]}), 0) + coalesce(length({text["gist"]}), 0)
                ) END AS experience
            FROM rows
            ORDER BY position
            """,
        ).cast(SCHEMA)

    def _query(self, rows: pa.Table, sql: str) -> pa.Table:
        self._con.register("rows", rows.append_column("position", pa.array(range(rows.num_rows), pa.int64())))
        try:
            return self._con.sql(sql).to_arrow_table()
        finally:
            self._con.unregister("rows")


def _columns(rows: pa.Table) -> dict[str, str]:
    """SQL for the columns of a file as text, with NULL for those that it lacks."""
    names = {*_JUDGED, *_TAUGHT, *DIGESTED}
    return {
        name: f'CAST("{name}" AS VARCHAR)' if name in rows.schema.names else "CAST(NULL AS VARCHAR)" for name in names
    }
