"""The vector index: what each archived memory means, as a vector, in the archive's hidden folder of the search index.

Each file of the archive has a file of vectors, named by a digest of the archived file's name and content. So one rule
follows every change of the archive: vectors of files that are gone go, except that those of memories which are now in
another file are moved there. To embed a text is slow, so an update does it for as long as it may, the newest first, and
the next one goes on.

A vector tells something of its memory's text, so there is none of an encrypted archive, and an erasure removes them.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from vidurai_pipeline.analytics.embeddings import BATCH, EmbeddingModel, load_model, normalized
from vidurai_pipeline.analytics.times import utc_timestamp
from vidurai_pipeline.analytics.vectors import Vectors, nearest, whole_numbers
from vidurai_pipeline.analytics.word_index import (
    LOCK,
    Progress,
    file_key,
    reading_connection,
    remove_folder,
    updating_alone,
)
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.files import archive_errors, durable_write, make_folder
from vidurai_pipeline.cold.listing import INDEX, ArchiveFile, list_files, list_settled, require_archive
from vidurai_pipeline.cold.manifest import Manifests
from vidurai_pipeline.errors import SearchIndexError
from vidurai_pipeline.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Changed with whatever changes what a vector is made of; vectors of another format are made anew.
FORMAT = 1
#: The beginning of a memory's text that counts, in characters. Its gist counts whole, up to the same length.
TEXT = 500
_SUFFIX = ".arrow"
_STEP = 64 * BATCH
_SAVE_SECONDS = 60.0
_NO_TIME = int(np.iinfo(np.int64).min)
_REBUILD = "run `vidurai-pipeline index --rebuild`"
_VIDURAIS = "vec_memories"


class Hit(NamedTuple):
    """A memory that is near to a question.

    Attributes:
        id: its id.
        created: when it was created, in microseconds; None if that can't be read.
        similarity: the cosine of the angle between the two, at most 1.
        store: the store that it is of, where several share an archive.
    """

    id: int
    created: int | None
    similarity: float
    store: str | None = None


@dataclass(frozen=True)
class VectorReport:
    """What an update of the vector index did.

    Attributes:
        vectors: how many memories have a vector now.
        memories: how many are archived.
        embedded: how many were embedded.
        taken: how many have the vector that Vidurai stored with them.
        moved: how many kept their vector, although they are in another file now.
        removed: files of vectors that went.
        bytes: their size on the disk.
        seconds: how long it took.
    """

    vectors: int = 0
    memories: int = 0
    embedded: int = 0
    taken: int = 0
    moved: int = 0
    removed: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.vectors >= self.memories:
            return "complete"
        pace = self.embedded / self.seconds if self.embedded and self.seconds else 0.0
        left = f", about {(self.memories - self.vectors) / pace / 60:,.0f} more minutes of work" if pace else ""
        return f"{self.vectors:,} of {self.memories:,} memories{left}"


class Coverage(NamedTuple):
    """How the vector index and the archive differ.

    Attributes:
        vectors: how many archived memories have a vector.
        memories: how many there are.
        gone: how many files of vectors belong to no file of the archive.
    """

    vectors: int
    memories: int
    gone: int


class VectorIndex:
    """The vector index of an archive; it need not exist. It may be shared by threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / INDEX / f"vectors-{FORMAT}"
        self._read: dict[str, tuple[tuple[int, int], Vectors, str]] = {}

    def exists(self) -> bool:
        """Whether there are any vectors."""
        return next(self.folder.glob(f"*{_SUFFIX}"), None) is not None

    def bytes(self) -> int:
        """Their size on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*{_SUFFIX}"))

    def held(self, model: str | None = None, *, damaged: list[Path] | None = None) -> dict[str, Vectors]:
        """The vectors, by the name of their file.

        Args:
            model: only those that the model with this digest made.
            damaged: takes the files that can't be read; without it they are an error.
        """
        read = {}
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            try:
                status = path.stat()
                version = (status.st_ino, status.st_mtime_ns)
                known = self._read.get(path.name)
                if known is None or known[0] != version:
                    known = (version, *Vectors.read(path))
                read[path.name] = known
            except FileNotFoundError:  # moved meanwhile
                continue
            except (OSError, ValueError, KeyError, pa.ArrowException):
                if damaged is None:
                    raise SearchIndexError(f"{path} is damaged or can't be used", _REBUILD) from None
                damaged.append(path)
        self._read = read
        return {name: vectors for name, (_, vectors, made_by) in read.items() if model in (None, made_by)}

    def made_by(self) -> str:
        """The digest of the model that made the vectors which were read last; of several, that of the most."""
        counted = Counter(made_by for _, vectors, made_by in self._read.values() for _ in range(1 + len(vectors)))
        return counted.most_common(1)[0][0] if counted else ""

    def dimensions(self) -> int:
        """How many numbers the vectors have that were read last."""
        return next((vectors.values.shape[1] for _, vectors, _ in self._read.values()), 0)

    def lag(self, archive: Archive, model: str | None = None) -> Coverage:
        """How it differs from the archive."""
        held = self.held(model)
        rows = {_name(file, archive.manifests): _rows(file, archive) for file in list_settled(self.root)}
        known = sum(len(vectors) for name, vectors in held.items() if name in rows)
        return Coverage(known, max(known, sum(rows.values())), len(held.keys() - rows.keys()))

    def nearest(
        self, vector: "NDArray[np.float32]", count: int, model: str, among: "NDArray[np.int64] | None" = None
    ) -> list[Hit]:
        """The memories nearest to a vector, the nearest first.

        Raises:
            SearchIndexError: there are no vectors of this model, or they can't be read.
        """
        parts = list(self.held(model).values())
        if not parts:
            raise SearchIndexError("there are no vectors of this archive's memories", "run `vidurai-pipeline index`")
        if among is not None:
            parts = [part.chosen(np.isin(part.ids, among)) for part in parts]
        best: dict[tuple[int, int], float] = {}
        for part, scores in nearest(parts, vector, 2 * count):  # some are older versions
            for id_, created, score in zip(part.ids.tolist(), part.created.tolist(), scores.tolist(), strict=True):
                best[id_, created] = max(best.get((id_, created), -1.0), score)
        ranked = sorted(best.items(), key=lambda item: -item[1])[:count]
        return [Hit(id_, None if time_ == _NO_TIME else time_, score) for (id_, time_), score in ranked]

    def discard(self) -> None:
        """Remove it from the disk."""
        self._read = {}
        with archive_errors(self.folder):
            remove_folder(self.folder)

    def forget(self, archive: Archive) -> int:
        """Remove the vectors of memories that are no longer archived; returns of how many."""
        if not self.folder.exists():
            return 0
        before = 0
        try:
            before = sum(map(len, self.held().values()))
            return before - self.update(archive).vectors
        except SearchIndexError:  # another process updates it, or it is damaged
            self.discard()
            return before

    def update(
        self,
        archive: Archive,
        model: EmbeddingModel | None = None,
        *,
        seconds: float = 0.0,
        rebuild: bool = False,
        progress: Progress | None = None,
    ) -> VectorReport:
        """Bring it in line with the archive, as far as the time goes. Nothing is locked but the index itself.

        Args:
            archive: the archive, whose folder is this one's.
            model: embeds what has no vector; without one, no memory gets a new vector.
            seconds: how long it may embed.
            rebuild: make it from nothing.
            progress: told how far the work is.

        Raises:
            SearchIndexError: another process updates it.
        """
        began = time.monotonic()
        require_archive(self.root)
        files = list_settled(self.root)
        if archive.keys.path is not None or any(file.key for file in files) or rebuild:
            self.discard()
        if archive.keys.path is not None or not (self.exists() or (model and files)):
            return VectorReport(memories=sum(_rows(file, archive) for file in files))
        make_folder(self.folder)
        with updating_alone(self.folder), reading_connection() as connection:
            work = _Update(self, archive, files, model, connection)
            work.run(began + seconds, progress or (lambda *_: None))
            with archive_errors(self.folder):
                removed = work.remove_gone()
        found = self.lag(archive, model.digest if model else None)
        took = round(time.monotonic() - began, 3)
        return VectorReport(
            found.vectors, found.memories, work.embedded, work.taken, work.moved, removed, self.bytes(), took
        )


def update_vectors(
    archive: Archive,
    settings: Settings,
    *,
    minutes: float | None = None,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> tuple[VectorReport, str | None]:
    """Bring the vector index of an archive in line with it, and embed for as long as the settings allow.

    Returns:
        what was done, and why nothing could be embedded, if so.
    """
    minutes = settings.embed_minutes if minutes is None else minutes
    model, note = None, None
    if archive.keys.path is not None:
        note = "an encrypted archive has no vectors, which would tell something of its texts"
    elif minutes:
        try:
            model = load_model(settings.embed_model)
        except SearchIndexError as error:
            note = str(error)
    index = VectorIndex(archive.root)
    rebuild = rebuild and model is not None  # or what took hours would be gone
    return index.update(archive, model, seconds=60 * minutes, rebuild=rebuild, progress=progress), note


class _Update:
    """One update: moves vectors, takes them, makes them, and removes what is gone."""

    def __init__(
        self,
        index: VectorIndex,
        archive: Archive,
        files: Sequence[ArchiveFile],
        model: EmbeddingModel | None,
        connection: duckdb.DuckDBPyConnection,
    ) -> None:
        self._folder, self._archive, self._model, self._connection = index.folder, archive, model, connection
        self._files = {_name(file, archive.manifests): file for file in files}
        self._damaged: list[Path] = []
        index.held(damaged=self._damaged)
        self._made_by = model.digest if model else index.made_by()
        held = index.held(self._made_by, damaged=self._damaged)
        self._none = Vectors.joined([], model.dimensions if model else index.dimensions())
        self._held = {name: vectors for name, vectors in held.items() if name in self._files}
        left = [vectors for name, vectors in held.items() if name not in self._files]
        self._left = Vectors.joined(left, self._none.values.shape[1])
        self.embedded = self.taken = self.moved = 0

    def run(self, deadline: float, progress: Progress) -> None:
        """Give vectors to the files that lack some, the newest first."""
        rows = {name: _rows(file, self._archive) for name, file in self._files.items()}
        done, total = sum(map(len, self._held.values())), sum(rows.values())
        for name in sorted(self._files, key=lambda one: self._files[one].relative, reverse=True):
            known = len(self._held.get(name, self._none))
            if known >= rows[name] or not (len(self._left) or (self._model and time.monotonic() < deadline)):
                continue
            for more in self._fill(name, deadline):
                done += more
                progress("embedding", done, max(total, done))

    def _fill(self, name: str, deadline: float) -> Iterator[int]:
        """Give vectors to the memories of a file; tells how many got one, step by step."""
        found = self._held.get(name, self._none)
        kept, saved = len(found), time.monotonic()
        for more in self._made(self._read(self._files[name]), found, deadline):
            found = Vectors.joined([found, more], self._none.values.shape[1])
            yield len(more)
            if time.monotonic() - saved > _SAVE_SECONDS:
                self._save(name, found)
                kept, saved = len(found), time.monotonic()
        if len(found) > kept:
            self._save(name, found)

    def _made(self, rows: pa.Table, found: Vectors, deadline: float) -> Iterator[Vectors]:
        """Vectors of the memories that have none: those of files that are gone, then Vidurai's, then new ones."""
        rows = _lacking(rows, found)
        _, first = np.unique(self._left.versions, return_index=True)
        moved = self._left.chosen(first[np.isin(self._left.versions[first], rows["version"].to_numpy())])
        self.moved += len(moved)
        yield moved
        if self._model is None:
            return
        rows = _lacking(rows, moved)
        if self._model.is_vidurais:
            stored = _stored(rows, self._model.dimensions)
            self.taken += len(stored)
            yield stored
            rows = _lacking(rows, stored)
        for start in range(0, rows.num_rows, _STEP):
            if time.monotonic() > deadline:
                break
            made = self._embedded(self._model, rows.slice(start, _STEP), deadline)
            self.embedded += len(made)
            yield made

    @staticmethod
    def _embedded(model: EmbeddingModel, rows: pa.Table, deadline: float) -> Vectors:
        """Embed memories until the time is up, those of similar length together."""
        texts = rows["text"].to_pylist()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        places: list[int] = []
        values = []
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            vectors = model.embed([texts[place] for place in some])
            vectors[[not texts[place] for place in some]] = 0.0  # no text is near to nothing
            values.append(whole_numbers(vectors))
            places += some
            if time.monotonic() > deadline:
                break
        return _vectors_of(rows.take(pa.array(places, pa.int64())), np.concatenate(values))

    def _save(self, name: str, found: Vectors) -> None:
        path = self._folder / name
        with archive_errors(path):
            durable_write(path, found.to_bytes(self._made_by))
            self._damaged = [other for other in self._damaged if other != path]
            if self._files[name] not in list_files(self._archive.root, self._files[name].relative.rpartition("/")[0]):
                path.unlink()  # erased or rewritten meanwhile

    def remove_gone(self) -> int:
        """Remove all vectors that are of no use, and what a killed update left; returns how many files it was."""
        useless = [
            path
            for path in self._folder.iterdir()
            if path.name != LOCK and (path.name not in self._files or path in self._damaged)
        ]
        for path in useless:
            path.unlink(missing_ok=True)
        return sum(path.suffix == _SUFFIX for path in useless)

    def _read(self, file: ArchiveFile) -> pa.Table:
        """What an update needs of a file's memories, the newest first."""
        wanted = {"id", "created_at", "archived_at", "gist", "verbatim", _VIDURAIS}
        table = self._archive.columns(file, wanted)

        def text(name: str) -> str:
            return f"left(TRY_CAST({name} AS VARCHAR), {TEXT})" if name in table.column_names else "NULL"

        names = [name for name in ("id", "created_at", "archived_at") if name in table.column_names]
        identity = ", ".join(f"TRY_CAST({name} AS VARCHAR)" for name in names)
        self._connection.register("vectors_source", table)
        try:
            return self._connection.sql(f"""
                SELECT coalesce(TRY_CAST(id AS BIGINT), -1) AS id,
                    coalesce(epoch_us({utc_timestamp("created_at")}), {_NO_TIME}) AS created,
                    md5_number_lower(to_json([{identity}])::VARCHAR) AS version,
                    trim(concat_ws(chr(10), {text("gist")}, {text("verbatim")})) AS text,
                    {_VIDURAIS if _VIDURAIS in table.column_names else "NULL"} AS stored
                FROM vectors_source ORDER BY created DESC
            """).to_arrow_table()
        finally:
            self._connection.unregister("vectors_source")


