"""The small files of a month that is over become few, and nothing else changes."""

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.compaction import CompactionReport, compact
from vidurai_pipeline.care.health import ArchiveSize, archive_readable
from vidurai_pipeline.care.scrub import scrub
from vidurai_pipeline.cold import generation, listing
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.listing import list_files
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.archives import BASE, experience, memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.drivers import drive
from vidurai_pipeline_tests.support.reference import run_reference
from vidurai_pipeline_tests.support.stores import change

NOW = datetime(2025, 3, 5, tzinfo=UTC)
LATER = datetime(2999, 1, 1, tzinfo=UTC)


def rows(root: Path) -> Counter[str]:
    """All rows, as a plain pattern finds them."""
    return Counter(repr(row) for path in root.glob("**/*.parquet") for row in pq.ParquetFile(path).read().to_pylist())


def write_nights(root: Path, months: tuple[str, ...] = ("2024-12",), nights: int = 12, rows: int = 4) -> None:
    for number, month in enumerate(months):
        for night in range(nights):
            first = (number * nights + night) * rows
            name = f"memories_{month.replace('-', '')}{night + 1:02d}_020000.parquet"
            write_file(root, [memory(first + place) for place in range(rows)], name, month=month)


@pytest.fixture
def archive(home: Path) -> Archive:
    """Two months with a small file for each night, which the environment names."""
    write_nights(home / "archive", ("2024-11", "2024-12"))
    return Archive(home / "archive")


def compacted(archive: Archive, **options: Any) -> CompactionReport:
    return compact(archive, **{"pause": 0, "now": NOW, **options})


@pytest.mark.fast
def test_each_month_becomes_one_file_with_the_same_rows(archive: Archive) -> None:
    before = rows(archive.root)
    report = compacted(archive)
    assert [(month.month, month.files_before, month.files_after, month.rows) for month in report.months] == [
        ("2024-11", 12, 1, 48),
        ("2024-12", 12, 1, 48),
    ]
    assert rows(archive.root) == before
    files = list_files(archive.root)
    assert [file.relative.rpartition("/")[0] for file in files] == ["year=2024/month=11", "year=2024/month=12"]
    assert sum(month.bytes_after or 0 for month in report.months) == sum(file.size for file in files)
    assert scrub(archive).sound


def test_what_is_compact_is_left_alone(archive: Archive) -> None:
    compacted(archive)
    before = list_files(archive.root)
    assert [month.rows for month in compacted(archive).months] == [0, 0]
    assert list_files(archive.root) == before


def test_the_running_month_is_left_alone(archive: Archive) -> None:
    write_nights(archive.root, ("2025-03", "2025-04"), nights=3)
    assert [month.month for month in compacted(archive).months] == ["2024-11", "2024-12"]
    with pytest.raises(ConfigError, match="2025-03 is not over"):
        compacted(archive, month="2025-03")
    assert [month.month for month in compacted(archive, now=datetime(2025, 4, 1, tzinfo=UTC)).months][-1] == "2025-03"


def test_a_dry_run_says_what_would_be_done(archive: Archive) -> None:
    before = list_files(archive.root)
    report = compacted(archive, dry_run=True, month="2024-12", rows_per_file=20)
    assert [(month.files_before, month.files_after, month.bytes_after) for month in report.months] == [(12, 3, None)]
    assert list_files(archive.root) == before
    assert compacted(archive, month="2024-12", rows_per_file=20).months[0].files_after == 3


def test_files_that_wait_for_the_purge_are_left_alone(home: Path) -> None:
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    archiver = MemoryArchiver(rows_per_file=400)
    with archiver.run("test"):
        archiver.publish()
        before = list_files(archiver.archive.root)
        assert compacted(archiver.archive, now=LATER).months == []
        assert list_files(archiver.archive.root) == before
        archiver.purge()
    (month,) = compacted(archiver.archive, now=LATER).months
    assert (month.files_before, month.files_after) == (len(before), 1)


