"""Vectors of sqlite-vec, archived with their memories."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.errors import SchemaError
from vidurai_pipeline_tests.support.tiers import hot_rows

DRIVER = Path(__file__).with_name("vector_driver.py")
PROBE = "import sqlite3, sqlite_vec; c = sqlite3.connect(''); c.enable_load_extension(True); sqlite_vec.load(c)"


def _environment() -> dict[str, str]:
    here = sysconfig.get_paths()
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(DRIVER.parents[2]), here["purelib"], here["platlib"]))}


@pytest.fixture(scope="module")
def vector_python() -> str:
    """This Python, else another of its version, if its sqlite3 module can load extensions."""
    version = "python{}.{}".format(*sys.version_info)
    for python in (sys.executable, f"/usr/bin/{version}", shutil.which(version)):
        if python and Path(python).exists():
            probe = subprocess.run([python, "-c", PROBE], env=_environment(), capture_output=True, check=False)
            if probe.returncode == 0:
                return python
    pytest.skip(f"no {version} here has a sqlite3 module that can load extensions")


@pytest.fixture
def drive(vector_python: str) -> Callable[..., Any]:
    def run(*arguments: str | Path) -> Any:
        done = subprocess.run(
            [vector_python, DRIVER, *arguments],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    return run


def cold_vectors(archive: Path) -> dict[str, str]:
    found = {}
    for path in archive.rglob("*.parquet"):
        with pq.ParquetFile(path) as file:
            rows = file.read().to_pylist()
        for row in rows:
            for vector in row.get("vec_memories", []):
                found[str(row["id"])] = vector["embedding"].hex()
    return found


def archived_ids(db: Path) -> set[str]:
    con = sqlite3.connect(db)
    ids = {str(id_) for (id_,) in con.execute("SELECT id FROM memories WHERE status = 'ARCHIVED'")}
    con.close()
    return ids


def test_vectors_are_archived_and_purged(sample_store: Callable[[str], Path], drive: Callable[..., Any]) -> None:
    db = sample_store("guardian")
    drive("add", db)
    before, archived = drive("read", db), archived_ids(db)
    assert 0 < len(archived & set(before)) < len(before)
    done = drive("flush", db)
    assert (done["archived"], done["purged"], done["rejected"]) == (len(archived), len(archived), [])
    cold, hot = cold_vectors(db.parent / "archive"), drive("read", db)
    assert set(cold) == archived & set(before)
    assert set(hot) == set(before) - archived
    assert {**cold, **hot} == before


def test_vectors_of_erased_memories_leave_every_file(
    sample_store: Callable[[str], Path], drive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = sample_store("guardian")
    monkeypatch.setenv("VIDURAI_HOME", str(db.parent))
    drive("add", db)
    before = drive("read", db)
    drive("flush", db)
    done = drive("erase", db)
    assert not any(place["left"] for place in done["places"])
    left = {id_ for id_ in before if int(id_) % 9}
    assert drive("read", db).keys() | cold_vectors(db.parent / "archive").keys() == left
    contents = b"".join(path.read_bytes() for path in db.parent.rglob("*") if path.is_file())
    gone = sorted(before.keys() - left)
    assert not [id_ for id_ in gone[::10] if bytes.fromhex(before[id_])[:64] in contents]


def test_a_changed_vector_keeps_its_memory_hot(sample_store: Callable[[str], Path], drive: Callable[..., Any]) -> None:
    db = sample_store("guardian")
    drive("add", db)
    seen = drive("race", db)
    assert seen["kept"] == 1
    assert set(hot_rows(db, "status = 'ARCHIVED'")) == {seen["changed"]}
    assert str(seen["changed"]) in drive("read", db)
    assert str(seen["changed"]) not in cold_vectors(db.parent / "archive")


def test_without_the_extension_a_memory_with_a_vector_stays(
    sample_store: Callable[[str], Path], drive: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    db = sample_store("guardian")
    drive("add", db)
    with_vector = archived_ids(db) & set(drive("read", db))
    monkeypatch.setitem(sys.modules, "sqlite_vec", None)
    result = MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    assert {str(rejected.id) for rejected in result.rejected} == with_vector == archived_ids(db)
    # Once the extension is there, the rest follows.
    assert drive("flush", db)["archived"] == len(with_vector)
    assert archived_ids(db) == set()
    assert set(cold_vectors(db.parent / "archive")) >= with_vector


@pytest.mark.parametrize("kind", ["plain", "plain with a key"])
@pytest.mark.parametrize("extension", [True, False])
def test_vectors_in_an_ordinary_table_go_with_their_memory(
    sample_store: Callable[[str], Path],
    drive: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    extension: bool,
) -> None:
    db = sample_store("schema_v7")
    drive("other", kind, db)
    archived = archived_ids(db)
    monkeypatch.setitem(sys.modules, "sqlite_vec", None)
    archiver = MemoryArchiver(db, db.parent / "archive")
    done = drive("flush", db) if extension else archiver.flush_archived_memories().to_dict()
    assert (done["archived"], done["rejected"]) == (len(archived), [])
    assert archived_ids(db) == set()
    con = sqlite3.connect(db)
    assert con.execute("SELECT count(*) FROM vec_memories").fetchone() == (0,)
    con.close()


@pytest.mark.parametrize("kind", ["text key", "no key"])
def test_vectors_under_another_key_are_refused(
    sample_store: Callable[[str], Path], drive: Callable[..., Any], kind: str
) -> None:
    db = sample_store("schema_v7")
    drive("other", kind, db)
    archived = archived_ids(db)
    with pytest.raises(SchemaError, match="has a table `vec_memories` that is not Vidurai's"):
        MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    assert archived_ids(db) == archived


def test_hot_memories_are_found_by_meaning_though_the_archive_has_no_vectors(
    sample_store: Callable[[str], Path], drive: Callable[..., Any]
) -> None:
    """Those that have a vector, the nearest first; the archive is told to be left out."""
    db = sample_store("guardian")
    drive("add", db)
    found = drive("search", db)
    ids, tiers, scores = zip(*found["rows"], strict=True)
    assert len(set(ids)) == 5
    assert all(id_ % 3 == 0 for id_ in ids)
    assert set(tiers) == {"hot"}
    assert list(scores) == sorted(scores, reverse=True)
    assert [text for text in found["said"] if text.startswith("the archive was not searched by meaning: ")]
