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


def open_to_all(db: Path) -> None:
    """Let every user into a store's folder, and into the archive in it."""
    temporary = Path(tempfile.gettempdir())
    for folder in db.parents:
        if folder != temporary and folder.is_relative_to(temporary):
            folder.chmod(0o755)
    for path in (db.parent, db.parent / "archive"):
        path.chmod(0o777)
    db.chmod(0o666)


def error_of_an_ordinary_user(db: Path) -> str:
    """The error that a flush ends with, its kind before it; empty if it went well."""
    done = subprocess.run([sys.executable, "-c", FLUSH, str(db)], capture_output=True, text=True, check=True)
    return done.stdout
