"""Search files for bytes that should be gone: what an erasure proves itself by.

The search is made by another process. Closing the hot store's file in this one would drop SQLite's locks on it
(https://sqlite.org/howtocorrupt.html, 2.2). The texts go to it through a pipe, never by its arguments.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from vidurai_pipeline.errors import ArchiveError

_CHUNK = 32 * 1024 * 1024


def find_residue(texts: Sequence[str], places: Collection[Path], skip: Collection[Path] = ()) -> dict[Path, set[str]]:
    """Search files.

    Args:
        texts: what to search for, as UTF-8, and as JSON has it.
        places: files, and folders of which all files are searched; they need not be there.
        skip: files to leave out.

    Returns:
        the files that hold some of the texts, and which.

    Raises:
        ArchiveError: the search failed.
    """
    if not texts:
        return {}
    request = {"texts": texts, "places": [str(place) for place in places], "skip": [str(path) for path in skip]}
    done = subprocess.run(  # noqa: S603  (this very Python)
        [sys.executable, "-m", __name__], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ArchiveError("the search for what is left of erased memories failed", "erase them again")
    return {Path(path): set(found) for path, found in json.loads(done.stdout)}


def _files(places: Collection[Path]) -> Iterator[Path]:
    seen = set()
    for place in places:
        walked = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
        for path in [place] if place.is_file() else walked:
            # SQLite's shared memory holds no text, and is written all the time.
            if path.is_file() and not path.name.endswith("-shm") and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0" or path.name.endswith("-wal")


def _search(path: Path, texts: Sequence[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    overlap = max(map(len, texts)) - 1
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            data = tail + chunk
            found |= {text for text in texts if text not in found and text in data}
            tail = data[-overlap:] if overlap else b""
    return found


def _main() -> None:
    request = json.load(sys.stdin)
    skip = set(request["skip"])
    plain = {text.encode("utf-8", "surrogatepass"): text for text in request["texts"]}
    quoted = {
        json.dumps(text, ensure_ascii=some)[1:-1].encode(): text for text in plain.values() for some in (False, True)
    }
    answer = []
    for path in _files([Path(place) for place in request["places"]]):
        try:
            if str(path) in skip:
                continue
            # SQLite keeps text as it is, and its files are the large ones.
            forms = plain if _is_sqlite(path) else plain | quoted
            if found := _search(path, list(forms)):
                answer.append((str(path), sorted({forms[form] for form in found})))
        except FileNotFoundError:  # it has gone meanwhile
            continue
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
