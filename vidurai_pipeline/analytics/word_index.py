"""The search index: an inverted index over the archive's words, kept in a hidden folder of the archive.

It is derived from the archive's files and can be thrown away at any time. It holds whole files: each memory's document
names its file and the file's digest. So one rule follows every change of the archive, whoever made it: documents of
files that are gone go, and files that came are read. Memories themselves are never taken from the index.

It holds the words in plain, so there is none of an encrypted archive.
"""

import contextlib
import itertools
import json
import random
import re
import shutil
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import tantivy
from filelock import FileLock, Timeout
from tantivy import FieldType, Occur, Query

from vidurai_pipeline.analytics.connection import connect
from vidurai_pipeline.analytics.question import COLUMNS, document_sql, make_index, text_analyzer
from vidurai_pipeline.analytics.views import SALIENCE_SCORE
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import archive_errors, make_folder
from vidurai_pipeline.cold.listing import INDEX, ArchiveFile, list_settled, quote_literal, require_archive
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline.errors import SearchIndexError

#: Changed with whatever changes what a document is made of; an index of another format is made anew.
FORMAT = 1
LOCK = ".lock"
_ANY_FORMAT = "words-*"
_HEAP_BYTES = 64_000_000
_MEMORY_LIMIT = "512MB"
#: After so many documents, what was read so far is kept, should the rest fail.
_COMMIT_EVERY = 500_000
_SAMPLE, _RAREST, _SAME_MOMENT = 20, 4, 10_000
#: What tantivy raises where damaged bytes break its own assumptions; it is no Exception, and can't be imported.
_PANIC = "PanicException"
_SEGMENT = re.compile(r'"segment_id": *"([-0-9a-f]+)"')
_FOOTER_END = struct.Struct("<II")
_REBUILD = "run `vidurai-pipeline index --rebuild`"

#: Called with what is being done, how many memories are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class IndexReport:
    """What an update of the search index did.

    Attributes:
        documents: how many memories it holds now.
        files: how many files of the archive it holds now.
        added: how many files were read.
        removed: how many files left it.
        bytes: its size on the disk.
        seconds: how long it took.
    """

    documents: int
    files: int
    added: int
    removed: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Lag:
    """How the index and the archive differ.

    Attributes:
        lacking: files of the archive that it does not hold, or not all of.
        gone: keys of files that it holds, and should not hold as they are.
    """

    lacking: list[ArchiveFile]
    gone: list[str]


class Recall(NamedTuple):
    """Of so many memories that were asked for by their own words, so many were found."""

    asked: int
    found: int


