"""What the two tiers hold, read without any code of the pipeline."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from vidurai_pipeline_tests.support.encrypted import open_file

Row = tuple[tuple[str, Any], ...]


def hot_rows(db: Path, where: str = "TRUE") -> dict[int, Row]:
    """Each memory of the hot store: its columns, its audience gists, and its project's name and path."""
    con = sqlite3.connect(db)
    con.row_factory = sqlite3.Row
    gists: dict[int, list] = {}
    for row in con.execute("SELECT * FROM audience_gists ORDER BY id"):
        gists.setdefault(row["memory_id"], []).append({k: row[k] for k in row.keys() if k != "memory_id"})  # noqa: SIM118
    projects = {
        id_: {"project_name": name, "project_path": path}
        for id_, name, path in con.execute("SELECT id, name, path FROM projects")
    }
    unknown = {"project_name": None, "project_path": None}
    rows = {
        row["id"]: freeze(
            {**dict(row), "audience_gists": gists.get(row["id"], []), **projects.get(row["project_id"], unknown)}
        )
        for row in con.execute(f"SELECT * FROM memories WHERE {where}")
    }
    con.close()
    return rows


def cold_rows(archive: Path) -> list[Row]:
    """Each copy in the archive, without the moment of archival."""
    rows = []
    for path in sorted(archive.rglob("*.parquet")):
        with open_file(path) as file:
            table = file.read()
        rows += [freeze({k: v for k, v in row.items() if k != "archived_at"}) for row in table.to_pylist()]
    return rows


def freeze(row: dict[str, Any]) -> Row:
    """A row that can be compared and counted, whatever the order of its columns."""
    return tuple(
        (name, repr(sorted(map(repr, value))) if isinstance(value, list) else value)
        for name, value in sorted(row.items())
    )


def assert_one_tier(before: dict[int, Row], db: Path, archive: Path) -> None:
    """Every memory of before is in exactly one tier, once, unchanged."""
    now = Counter(hot_rows(db).values()) + Counter(cold_rows(archive))
    assert now == Counter(before.values())


def parquet_files(root: Path) -> dict[str, bytes]:
    """The visible Parquet files below a folder, by their relative paths."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}
