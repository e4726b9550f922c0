"""The same three steps as the reference's, with this project's parts: select, write, delete; nothing is compared."""

import contextlib
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.archival.staging import Stager, StagingRequest
from vidurai_pipeline.archival.staging_process import Staging
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.hot.purger import PurgeCount, Purger
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import data_version
from vidurai_pipeline.hot.store import HotStore


class BareStore(HotStore):
    """A hot store without what belongs to its memories."""

    def schema(self, con: sqlite3.Connection, *, to_purge: bool = True) -> StoreSchema:
        """The schema of the memories alone."""
        return replace(super().schema(con, to_purge=to_purge), child_tables=(), search_index=False)


def archive(db: Path, root: Path, rows_per_file: int = 25_000) -> int:
    """Move all ARCHIVED memories; returns how many."""
    store, cold, moment = BareStore(db), Archive(root), datetime.now(UTC)
    stager = Stager(store, cold, moment, "bare", verify=False)
    with contextlib.closing(store.connect(write=True)) as con:
        waiting = con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone()[0]
        purger, count = Purger(con, store.schema, log_limit=2**28, patience=60.0), PurgeCount()
        with Staging(stager, apart=waiting >= Run.rows_worth_a_process) as staging:
            staging.begin(StagingRequest(cold.new_path(moment), None, rows_per_file))
            while (staged := staging.finish(lambda _: None)).hidden is not None:
                staged.hidden.rename(staged.path)
                staging.begin(StagingRequest(cold.new_path(moment), staged.last, rows_per_file))
                for copies in cold.read_back(staged.path):
                    purger.purge(copies, count, data_version(con))
        return count.purged
