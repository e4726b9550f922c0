"""Archives as the pipeline and Vidurai write them: one row factory, one writer."""

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parents[1] / "data"
REFERENCE = DATA / "reference_archive"

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
#: The 14 columns that Vidurai's own archiver writes.
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
#: Some of what this pipeline writes beside them.
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


def experience(id_: int, outcome: Any = 1, **columns: Any) -> dict[str, Any]:
    """A row of the 14 columns that teaches something; without an ``archived_at``, archived in the order of the ids."""
    return {
        "id": id_,
        "verbatim": "What was said",
        "gist": "said",
        "salience": "MEDIUM",
        "created_at": "2024-01-01T00:00:00",
        "access_count": 0,
        "outcome": outcome,
        "archived_at": f"2024-11-30T02:00:00.{id_:06d}",
        **columns,
    }


def write_file(
    archive: Path,
    rows: Iterable[dict[str, Any]],
    name: str = "memories_20241215_020000.parquet",
    *,
    schema: pa.Schema | None = None,
    month: str = "2024-12",
) -> Path:
    """Write one file where the layout puts it; by default with the columns of ``OWN`` that any row has."""
    year, number = month.split("-")
    path = archive / f"year={year}" / f"month={number}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    used = {column for row in rows for column in row}
    own = pa.schema([field for field in OWN if field.name in used or field in BASE])
    table = pa.Table.from_pylist(rows, schema=schema or own)
    with path.open("wb") as file:  # Arrow opens no path that is not UTF-8
        pq.write_table(table, file)
    return path


def flip(path: Path, *, keep_time: bool = False, at: float = 0.5) -> None:
    """Flip one bit of a file."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << random.Random(at).randrange(8)
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
