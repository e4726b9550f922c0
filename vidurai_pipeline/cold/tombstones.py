"""Records without text of memories that left the archive for good, so that no backup brings them back.

A tombstone stands for one version of a memory. It is durable before the version's row leaves the archive. From then on
a row of the same content is purged from the hot store without being archived, and removed from the archive when it is
found there. Learning goes on counting what the version taught.

The records lie in ``.tombstones``, in one Parquet file for each month of removal. A file's name ends in the SHA-256 of
its content, so damage is noticed. It does not end in ``.parquet``, so no pattern takes it for a part of the archive.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidurai_pipeline.cold.files import archive_errors, durable_write, make_folder, sync_folder
from vidurai_pipeline.cold.listing import ArchiveFile
from vidurai_pipeline.cold.manifest import Flaw, digest_file
from vidurai_pipeline.errors import ArchiveError

FOLDER = ".tombstones"
#: The reason of an erasure. Its tombstone stands for all versions of a memory, and keeps no experience.
ERASED = "erased"
_SUFFIX = ".tombstones"
#: What follows the month in the name of a file whose `archived_at` is in Vidurai's local time.
_LOCAL = "-local"
#: What an archive file's footer says of the zone of `archived_at`; the tombstones of its rows say the same.
UTC_FOOTER = {b"vidurai_pipeline.timezone": b"UTC"}

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("created_at", pa.string()),
        ("digest", pa.binary()),
        ("removed_at", pa.string()),
        ("reason", pa.string()),
        (
            "experience",
            pa.struct(
                [
                    ("archived_at", pa.string()),
                    ("outcome", pa.string()),
                    ("salience", pa.string()),
                    ("characters", pa.int64()),
                ]
            ),
        ),
    ]
)
_LOOKUP = pa.schema([SCHEMA.field("id"), SCHEMA.field("digest")])
#: What makes two rows the same version of a memory: the columns that Vidurai's own archiver writes too. When a row was
#: archived is not among them.
_CONTENT = (
    *("id", "verbatim", "gist", "salience", "created_at", "expires_at", "access_count", "outcome", "file_path"),
    *("decay_reason", "event_type", "tags", "project_id"),
)
#: The columns that a row's digest is made of.
DIGESTED = (*_CONTENT, "pinned")


def digests(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    """A digest of each row's content; equal for the hot store's row and its archived copy.

    There is no salt: `id` and `created_at` are in it, and a secret would have to lie beside the digests.
    """
    values = {name: rows.column(name).to_pylist() for name in DIGESTED if name in rows.schema.names}
    columns = [values.get(name) or [None] * rows.num_rows for name in DIGESTED]
    return [_digest([*values, bool(pinned)]) for *values, pinned in zip(*columns, strict=True)]


def _identity(id_: int, born: str | None) -> bytes:
    """The digest of an erased memory: of all its versions, and of nothing that it said."""
    return _digest([ERASED, id_, born])


def _digest(values: list) -> bytes:
    return hashlib.blake2b(json.dumps(values, default=repr).encode(), digest_size=16).digest()


class Tombstones:
    """The tombstones of an archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER
        self._read: tuple[tuple[ArchiveFile, ...], pa.Table] = ((), pa.Table.from_batches([], _LOOKUP))

    def files(self) -> tuple[ArchiveFile, ...]:
        """The files that hold them."""
        if not self.folder.exists():
            return ()
        with archive_errors(self.folder):
            found = [(p.name, p.stat()) for p in sorted(self.folder.iterdir()) if p.name.endswith(_SUFFIX)]
        return tuple(
            ArchiveFile(f"{FOLDER}/{name}", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            for name, status in found
        )

    def damaged(self) -> list[Flaw]:
        """The files whose content is not what their names say."""
        flaws = []
        for file in self.files():
            with archive_errors(self.root / file.relative):
                sha256, *_ = digest_file(self.root / file.relative)
            if sha256 not in file.name:
                flaws.append(Flaw(file.relative, "its content is not what was written: the SHA-256 differs", None))
        return flaws

    def ids(self, among: pa.Array | pa.ChunkedArray) -> list[int]:
        """Those of some ids that tombstones stand for, with this content or another."""
        return self._known(_integers(among))["id"].unique().to_pylist()

    def stand_for(self, rows: pa.Table | pa.RecordBatch) -> pa.Array:
        """Which rows have a tombstone: true or false for each.

        Args:
            rows: with the columns ``DIGESTED``, as far as there are any.
        """
        ids = _integers(rows.column("id"))
        known = self._known(ids)
        candidates = _in(ids, known["id"])
        places = candidates.combine_chunks().to_pylist() if isinstance(candidates, pa.ChunkedArray) else candidates
        removed = set(known["digest"].to_pylist())
        few = rows.filter(candidates) if removed else rows.slice(0, 0)
        born = few.column("created_at").to_pylist() if "created_at" in few.schema.names else [None] * few.num_rows
        identities = map(_identity, few.column("id").to_pylist(), born)
        found = iter([bool({*both} & removed) for both in zip(digests(few), identities, strict=True)])
        return pa.array([bool(candidate) and next(found) for candidate in places], pa.bool_())

    def erased(self) -> set[tuple[int, str | None]]:
        """The ids and ``created_at`` of the memories that were erased."""
        found: set[tuple[int, str | None]] = set()
        for file in self.files():
            # Of a million tombstones most are of what expired: no Python object is made of those.
            table = _read(self.root / file.relative, ["id", "created_at", "reason"])
            table = table.filter(_in(table["reason"], pa.array([ERASED])))
            found.update(zip(table["id"].to_pylist(), table["created_at"].to_pylist(), strict=True))
        return found

    def of(self, ids: Collection[int]) -> pa.Table:
        """The tombstones of some ids, in no order."""
        wanted = pa.array(ids, pa.int64())
        parts = [_read(self.root / file.relative) for file in self.files()]
        return pa.concat_tables([SCHEMA.empty_table(), *(part.filter(_in(part["id"], wanted)) for part in parts)])

    def erase(self, memories: Collection[tuple[int, str | None]]) -> None:
        """Write a tombstone for each of some memories, durably, and let what is known of their versions go.

        Args:
            memories: their ids and ``created_at``.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
        records = [
            {"id": id_, "created_at": born, "digest": _identity(id_, born), "removed_at": now, "reason": ERASED}
            for id_, born in sorted(set(memories) - self.erased(), key=repr)
        ]
        self.add(pa.Table.from_pylist(records, SCHEMA), utc=True)
        for file in self.files():
            table = _read(self.root / file.relative)
            if (kept := _forgotten(table, memories)).num_rows < table.num_rows:
                self._replace(file.stem, kept)

    def add(self, records: pa.Table, *, utc: bool) -> None:
        """Write tombstones, durably. The archive must be locked.

        Args:
            records: with the columns of ``SCHEMA``.
            utc: whether `archived_at` is in UTC, and not in Vidurai's local time.

        Raises:
            ArchiveError: they can't be written; then those of before are untouched.
        """
        make_folder(self.folder)
        self._write(f"{datetime.now(UTC):%Y-%m}{'' if utc else _LOCAL}", records)

    def _write(self, month: str, records: pa.Table) -> None:
        """Add records to a month's file: write it anew under another name, then remove the old one."""
        old = [self.root / file.relative for file in self.files() if file.stem == month]
        table = pa.concat_tables([*map(_read, old), records.cast(SCHEMA)])
        # A run that died here left the same records in two files.
        first = {digest: place for place, digest in reversed([*enumerate(table["digest"].to_pylist())])}
        table = table.take(pa.array(sorted(first.values()), pa.int64()))
        # One of two files can be older than an erasure, as one that came back from a mirror.
        self._replace(month, _forgotten(table, self.erased()) if len(old) > 1 else table)

    def _replace(self, month: str, table: pa.Table) -> None:
        old = [self.root / file.relative for file in self.files() if file.stem == month]
        with archive_errors(self.folder):
            sink = pa.BufferOutputStream()
            footer = None if month.endswith(_LOCAL) else UTC_FOOTER
            pq.write_table(table.replace_schema_metadata(footer), sink, write_page_checksum=True)
            data = sink.getvalue().to_pybytes()
            path = self.folder / f"{month}.{hashlib.sha256(data).hexdigest()}{_SUFFIX}"
            durable_write(path, data)
            for before in old:
                if before != path:
                    before.unlink()
            sync_folder(self.folder)

    def _known(self, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The ids and digests of the tombstones of some ids."""
        while (files := self.files()) != self._read[0]:
            try:
                parts = [_read(self.root / file.relative, _LOOKUP.names) for file in files]
            except ArchiveError:
                if self.files() == files:
                    raise
            else:
                self._read = files, pa.concat_tables([_LOOKUP.empty_table(), *(part.cast(_LOOKUP) for part in parts)])
        known = self._read[1]
        return known.filter(_in(known["id"], ids)) if known.num_rows else known

    def sweep(self) -> None:
        """Put right what a run that died left half done; the archive must be locked."""
        with archive_errors(self.folder):
            for path in self.folder.glob("*.part"):
                path.unlink(missing_ok=True)
        for month, count in Counter(file.stem for file in self.files()).items():
            if count > 1:
                with contextlib.suppress(ArchiveError):  # a damaged one is told of by those who need it
                    self._write(month, SCHEMA.empty_table())


def _integers(ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Ids as tombstones have them; NULL where files of others have something else."""
    return ids.cast(pa.int64()) if pa.types.is_integer(ids.type) else pa.nulls(len(ids), pa.int64())


def _in(values: pa.Array | pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.call_function("is_in", [values], pc.SetLookupOptions(others))


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    with archive_errors(path):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() not in path.name:
            raise ArchiveError(f"{path} is damaged", hint="restore it from a backup")
        return pq.read_table(pa.BufferReader(data), columns=columns)


def _forgotten(table: pa.Table, memories: Collection[tuple[int, str | None]]) -> pa.Table:
    """Tombstones without what is known of the versions of erased memories."""
    rows = table.select(["id", "created_at", "reason"]).to_pylist()
    keep = [row["reason"] == ERASED or (row["id"], row["created_at"]) not in memories for row in rows]
    return table.filter(pa.array(keep, pa.bool_()))