KINDS = {
    "own": None,
    "reference": BASE,
    "other type": pa.schema([*BASE, ("line_number", pa.string())]),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["2024-10", "2024-12", "2025-03"]),
            st.sampled_from(sorted(KINDS)),
            st.lists(st.integers(-3, 30), max_size=9),
        ),
        max_size=12,
    ),
    st.integers(1, 40),
)
def test_no_row_is_lost_changed_or_merged(
    tmp_path_factory: pytest.TempPathFactory, nights: list[tuple[str, str, list[int]]], rows_per_file: int
) -> None:
    archive = Archive(tmp_path_factory.mktemp("archive"))
    for number, (month, kind, ids) in enumerate(nights):
        # The same id comes in several versions, and some of them are equal.
        content = [memory(id_, gist=f"version {number % 3}", line_number=None) for id_ in ids]
        write_file(archive.root, content, f"memories_{number:08d}_020000.parquet", month=month, schema=KINDS[kind])
    before, files = rows(archive.root), len(list_files(archive.root))
    report = compacted(archive, rows_per_file=rows_per_file)
    assert report.sound
    assert rows(archive.root) == before
    assert len(list_files(archive.root)) <= files
    assert all(month.rows == 0 for month in compacted(archive, rows_per_file=rows_per_file).months)
    for file in list_files(archive.root):
        entry = archive.manifests.entry(file.relative)
        if entry is not None and entry.origin == "rewritten":
            ids = pq.read_table(archive.root / file.relative)["id"].to_pylist()
            assert ids == sorted(ids)
            assert len(ids) <= rows_per_file


def test_one_damaged_month_does_not_keep_the_others(archive: Archive) -> None:
    scrub(archive)
    path = archive.root / list_files(archive.root)[3].relative
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    report = compacted(archive)
    first, second = report.months
    assert first.error is not None
    assert path.name in first.error
    assert first.files_after == 12
    assert (second.error, second.files_after) == (None, 1)


@pytest.mark.parametrize("what", ["parquet", "manifest"])
def test_what_is_not_known_to_be_sound_is_not_rewritten(archive: Archive, what: str) -> None:
    scrub(archive)
    folder = archive.root / "year=2024/month=11"
    path = folder / ".manifest.json" if what == "manifest" else sorted(folder.glob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert not compacted(archive, month="2024-11").sound
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_files_of_other_programs_stay_as_they_are(archive: Archive) -> None:
    folder = archive.root / "year=2024/month=12"
    for number in range(3):
        pq.write_table(pa.table({"id": [number]}), folder / f"other_{number}.parquet")
    (folder / "notes.txt").write_text("mine")
    others = {path: path.stat().st_ino for path in folder.iterdir() if not path.name.startswith("memories")}
    compacted(archive)
    assert {path: path.stat().st_ino for path in others} == others
    assert len(list_files(archive.root, "year=2024/month=12")) == 4


def test_a_month_reached_through_a_link_is_named(archive: Archive, tmp_path: Path) -> None:
    folder = archive.root / "year=2024/month=11"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    report = compacted(archive)
    assert "through a link" in (report.months[0].error or "")
    assert report.months[1].files_after == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EINVAL, "can't exchange two folders"), (errno.ENOSPC, "No space left")],
)
def test_what_the_file_system_refuses_is_named_and_nothing_changes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(generation, "exchange", refused)
    before = [file.relative for file in list_files(archive.root)]
    assert loads(cli("compact", "--dry-run", "--format", "json"))["files_after"] == 2
    done = cli("compact", "--format", "json")
    assert done.returncode == 1
    assert said in done.stderr
    assert [file.relative for file in list_files(archive.root)] == before
    assert not [path for path in archive.root.parent.iterdir() if path.name.endswith(".next")]


def test_a_full_disk_changes_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in archive.root.rglob("*.parquet")}
    scrub(archive)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        assert "No space left" in (compacted(archive).months[0].error or "")
    assert {path: path.read_bytes() for path in archive.root.rglob("*.parquet")} == before
    assert compacted(archive).sound


