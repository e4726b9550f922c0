"""Erase memories from everywhere: the part that a crash may cut short, and the proof.

A tombstone without text comes first, so that nothing brings a memory back. What was begun stands in an intent
(:mod:`vidurai_pipeline.cold.intents`), from which the next run goes on. At the end the files are searched for a few
short pieces of each memory's text that no other memory has.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from platformdirs import user_cache_path

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.vector_index import VectorIndex
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.archival.report import ChoiceReport
from vidurai_pipeline.archival.restoring import holders, mask, take_out
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.erasures import Erasure
from vidurai_pipeline.cold.intents import Intent
from vidurai_pipeline.cold.listing import ArchiveFile, by_folder, list_files, list_settled
from vidurai_pipeline.cold.residue import find_residue, fingerprints
from vidurai_pipeline.errors import ArchiveError, plural
from vidurai_pipeline.hot.erasing import TEXTS, HotEraser

if TYPE_CHECKING:
    from vidurai_pipeline.archival.run import Run

#: Pieces of text are searched for of this many memories at most.
_SEARCHED = 100


@dataclass
class Place:
    """A place where a memory may be, and what became of it there.

    Attributes:
        place: what it is.
        found: how much of the memories was found there.
        left: how much of it could not be erased.
        how: ``erased``, ``absent``, or why something is left and what to do.
    """

    place: str
    found: int = 0
    left: int = 0
    how: str = "absent"


@dataclass
class EraseReport(ChoiceReport):
    """What an erasure did; in a dry run, what it would do.

    Attributes:
        erased: how many memories it was for.
        places: where they were looked for, and what became of them there.
        proved: pieces of text that were searched for in all files at the end, and that no other memory has.
        searched: how many of the memories they are from.
    """

    erased: int = 0
    places: list[Place] = field(default_factory=list)
    proved: int = 0
    searched: int = 0

    @property
    def success(self) -> bool:
        """Whether nothing was refused, and nothing is left."""
        return not self.refused and not any(place.left for place in self.places)

    def add(self, place: str, found: int, left: int = 0, reason: str = "", how: str = "erased") -> None:
        """Note what became of the memories in a place."""
        self.places.append(Place(place, found, left, f"left: {reason}" if left else how if found else "absent"))


def finish_erasures(run: "Run") -> list[str]:
    """Finish the erasures that a run before this one began; says what was done.

    Raises:
        HotStoreError, ArchiveError: one could not be finished; the next run tries again.
    """
    notes = []
    for intent in run.archive.intents.all():
        if intent.kind == "erase" and intent.concerns(run.identity):
            report = EraseReport()
            Erasing(run, intent, report).carry_out()
            left = [f"{place.place}: {place.how}" for place in report.places if place.left]
            notes.append(
                f"finished an erasure that was cut short: {plural(len(intent.memories), 'memory')}, "
                f"{plural(report.proved, 'piece')} of their text searched for, "
                + (f"left: {'; '.join(left)}" if left else "nothing left")
            )
    return notes


class Erasing:
    """One erasure: of an intent's memories, within a run that holds the archive's lock."""

    def __init__(self, run: "Run", intent: Intent, report: EraseReport) -> None:
        self._run = run
        self._archive = run.archive
        self._intent = intent
        self._born = {row[:2] for row in intent.memories}
        self._report = report
        self._pieces: list[str] | None = None
        report.erased = len(self._born)
        self._hot = HotEraser(run.store, run.con, run.purger)

    def begin(self) -> None:
        """Before anything is changed: write the intent, with what the proof will need."""
        born = sorted(self._born, key=repr)
        sample = set(born[:: -(-len(born) // _SEARCHED)])
        known = self._archive.tombstones.of([id_ for id_, _ in born]).to_pylist()
        taught = {(row["id"], row["created_at"]) for row in known if row["experience"]}
        with self._run.store.errors():
            found = list(self._hot.pieces(sample))
        with self._analyst() as analyst:
            some = "FROM history WHERE id IN (SELECT unnest(?))"
            sql = f"SELECT id, created_at {some} AND outcome::VARCHAR <> '0'"
            taught |= set(analyst.query_rows(sql, [[id_ for id_, _ in born]])[1])
            for row in analyst.query_archive(f"SELECT * {some}", [[id_ for id_, _ in sample]]):
                if (one := (row["id"], row["created_at"])) in sample:
                    texts = [row[name] for name in TEXTS if isinstance(row.get(name), str)]
                    with self._run.store.errors():
                        found.append((one, self._hot.pieces_of(texts)))
        self._pieces = sorted({piece for _, pieces in found for piece in pieces})
        self._intent.options.update(
            taught=bool(taught & self._born),
            pieces=fingerprints(self._pieces),
            count=len(self._pieces),
            searched=len({one for one, pieces in found if pieces}),
        )
        self._archive.intents.write(self._intent)

    def carry_out(self) -> None:
        """Erase, or go on with it; what can't be finished now leaves the intent for the next run.

        Raises:
            HotStoreError, ArchiveError: it could not be finished.
        """
        self._archive.tombstones.erase(self._born)
        self._erase_hot()
        finished = self._erase_cold()
        words = WordIndex(self._archive.root)
        indexed = words.exists()
        words.discard()
        self._report.add("search index of the archive", int(indexed), how="deleted; the next flush makes it anew")
        self._report.add("search index: vectors", VectorIndex(self._archive.root).forget(self._archive))
        self._prove()
        left = sum(place.left > 0 for place in self._report.places)
        chosen = str(self._intent.options["chosen"])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        taught = bool(self._intent.options["taught"])
        self._archive.erasures.add(Erasure(now, len(self._born), chosen, left, self._intent.key, taught))
        if finished:
            self._archive.intents.remove(self._intent)

    def _erase_hot(self) -> None:
        run = self._run
        with run.store.errors():
            done = self._hot.erase(self._born)
            run.sync_store()
            self._hot.clean(run.settings.wal_limit, done)
        self._report.longest_hold = max(self._report.longest_hold, done.longest_hold)
        held = len(done.held)
        for table, count in done.rows.items():
            left = held if table == "memories" else 0
            reason = "the store's own triggers or foreign keys keep them; remove these, and erase again"
            self._report.add(f"hot store: {table}", count + left, left, reason)
        self._report.add("hot store: search index", done.rows["memories"], how="erased, and all of it merged")
        for reason in done.reasons:
            self._report.add("hot store: what is deleted", 1, 1, reason)

    def _analyst(self) -> RepoAnalyst:
        return RepoAnalyst(self._archive.root, hot_store=self._run.store.path)

    @cached_property
    def _copies(self) -> list[ArchiveFile]:
        return list(self._copies_in(self._archive))

    def _copies_in(self, archive: Archive) -> Iterator[ArchiveFile]:
        """The settled files of an archive that hold some of the memories."""
        for file in holders(archive, list_settled(archive.root), self._intent.memories):
            if self._count(archive, file):
                yield file

    def _count(self, archive: Archive, file: ArchiveFile) -> int:
        ids = pa.array([id_ for id_, _ in self._born], pa.int64())
        if not pc.any(pc.is_in(archive.columns(file, ("id",))["id"], ids)).as_py():  # pyright: ignore[reportAttributeAccessIssue]
            return 0
        return mask(archive.columns(file, ("id", "created_at")), self._born).true_count

    def _erase_cold(self) -> bool:
        """Erase the archived copies; returns whether all are gone."""
        archive, problems, gone = self._archive, [], 0
        for folder, files in by_folder(self._copies).items():
            try:
                gone += take_out(self._run, folder, files, self._born).left_out
            except ArchiveError as error:
                problems.append(str(error))
        settled = set(list_settled(archive.root))
        strangers = [file for file in list_files(archive.root) if file not in settled and self._count(archive, file)]
        problems += [f"{file.relative} waits for another hot store: run the job on that one" for file in strangers]
        self._report.add("archive", gone + len(problems), len(problems), "; ".join(problems))
        return self._erase_mirror() and not problems

    def _erase_mirror(self) -> bool:
        problems, found, aside = [], 0, list(self._archive.kept_aside())
        if (mirror := self._archive.mirror) is not None:
            try:
                mirror.refresh()
                holding = list(self._copies_in(mirror))
                found = sum(self._count(mirror, file) for file in holding)
                for folder in by_folder(holding):
                    self._archive.sync_mirror(folder)
                for file in self._copies_in(mirror):
                    problems.append(
                        f"{mirror.root / file.relative} is not in the archive: run `vidurai-pipeline scrub --repair`, "
                        "and erase again"
                    )
                aside += mirror.kept_aside()
            except ArchiveError as error:
                problems.append(str(error))
            self._report.add("mirror", max(found, len(problems)), len(problems), "; ".join(problems))
        self._erase_aside(aside)
        return not problems

    def _erase_aside(self, files: Iterable[Path]) -> None:
        gone, unreadable = 0, []
        for path in files:
            try:
                gone += self._archive.strip(path, lambda table: mask(table, self._born))
            except (ArchiveError, KeyError):
                unreadable.append(path)
        reason = f"can't be read, so whether they hold any is unknown; delete them: {', '.join(map(str, unreadable))}"
        self._report.add("files kept aside", gone + len(unreadable), len(unreadable), reason)

    # The proof

    def _prove(self) -> None:
        """Search the files for pieces of the memories' texts; after a crash, by what the intent has of them."""
        run, report, options = self._run, self._report, self._intent.options
        wanted = options.get("pieces", ()) if self._pieces is None else self._pieces
        report.searched, pieces = options.get("searched", 0), options.get("count", 0)
        store = [Path(f"{run.store.path}{end}") for end in ("", "-wal", "-journal")]
        roots = [archive.root for archive in (self._archive, self._archive.mirror) if archive]
        places = [*store, *roots, run.settings.home, user_cache_path("vidurai-pipeline", appauthor=False)]
        # What these hold of any memory was read by its id.
        skip = [root / file.relative for root in roots for file in list_files(root)]
        found = find_residue(wanted, places, skip) if pieces else {}
        tables = self._tables_with(set().union(*found.values()))
        report.proved = pieces - len(set().union(*found.values()) - tables.keys())
        for table in sorted({table for names in tables.values() for table in names}):
            report.add(f"hot store: {table}", 1, 1, "a row of Vidurai's holds text of theirs; delete it there")
        deleted = {piece for piece, names in tables.items() if not names}
        in_store = deleted & set().union(*(found.get(path, set()) for path in store))
        reason = None
        if in_store:
            with run.store.errors():
                reason = self._hot.rewrite()
            if reason is None and find_residue(list(in_store), store):
                reason = "text of theirs is still in its file; stop Vidurai, and erase again"
        report.add(
            "hot store: free pages and log", len(in_store), len(in_store) if reason else 0, reason or "", "written anew"
        )
        others = [path for path, pieces in found.items() if path not in store and pieces & tables.keys()]
        report.add("other files", len(others), len(others), f"delete them: {', '.join(map(str, sorted(others)))}")

    def _tables_with(self, pieces: set[str]) -> dict[str, list[str]]:
        """The tables of Vidurai's that have some pieces of text, without the pieces that other memories have."""
        with self._run.store.errors():
            tables = {piece: self._hot.tables_with(piece) for piece in sorted(pieces)}
        tables = {piece: names for piece, names in tables.items() if "memories" not in names}
        if tables:
            with self._analyst() as analyst:
                sql = (
                    "SELECT piece FROM (SELECT unnest(?) AS piece) WHERE EXISTS (SELECT 1 FROM history "
                    "WHERE contains(concat_ws(chr(10), verbatim, gist, tags, file_path), piece))"
                )
                for (piece,) in analyst.query_rows(sql, [list(tables)])[1]:
                    del tables[piece]
        return tables
