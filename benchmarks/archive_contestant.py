"""One run of this project's archiver, in a process of its own: prints rows and seconds as JSON."""

import json
import sys
import time
from pathlib import Path

from benchmarks import bare
from vidurai_pipeline.archival.archiver import MemoryArchiver


def full(db: Path, root: Path) -> int:
    """The whole protocol."""
    return MemoryArchiver(db, root).flush_archived_memories(upkeep=False)


def upkeep(db: Path, root: Path) -> int:
    """The whole protocol, and what keeps the store small for the nights to come."""
    return MemoryArchiver(db, root).flush_archived_memories()


if __name__ == "__main__":
    who = {"bare": bare.archive, "full": full, "upkeep": upkeep}[sys.argv[1]]
    began = time.monotonic()
    count = int(who(Path(sys.argv[2]), Path(sys.argv[3])))
    seconds = time.monotonic() - began
    print(json.dumps({"rows": count, "seconds": seconds}))
