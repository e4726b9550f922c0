"""The same three steps as the reference's, with this project's parts: select, write, delete; nothing is compared."""

import contextlib
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vidurai_pipeline.archival.archiver import ROWS_WORTH_A_PROCESS
from vidurai_pipeline.archival.staging import StagedFile, Stager
from vidurai_pipeline.archival.staging_process import StagingProcess
from vidurai_pipeline.cold.archive import Archive, read_back
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline.hot.rows import RowBatch
from vidurai_pipeline.hot.schema import StoreSchema
from vidurai_pipeline.hot.sql import data_version
from vidurai_pipeline.hot.store import HotStore


class BareStore(HotStore):
    """A hot store without what belongs to its memories."""

    def schema(self, con: sqlite3.Connection, *, to_purge: bool = True) -> StoreSchema:
        """The schema of the memories alone."""
        return replace(super().schema(con, to_purge=to_purge), child_tables=(), search_index=False)


class BareStager(Stager):
    """Writes files, and leaves it at that."""

    def _write(
        self, con: sqlite3.Connection, schema: StoreSchema, path: Path, parts: Iterable[RowBatch], staged: StagedFile
    ) -> None:
        del con  # nothing is compared
        with self._archive.writer(path, schema.arrow_schema) as writer:
            for part in parts:
                writer.write(part.record_batch(schema, self._archived_at))
        staged.hidden = writer.path


def archive(db: Path, root: Path, rows_per_file: int = 25_000) -> int:
    """Move all ARCHIVED memories; returns how many."""
    store, cold, moment = BareStore(db), Archive(root), datetime.now(UTC)
    stager = BareStager(store, cold, moment, "bare", rows_per_file)
    with contextlib.closing(store.connect()) as con:
        waiting = con.execute("SELECT count(*) FROM memories WHERE status = 'ARCHIVED'").fetchone()[0]
    with contextlib.ExitStack() as stack:
        # As the archiver does: the purging connection belongs to the worker.
        worker = stack.enter_context(ThreadPoolExecutor(1))
        con = worker.submit(store.connect, write=True).result()
        stack.callback(lambda: worker.submit(con.close).result())
        purger = worker.submit(Purger, con, store.schema).result()
        source = (
            stack.enter_context(StagingProcess(stager))
            if waiting >= ROWS_WORTH_A_PROCESS
            else stack.enter_context(contextlib.closing(stager))
        )

        def purge(path: Path) -> int:
            return sum(purger.purge(copies, data_version(con)).purged for copies in read_back(path))

        jobs, last = [], None
        while True:
            path = cold.new_path(moment)
            staged = source.stage(path, last, lambda _: None)
            if staged.hidden is None:
                return sum(job.result() for job in jobs)
            staged.hidden.rename(path)
            jobs.append(worker.submit(purge, path))
            last = staged.last
