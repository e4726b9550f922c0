"""Vectors in a file, and which of them are near to another vector.

Each number of a vector is kept as a byte, and its sign apart from it: of many vectors, the signs alone are compared
first, which takes 5 ms for a million of them, and then the most similar ones as a whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Up to this many vectors, all are compared as a whole. Of more, the signs of their numbers come first.
COMPARED_WHOLE = 10_000
#: So many are compared as a whole where the signs chose them.
CANDIDATES = 1_000
# So many rows of signs, and of whole vectors, fit into a processor's cache.
_SIGNS, _ROWS = 8_192, 512


@dataclass(frozen=True)
class Vectors:
    """The vectors of one file's memories, or of some of them.

    Attributes:
        ids: their ids.
        created: when they were created, in microseconds.
        versions: digests that tell one version of a memory from all others.
        values: the vectors, each number as an integer of -127 to 127.
        signs: which numbers are positive, 64 of them in one; only of vectors that were read from a file.
    """

    ids: "NDArray[np.int64]"
    created: "NDArray[np.int64]"
    versions: "NDArray[np.uint64]"
    values: "NDArray[np.int8]"
    signs: "tuple[NDArray[np.uint64], ...]" = ()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: "Iterable[Vectors]", dimensions: int) -> "Vectors":
        """Several as one."""
        values = np.empty((0, dimensions), np.int8)
        some = [cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64), values), *parts]
        return cls(
            np.concatenate([one.ids for one in some]),
            np.concatenate([one.created for one in some]),
            np.concatenate([one.versions for one in some]),
            np.concatenate([one.values for one in some]),
        )

    def chosen(self, which: "NDArray[Any]") -> "Vectors":
        """Some of them, by their places or by a mask."""
        signs = tuple(column[which] for column in self.signs)
        return Vectors(self.ids[which], self.created[which], self.versions[which], self.values[which], signs)

    def with_signs(self) -> "Vectors":
        """The same, with the signs of their numbers."""
        return replace(self, signs=tuple(_signs(self.values)))

    @classmethod
    def read(cls, path: Path) -> "tuple[Vectors, str]":
        """Map a file into memory; gives its vectors, and the digest of the model that made them.

        Raises:
            OSError, ValueError, KeyError, pyarrow.ArrowException: it is damaged, or gone.
        """
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            if reader.num_record_batches != 1:
                raise ValueError("not as it was written")
            batch = reader.get_batch(0)
        batch.validate()
        metadata = batch.schema.metadata or {}
        columns = {name: batch.column(name) for name in batch.schema.names}
        vectors = columns.pop("vector")
        width = vectors.type.byte_width
        values = np.frombuffer(vectors.buffers()[1], np.int8, len(vectors) * width).reshape(-1, width)
        ids, created, versions, *signs = (column.to_numpy() for column in columns.values())
        return cls(ids, created, versions, values, tuple(signs)), metadata[b"model"].decode()

    def to_bytes(self, model: str) -> bytes:
        """The content of a file; the signs stand in columns, which are compared several times as fast as rows."""
        width = self.values.shape[1]
        signs = self.with_signs().signs
        batch = pa.record_batch(
            {
                "id": self.ids,
                "created": self.created,
                "version": self.versions,
                **{f"signs_{number}": column for number, column in enumerate(signs)},
                "vector": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(width), len(self), [None, pa.py_buffer(np.ascontiguousarray(self.values))]
                ),
            }
        ).replace_schema_metadata({"model": model})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()


def whole_numbers(vectors: "NDArray[np.float32]") -> "NDArray[np.int8]":
    """Vectors of length 1 as they are stored: the largest number of each is 127, since only the direction counts."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12)
    return np.rint(vectors * (127 / largest)).astype(np.int8)


def _signs(values: "NDArray[np.int8]") -> "list[NDArray[np.uint64]]":
    """Which numbers are positive, 64 of them in one."""
    bits = np.packbits(values > 0, axis=1)
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return list(np.ascontiguousarray(padded.view(np.uint64).T))


def nearest(
    parts: Sequence[Vectors], vector: "NDArray[np.float32]", count: int
) -> "Iterator[tuple[Vectors, NDArray[np.float32]]]":
    """The vectors with the smallest angle to another one, at least as many of each part as are among the first.

    Returns:
        some of each part, and the cosines of their angles.
    """
    if sum(map(len, parts)) > COMPARED_WHOLE:
        parts = _near_by_signs(parts, vector, max(CANDIDATES, 4 * count))
    for part in parts:
        scores = _cosines(part.values, vector)
        best = np.argsort(-scores, kind="stable")[:count]
        yield part.chosen(best), scores[best]


def _near_by_signs(parts: Sequence[Vectors], vector: "NDArray[np.float32]", count: int) -> list[Vectors]:
    """Those vectors of which most numbers have the sign that the question's has."""
    wanted = [int(column[0]) for column in _signs(whole_numbers(vector[None]))]
    distances = []
    for part in parts:  # in how many signs each vector differs
        found = np.zeros(len(part), np.uint16)
        for start in range(0, len(found), _SIGNS):
            for column, sign in zip(part.signs, wanted, strict=True):
                found[start : start + _SIGNS] += np.bitwise_count(column[start : start + _SIGNS] ^ np.uint64(sign))
        distances.append(found)
    counts = sum(np.bincount(one, minlength=64 * len(wanted) + 1) for one in distances)
    farthest = int(np.searchsorted(np.cumsum(counts), count))
    near = []
    for part, distance in zip(parts, distances, strict=True):
        nearer, same = np.flatnonzero(distance < farthest), np.flatnonzero(distance == farthest)
        near.append(part.chosen(np.concatenate([nearer, same[:count]])))
    return near


def _cosines(values: "NDArray[np.int8]", vector: "NDArray[np.float32]") -> "NDArray[np.float32]":
    found = np.empty(len(values), np.float32)
    for start in range(0, len(values), _ROWS):
        block = values[start : start + _ROWS].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        found[start : start + _ROWS] = block @ vector / np.maximum(lengths, 1.0)
    return found
