"""Bring archived memories back: which ones, by id or by a condition."""

import math
import os
from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.command import MemoryCommand, own_lines, select
from vidurai_pipeline.archival.restoring import (
    Refusal,
    RestoreReport,
    bring_back,
    holders,
    insert,
)
from vidurai_pipeline.cold.generation import require_exchange
from vidurai_pipeline.cold.intents import Grace, Identity, Intent
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.hot.fresh_store import add_places, new_store, require_new
from vidurai_pipeline.hot.restoring import RestoreOptions, Restorer
from vidurai_pipeline.hot.store import HotStore

# Vidurai's own judgement, the utility score of its Guardian: what scores less than this is set aside.
_DECAY_SCORE = 0.15
_UNKNOWN = "no such memory in either tier"
_ORDER = " ORDER BY archived_ts, archived_at"


class MemoryRestorer(MemoryCommand):
    """Brings memories back from the cold archive.

    Its arguments are those of :class:`MemoryCommand`.

    Example:
        >>> report = MemoryRestorer().restore(where="file_path LIKE '%/auth.py'")  # doctest: +SKIP
        >>> print(f"{report.restored} are back, {len(report.refused)} are not")  # doctest: +SKIP
    """

    def restore(
        self,
        ids: Collection[int] = (),
        where: str | None = None,
        *,
        dry_run: bool = False,
        options: RestoreOptions | None = None,
    ) -> RestoreReport:
        """Bring memories back into the hot store, as ACTIVE ones.

        Args:
            ids: memories to restore.
            where: more of them: an SQL condition over the columns of ``memories``.
            dry_run: change nothing.
            options: what may be given up to bring a memory back.

        Raises:
            QueryError: the condition is wrong.
            LockedError: another run is at work.
            HotStoreError, ArchiveError: it could not be finished. No memory is lost, and the next run goes on.
        """
        options = options or RestoreOptions()
        report = RestoreReport(dry_run=dry_run)
        if dry_run:
            self._archiver.store.require()
            self._choose(ids, where, report)
            return report
        with self._archiver.run("restore") as run:
            run.recover()
            run.resume()
            chosen, waiting = self._choose(ids, where, report)
            until = datetime.now(UTC) + timedelta(days=self.settings.restore_grace_days)
            if chosen or waiting:
                require_exchange(run.archive.root)
                Grace(run.archive.root, run.identity).add([*waiting, *(row[0] for row in chosen)], until)
                report.until = until.isoformat(timespec="seconds")
            if waiting:
                run.reactivate(waiting)
            if chosen:
                intent = Intent("restore", tuple(chosen), run.identity, options=asdict(options))
                run.archive.intents.write(intent)
                bring_back(run, intent, report)
        return report

    def restore_into(
        self,
        path: Path,
        ids: Collection[int] = (),
        where: str | None = None,
        *,
        dry_run: bool = False,
        options: RestoreOptions | None = None,
    ) -> RestoreReport:
        """Make a new store from the archive, as when the hot store is lost; the archive stays as it is.

        Args:
            path: the new store's file, which must not exist.
            ids: memories to put into it.
            where: more of them: an SQL condition over the columns of ``history``.
            dry_run: only count them.
            options: what may be given up to bring a memory back. Projects are always made.

        Raises:
            ConfigError: there is a file already, or the place lies in the archive.
            QueryError: the condition is wrong.
        """
        report = RestoreReport(dry_run=dry_run)
        archive = self._archiver.archive
        require_new(path)
        if Path(os.path.realpath(archive.root)) in Path(os.path.realpath(path)).parents:
            raise ConfigError(f"{path} lies in the archive, {archive.root}", "choose another place")
        with RepoAnalyst(archive.root, hot_store=path) as analyst:
            rows = select(
                analyst, "id, created_at, archived_at FROM history", _condition(ids, where) + _ORDER, given=where
            )
            chosen = _newest_of_each_id([row[:3] for row in rows], report)
        report.refuse(set(ids) - {row[0] for row in chosen}, _UNKNOWN)
        if dry_run:
            report.restored = len(chosen)
            return report
        with archive.lock("restore", self.settings.lock_timeout, make=False):
            # Pending ones too: where the hot store is lost, they hold the only copy.
            files = holders(archive, list_files(archive.root), chosen)
            schemas = [archive.schema(file) for file in files]
            with new_store(path) as con:
                add_places(con, schemas)
                schema = HotStore(path).schema(con, to_purge=False)
                restorer = Restorer(con, schema, replace(options or RestoreOptions(), make_projects=True))
                insert(archive, files, chosen, restorer=restorer, report=report, progress=self._progress)
        return report

    def _choose(
        self, ids: Collection[int], where: str | None, report: RestoreReport
    ) -> tuple[list[Identity], list[int]]:
        """Which memories are to come from the archive; and which are hot but wait for archival."""
        if not ids and where is None:
            raise ConfigError("name memories to restore: by their ids, or by a condition")
        chosen: list[Identity] = []
        found, waiting = set(), []
        with self._analyst() as analyst:
            columns = "id, created_at, archived_at, tier, status, access_count, outcome, pinned, created_ts"
            for row in select(analyst, f"{columns} FROM memories", _condition(ids, where) + _ORDER, given=where):
                found.add(row[0])
                if row[3] == "hot":
                    report.already_hot += 1
                    waiting += [row[0]] if row[4] == "ARCHIVED" else []
                else:
                    chosen.append(row[:3])
                    report.would_decay += _decays(*row[5:])
        report.refuse(set(ids) - found, _UNKNOWN)
        chosen = _newest_of_each_id(chosen, report)
        if report.dry_run:
            report.restored = len(chosen)
        return chosen, waiting


def _condition(ids: Collection[int], where: str | None) -> str:
    listed = f"id IN ({', '.join(map(str, ids)) or 'NULL'})"
    return listed if where is None else f"({listed} OR {own_lines(where)})"


def _newest_of_each_id(chosen: list[Identity], report: RestoreReport) -> list[Identity]:
    """Of several memories that had the same id one after the other, the one that was archived last."""
    newest = {row[0]: row for row in chosen}
    report.refused += [
        Refusal(row[0], f"another memory of this id, made {newest[row[0]][1]}, was archived later; this one stays")
        for row in chosen
        if newest[row[0]] is not row
    ]
    return list(newest.values())


def _decays(access_count: int | None, outcome: int | None, pinned: int | None, created: datetime | None) -> bool:
    """Whether Vidurai's Guardian would set a memory aside: seldom recalled, old, and of no known use."""
    days = 0 if created is None else (datetime.now(UTC).replace(tzinfo=None) - created).days
    score = 0.4 * math.log(max(access_count or 0, 0) + 1) + 0.4 / (max(days, 0) + 1) + 0.2 * (outcome or 0)
    return not pinned and score < _DECAY_SCORE
