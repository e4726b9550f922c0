"""Search files for text that should be gone: what an erasure proves itself by.

The search is made by another process. Closing the hot store's file in this one would drop SQLite's locks on it
(https://sqlite.org/howtocorrupt.html, 2.2). The texts go to it through a pipe, never by its arguments.

An erasure that died is proved by fingerprints, for its texts may be gone. A fingerprint is a rolling hash, by which
each place of a file is looked at, and a keyed digest, which confirms what that finds.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidurai_pipeline.errors import ArchiveError

#: What stands for texts without holding any of them, as JSON's types.
Fingerprints = Mapping[str, Any]

_CHUNK = 4 * 1024 * 1024
_COMPRESSED = {".bz2", ".gz", ".lz4", ".zst"}
# The lengths in bytes that a piece of text may have for its fingerprint: the longest that the text allows.
_LENGTHS = (32, 16, 10)
_WORD = 2**64


def find_residue(
    texts: Sequence[str] | Fingerprints, places: Collection[Path], skip: Collection[Path] = ()
) -> dict[Path, set[str]]:
    """Search files, also within Parquet and compressed ones.

    Args:
        texts: what to search for, as UTF-8, and as JSON has it; or fingerprints of it.
        places: files, and folders of which all files are searched; they need not be there.
        skip: files to leave out.

    Returns:
        the files that hold some of the texts, and which.
    """
    request = {"texts": texts, "places": [str(place) for place in places], "skip": [str(path) for path in skip]}
    done = subprocess.run(  # noqa: S603  (this very Python)
        [sys.executable, "-m", __name__], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2] or f"its process ended with {done.returncode}"
        raise ArchiveError(f"the search for what is left of erased memories failed: {why}", "erase them again")
    return {Path(path): set(found) for path, found in json.loads(done.stdout)}


def fingerprints(texts: Sequence[str]) -> Fingerprints:
    """Fingerprints of texts of ten bytes or more."""
    key, base = secrets.token_bytes(32), secrets.randbits(64) | 1
    found = []
    for form in _forms(texts):
        start = form[: next(length for length in _LENGTHS if length <= len(form))]
        rolling = sum(byte * pow(base, place, _WORD) for place, byte in enumerate(start)) % _WORD
        found.append((len(start), rolling, _digest(start, key)))
    return {"key": key.hex(), "base": base, "found": found}


def _digest(data: bytes, key: bytes) -> str:
    return hashlib.blake2b(data, key=key, digest_size=16).hexdigest()


def _forms(texts: Sequence[str]) -> dict[bytes, str]:
    """The bytes by which a file may hold each text."""
    plain = {text.encode("utf-8", "surrogatepass"): text for text in texts}
    return plain | {
        json.dumps(text, ensure_ascii=some)[1:-1].encode("utf-8", "surrogatepass"): text
        for text in texts
        for some in (False, True)
    }


class _TextSearch:
    def __init__(self, texts: Sequence[str]) -> None:
        self._forms = _forms(texts)
        self.overlap = max(map(len, self._forms), default=1) - 1

    def find(self, data: bytes, known: Collection[str]) -> set[str]:
        found: set[str] = set()
        # `pa.array` would import pandas, which takes longer than the search.
        ends = pa.py_buffer(np.array([0, len(data)], np.int32))
        value = pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(data)])
        while forms := [form for form, text in self._forms.items() if text not in found and text not in known]:
            # RE2 takes as long for a hundred texts as for one, which `bytes.find` does not, and lets other threads run.
            pattern = "|".join("".join(f"\\x{byte:02x}" for byte in form) for form in forms)
            match = pc.extract_regex(value, f"(?P<text>{pattern})")[0]  # pyright: ignore[reportAttributeAccessIssue]
            if not match.is_valid:
                break
            found.add(self._forms[match["text"].as_py()])
        return found


class _FingerprintSearch:
    def __init__(self, prints: Fingerprints) -> None:
        self._key, base = bytes.fromhex(prints["key"]), prints["base"]
        self._wanted = {length: [one for one in prints["found"] if one[0] == length] for length in _LENGTHS}
        self.overlap = max(_LENGTHS) - 1
        # Of the base and of its inverse, as far as a chunk needs them.
        powers = [np.full(_CHUNK + self.overlap, base, np.uint64) for base in (base, pow(base, -1, _WORD))]
        for some in powers:
            some[0] = 1
        self._powers, self._inverse = map(np.cumprod, powers)

    def find(self, data: bytes, known: Collection[str]) -> set[str]:
        parts = [data[first : first + _CHUNK + self.overlap] for first in range(0, len(data), _CHUNK)]
        return set().union(*map(self._find, parts)).difference(known)

    def _find(self, data: bytes) -> set[str]:
        sums = np.cumsum(np.frombuffer(data, np.uint8) * self._powers[: len(data)])
        sums = np.concatenate([np.zeros(1, np.uint64), sums])
        found = set()
        for length, wanted in self._wanted.items():
            if not wanted or len(data) < length:
                continue
            rolling = (sums[length:] - sums[:-length]) * self._inverse[: len(data) - length + 1]
            # Most places are ruled out by 16 bits.
            few = np.zeros(2**16, np.bool_)
            few[[one[1] >> 48 for one in wanted]] = True
            places = np.flatnonzero(few[rolling >> np.uint64(48)])
            places = places[np.isin(rolling[places], np.array([one[1] for one in wanted], np.uint64))]
            for place in places.tolist():
                text = data[place : place + length]
                if any(hmac.compare_digest(_digest(text, self._key), one[2]) for one in wanted):
                    found.add(text.decode("utf-8", "ignore"))
        return found


def _files(places: Collection[Path]) -> Iterator[Path]:
    seen = set()
    for place in places:
        walked = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
        for path in [place] if place.is_file() else walked:
            # SQLite's shared memory holds no text, and is written all the time.
            if path.is_file() and not path.name.endswith("-shm") and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path


def _contents(path: Path, overlap: int) -> Iterator[Callable[[], bytes]]:
    """What a file holds, part by part: as it stands, and decoded."""
    size = path.stat().st_size
    for start in range(0, size, _CHUNK):
        yield partial(_read, path, start, _CHUNK + overlap)
    if path.suffix in _COMPRESSED or (size and _read(path, 0, 4) == b"PAR1"):
        yield partial(_decoded, path)


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _decoded(path: Path) -> bytes:
    """What a compressed or a Parquet file holds, as far as it can be read."""
    texts: list[bytes] = []
    with contextlib.suppress(pa.ArrowException, OSError):
        if path.suffix in _COMPRESSED:
            with pa.input_stream(str(path)) as stream:
                return stream.read()
        with path.open("rb") as file:
            for column in pq.ParquetFile(file).read().columns:
                texts += [buffer.to_pybytes() for part in column.chunks for buffer in part.buffers() if buffer]
    return b"\n".join(texts)


def main() -> None:
    """Search for what the standard input says, and tell what was found."""
    request = json.load(sys.stdin)
    texts, skip = request["texts"], set(request["skip"])
    search = _TextSearch(texts) if isinstance(texts, list) else _FingerprintSearch(texts)
    found: dict[str, set[str]] = {}

    def look(path: Path, read: Callable[[], bytes]) -> None:
        known = found.setdefault(str(path), set())
        with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
            known.update(search.find(read(), known))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = []
        for path in _files([Path(place) for place in request["places"]]):
            if str(path) not in skip:
                with contextlib.suppress(FileNotFoundError):
                    looks += [pool.submit(look, path, read) for read in _contents(path, search.overlap)]
        for done in looks:
            done.result()
    json.dump([(path, sorted(texts)) for path, texts in found.items() if texts], sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whose text may quote a memory
        sys.exit(f"{type(error).__name__} {getattr(error, 'filename', None) or ''}")
    # Arrow's own threads sometimes abort a process that ends in the usual way: its answer would be lost.
    sys.stdout.flush()
    os._exit(0)
