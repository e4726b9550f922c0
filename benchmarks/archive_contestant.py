"""One run of this project's archiver, in a process of its own: prints rows, seconds and peak memory as JSON."""

import contextlib
import json
import resource
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vidurai_pipeline.archival.archive import Archive, read_back
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.hot_store import HotStore, data_version, snapshot
from vidurai_pipeline.archival.purge import Purger
from vidurai_pipeline.archival.rows import read_archived


def bare(db: Path, root: Path) -> int:
    """Select, write, delete; nothing is compared, and nothing but the rows is written and deleted."""
    store, archive, moment = HotStore(db), Archive(root), datetime.now(UTC)
    with contextlib.closing(store.connect(write=True)) as con:
        schema = replace(store.schema(con), satellites=(), search_index=False)
        path = archive.new_path(moment)
        with archive.writer(path, schema.arrow_schema) as writer, snapshot(con):
            for batch in read_archived(con, schema):
                writer.write(batch.record_batch(schema, moment.isoformat()))
        writer.path.rename(path)
        purger = Purger(con, lambda _: schema)
        return sum(purger.purge(copies, data_version(con)).purged for copies in read_back(path, None))


def full(db: Path, root: Path) -> int:
    """The whole protocol."""
    return MemoryArchiver(db, root).flush_archived_memories()


if __name__ == "__main__":
    who = {"bare": bare, "full": full}[sys.argv[1]]
    began = time.monotonic()
    count = int(who(Path(sys.argv[2]), Path(sys.argv[3])))
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": count, "seconds": seconds, "peak_mb": peak}))
