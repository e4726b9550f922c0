"""Save what can still be read of a damaged file that has no sound copy.

Pages carry checksums, so what is read is what was written. A column is read up to its first damaged page in each row
group; what follows that page in the group is lost for this column. A memory is saved when its id and its text can be
read. Of the other columns, what is lost becomes NULL.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.contents import READ_ROWS
from vidurai_pipeline.cold.files import archive_errors, discard, sync_folder
from vidurai_pipeline.cold.keys import key_of
from vidurai_pipeline.errors import ArchiveError, VerificationError

_NEEDED = ("id", "verbatim")
#: The most rows before a damaged page that are lost with it.
_ROWS = 64


@dataclass
class SalvageReport:
    """What could be saved of a file.

    Attributes:
        file: the damaged file.
        to: the new file; None if nothing could be saved.
        rows: how many memories the file held, by its footer or its record.
        saved: how many of them are in the new file.
        lost_ids: the ids that could be read of memories that are lost.
        lost_range: where not all ids could be read: the lowest and the highest id that a lost memory may have.
        incomplete: columns that are NULL in some of the saved memories, and in how many.
    """

    file: Path
    to: Path | None = None
    rows: int | None = None
    saved: int = 0
    lost_ids: list[int] = field(default_factory=list)
    lost_range: tuple[int | None, int | None] | None = None
    incomplete: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is lost."""
        return self.to is not None and self.saved == self.rows and not self.incomplete

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {**asdict(self), "file": str(self.file), "to": None if self.to is None else str(self.to)}


def salvage(archive: Archive, path: Path, to: Path | None = None) -> SalvageReport:
    """Write what can be read of a damaged file to a new one; the damaged one is left as it is.

    Args:
        archive: the archive, whose manifest may know the file.
        path: the damaged file.
        to: the new file, which must not exist; by default ``FILE.salvaged``, which no reader takes for a part of the
            archive.
    """
    to = to or path.with_name(f"{path.name}.salvaged")
    if os.path.lexists(to):
        raise ArchiveError(f"{to} exists already", hint="name another file with --to")
    if (key := key_of(path.name)) and not key_of(to.name):
        raise ArchiveError(f"{path} is encrypted, but {to} would be plain", hint=f"end its name in .key-{key}.parquet")
    contents, entry = archive.contents(path), None
    if path.is_relative_to(archive.root):
        entry = archive.manifests.entry(str(path.relative_to(archive.root)))
    report = SalvageReport(path, rows=entry.rows if entry else None)
    if entry:
        report.lost_range = (entry.first_id, entry.last_id)
    try:
        parquet = contents.parquet()
    except (OSError, pa.ArrowException):
        return report
    with parquet:
        report.rows = parquet.metadata.num_rows
        groups = [_read_group(parquet, group, report) for group in range(parquet.num_row_groups)]
        table = pa.concat_tables(groups) if groups else parquet.schema_arrow.empty_table()
    if report.saved + len(report.lost_ids) == report.rows:
        report.lost_range = None
    if not report.saved:
        return report
    with archive.writer(to, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=READ_ROWS):
            writer.write(batch)
    try:
        with archive_errors(to):
            if pa.Table.from_batches(archive.contents(writer.path).batches(), table.schema) != table:
                raise VerificationError(f"{to}: it did not read back equal; nothing was written")
            os.link(writer.path, to)
            sync_folder(to.parent)
    finally:
        discard(writer.path)
    report.to = to
    return report


def _read_group(parquet: pq.ParquetFile, group: int, report: SalvageReport) -> pa.Table:
    """The memories of one row group that can be read."""
    names = parquet.schema_arrow.names
    columns = {name: _read_column(parquet, group, name) for name in names}
    saved = min(len(columns[name]) for name in _NEEDED)
    report.saved += saved
    report.lost_ids += columns["id"].slice(saved).to_pylist()
    for name, column in columns.items():
        if (missing := saved - len(column)) > 0:
            report.incomplete[name] = report.incomplete.get(name, 0) + missing
            columns[name] = pa.chunked_array([*column.chunks, pa.nulls(missing, column.type)], column.type)
    return pa.table([columns[name].slice(0, saved) for name in names], schema=parquet.schema_arrow)


def _read_column(parquet: pq.ParquetFile, group: int, name: str) -> pa.ChunkedArray:
    """A column of a row group, up to its first damaged page."""
    found: list[pa.Array] = []
    try:
        for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=[name], use_threads=False):
            found.append(batch.column(0))
    except (OSError, pa.ArrowException):
        pass
    return pa.chunked_array(found, parquet.schema_arrow.field(name).type)