@pytest.mark.parametrize("where", ["id = 777", "created_at < '2024-12-02'", "archived_at < '2024-12-02'"])
def test_readers_skip_what_lies_elsewhere(tmp_path: Path, where: str) -> None:
    archive = Archive(tmp_path / "archive")
    for night in range(20):
        moment = f"2024-12-{night + 1:02d}T02:00:00"
        content = [memory(night * 2_000 + n, created_at=moment, archived_at=moment) for n in range(2_000)]
        write_file(archive.root, content, f"memories_202412{night + 1:02d}_020000.parquet")
    assert compacted(archive).months[0].files_after == 1
    path = archive.root / list_files(archive.root)[0].relative
    first, *others = groups = [pq.ParquetFile(path).metadata.row_group(number) for number in range(3)]
    assert sum(group.num_rows for group in groups) == 40_000
    # No text is read but that of the first row group: the others' is no longer there.
    status, content = path.stat(), bytearray(path.read_bytes())
    for group in others:
        column = group.column(BASE.get_field_index("verbatim"))
        size = column.total_compressed_size
        content[column.data_page_offset : column.data_page_offset + size] = bytes(size)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    sql = "SELECT count(DISTINCT verbatim) AS n FROM {} WHERE {}"
    plain = f"read_parquet('{archive.root}/**/*.parquet')"
    expected = 1 if "id" in where else 2_000
    assert first.num_rows > expected
    assert duckdb.execute(sql.format(plain, where)).fetchall() == [(expected,)]
    with RepoAnalyst(archive.root) as analyst:
        assert analyst.query_archive(sql.format("history_all", where)) == [{"n": expected}]
        with pytest.raises(ArchiveError):
            analyst.query_archive(sql.format("history_all", "id > 0"))


# -- readers beside it -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def compacting(archive: Archive, months: int = 24) -> Iterator[Callable[[], int]]:
    """Compact one month after the other, beside what is done within; gives how many are done."""
    names = [f"{2020 + number // 12}-{number % 12 + 1:02d}" for number in range(months)]
    write_nights(archive.root, tuple(names), nights=5)
    scrub(archive)
    done = [0]

    def work() -> None:
        for name in names:
            done[0] += compacted(archive, month=name, lock_timeout=10).sound

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        thread.join()
    assert done[0] == months


COUNT = "SELECT count(*) AS n, count(DISTINCT id) AS ids, sum(strlen(verbatim)) AS size FROM"


def test_a_query_beside_it_is_always_right(home: Path) -> None:
    archive, answers = Archive(home / "archive"), set()
    with compacting(archive) as done, RepoAnalyst(archive.root) as analyst:
        while done() < 24:
            for view in ("history", "history_all"):
                (found,) = analyst.query_archive(f"{COUNT} {view}")
                answers.add(tuple(found.values()))
            answers.add(next(analyst.query_rows(f"{COUNT} history")[1]))
    assert {answer[:2] for answer in answers} == {(24 * 20, 24 * 20)}
    assert len(answers) == 1


def test_no_check_beside_it_misses_a_memory(home: Path) -> None:
    archive = Archive(home / "archive")
    with compacting(archive) as done:
        while done() < 24:
            finding, size = archive_readable(archive, ArchiveSize(0, 24 * 20), thorough=False)
            assert (finding.status, size.rows) == ("ok", 24 * 20), finding


def test_a_plain_pattern_beside_it_is_right_or_refused(home: Path) -> None:
    archive, answers = Archive(home / "archive"), set()
    with compacting(archive) as done:
        while done() < 24:
            with contextlib.suppress(duckdb.IOException):  # a file that was listed is gone: asking again helps
                answers |= set(duckdb.execute(f"{COUNT} read_parquet('{archive.root}/**/*.parquet')").fetchall())
    assert {answer[:2] for answer in answers} == {(24 * 20, 24 * 20)}


