"""Values of every kind: archived exactly, or left hot with a reason while the rest goes on."""

import sqlite3
from typing import Any

import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline_tests.support.stores import WAITING, Store, archived, change, flush, insert
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows


@pytest.mark.fast
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("access_count", "many", "text where the column holds integers"),
        ("access_count", 2.5, "a real where the column holds integers"),
        ("line_number", b"\x00\x01", "a blob where the column holds integers"),
        ("outcome", "1x", "text where the column holds integers"),
        ("verbatim", b"\xff\xfe", "a blob where the column holds text"),
        ("gist", "{CAST(x'61ff62' AS TEXT)}", "text that is not valid UTF-8"),
        ("tags", "{CAST(x'eda080' AS TEXT)}", "text that is not valid UTF-8"),
        ("verbatim", "{CAST(x'c0af' AS TEXT)}", "text that is not valid UTF-8"),
        ("created_at", 1_700_000_000, "an integer where the column holds text"),
        ("pinned_at", 1.5, "a real where the column holds text"),
    ],
)
def test_what_parquet_cannot_hold_stays_hot_and_is_named(
    sample_store: Store, column: str, value: Any, reason: str
) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db, **{column: value})
    first, last = insert(db), insert(db)

    result = flush(db)

    assert [(r.id, r.column, r.reason) for r in result.rejected] == [(id_, column, reason)]
    assert result == WAITING["schema_v7"] + 2
    con = sqlite3.connect(db)
    con.text_factory = bytes
    assert con.execute("SELECT id, status FROM memories WHERE status = 'ARCHIVED'").fetchall() == [(id_, b"ARCHIVED")]
    con.close()
    assert {row["id"] for row in pq.read_table(db.parent / "archive").to_pylist()} >= {first, last}
    assert flush(db) == 0


def test_bad_text_in_many_rows(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    bad = [insert(db, verbatim="{CAST(x'ff' AS TEXT)}") for _ in range(3)]
    good = [insert(db) for _ in range(200)]
    bad += [insert(db, gist="{CAST(x'ff' AS TEXT)}") for _ in range(130)]
    good += [insert(db) for _ in range(3)]
    result = flush(db)
    assert [r.id for r in result.rejected] == bad
    assert result == WAITING["schema_v7"] + len(good)


@pytest.mark.fast
@pytest.mark.parametrize(
    "values",
    [
        {"verbatim": "NUL \x00 inside\x00"},
        {"verbatim": "", "gist": "", "tags": ""},
        {"tags": None, "file_path": None, "expires_at": None},
        {"created_at": "0001-01-01T00:00:00", "expires_at": "9999-12-31T23:59:59.999999"},
        {"id": 2**63 - 1},
        {"id": -(2**63)},
        {"id": -5},
        {"id": 0},
        {"access_count": 2**63 - 1, "line_number": -(2**63)},
        {"verbatim": "🧠 \U0010ffff \ufeff \u2028 日本語 'quote' \"double\" \\ \r\n\t"},
        {"verbatim": "x" * 50_000_000},
        {"outcome": 7, "salience": "unheard of", "event_type": ""},
    ],
    ids=",".join,
)
def test_rare_values_are_kept_exactly(sample_store: Store, values: dict[str, Any]) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db, **values)
    before = hot_rows(db)
    result = flush(db)
    assert (result, result.rejected) == (WAITING["schema_v7"] + 1, [])
    assert {name: archived(db, id_)[name] for name in values} == values
    assert_one_tier(before, db, db.parent / "archive")


def test_a_mixed_column_keeps_its_commonest_type(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    change(db, "ALTER TABLE memories ADD COLUMN mood DEFAULT 'calm'", "UPDATE memories SET mood = 3 WHERE id % 10 = 0")
    odd = [id_ for id_, row in hot_rows(db, "status = 'ARCHIVED'").items() if dict(row)["mood"] == 3]
    result = flush(db)
    assert odd
    assert [r.id for r in result.rejected] == odd
    assert result == WAITING["schema_v7"] - len(odd)


def test_a_column_that_holds_another_type_each_night(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    flush(db)
    change(db, "ALTER TABLE memories ADD COLUMN score NUMERIC")
    values = {1.5: "1.5", b"\x00\xff": r"\x00\xFF", "n/a": "n/a", 7: "7"}
    ids = []
    for value in values:
        ids.append(insert(db, score=value))
        assert flush(db) == 1
        assert archived(db, ids[-1])["score"] == value
    with RepoAnalyst(db.parent / "archive", hot_store=db) as analyst:
        for view in ("history", "history_all", "memories"):
            rows = analyst.query_archive(f"SELECT id, score FROM {view} WHERE score IS NOT NULL ORDER BY id")
            assert [(row["id"], row["score"]) for row in rows] == list(zip(ids, values.values(), strict=True))


def test_a_gist_that_parquet_cannot_hold_keeps_its_memory_hot(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    id_ = insert(db)
    change(
        db,
        ("INSERT INTO audience_gists (memory_id, audience, gist) VALUES (?, 'ai', CAST(x'ff' AS TEXT))", (id_,)),
    )
    result = flush(db)
    assert [(r.id, r.column) for r in result.rejected] == [(id_, "audience_gists.gist")]
    assert result == WAITING["schema_v7"]
