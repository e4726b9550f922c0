"""Erase memories from everywhere: which ones, by id, by a condition or by words."""

from collections import Counter
from collections.abc import Callable, Collection

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import READABLE_TAGS
from vidurai_pipeline.archival.command import MemoryCommand, own_lines, select
from vidurai_pipeline.archival.erasing import EraseReport, Erasing
from vidurai_pipeline.cold.erasures import Erasure
from vidurai_pipeline.cold.generation import require_exchange
from vidurai_pipeline.cold.intents import Intent
from vidurai_pipeline.errors import ConfigError, QueryError
from vidurai_pipeline.hot.erasing import TEXTS

_BORN = "id, created_at FROM memories"
_Memory = tuple[int, str | None]


class MemoryEraser(MemoryCommand):
    """Erases memories from both tiers for good, and proves that they are gone.

    Backups and snapshots of a file system are out of its reach.

    Its arguments are those of :class:`MemoryCommand`.

    Example:
        >>> report = MemoryEraser().erase(match="hunter2")  # doctest: +SKIP
        >>> print(f"{report.erased} erased, everything gone: {report.success}")  # doctest: +SKIP
    """

    def erase(
        self,
        ids: Collection[int] = (),
        where: str | None = None,
        match: str | None = None,
        *,
        dry_run: bool = False,
        forget: Callable[[], tuple[bool, str]] | None = None,
    ) -> EraseReport:
        """Erase memories in whatever tier and status, with all their versions.

        Args:
            ids: memories to erase.
            where: more of them: an SQL condition over the columns of ``memories``.
            match: more of them: those in which all these words occur.
            dry_run: change nothing.
            forget: makes the Q-table learn anew, as :meth:`DreamCycle.forget` does; by default the next dream does it.

        Raises:
            QueryError: the condition or the words are wrong.
            LockedError: another run is at work.
            HotStoreError, ArchiveError: it could not be finished; the next run goes on.
        """
        given = {"ids": bool(ids), "condition": where is not None, "words": match is not None}
        if not any(given.values()):
            raise ConfigError("name memories to erase: by their ids, by a condition or by words")
        report = EraseReport(dry_run=dry_run)
        if dry_run:
            self._archiver.store.require()
            self._choose(ids, where, match, report)
            return report
        with self._archiver.run("erase") as run:
            run.recover()
            run.resume()
            if chosen := self._choose(ids, where, match, report):
                require_exchange(run.archive.root)
                options = {"chosen": ", ".join(name for name, used in given.items() if used)}
                intent = Intent("erase", tuple((*one, None) for one in chosen), run.identity, options=options)
                erasing = Erasing(run, intent, report)
                erasing.begin()
                erasing.carry_out()
                self._unlearn(report, forget, taught=bool(intent.options["taught"]))
        return report

    def history(self) -> list[Erasure]:
        """The erasures of this archive, oldest first.

        Raises:
            ArchiveError: their record can't be read.
        """
        return self._archiver.archive.erasures.all()

    def _unlearn(self, report: EraseReport, forget: Callable[[], tuple[bool, str]] | None, *, taught: bool) -> None:
        learned, reason, how = taught and self.settings.q_table_path.exists(), "", "the next dream learns it anew"
        if learned and forget:
            learned, reason = forget()
            how = "learned anew without them"
        report.add("Q-table", int(learned), int(bool(reason)), reason, how)

    def _choose(self, ids: Collection[int], where: str | None, match: str | None, report: EraseReport) -> list[_Memory]:
        archive = self._archiver.archive
        listed: set[_Memory] = set()
        chosen: set[_Memory] = set()
        with self._analyst() as analyst:
            if ids:
                listed = set(select(analyst, _BORN, f"id IN ({', '.join(map(str, ids))})"))
            if where is not None:
                chosen |= set(select(analyst, _BORN, own_lines(where), given=where))
            if match is not None:
                if not (words := match.split()):
                    raise QueryError("there is no word to find")
                condition = " AND ".join([_has_word(analyst)] * len(words))
                chosen |= set(select(analyst, _BORN, condition, parameters=words))
        # Of those that are gone, something may have been left.
        gone = sorted(id_ for id_ in set(ids) - {id_ for id_, _ in listed} if abs(id_) < 2**63)
        listed |= {(row["id"], row["created_at"]) for row in archive.tombstones.of(gone).to_pylist()}
        several = {id_ for id_, count in Counter(id_ for id_, _ in listed).items() if count > 1}
        unknown = set(ids) - {id_ for id_, _ in listed}
        report.refuse(unknown, "no such memory in either tier")
        report.refuse(
            several, "several memories had this id one after the other: choose by created_at with a condition"
        )
        chosen |= {(id_, born) for id_, born in listed if id_ not in several}
        report.erased = len(chosen)
        return sorted(chosen, key=lambda one: (one[0], one[1] or ""))


def _has_word(analyst: RepoAnalyst) -> str:
    """SQL for the memories in whose texts a word stands: a search by the index would give nearly the same words too."""
    columns, _ = analyst.query_rows("SELECT * FROM memories LIMIT 0")
    texts = [name for name in TEXTS if name in columns] + [READABLE_TAGS]
    if "audience_gists" in columns:
        texts.append("array_to_string(list_transform(audience_gists, lambda one: one.gist), chr(10))")
    return f"contains(lower(concat_ws(chr(10), {', '.join(texts)})), lower(?))"