def _vectors_of(rows: pa.Table, values: "NDArray[np.int8]") -> Vectors:
    return Vectors(rows["id"].to_numpy(), rows["created"].to_numpy(), rows["version"].to_numpy(), values)


def _lacking(rows: pa.Table, found: Vectors) -> pa.Table:
    return rows.filter(pa.array(~np.isin(rows["version"].to_numpy(), found.versions)))


def _stored(rows: pa.Table, dimensions: int) -> Vectors:
    """The vectors that Vidurai stored with its memories, as far as they are there."""
    places, found = [], []
    for place, stored in enumerate(rows["stored"].to_pylist()):
        vector = stored[0].get("embedding") if stored else None
        if isinstance(vector, bytes) and len(vector) == 4 * dimensions:
            places.append(place)
            found.append(np.frombuffer(vector, "<f4"))
    values = np.stack(found) if found else np.empty((0, dimensions), np.float32)
    return _vectors_of(rows.take(pa.array(places, pa.int64())), whole_numbers(normalized(values)))


def _name(file: ArchiveFile, manifests: Manifests) -> str:
    return hashlib.sha256(file_key(file, manifests).encode()).hexdigest()[:32] + _SUFFIX


def _rows(file: ArchiveFile, archive: Archive) -> int:
    entry = archive.manifests.entry(file.relative)
    return entry.rows if entry is not None and entry.same_file(file) else archive.columns(file, {"id"}).num_rows
