"""Runs a flush as a user whom permissions bind, which root they do not."""

import subprocess
import sys
import tempfile
from pathlib import Path

# Root gives its rights up only here: the interpreter may lie where an ordinary user can't read it.
FLUSH = """
import os, sys
from pathlib import Path
import pyarrow.parquet
from vidurai_pipeline.archival.archiver import MemoryArchiver
if os.geteuid() == 0:
    os.setuid(12_345)
db = Path(sys.argv[1])
try:
    MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
except Exception as error:
    print(f"{type(error).__name__}: {error}", end="")
"""

QUERY = """
import os, sys, warnings
from pathlib import Path
from vidurai_pipeline.analytics.engine import RepoAnalyst
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with RepoAnalyst(Path(sys.argv[1]), skip_damaged=True) as analyst:
        analyst.query_archive("SELECT 1 FROM history")  # loads what root alone may be able to load
    if os.geteuid() == 0:
        os.setuid(12_345)
    with RepoAnalyst(Path(sys.argv[1]), skip_damaged=True) as analyst:
        print(analyst.query_archive("SELECT id FROM history"), *(warning.message for warning in caught))
"""


def open_to_all(db: Path) -> None:
    """Let every user into a store's folder, and into the archive in it."""
    temporary = Path(tempfile.gettempdir())
    for folder in db.parents:
        if folder != temporary and folder.is_relative_to(temporary):
            folder.chmod(0o755)
    for path in (db.parent, db.parent / "archive"):
        path.chmod(0o777)
    db.chmod(0o666)


def answer_to_an_ordinary_user(archive: Path) -> str:
    """The ids that an ordinary user reads from an archive without its damaged files, and the warnings with them."""
    for folder in (archive, *archive.parents):
        if folder != Path(tempfile.gettempdir()) and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", QUERY, str(archive)], capture_output=True, text=True, check=True)
    return done.stdout


def error_of_an_ordinary_user(db: Path) -> str:
    """The error that a flush ends with, its kind before it; empty if it went well."""
    done = subprocess.run([sys.executable, "-c", FLUSH, str(db)], capture_output=True, text=True, check=True)
    return done.stdout