class WordIndex:
    """The search index of an archive; it need not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / INDEX
        self._path = self.folder / f"words-{FORMAT}"
        self._open: tantivy.Index | None = None
        self._held: tuple[object, dict[str, int]] | None = None

    def exists(self) -> bool:
        """Whether there is an index of this format."""
        return (self._path / "meta.json").exists()

    def present(self) -> bool:
        """Whether there is anything in its place, of this format or another, whole or not."""
        return self.folder.is_file() or next(self.folder.glob(_ANY_FORMAT), None) is not None

    def bytes(self) -> int:
        """Its size on the disk."""
        return sum(path.stat().st_size for path in self._path.rglob("*") if path.is_file())

    @property
    def index(self) -> tantivy.Index:
        """The index as it is now.

        Raises:
            SearchIndexError: there is none, or it is damaged.
        """
        if not self.exists():
            self._open = None
            raise SearchIndexError("there is no search index", "run `vidurai-pipeline index` to make it")
        with self.errors():
            if self._open is None:
                self._open = make_index(str(self._path))
            self._open.reload()
        return self._open

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the index raises into one error that says what to do."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, (ValueError, OSError)) and type(error).__name__ != _PANIC:
                raise
            self._open = None
            if "LockBusy" in str(error):
                raise SearchIndexError(f"{self.folder}: another process is updating it", "try again later") from None
            reason = getattr(error, "strerror", None) or "it can't be read"
            raise SearchIndexError(f"{self.folder} is damaged or can't be used: {reason}", _REBUILD) from None

    def held(self) -> dict[str, int]:
        """How many memories it holds of each file, by the file's key."""
        with self.errors():
            version = self._version()
            index = self.index
            if self._held is None or self._held[0] != version:
                # With a query, documents that were deleted and are not cleaned up yet don't count.
                found = dict(index.searcher().terms_with_prefix("file", "", Query.all_query()))
                self._held = (version, found)
            return dict(self._held[1])

    def _version(self) -> tuple[int, int] | None:
        """What changes with each change of the index; None where there is none."""
        try:
            status = (self._path / "meta.json").stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def lag(self, files: Iterable[ArchiveFile], manifests: Manifests, held: dict[str, int] | None = None) -> Lag:
        """How it differs from the files of a listing.

        Args:
            files: the listing.
            manifests: those of the archive.
            held: what :meth:`held` gave, and what changed since then; default what it holds now.
        """
        held = self.held() if held is None else held
        wanted = {file_key(file, manifests): file for file in files}
        lacking = []
        for key, file in wanted.items():
            entry = manifests.entry(file.relative)
            if key not in held if entry is None else held.get(key, 0) != entry.rows:
                lacking.append(file)
        whole = wanted.keys() - {file_key(file, manifests) for file in lacking}
        return Lag(lacking, sorted(held.keys() - whole))

    def intact(self) -> bool:
        """Whether its files are still as they were written; all of them are read."""
        with self.errors():
            segments = [
                segment.replace("-", "") for segment in _SEGMENT.findall((self._path / "meta.json").read_text())
            ]
            return all(_as_written(path) for segment in segments for path in self._path.glob(f"{segment}.*"))

    def recall(self, archive: Archive) -> Recall:
        """Ask for some memories of a file by their rarest words."""
        held = self.held()
        files = [file for file in list_settled(self.root) if file_key(file, archive.manifests) in held]
        if not files:
            return Recall(0, 0)
        table = archive.columns(random.choice(files), COLUMNS)  # noqa: S311
        rows = random.sample(range(table.num_rows), min(_SAMPLE, table.num_rows))
        with reading_connection() as connection:
            sample = [json.loads(document) for document in documents(connection, table.take(rows))]
        with self.errors():
            return Recall(len(sample), sum(map(self._finds, sample)))

    def _finds(self, document: dict[str, Any]) -> bool:
        """Whether a memory is found by the rarest words of its text, among those of the same moment."""
        searcher, schema = self.index.searcher(), self.index.schema
        words = dict.fromkeys(text_analyzer().analyze(document["text"]))
        rarest = sorted(words, key=lambda word: searcher.doc_freq("text", word))[:_RAREST]
        must = [Query.term_query(schema, "text", word) for word in rarest]
        for moment in document["created"]:
            must.append(Query.range_query(schema, "created", FieldType.Integer, moment, moment))
        query = Query.boolean_query([(Occur.Must, one) for one in must or [Query.all_query()]])
        addresses = [address for _, address in searcher.search(query, _SAME_MOMENT, count=False).hits]
        return set(document["id"]) <= set(searcher.fast_field_values("id", addresses))

    def discard(self) -> None:
        """Remove it from the disk, with all words that it still holds of memories that are gone."""
        self._open = None
        with archive_errors(self.folder):
            for path in self.folder.glob(_ANY_FORMAT):
                remove_folder(path)

    def update(
        self,
        archive: Archive,
        *,
        rebuild: bool = False,
        verify: bool = False,
        progress: Progress | None = None,
        more: Callable[[], bool] = lambda: False,
    ) -> IndexReport:
        """Bring it in line with the archive. Nothing is locked: searches go on, and so do runs.

        Args:
            archive: the archive, whose folder is this one's.
            rebuild: make it from nothing.
            verify: read all of it first, and make it from nothing if it is damaged.
            progress: told how far the work is.
            more: asked after each look at the archive whether it should look again.

        Raises:
            SearchIndexError: another process updates it, or the archive is encrypted.
            ArchiveError: a file can't be read, or the index can't be written; searches work without it.
        """
        began = time.monotonic()
        require_archive(self.root)
        files = list_settled(self.root)
        if not files and not self.exists():
            return IndexReport(0, 0, 0, 0, 0, 0.0)
        if archive.keys.path is not None or any(file.key for file in files):
            with archive_errors(self.folder):
                shutil.rmtree(self.folder, ignore_errors=not self.folder.exists())
            raise SearchIndexError(
                "an encrypted archive has no search index, which would hold its words in plain",
                "search without one, which reads the archive",
            )
        make_folder(self.folder)
        with updating_alone(self.folder):
            if rebuild or not self._sound(verify=verify):
                self.discard()
            make_folder(self._path)
            with (
                reading_connection() as connection,
                self.errors(),
                _Writer(self._path, archive, connection, progress) as writer,
            ):
                self._open = writer.index
                held = self.held()
                while True:
                    lag = self.lag(files, archive.manifests, held)
                    for key in lag.gone:
                        writer.remove(key)
                        del held[key]
                    held |= writer.add(lag.lacking)
                    if not more():
                        break
                    files = list_settled(self.root)
        with self.errors():
            held = self.held()
        with archive_errors(self.folder):
            for other in self.folder.glob(_ANY_FORMAT):
                if other != self._path:
                    shutil.rmtree(other, ignore_errors=True)
            for path in self._path.iterdir():  # the folder is private; a copy of it, as in a backup, must be as well
                path.chmod(0o600)
        seconds = time.monotonic() - began
        return IndexReport(sum(held.values()), len(held), writer.added, writer.removed, self.bytes(), round(seconds, 3))

    def _sound(self, *, verify: bool) -> bool:
        """Whether it is worth an update: it is there, can be read, and is not for the most part what was deleted."""
        try:
            with self.errors():
                searcher = self.index.searcher()
                stored = sum(count for _, count in searcher.terms_with_prefix("file", ""))
                kept = stored <= 2 * searcher.num_docs or stored < _COMMIT_EVERY // 10
                return kept and (not verify or self.intact())
        except SearchIndexError:
            return False


