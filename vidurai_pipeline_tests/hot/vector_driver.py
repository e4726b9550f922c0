"""Archives a store with vectors, under a Python whose sqlite3 module can load extensions.

python vector_driver.py add STORE         give every third memory a vector, and print what was given
python vector_driver.py flush STORE       archive
python vector_driver.py race STORE        archive, while the vector of one memory changes before the purge
python vector_driver.py other KIND STORE  give memory 3 a vector in a table of another kind
python vector_driver.py erase STORE       erase every ninth memory
python vector_driver.py search STORE      search both tiers by meaning, and print what was found
python vector_driver.py read STORE        print the vectors that the store holds

The pipeline is imported by what needs it: it takes longer to import than all else here.
"""

import json
import random
import sqlite3
import struct
import sys
import warnings
from pathlib import Path

import sqlite_vec

CREATE = "CREATE VIRTUAL TABLE vec_memories USING vec0(memory_id INTEGER PRIMARY KEY, embedding float[384])"


def connect(path: Path) -> sqlite3.Connection:
    con = sqlite3.connect(path)
    con.enable_load_extension(True)
    sqlite_vec.load(con)
    return con


def add(path: Path) -> None:
    con = connect(path)
    con.execute(CREATE)
    chance = random.Random(1)
    for (id_,) in con.execute("SELECT id FROM memories WHERE id % 3 = 0").fetchall():
        vector = struct.pack("384f", *(chance.gauss() for _ in range(384)))
        con.execute("INSERT INTO vec_memories (memory_id, embedding) VALUES (?, ?)", (id_, vector))
    con.commit()
    con.close()


def read(path: Path) -> None:
    con = connect(path)
    sys.stdout.write(json.dumps({id_: vector.hex() for id_, vector in con.execute("SELECT * FROM vec_memories")}))
    con.close()


def flush(path: Path) -> None:
    from vidurai_pipeline.archival.archiver import MemoryArchiver  # noqa: PLC0415

    sys.stdout.write(json.dumps(MemoryArchiver(path, path.parent / "archive").flush_archived_memories().to_dict()))


def erase(path: Path) -> None:
    from vidurai_pipeline.archival.eraser import MemoryEraser  # noqa: PLC0415

    sys.stdout.write(json.dumps(MemoryEraser(path, path.parent / "archive").erase(where="id % 9 = 0").to_dict()))


def search(path: Path) -> None:
    from vidurai_pipeline.analytics.engine import RepoAnalyst  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as said, RepoAnalyst(path.parent / "archive", hot_store=path) as analyst:
        found = analyst.search_archive("why did the tests fail", 5, mode="meaning", tier="all")
    rows = [[row["id"], row["tier"], row["score"]] for row in found]
    sys.stdout.write(json.dumps({"rows": rows, "said": [str(one.message) for one in said]}))


def race(path: Path) -> None:
    from vidurai_pipeline.archival.archiver import MemoryArchiver  # noqa: PLC0415

    archiver = MemoryArchiver(path, path.parent / "archive")
    with archiver.run("test"):
        archiver.publish()
        con = connect(path)
        (changed,) = con.execute(
            "SELECT min(memory_id) FROM vec_memories WHERE memory_id IN "
            "(SELECT id FROM memories WHERE status = 'ARCHIVED')"
        ).fetchone()
        con.execute(
            "UPDATE vec_memories SET embedding = ? WHERE memory_id = ?", (struct.pack("384f", *[1] * 384), changed)
        )
        con.commit()
        con.close()
        kept = archiver.purge().kept
    sys.stdout.write(json.dumps({"changed": changed, "kept": kept}))


def other(kind: str, path: Path) -> None:
    con = connect(path)
    con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE id IN (1, 2, 3)")
    if kind == "plain":
        con.execute("CREATE TABLE vec_memories (memory_id INTEGER PRIMARY KEY, embedding BLOB)")
        con.execute("INSERT INTO vec_memories VALUES (3, x'01')")
    elif kind == "plain with a key":
        con.execute("CREATE TABLE vec_memories (memory_id INTEGER REFERENCES memories(id) ON DELETE CASCADE, e BLOB)")
        con.execute("INSERT INTO vec_memories VALUES (3, x'01')")
    elif kind == "text key":
        con.execute("CREATE VIRTUAL TABLE vec_memories USING vec0(memory_id TEXT PRIMARY KEY, embedding float[4])")
        con.execute("INSERT INTO vec_memories VALUES ('3', '[1,2,3,4]')")
    else:
        con.execute("CREATE VIRTUAL TABLE vec_memories USING vec0(embedding float[4])")
        con.execute("INSERT INTO vec_memories (rowid, embedding) VALUES (3, '[1,2,3,4]')")
    con.commit()
    con.close()


if __name__ == "__main__":
    if sys.argv[1] == "other":
        other(sys.argv[2], Path(sys.argv[3]))
    else:
        {"add": add, "flush": flush, "erase": erase, "race": race, "read": read, "search": search}[sys.argv[1]](
            Path(sys.argv[2])
        )
