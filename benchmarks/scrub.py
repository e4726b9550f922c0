"""How fast archived files are proved, beside SHA-256 alone, and what the check before a query costs.

    python -m benchmarks.scrub [--megabytes 1000] [--files 5000]

The scrub is compared with `hashlib.file_digest` of the same files, one after the other; both read from the disk, not
from memory. The check is what each question to an archive of many files costs before DuckDB begins: the first one of a
process reads the manifests, the next ones only see whether anything changed.
"""

import argparse
import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.cold.manifest import Manifests

FILES_PER_MONTH = 31


def make_archive(root: Path, files: int, bytes_per_file: int) -> Archive:
    """An archive of equal files of random text, spread over months and adopted."""
    source = root / "source"
    root.mkdir()
    size = max(1, bytes_per_file // 100)
    text = [random.Random(number).randbytes(50).hex() for number in range(size)]
    columns = {"id": range(size), "verbatim": text, "created_at": ["2026-01-01T00:00:00"] * size}
    pq.write_table(pa.table(columns), source, use_dictionary=False)
    for number in range(files):
        month = number // FILES_PER_MONTH
        folder = root / f"year={2000 + month // 12}" / f"month={month % 12 + 1:02}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / f"memories_20000101_{number:06}.parquet")
    source.unlink()
    archive = Archive(root)
    assert len(scrub(archive).adopted) == files
    return archive


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def digest(root: Path) -> None:
    """Read each file from the disk for its SHA-256 alone."""
    for listed in list_files(root):
        with (root / listed.relative).open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            hashlib.file_digest(file, "sha256")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = make_archive(Path(folder, "large"), 31, arguments.megabytes * 1_000_000 // 31)
        os.sync()
        plain = min(seconds(lambda: digest(large.root)) for _ in range(arguments.times))
        ours = min(seconds(lambda: scrub(large)) for _ in range(arguments.times))
        size = sum(file.size for file in list_files(large.root)) / 1e6
        print(f"{'SHA-256 of every file':<32}{plain:7.2f} s {size / plain:7.0f} MB/s")
        print(f"{'scrub --all':<32}{ours:7.2f} s {size / ours:7.0f} MB/s  x {ours / plain:.2f}")
        many = make_archive(Path(folder, "many"), arguments.files, 1_000)
        files = list_files(many.root)
        manifests = Manifests(many.root)
        first = min(seconds(lambda: Manifests(many.root).flaws(files)) for _ in range(arguments.times))
        manifests.flaws(files)
        again = min(seconds(lambda: manifests.flaws(files)) for _ in range(arguments.times))
        listing = min(seconds(lambda: list_files(many.root)) for _ in range(arguments.times))
        print(f"{f'{len(files):,} files: listing':<32}{listing * 1000:7.1f} ms")
        print(f"{'  check, first in a process':<32}{first * 1000:7.1f} ms")
        print(f"{'  check, again':<32}{again * 1000:7.1f} ms")


if __name__ == "__main__":
    main()
