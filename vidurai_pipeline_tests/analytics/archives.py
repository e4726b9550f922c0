"""Makes archives as the pipeline and others write them."""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REFERENCE = Path(__file__).parents[1] / "data" / "reference_archive"

TEXTS = (
    "verbatim",
    "gist",
    "salience",
    "created_at",
    "expires_at",
    "file_path",
    "decay_reason",
    "event_type",
    "tags",
    "archived_at",
)
BASE = pa.schema(
    [
        (name, pa.string() if name in TEXTS else pa.int64())
        for name in (
            "id",
            "verbatim",
            "gist",
            "salience",
            "created_at",
            "expires_at",
            "access_count",
            "outcome",
            "file_path",
            "decay_reason",
            "event_type",
            "tags",
            "project_id",
            "archived_at",
        )
    ]
)
GISTS = pa.list_(pa.struct([("audience", pa.string()), ("gist", pa.string()), ("created_at", pa.string())]))
OWN = pa.schema([*BASE, ("line_number", pa.int64()), ("pinned", pa.int64()), ("status", pa.string())]).append(
    pa.field("audience_gists", GISTS)
)


def memory(id_: int, **columns: Any) -> dict[str, Any]:
    """One row with something in every column of the reference."""
    return {
        "id": id_,
        "verbatim": f"memory {id_}",
        "gist": f"gist {id_}",
        "salience": "MEDIUM",
        "created_at": "2024-03-01T10:00:00",
        "expires_at": None,
        "access_count": 1,
        "outcome": 0,
        "file_path": f"src/file_{id_}.py",
        "decay_reason": "Low utility score",
        "event_type": "file_edit",
        "tags": '["py"]',
        "project_id": 1,
        "archived_at": "2024-12-15T02:00:00.000001",
        "line_number": 7,
        "pinned": 0,
        "status": "ARCHIVED",
        "audience_gists": [{"audience": "developer", "gist": "short", "created_at": "2024-03-01"}],
    } | columns


def write(
    archive: Path,
    rows: Sequence[Mapping[str, Any]],
    month: str = "2024-12",
    name: str = "memories_20241215_020000.parquet",
    schema: pa.Schema = OWN,
) -> Path:
    """Write one file where the layout puts it."""
    year, number = month.split("-")
    path = archive / f"year={year}" / f"month={number}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [{field: row.get(field) for field in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(known, schema=schema), path)
    return path


SCHEMA = """
    CREATE TABLE memories (
        id INTEGER PRIMARY KEY, project_id INTEGER, verbatim TEXT, gist TEXT, salience TEXT, event_type TEXT,
        file_path TEXT, tags TEXT, access_count INTEGER, created_at TIMESTAMP, expires_at TIMESTAMP, status TEXT,
        decay_reason TEXT, outcome INTEGER
    )
"""


@contextlib.contextmanager
def changing(db: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(db)) as con, con:
        yield con


def small_store(db: Path, *rows: dict, schema: str = SCHEMA) -> Path:
    db.parent.mkdir(parents=True, exist_ok=True)
    with changing(db) as con:
        con.execute(schema)
        for row in rows:
            names = ", ".join(f'"{name}"' for name in row)
            con.execute(f"INSERT INTO memories ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    return db
