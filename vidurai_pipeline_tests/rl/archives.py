"""Small archives, written as Vidurai's archiver writes them: 14 columns, one row for each memory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("verbatim", pa.string()),
        ("gist", pa.string()),
        ("salience", pa.string()),
        ("created_at", pa.string()),
        ("expires_at", pa.string()),
        ("access_count", pa.int64()),
        ("outcome", pa.int64()),
        ("file_path", pa.string()),
        ("decay_reason", pa.string()),
        ("event_type", pa.string()),
        ("tags", pa.string()),
        ("project_id", pa.int64()),
        ("archived_at", pa.string()),
    ]
)


def memory(id_: int, outcome: Any = 1, **columns: Any) -> dict[str, Any]:
    """A row; without an ``archived_at`` of its own, memories are archived in the order of their ids."""
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
    archive: Path, name: str, rows: Iterable[dict[str, Any]], schema: pa.Schema = SCHEMA, month: str = "2024/11"
) -> Path:
    year, _, number = month.partition("/")
    path = archive / f"year={year}" / f"month={number}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # Arrow opens no path that is not UTF-8
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
    return path
