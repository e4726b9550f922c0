"""Write the files of one month anew: fewer of them, or without some of their rows.

Compaction, expiry and erasure all go this way. Old files are held against their recorded digests before anything is
read from them. Each new file is read back and must equal the old rows, in their old order, before the month's files
are exchanged in one step; see :mod:`vidurai_pipeline.cold.generation`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.contents import FileContents
from vidurai_pipeline.cold.files import archive_errors
from vidurai_pipeline.cold.generation import Generation, next_generation
from vidurai_pipeline.cold.listing import ArchiveFile
from vidurai_pipeline.cold.manifest import NAME as MANIFEST
from vidurai_pipeline.errors import VerificationError

#: The most rows of a new file, and the most bytes of them before they are compressed.
ROWS_PER_FILE = 131_072
BYTES_PER_FILE = 48 * 1024 * 1024

#: Says which rows leave, given rows of a file: a boolean array.
LeaveOut = Callable[[pa.Table], pa.ChunkedArray | pa.Array]


@dataclass
class Rewriting:
    """What a rewriting of one folder did.

    Attributes:
        folder: relative to the archive.
        files_before: files that were read.
        files_after: files that took their place.
        bytes_before: size of the old files.
        bytes_after: size of the new ones.
        rows: rows in the new files.
        left_out: rows that left the archive.
    """

    folder: str
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows: int = 0
    left_out: int = 0


def rewrite_folder(
    archive: Archive,
    folder: str,
    files: Sequence[ArchiveFile],
    *,
    rows_per_file: int = ROWS_PER_FILE,
    bytes_per_file: int = BYTES_PER_FILE,
    leave_out: LeaveOut | None = None,
) -> Rewriting:
    """Put the rows of some files of a folder into new ones, in the order of their ids. The archive must be locked.

    Args:
        archive: the archive.
        folder: the folder, relative to the archive.
        files: which of its files, all of them settled.
        rows_per_file: a new file is closed when it holds this many rows,
        bytes_per_file: or this many bytes of rows in memory.
        leave_out: says which rows leave the archive; by default none.

    Raises:
        VerificationError: an old file is not what is recorded of it, or a new one does not equal the old ones.
        ArchiveError: it could not be done. In either case nothing has changed.
    """
    done = Rewriting(folder)
    if reason := archive.manifests.of(folder).damaged:
        raise VerificationError(
            f"{archive.root / folder / MANIFEST}: {reason}, so the month's files can't be proved; nothing was changed",
            hint="run `vidurai-pipeline scrub --all`, which records them anew",
        )
    with next_generation(archive.root, folder) as new:
        # Files can share one if they have the same columns, and the same zone and format in their footers.
        kinds: dict[tuple, list[ArchiveFile]] = {}
        for file in sorted(files, key=lambda file: file.name):
            kinds.setdefault(archive.footer(file).kind, []).append(file)
        for kind in kinds.values():
            waiting: list[pa.Table] = []
            rows = size = 0
            first = kind[0]
            for file in kind:
                contents = read_recorded(archive, file)
                done.files_before += 1
                done.bytes_before += file.size
                with archive_errors(contents.path), contents.parquet() as parquet:
                    table = parquet.read(use_threads=False)
                if leave_out is not None:
                    kept = table.filter(pc.invert(leave_out(table)))  # pyright: ignore[reportAttributeAccessIssue]
                    done.left_out += table.num_rows - kept.num_rows
                    table = kept
                if not waiting:
                    first = file
                waiting.append(table)
                rows, size = rows + table.num_rows, size + table.nbytes
                new.leave_out(file.name)
                if rows >= rows_per_file or size >= bytes_per_file:
                    _write(archive, new, first, waiting, done)
                    waiting, rows, size = [], 0, 0
            _write(archive, new, first, waiting, done)
        new.commit()
    archive.sync_mirror(folder)
    return done


def read_recorded(archive: Archive, file: ArchiveFile) -> FileContents:
    """Read a file, and hold it against what is recorded of it; if nothing is, record it.

    Raises:
        VerificationError: it is another.
    """
    contents = archive.contents(archive.root / file.relative)
    entry = archive.manifests.entry(file.relative)
    if entry is None:
        # Else nobody would know, after a crash, that the file had been rewritten and may go.
        archive.manifests.record(file.relative, contents.entry(origin="adopted"))
        archive.push()
    elif not entry.allows(contents.sha256):
        raise VerificationError(
            f"{contents.path} is damaged: its content is not what was written; nothing was changed",
            hint="run `vidurai-pipeline scrub`, which says what can be done",
        )
    return contents


def _write(
    archive: Archive, new: Generation, source: ArchiveFile, waiting: Sequence[pa.Table], done: Rewriting
) -> None:
    if not any(table.num_rows for table in waiting):
        return
    before = pa.concat_tables(waiting)
    order = pc.sort_indices(before.column("id"))  # pyright: ignore[reportAttributeAccessIssue]
    path = new.new_path(source.name, archive.keys.suffix)
    if in_order := order.equals(pa.array(range(len(order)), order.type)):
        contents = archive.write_rewritten(path, before, like=source)
    else:
        contents = archive.write_rewritten(path, before.take(order), like=source)
    if not _equal(before, None if in_order else order, contents):
        raise VerificationError(
            f"{path.name} did not read back equal to the files it was made from; nothing was changed"
        )
    old = archive.manifests.entry(source.relative)
    entry = contents.entry(store=old.store if old else None, generation=new.generation, origin="rewritten")
    new.add(path, entry)
    done.files_after += 1
    done.bytes_after += entry.bytes
    done.rows += entry.rows


def _equal(before: pa.Table, order: pa.Array | None, contents: FileContents) -> bool:
    """Whether a file, put back in the old order, equals the old rows: a mistake in the sorting can't hide itself."""
    back = None if order is None else pc.sort_indices(order)  # pyright: ignore[reportAttributeAccessIssue]
    with archive_errors(contents.path), contents.parquet() as parquet:
        if parquet.schema_arrow != before.schema or parquet.metadata.num_rows != before.num_rows:
            return False
        # Column by column: a few of them at a time take little memory.
        for name in before.column_names:
            column = parquet.read([name], use_threads=False).column(name)
            if not (column if back is None else column.take(back)).equals(before.column(name)):
                return False
        return True
