"""Files are written by a process of their own; whatever becomes of it, nothing is lost or half done."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import PurgeReport
from vidurai_pipeline.archival.run import Run
from vidurai_pipeline.archival.staging import StagingRequest
from vidurai_pipeline.archival.staging_process import StagingProcess
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import ArchiveError, HotStoreError
from vidurai_pipeline.hot.purger import Purger
from vidurai_pipeline_tests.support.stores import change
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows

Store = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _always_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "rows_worth_a_process", 0)


def watched(step: Callable[..., object] = StagingProcess.receive) -> mock._patch:
    """Puts something in the place of the second process's answers, by default the real thing."""
    return mock.patch.object(StagingProcess, "receive", autospec=True, side_effect=step)


def test_does_what_one_process_does(sample_store: Store) -> None:
    db = sample_store("guardian")
    change(db, "UPDATE memories SET access_count = 'often' WHERE id = (SELECT min(id) FROM memories)")
    change(db, "UPDATE memories SET status = 'ARCHIVED' WHERE id = (SELECT min(id) FROM memories)")
    before = hot_rows(db)
    seen: list[tuple[str, int, int]] = []
    archiver = MemoryArchiver(db, db.parent / "archive", rows_per_file=300, progress=lambda *step: seen.append(step))
    with watched() as receive:
        result = archiver.flush()
    # The first file was staged here; the last answer is that there are no more rows.
    assert receive.call_count == len(result.files) == 4
    assert result.archived == result.purged
    (rejected,) = result.rejected
    assert (rejected.id, rejected.column) == (min(before), "access_count")
    assert_one_tier(before, db, db.parent / "archive")
    archived = [step for step in seen if step[0] == "archiving"]
    assert archived == sorted(archived)
    assert archived[-1] == ("archiving", result.archived, result.archived + 1)


