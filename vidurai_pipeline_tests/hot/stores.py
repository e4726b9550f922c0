"""Stores of few columns, to which tests add what they are about."""

from pathlib import Path

from vidurai_pipeline_tests.support.stores import change


def twenty_memories(
    folder: Path, columns: str = "", *, id_: str = "id INTEGER PRIMARY KEY", encoding: str = "UTF-8"
) -> Path:
    """A store of 20 ARCHIVED memories of few columns."""
    db = folder / "vidurai.db"
    change(
        db,
        f"PRAGMA encoding = '{encoding}'",
        f"CREATE TABLE memories ({id_}, verbatim TEXT, tags TEXT, project_id INTEGER, created_at TEXT, "
        f"status TEXT {columns})",
    )
    for number in range(1, 21):
        change(
            db,
            (
                "INSERT INTO memories (id, verbatim, tags, project_id, created_at, status) VALUES (?, ?, '[]', 1, 't', "
                "'ARCHIVED')",
                (number, f"memory {number}"),
            ),
        )
    return db
