"""What happens to an archive in an object store: one scenario for each call, in forked children.

They run in a process of their own, since neither the store's client nor Arrow's threads live through a fork.
"""

import contextlib
import lzma
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival import run
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.care.healing import prove
from vidurai_pipeline.cold import working_copy
from vidurai_pipeline.cold.files import has_parts, is_placeholder
from vidurai_pipeline.cold.listing import INDEX, list_files
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.cold.moving import move_into_store
from vidurai_pipeline.cold.rewriting import rewrite_folder
from vidurai_pipeline.cold.storage import ObjectStorage
from vidurai_pipeline.cold.working_copy import WorkingCopy
from vidurai_pipeline.errors import ArchiveError, LockedError
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support import object_store
from vidurai_pipeline_tests.support.archives import DATA, flip
from vidurai_pipeline_tests.support.deaths import run_child, start_child
from vidurai_pipeline_tests.support.processes import wait_until
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, cold_rows, hot_rows

FAULTS = ("kill", "lose", "lose and kill", "cut", "busy")


class Scenario:
    """A machine with a store, half of whose memories wait, and the address of an archive that is not there yet."""

    def __init__(self, proxy: object_store.Proxy, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.proxy, self.folder, self.home = proxy, folder, folder / "home"
        self.home.mkdir()
        with lzma.open(DATA / "guardian.db.xz") as packed:
            (self.home / "vidurai.db").write_bytes(packed.read())
        change(self.home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED' WHERE id % 2 = 0")
        self.before = hot_rows(self.home / "vidurai.db")
        self.url = f"s3://{object_store.BUCKET}/{folder.parent.name}/{folder.name}"
        os.environ.pop("VIDURAI_MIRROR", None)
        os.environ.pop("VIDURAI_STORE_NAME", None)
        os.environ["VIDURAI_ARCHIVE"] = self.url
        os.environ["VIDURAI_ROWS_PER_FILE"] = "600"
        self.proxy.pass_all()
        self.be_at(self.home)

    def be_at(self, home: Path) -> Path:
        """From now on be the machine with this folder of Vidurai's."""
        home.mkdir(parents=True, exist_ok=True)
        os.environ["VIDURAI_HOME"] = str(home)
        return home

    def downloaded(self) -> Path:
        """What the bucket holds, copied by nothing that the pipeline does."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        object_store.download(self.url, copy)
        return copy

    def check(self) -> None:
        """Every memory is in one tier, once."""
        copy = self.downloaded()
        assert_one_tier(self.before, self.home / "vidurai.db", copy)
        assert not list(copy.glob(".pending/*"))

    def keep(self) -> None:
        """Remember what the bucket holds now."""
        self.downloaded().rename(self.folder / "first")

    def check_without_sevenths(self) -> None:
        """All that was kept is there, once, but for those that left."""
        expected = Counter(row for row in cold_rows(self.folder / "first") if dict(row)["id"] % 7)
        assert Counter(cold_rows(self.downloaded())) == expected
        assert count() == expected.total()


def in_child(*works: Callable[[], object]) -> None:
    for work in works:
        assert run_child(work) == 0


def flush() -> None:
    MemoryArchiver().flush()


def compact(leave_out: Callable | None = None) -> None:
    """Make one file of all."""
    archive = open_archive(load_settings())
    with archive.lock("test"):
        archive.sweep()
        files = list_files(archive.root)
        rewrite_folder(archive, files[0].relative.rpartition("/")[0], files, rows_per_file=10**6, leave_out=leave_out)


def count() -> int:
    with RepoAnalyst() as analyst:
        return analyst.query_archive("SELECT count(*) AS n FROM history_all")[0]["n"]


def equal(one: object, other: object) -> None:
    assert one == other


def without_sevenths(table: pa.Table) -> pa.Array | pa.ChunkedArray:
    """The memories that leave in a rewriting: those whose id can be divided by seven."""
    quotient = pc.divide(table["id"], 7)  # pyright: ignore[reportAttributeAccessIssue]
    return pc.equal(pc.multiply(quotient, 7), table["id"])  # pyright: ignore[reportAttributeAccessIssue]


def another_machine_sees_all_and_a_second_question_transfers_nothing(one: Scenario) -> None:
    in_child(flush, one.check)
    moved = len(one.before) - len(hot_rows(one.home / "vidurai.db"))
    one.be_at(one.folder / "other")

    def ask() -> None:
        archive = open_archive(load_settings())
        assert archive.working_copy is not None
        assert all(is_placeholder(path) for path in archive.files())
        assert count() == moved
        traffic = archive.working_copy.storage.traffic
        first = traffic.bytes_read
        assert first > 0
        assert count() == moved
        assert traffic.bytes_read == first

    def ask_with_little_room() -> None:
        assert count() == moved
        assert all(is_placeholder(path) for path in open_archive(load_settings()).files())
        assert count() == moved

    def ask_while_it_is_rewritten() -> None:
        fetch = WorkingCopy.fetch

        def fetch_late(self: WorkingCopy, path: Path) -> None:
            (one.folder / "fetching").touch()
            wait_until((one.folder / "rewritten").exists)
            fetch(self, path)

        WorkingCopy.fetch = fetch_late
        assert count() == moved

    def read_while_others_ask() -> None:
        archive = open_archive(load_settings())
        with RepoAnalyst() as analyst:
            analyst.query_archive("SELECT count(*) FROM history_all")
            (one.folder / "reading").touch()
            wait_until((one.folder / "asked").exists)
            assert count() == moved
            assert not any(is_placeholder(path) for path in archive.files())
        assert all(is_placeholder(path) for path in archive.files())

    in_child(ask)
    os.environ["VIDURAI_CACHE_SIZE"] = "1B"
    in_child(ask_with_little_room)
    reader = start_child(read_while_others_ask)
    wait_until((one.folder / "reading").exists)
    in_child(count)
    (one.folder / "asked").touch()
    assert os.waitpid(reader, 0)[1] == 0
    reader = start_child(ask_while_it_is_rewritten)
    wait_until((one.folder / "fetching").exists)
    one.be_at(one.home)
    in_child(compact)
    (one.folder / "rewritten").touch()
    assert os.waitpid(reader, 0)[1] == 0


def a_question_about_a_month_brings_that_month_alone(one: Scenario) -> None:
    class Early(datetime):
        """A clock of January."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 31, tzinfo=tz)

    def flush_in_january() -> None:
        run.datetime = Early
        flush()

    def copy_january() -> None:
        storage = ObjectStorage(one.url)
        january = next(key for key in storage.objects() if "/month=01/memories" in key)
        storage.write("year=2026/month=02/memories_20260201_000000.parquet", storage.read(january)[0])

    def ask() -> None:
        WorkingCopy.worth_parts = 0
        archive = open_archive(load_settings())
        with RepoAnalyst() as analyst:
            for view, month, memories in (("history", 1, 0), ("history_all", 1, 600), ("history", 2, 600)):
                sql = f"SELECT count(verbatim) AS n FROM {view} WHERE year = ? AND month IN ({month}, 13)"
                assert (found := analyst.query_archive(sql, [2026])) == [{"n": memories}], (view, month, found)
                here = {path.parent.name for path in archive.files() if not is_placeholder(path)}
                assert here == {"month=01", "month=02"}  # what no manifest knows is always read
            assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": moved}]
            assert archive.working_copy is not None
            archive.working_copy.most_bytes = 0
        recorded = [path for path in archive.files() if path.parent.name != "month=02"]
        assert all(map(has_parts, recorded))  # for the next question

    change(
        one.home / "vidurai.db",
        "UPDATE memories SET status = 'ACTIVE' WHERE id NOT IN "
        "(SELECT id FROM memories WHERE status = 'ARCHIVED' ORDER BY id LIMIT 600)",
    )
    in_child(flush_in_january)
    change(one.home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED' WHERE id % 2 = 0")
    in_child(flush, copy_january)
    moved = len(one.before) - len(hot_rows(one.home / "vidurai.db"))
    assert moved > 600
    one.be_at(one.folder / "other")
    in_child(ask)


def a_flush_that_is_cut_off_loses_nothing(one: Scenario, number: int) -> None:
    fault = FAULTS[number % len(FAULTS)]

    def broken() -> None:
        one.proxy.break_request(number, fault)
        flush()

    status = run_child(broken)
    assert (status == 9) == (fault.endswith("kill") and one.proxy.requests() == number)
    one.proxy.pass_all()
    if number % 2:  # the working copy is lost too
        shutil.rmtree(one.home / "cache", ignore_errors=True)
    in_child(flush, one.check)


def a_rewriting_that_is_cut_off_loses_nothing_and_brings_nothing_back(one: Scenario, number: int) -> None:
    in_child(flush, one.keep)

    def broken() -> None:
        one.proxy.break_request(number, FAULTS[number // 5 % len(FAULTS)])
        compact(without_sevenths)

    run_child(broken)
    one.proxy.pass_all()
    if number % 2:
        shutil.rmtree(one.home / "cache")
    in_child(lambda: compact(without_sevenths), one.check_without_sevenths)


def an_erasure_that_is_cut_off_is_finished_and_takes_nothing_else(one: Scenario, number: int) -> None:
    in_child(flush)
    others = Counter(row for id_, row in one.before.items() if id_ % 7)

    def erase() -> None:
        MemoryEraser().erase(where="id % 7 = 0")

    def broken() -> None:
        one.proxy.break_request(number, FAULTS[number // 5 % len(FAULTS)])
        erase()

    def erase_what_is_left() -> None:
        flush()
        if any(id_ % 7 == 0 for id_ in hot_rows(one.home / "vidurai.db")):
            erase()

    def check() -> None:
        copy = one.downloaded()
        assert Counter([*hot_rows(one.home / "vidurai.db").values(), *cold_rows(copy)]) == others
        assert not list(copy.glob(".intents/*"))

    def index_here() -> None:
        (open_archive(load_settings()).root / INDEX / "words-1").mkdir(parents=True)

    def check_elsewhere() -> None:
        assert count() < others.total()
        root = open_archive(load_settings()).root
        assert not list((root / INDEX).iterdir())
        assert {path.name for path in root.rglob("*.parquet")} == {
            Path(key).name for key in ObjectStorage(one.url).objects() if key.endswith(".parquet")
        }

    other = one.be_at(one.folder / "other")
    in_child(count, index_here)
    one.be_at(one.home)
    run_child(broken)
    one.proxy.pass_all()
    in_child(erase_what_is_left, check)
    one.be_at(other)
    in_child(check_elsewhere)


def two_machines_at_once_lose_nothing(one: Scenario) -> None:
    other = one.folder / "other"
    other.mkdir()
    shutil.copy(one.home / "vidurai.db", other / "vidurai.db")
    change(other / "vidurai.db", "UPDATE memories SET status = 'ACTIVE' WHERE id % 4 <> 2")
    change(one.home / "vidurai.db", "UPDATE memories SET status = 'ACTIVE' WHERE id % 4 = 2")
    stores = [one.home / "vidurai.db", other / "vidurai.db"]
    moving = Counter(row for db in stores for row in hot_rows(db, "status = 'ARCHIVED'").values())
    os.environ["VIDURAI_LOCK_TIMEOUT"] = "60"
    running = []
    for home in (one.home, other):
        one.be_at(home)
        running.append(start_child(flush))
    assert [os.waitpid(pid, 0)[1] for pid in running] == [0, 0]
    assert [hot_rows(db, "status = 'ARCHIVED'") for db in stores] == [{}, {}]

    def check() -> None:
        assert Counter(cold_rows(one.downloaded())) == moving
        assert count() == moving.total()

    in_child(check)


def a_machine_that_was_held_up_does_no_harm(one: Scenario) -> None:
    in_child(flush, one.keep)

    def held_up() -> None:
        archive = open_archive(load_settings())
        with archive.lock("test"):
            (one.folder / "holding").touch()
            wait_until((one.folder / "go on").exists)
            files = list_files(archive.root)
            rewrite_folder(archive, files[0].relative.rpartition("/")[0], files, rows_per_file=10**6)

    def fail() -> None:
        with pytest.raises(ArchiveError, match="another machine changed it"):
            held_up()

    def take_over() -> None:
        WorkingCopy.lease_seconds = 0.0
        compact(without_sevenths)

    pid = start_child(fail)
    wait_until((one.folder / "holding").exists)
    in_child(count)  # a question need not wait for a run
    one.be_at(one.folder / "other")
    in_child(take_over)
    (one.folder / "go on").touch()
    assert os.waitpid(pid, 0)[1] == 0
    one.be_at(one.home)
    in_child(take_over, one.check_without_sevenths)


def a_lease_is_respected_unless_its_machine_died(one: Scenario) -> None:
    def die() -> None:
        with open_archive(load_settings()).lock("a long run"):
            os.kill(os.getpid(), 9)

    class Late(datetime):
        """A clock that is an hour ahead."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    def wait_in_vain() -> None:
        working_copy.datetime = Late
        with pytest.raises(LockedError, match=r"another machine is at work on .* \(a long run\)"):
            MemoryArchiver(lock_timeout=0.1).flush()

    def take_over() -> None:
        WorkingCopy.lease_seconds = 0.0
        flush()

    assert run_child(die) == 9
    in_child(lambda: open_archive(load_settings()).sweep())
    in_child(flush)  # its own lease is no obstacle
    assert run_child(die) == 9
    shutil.copy(one.home / "vidurai.db", one.be_at(one.folder / "other"))
    in_child(wait_in_vain, take_over)


def an_archive_without_a_name_and_those_of_named_stores_never_share_a_prefix(one: Scenario) -> None:
    def refuse(store: str | None, reason: str) -> None:
        one.be_at(one.folder / f"home of {store}")
        archiver = MemoryArchiver(
            one.home / "vidurai.db", settings=load_settings().model_copy(update={"store_name": store})
        )
        with pytest.raises(ArchiveError, match=reason):
            archiver.flush()
        assert hot_rows(one.home / "vidurai.db") == one.before

    storage = ObjectStorage(one.url)
    storage.write("year=2026/month=11/.manifest.json", b"{}")
    refuse("alice", "is the archive of one store without a name")
    storage.delete(["year=2026/month=11/.manifest.json"])
    storage.write("store=bob/.manifest.json", b"{}")
    refuse(None, "holds the archives of several stores, such as bob")


def an_archive_that_moves_is_cut_off_and_nothing_is_lost_or_shown_twice(one: Scenario, number: int) -> None:
    os.environ["VIDURAI_MIRROR"] = f"{one.url}-mirror"
    in_child(flush)
    moved = len(one.before) - len(hot_rows(one.home / "vidurai.db"))
    other = one.folder / "other"
    one.be_at(other)
    in_child(lambda: equal(count(), moved))
    one.be_at(one.home)

    def move() -> None:
        move_into_store(load_settings(), "alice")

    def broken() -> None:
        one.proxy.break_request(number, FAULTS[number % len(FAULTS)])
        move()

    def ask() -> None:
        # Machines that have not heard of it: all memories once, or a clear refusal.
        with contextlib.suppress(ArchiveError):
            assert count() == moved

    def refuse() -> None:
        with pytest.raises(ArchiveError, match="several stores, such as alice"):
            flush()

    run_child(broken)
    one.proxy.pass_all()
    in_child(ask)
    in_child(move)
    one.be_at(other)
    shutil.copy(one.home / "vidurai.db", other / "vidurai.db")
    in_child(refuse, lambda: equal(count(), moved))
    one.be_at(one.home)
    os.environ["VIDURAI_STORE_NAME"] = "alice"
    in_child(lambda: equal(prove(open_archive(load_settings()), repair=True).flaws, []))

    def check() -> None:
        for url in (one.url, f"{one.url}-mirror"):
            assert {key.partition("/")[0] for key in ObjectStorage(url).objects()} == {"store=alice"}
        one.url = f"{one.url}/store=alice"
        one.check()

    in_child(check)


def a_mirror_in_a_bucket_heals_the_archive(one: Scenario) -> None:
    del os.environ["VIDURAI_ARCHIVE"]
    os.environ["VIDURAI_MIRROR"] = one.url
    in_child(flush)
    flip(next((one.home / "archive").rglob("*.parquet")))

    def heal() -> None:
        report = prove(open_archive(load_settings()), repair=True)
        assert report.sound
        assert len(report.healed) == 1
        assert_one_tier(one.before, one.home / "vidurai.db", one.home / "archive")
        one.check()

    in_child(heal)


def a_scrub_reads_the_bucket_and_heals_it_from_a_mirror(one: Scenario) -> None:
    os.environ["VIDURAI_MIRROR"] = str(one.folder / "mirror")

    def damage() -> None:
        storage = ObjectStorage(one.url)
        damaged, gone, *_ = [key for key in storage.objects() if key.endswith(".parquet")]
        data, version = storage.read(damaged)
        storage.write(damaged, data[:-9] + b"damaged" + data[-2:], version.etag)
        storage.delete([gone])

    def scrub() -> None:
        report = prove(open_archive(load_settings()))
        assert (len(report.damaged), len(report.missing)) == (1, 1)
        repaired = prove(open_archive(load_settings()), repair=True)
        assert repaired.sound, repaired
        assert prove(open_archive(load_settings())).sound
        one.check()

    def lose_and_damage_here() -> None:
        gone, kept, *_ = [key for key in ObjectStorage(one.url).objects() if key.endswith(".parquet")]
        ObjectStorage(one.url).delete([gone])
        archive = open_archive(load_settings())
        path = archive.root / kept
        flip(path)
        modified = archive.manifests.of(kept.rpartition("/")[0]).entries[path.name].modified
        os.utime(path, ns=(modified, modified))
        assert [flaw.file for flaw in prove(archive).damaged] == [gone]
        assert is_placeholder(path)
        flush()
        assert prove(open_archive(load_settings())).sound

    in_child(flush, lose_and_damage_here, damage)
    shutil.rmtree(one.home / "cache")
    in_child(scrub)


if __name__ == "__main__":
    name, proxy_folder, proxy_port, scenario_folder, *numbers = sys.argv[1:]
    through = object_store.Proxy(Path(proxy_folder), int(proxy_port))
    for scenario_number in numbers or [""]:
        one = Scenario(through, Path(scenario_folder) / f"case{scenario_number}")
        globals()[name](one, *([int(scenario_number)] if scenario_number else []))