@pytest.mark.parametrize(("least", "most", "rows"), [(100, 500, 143), (400, 500, 400), (100, 120, 120)])
def test_the_work_is_divided_into_files(
    sample_store: Store, monkeypatch: pytest.MonkeyPatch, least: int, most: int, rows: int
) -> None:
    """Nothing is purged while the first is staged, and many small ones would be many."""
    db = sample_store("guardian")
    monkeypatch.setattr(Run, "least_portion", least)
    with MemoryArchiver(db, db.parent / "archive", rows_per_file=most).run("test") as run:
        published = run.begin()
        run.flush(published, PurgeReport())
    assert [file.rows for file in published.files[:-1]] == [rows] * (1_148 // rows)


@pytest.mark.parametrize(("wal_limit", "ahead"), [(2**28, 1), (0, 0)])
def test_it_is_no_further_ahead_than_the_log_bears(
    sample_store: Store, monkeypatch: pytest.MonkeyPatch, wal_limit: int, ahead: int
) -> None:
    """While it reads, SQLite can't begin its log anew: without a pause, that would grow for the whole flush."""
    db = sample_store("guardian")
    monkeypatch.setattr(Purger, "first_weight", 2.0)
    monkeypatch.setattr(Purger, "most_weight", 2.0)
    waiting: list[int] = []
    send = StagingProcess.send

    def count_marks(process: StagingProcess, message: object) -> None:
        waiting.append(len(list((db.parent / "archive" / ".pending").glob("*.json"))))
        send(process, message)

    with mock.patch.object(StagingProcess, "send", count_marks):
        result = MemoryArchiver(db, db.parent / "archive", rows_per_file=100, wal_limit=wal_limit).flush()
    assert len(result.files) == 12
    assert max(waiting) == ahead


def test_a_killed_process_is_named_and_costs_nothing(sample_store: Store) -> None:
    db = sample_store("guardian")
    before = hot_rows(db)
    real = StagingProcess.receive

    def kill_second(process: StagingProcess, *arguments: object) -> object:
        if receive.call_count == 2:
            process.process.kill()
        return real(process, *arguments)  # type: ignore[arg-type]

    with (
        watched(kill_second) as receive,
        pytest.raises(ArchiveError, match=r"the process that was writing it ended \(exit code -9\)"),
    ):
        MemoryArchiver(db, db.parent / "archive", rows_per_file=300).flush()
    assert len(hot_rows(db)) < len(before)
    # It may have written its second file before it died.
    waiting = len(hot_rows(db, "status = 'ARCHIVED'"))
    result = MemoryArchiver(db, db.parent / "archive", rows_per_file=300).flush()
    assert len(result.files) == -(-waiting // 300)
    assert_one_tier(before, db, db.parent / "archive")
    assert not [path for path in (db.parent / "archive").rglob("*") if path.name.endswith(".part")]


def test_an_error_in_it_is_the_one_that_is_raised(sample_store: Store) -> None:
    db = sample_store("guardian")
    send = StagingProcess.send

    def lose_the_store(process: StagingProcess, message: object) -> None:
        if isinstance(message, StagingRequest):
            db.rename(db.parent / "elsewhere.db")
        send(process, message)

    with (
        mock.patch.object(StagingProcess, "send", lose_the_store),
        pytest.raises(HotStoreError, match="does not exist"),
    ):
        MemoryArchiver(db, db.parent / "archive", rows_per_file=300).flush()


def test_a_failing_purge_leaves_no_half_written_file(sample_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the purge fails, the other process is writing the next file."""
    db = sample_store("guardian")
    archive = db.parent / "archive"
    before = hot_rows(db)
    stray = archive / ".memories_20260101_000000.parquet.0123abcd.part"

    def fail(*_: object) -> None:
        # What a process that is ended amid a file leaves behind; when it is, is chance.
        stray.touch()
        raise HotStoreError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(Purger, "purge", fail)
        with pytest.raises(HotStoreError, match="busy"):
            MemoryArchiver(db, archive, rows_per_file=300).flush()
    assert not list(archive.rglob("*.part"))
    assert hot_rows(db) == before
    MemoryArchiver(db, archive).flush()
    assert_one_tier(before, db, archive)


def test_it_needs_no_stderr(sample_store: Store, tmp_path: Path) -> None:
    """As under some service managers, which close it."""
    db = sample_store("guardian")
    script = (
        "from pathlib import Path; from vidurai_pipeline.archival.archiver import MemoryArchiver; import sys;"
        "from vidurai_pipeline.archival.run import Run; Run.rows_worth_a_process = 0;"
        "assert MemoryArchiver(Path(sys.argv[1]), Path(sys.argv[2])).flush_archived_memories() == 1148"
    )
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", script, str(db), str(tmp_path / "archive")]
    assert subprocess.run(command, check=False).returncode == 0


def test_two_writers_of_one_name_write_two_files(tmp_path: Path) -> None:
    """A dying run's process may still be writing when the next run begins, in the same second."""
    archive, schema = Archive(tmp_path), pa.schema({"id": pa.int64()})
    path = archive.new_path(datetime.now(UTC))
    with archive.writer(path, schema) as one, archive.writer(path, schema) as other:
        assert one.path != other.path


@pytest.mark.parametrize("lack", ["executable", "process"])
def test_where_none_can_be_started_one_process_does_it_all(
    sample_store: Store, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    db = sample_store("guardian")
    before = hot_rows(db)
    if lack == "executable":
        monkeypatch.setattr(sys, "executable", None)
    else:
        monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=OSError))
    with watched() as receive:
        assert MemoryArchiver(db, db.parent / "archive").flush_archived_memories() == 1_148
    assert receive.call_count == 0
    assert_one_tier(before, db, db.parent / "archive")


def test_it_ends_with_the_process_that_started_it(sample_store: Store, tmp_path: Path) -> None:
    """And needs no guard around a script's main part."""
    db = sample_store("guardian")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import time
            from pathlib import Path
            from vidurai_pipeline.archival.archiver import MemoryArchiver
            from vidurai_pipeline.archival.run import Run
            from vidurai_pipeline.archival.staging_process import StagingProcess
            Run.rows_worth_a_process = 0
            def wait(process, *arguments):
                print(process.process.pid, flush=True)
                time.sleep(60)
            StagingProcess.receive = wait
            MemoryArchiver(Path({str(db)!r}), Path({str(tmp_path / "archive")!r})).flush()
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        assert Path(f"/proc/{child}").exists() or sys.platform != "linux"
        running.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return  # dead, and whoever adopted it has not looked yet
        time.sleep(0.05)
    pytest.fail("it outlived its parent")


def test_an_interrupted_purge_frees_the_lock_only_when_it_has_stopped(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("guardian")
    before = hot_rows(db)
    script = textwrap.dedent(f"""
        import sqlite3, time
        from pathlib import Path
        from vidurai_pipeline.archival.archiver import MemoryArchiver
        from vidurai_pipeline.archival.run import Run
        from vidurai_pipeline.hot.purger import Purger
        Run.rows_worth_a_process = 0
        Purger.first_weight = Purger.most_weight = 2.0
        checkpoint = Purger.checkpoint
        def slowly(*arguments):
            print("purging", flush=True)
            time.sleep(0.3)
            return checkpoint(*arguments)
        Purger.checkpoint = slowly
        def count():
            con = sqlite3.connect({str(db)!r})
            return con.execute("SELECT count(*) FROM memories").fetchone()
        try:
            MemoryArchiver(Path({str(db)!r}), Path({str(tmp_path / "archive")!r}), rows_per_file=300).flush()
        except KeyboardInterrupt:
            left = count()
            time.sleep(1)
            print("interrupted", left == count(), flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "purging\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read().splitlines()[-1] == "interrupted True"
    assert len(hot_rows(db)) > 900
    MemoryArchiver(db, tmp_path / "archive").flush()
    assert_one_tier(before, db, tmp_path / "archive")
