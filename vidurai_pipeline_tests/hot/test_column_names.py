"""A store's columns keep their values whatever they are called, also under names that the archive's readers use."""

import re
import shutil
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq

from vidurai_pipeline.analytics import database, views
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.hot.schema import RESERVED, SPECIFIED

#: Whatever looks like a name in the SQL of the views and of what stands around them.
INSIDE = {
    word
    for module in (views, database)
    for word in re.findall(r"[A-Za-z_][A-Za-z_0-9]*", Path(str(module.__file__)).read_text())
}
TAKEN = {*SPECIFIED, "status"} - {"archived_at"}


def test_a_column_of_any_name_that_a_view_uses_is_shown(tmp_path: Path) -> None:
    names: dict[str, str] = {}
    for name in (*RESERVED, *sorted(INSIDE)):
        if name.lower() not in TAKEN:
            names.setdefault(name.lower(), name)
    assert {"file_index", "file_row_number", "filename", "tier", "content", "year", "place"} <= names.keys()
    for group in range(0, len(names), 200):
        folder = tmp_path / str(group)
        folder.mkdir()
        shows_every_column(folder, list(names.values())[group : group + 200])


def shows_every_column(folder: Path, names: list[str]) -> None:
    db, archive = folder / "vidurai.db", folder / "archive"
    con = sqlite3.connect(db)
    own = ", ".join(f'"{name}" TEXT' for name in names)
    con.execute(f"CREATE TABLE memories (id INTEGER PRIMARY KEY, verbatim TEXT, created_at TEXT, status TEXT, {own})")
    for id_, status in ((1, "ARCHIVED"), (2, "ACTIVE")):
        values = [f"{name} of {id_}" for name in names]
        con.execute(f"INSERT INTO memories VALUES (?, 'v', 't', ?{', ?' * len(names)})", [id_, status, *values])
    con.commit()
    con.close()
    backup = shutil.copy(db, folder / "backup.db")
    assert MemoryArchiver(db, archive).flush_archived_memories() == 1
    # The same memory in the archive twice, so that the views must tell its copies apart.
    con = sqlite3.connect(backup)
    con.execute("UPDATE memories SET verbatim = 'newer'")
    con.commit()
    con.close()
    shutil.move(backup, db)
    assert MemoryArchiver(db, archive).flush_archived_memories() == 1

    path = next(archive.rglob("*.parquet"))
    fields = {
        field.metadata[b"sqlite_column"].decode(): field.name
        for field in pq.read_schema(path)
        if field.metadata and b"sqlite_column" in field.metadata
    }
    with RepoAnalyst(archive, hot_store=db) as analyst:
        shown = {
            view: analyst.query_archive(f"SELECT * FROM {view} ORDER BY id")
            for view in ("history", "history_all", "memories")
        }
    assert {view: [row["id"] for row in rows] for view, rows in shown.items()} == {
        "history": [1], "history_all": [1, 1], "memories": [1, 2]
    }  # fmt: skip
    for view, rows in shown.items():
        for row in rows:
            wrong = [name for name in names if row.get(fields[name]) != f"{name} of {row['id']}"]
            assert wrong == [], view