def test_learning_beside_it_learns_each_memory_once(tmp_path: Path) -> None:
    def made(name: str) -> Archive:
        archive = Archive(tmp_path / name)
        for number in range(24):
            month = f"{2020 + number // 12}-{number % 12 + 1:02d}"
            for night in range(4):
                ids = [number * 100 + night * 10 + place for place in range(5)]
                content = [experience(id_, outcome=1 if id_ % 3 else -1) for id_ in ids]
                write_file(archive.root, content, f"memories_{number:06d}{night + 1:02d}_020000.parquet", month=month)
        return archive

    beside, still = made("beside"), made("still")
    expected = DreamCycle(still.root, tmp_path / "expected.json")
    assert expected.run()["episodes"] == 24 * 20
    thread = threading.Thread(target=lambda: compacted(beside))
    thread.start()
    learned = []
    while thread.is_alive():
        report = DreamCycle(beside.root, tmp_path / "table.json").dream()
        assert report.success, report.error
        learned.append(report.episodes)
    thread.join()
    report = DreamCycle(beside.root, tmp_path / "table.json").dream()
    assert (report.episodes, report.late, report.missing) == (0, 0, 0)
    assert sum(learned) == 24 * 20
    assert (tmp_path / "table.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
    # From the beginning again, of the compacted files alone.
    assert DreamCycle(beside.root, tmp_path / "again.json").run()["episodes"] == 24 * 20
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


def test_a_folder_that_changes_while_it_is_listed_is_listed_anew(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    class Slow:
        """Compacts the archive after the first name of a month was read."""

        def __init__(self, path: Path) -> None:
            self.entries = scandir(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self.read()

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def read(self) -> Iterator[os.DirEntry[str]]:
            for number, entry in enumerate(self.entries):
                yield entry
                if number == 0 and entry.name.startswith("memories"):
                    monkeypatch.undo()
                    compacted(archive)

    monkeypatch.setattr(listing.os, "scandir", Slow)
    found = list_files(archive.root)
    assert len(found) == 2
    assert found == list_files(archive.root)


def test_a_flush_beside_it_waits_for_a_moment_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_LOCK_TIMEOUT", "5")
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED'")
    archive = Archive(home / "archive")
    with compacting(archive):
        flushed = MemoryArchiver(rows_per_file=300).flush()
    assert (flushed.problems, flushed.rejected) == ([], [])
    assert scrub(archive).sound
    assert sum(rows(archive.root).values()) == 24 * 20 + flushed.archived


def test_two_at_once(archive: Archive) -> None:
    before, reports = rows(archive.root), []
    threads = [threading.Thread(target=lambda: reports.append(compacted(archive, lock_timeout=10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.sound for report in reports] == [True, True]
    assert rows(archive.root) == before
    assert len(list_files(archive.root)) == 2


@pytest.mark.slow
def test_killed_before_every_call(archive: Archive, programs: Path, tmp_path: Path) -> None:
    assert drive(programs, "cold.rewriting_driver", archive.root, tmp_path / "work", "compact", 12) > 5


# -- what others make of it --------------------------------------------------------------------------------------------

ANALYST = """
import json, sys
from pathlib import Path
from vidurai.core.analytics import RepoAnalyst
print(json.dumps(RepoAnalyst(archive_base=Path(sys.argv[1])).query_archive(sys.argv[2])))
"""


def test_vidurais_own_analyst_finds_the_same(archive: Archive, home: Path) -> None:
    sql = "SELECT year, month, count(*) AS n, sum(id) AS ids, min(verbatim) AS v FROM history GROUP BY ALL ORDER BY ALL"
    before = run_reference(ANALYST, archive.root, sql, home=home)
    compacted(archive)
    assert run_reference(ANALYST, archive.root, sql, home=home) == before != []


def test_the_command(archive: Archive) -> None:
    assert "2024-11" in cli("compact", "--dry-run").stdout
    found = loads(cli("compact", "--month", "2024-11", "--format", "json"))
    assert (found["files_before"], found["files_after"], found["dry_run"]) == (12, 1, False)
    assert cli("compact").returncode == 0
    assert "nothing to do" in cli("compact").stdout


@pytest.mark.parametrize("month", ["2024", "2024-13", "November", "9999-12"])
def test_a_month_that_is_none(archive: Archive, month: str) -> None:
    done = cli("compact", "--month", month)
    assert (done.returncode, done.stdout) == (2, "")
    assert month in done.stderr