class _Writer:
    """Writes documents; what it did is there at the end, all of it or nothing since the last commit."""

    def __init__(
        self, path: Path, archive: Archive, connection: duckdb.DuckDBPyConnection, progress: Progress | None
    ) -> None:
        self.index = make_index(str(path))
        self._writer = self.index.writer(_HEAP_BYTES, 1)
        self._archive, self._connection = archive, connection
        self._progress: Progress = progress or (lambda *_: None)
        self._written = self._total = self._since_commit = 0
        self.added = self.removed = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._writer.rollback()
        elif self.added or self.removed:
            self._writer.commit()
        self._writer.wait_merging_threads()
        self.index.reload()

    def remove(self, key: str) -> None:
        """Delete the documents of a file."""
        self._writer.delete_documents_by_term("file", key)
        self.removed += 1

    def add(self, files: list[ArchiveFile]) -> dict[str, int]:
        """Read files of the archive; returns how many memories of each were added, by the file's key."""
        entries = [self._archive.manifests.entry(file.relative) for file in files]
        self._total += sum(entry.rows for entry in entries if entry is not None)
        rows: dict[str, int] = {}
        for file in files:
            table = self._archive.columns(file, COLUMNS)
            key = file_key(file, self._archive.manifests)
            self.added += 1
            for document in documents(self._connection, table, key):
                self._writer.add_json(document)
            rows[key] = table.num_rows
            self._written += table.num_rows
            self._progress("indexing", self._written, max(self._total, self._written))
            self._since_commit += table.num_rows
            if self._since_commit >= _COMMIT_EVERY:
                self._writer.commit()
                self._since_commit = 0
        return rows


def _as_written(path: Path) -> bool:
    """Whether a file has the checksum that tantivy wrote at its end."""
    try:
        content = np.memmap(path, mode="r")
    except FileNotFoundError:  # merged meanwhile
        return True
    if len(content) < _FOOTER_END.size:
        return False
    size = _FOOTER_END.unpack(content[-_FOOTER_END.size :].tobytes())[0] + _FOOTER_END.size
    return b'"crc":%d}' % zlib.crc32(content[:-size].data) in content[-size:].tobytes()


@contextlib.contextmanager
def updating_alone(folder: Path) -> Iterator[None]:
    """Keep others from updating what is in a folder of the index: what updates it goes on for a while after a removal.

    Raises:
        SearchIndexError: another process is at it.
    """
    lock = FileLock(folder / LOCK, timeout=0, mode=0o600)
    with archive_errors(folder):
        try:
            lock.acquire()
        except Timeout:  # an OSError, too
            raise SearchIndexError(f"{folder}: another process is updating it", "try again later") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def reading_connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that makes of memories what an index holds of them."""
    with (
        tempfile.TemporaryDirectory(prefix="vidurai-index-") as scratch,
        contextlib.closing(connect(_MEMORY_LIMIT, 1, Path(scratch))) as connection,
    ):
        connection.execute(f"CREATE MACRO salience_score{SALIENCE_SCORE}")
        yield connection


def documents(connection: duckdb.DuckDBPyConnection, table: Any, file: str = "") -> Iterator[str]:
    """Make a document of each row of an Arrow table."""
    connection.register("documents_source", table)
    try:
        sql = document_sql("documents_source", table.column_names, quote_literal(file))
        answer = connection.execute(sql)
        while rows := answer.fetchmany(10_000):
            yield from itertools.chain.from_iterable(rows)
    finally:
        connection.unregister("documents_source")


def remove_folder(path: Path) -> None:
    """Remove a folder of the index, if it is there; also while others write into it."""
    # They know it by its name, and can put nothing into one of another name; an update removes it if this dies here.
    gone = path.with_name(_ANY_FORMAT.replace("*", f"gone-{uuid.uuid4().hex}"))
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
        shutil.rmtree(gone)


def file_key(file: ArchiveFile, manifests: Manifests) -> str:
    """What the search index calls a file of the archive: another content, another key."""
    entry = manifests.entry(file.relative)
    if entry is not None and entry.same_file(file):
        return f"{file.relative} {entry.sha256}"
    return f"{file.relative} {file.size} {file.modified}"
