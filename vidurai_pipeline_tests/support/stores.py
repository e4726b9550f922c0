"""Hot stores: changed behind the pipeline's back, made from nothing, and flushed."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.report import ArchivedCount

#: What the fixture ``sample_store`` is: it copies a store by its name.
Store = Callable[[str], Path]
#: The ARCHIVED memories of the sample stores.
WAITING = {"guardian": 1_148, "schema_v7": 71}
#: Turns off what takes seconds or minutes for each store; its own tests turn it on.
QUICK = {"VIDURAI_SECRETS_CHECK": "false", "VIDURAI_EMBED_MINUTES": "0"}
#: The least that a store of Vidurai's has.
SCHEMA = """
    CREATE TABLE memories (
        id INTEGER PRIMARY KEY, project_id INTEGER, verbatim TEXT, gist TEXT, salience TEXT, event_type TEXT,
        file_path TEXT, tags TEXT, access_count INTEGER, created_at TIMESTAMP, expires_at TIMESTAMP, status TEXT,
        decay_reason TEXT, outcome INTEGER
    )
"""


@contextmanager
def changing(db: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are committed at the end."""
    with closing(sqlite3.connect(db)) as con, con:
        yield con


def change(db: Path, *statements: str | tuple[str, tuple]) -> None:
    """Run statements, each as SQL or as SQL with its values, in one transaction."""
    with changing(db) as con:
        for statement in statements:
            sql, values = (statement, ()) if isinstance(statement, str) else statement
            con.execute(sql, values)


def insert(db: Path, **values: Any) -> int:
    """Store one ARCHIVED memory; values given as SQL text are in ``{braces}``."""
    row: dict[str, Any] = {
        "project_id": 1,
        "verbatim": "v",
        "event_type": "chat",
        "salience": "LOW",
        "gist": "g",
        "status": "ARCHIVED",
        **values,
    }
    marks = [value[1:-1] if isinstance(value, str) and value.startswith("{") else "?" for value in row.values()]
    bound = [value for value, mark in zip(row.values(), marks, strict=True) if mark == "?"]
    names = ", ".join(f'"{name}"' for name in row)
    with changing(db) as con:
        id_ = con.execute(f"INSERT INTO memories ({names}) VALUES ({', '.join(marks)})", bound).lastrowid
    assert id_ is not None
    return id_


def small_store(db: Path, *rows: Mapping[str, Any], schema: str = SCHEMA) -> Path:
    """Make a store that holds just these rows."""
    db.parent.mkdir(parents=True, exist_ok=True)
    with changing(db) as con:
        con.execute(schema)
        for row in rows:
            names = ", ".join(f'"{name}"' for name in row)
            con.execute(f"INSERT INTO memories ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    return db


def flush(db: Path, **options: Any) -> ArchivedCount:
    """Archive and purge what waits in a store, to ``archive`` beside it."""
    return MemoryArchiver(db, db.parent / "archive", **options).flush_archived_memories()


def archived(db: Path, id_: int) -> dict[str, Any]:
    """The one archived copy of a memory, from the archive beside its store."""
    (row,) = [
        row
        for path in (db.parent / "archive").rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["id"] == id_
    ]
    return row
