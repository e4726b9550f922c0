"""One file of the archive: how it is written, and what is in it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.cold.files import archive_errors
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.manifest import FileEntry, Origin, schema_digest, utc_now

READ_ROWS = 4_096
#: Files that were rewritten are sorted by id: small row groups let a reader skip most of them.
REWRITTEN_GROUP_ROWS = 16_384
ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 24 * 1024 * 1024
OWN = b"vidurai_pipeline"


class Footer(NamedTuple):
    """What a file's footer says of it.

    Attributes:
        kind: what two files must have in common for their rows to share one: columns, and what the footer says of all.
        names: its columns.
        rows: how many rows it holds.
        bytes: their size, not compressed.
    """

    kind: tuple
    names: frozenset[str]
    rows: int
    bytes: int


class FileWriter:
    """Writes one hidden Parquet file, in row groups of bounded size.

    Args:
        path: the hidden file, which exists and is empty.
        schema: of the file.
        compression: the codec.
        row_group_rows: the most rows of a row group.
        encryption: how it is encrypted, as pyarrow has it; None if it is not.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        compression: str,
        row_group_rows: int,
        encryption: Any = None,
    ) -> None:
        self.path = path
        self._row_group_rows = row_group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression=compression,
            # Text that differs in every row only fills a dictionary and then gives it up.
            use_dictionary=[name for name in schema.names if name not in {"verbatim", "id"}],  # pyright: ignore
            write_page_checksum=True,
            encryption_properties=encryption,
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows to the file."""
        if batch.num_rows:
            self._waiting.append(batch)
        if sum(part.num_rows for part in self._waiting) >= self._row_group_rows or (
            sum(part.nbytes for part in self._waiting) >= ROW_GROUP_BYTES
        ):
            self._write_row_group()

    def _write_row_group(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._waiting = []
            self._writer.write_table(table, row_group_size=table.num_rows)

    def annotate(self, metadata: dict[str, str]) -> None:
        """Add key-value metadata to the file's footer."""
        self._writer.add_key_value_metadata(metadata)

    def close(self) -> None:
        """Write what is left and the footer."""
        try:
            self._write_row_group()
        finally:
            self._writer.close()


@dataclass(frozen=True)
class FileContents:
    """A file as it was read from the disk, in one go: what is digested is what is parsed.

    Attributes:
        path: where it was read from.
        data: its bytes; those of a file that the pipeline wrote fit into memory many times over.
        keys: the archive's keys.
    """

    path: Path
    data: bytes
    keys: KeyRing

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of its bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def parquet(self) -> pq.ParquetFile:
        """The bytes as Parquet; see :meth:`KeyRing.open`."""
        return self.keys.open(self.path, self.data)

    def entry(
        self, *, store: tuple[str, str] | None = None, generation: int = 1, origin: Origin = "written"
    ) -> FileEntry:
        """What the manifest is to record of it, proved now."""
        with archive_errors(self.path), self.parquet() as file:
            lowest, highest = id_range(file.metadata)
            return FileEntry(
                sha256=self.sha256,
                bytes=len(self.data),
                modified=self.path.stat().st_mtime_ns,
                rows=file.metadata.num_rows,
                first_id=lowest,
                last_id=highest,
                schema=schema_digest(file.schema_arrow),
                batch=own_metadata(file).get("vidurai_pipeline.batch"),
                store=store,
                generation=generation,
                origin=origin,
                proved=utc_now(),
            )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, in batches of bounded size."""
        with archive_errors(self.path), self.parquet() as file:
            yield from batches_of(file)


def id_range(metadata: pq.FileMetaData) -> tuple[int | None, int | None]:
    """The lowest and the highest id in a file, by its row groups' statistics; None where they don't say."""
    if "id" not in metadata.schema.names:
        return None, None
    position = metadata.schema.names.index("id")
    found = [metadata.row_group(n).column(position).statistics for n in range(metadata.num_row_groups)]
    if not found or any(statistics is None or not statistics.has_min_max for statistics in found):
        return None, None
    return min(statistics.min for statistics in found), max(statistics.max for statistics in found)


def batches_of(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A file's rows, group by group: the groups' size is bounded in bytes too, not only in rows."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(READ_ROWS, row_groups=[group], columns=columns, use_threads=False)


def own_metadata(file: pq.ParquetFile) -> dict[str, str]:
    """The pipeline's own key-value metadata of a file."""
    metadata = file.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(OWN)}


def shared_metadata(file: pq.ParquetFile) -> dict[str, str]:
    """What the footer says of all rows, whichever run wrote them."""
    return {key: value for key, value in own_metadata(file).items() if key != "vidurai_pipeline.batch"}
