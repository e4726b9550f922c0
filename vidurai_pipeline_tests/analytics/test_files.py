"""Files that are not what the archive holds."""

import datetime
import decimal
import itertools
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidurai_pipeline.analytics import engine
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.care.health import archive_readable
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.support.archives import BASE, OWN, memory, write_file


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def headless(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not parquet at all\n" * 50)


def magic_only(path: Path) -> None:
    path.write_bytes(b"PAR1" + b"\xff" * 64 + (50).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("damage", [truncated, headless, empty, text, magic_only])
@pytest.mark.parametrize("ask", ["query_archive", "query_df", "query_arrow"])
def test_a_broken_file_is_named_with_what_to_do(tmp_path: Path, damage, ask: str):
    write_file(tmp_path, [memory(1)], month="2024-11")
    broken = write_file(tmp_path, [memory(2)])
    damage(broken)
    analyst = RepoAnalyst(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        getattr(analyst, ask)("SELECT * FROM history")
    assert str(broken) in str(caught.value)
    assert "is not a readable Parquet file" in str(caught.value)
    assert "move it out of the archive or restore it from a backup" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    broken.unlink()
    assert analyst.query_archive("SELECT id FROM history") == [{"id": 1}]


def test_a_file_that_breaks_between_two_queries_is_noticed(tmp_path: Path):
    path = write_file(tmp_path, [memory(1)])
    analyst = RepoAnalyst(tmp_path)
    assert analyst.query_archive("SELECT id FROM history") == [{"id": 1}]
    truncated(path)
    with pytest.raises(ArchiveError, match="is not a readable Parquet file"):
        analyst.query_archive("SELECT id FROM history")


def test_several_broken_files_are_counted(tmp_path: Path):
    for month in ("2024-10", "2024-11", "2024-12"):
        empty(write_file(tmp_path, [memory(1)], month=month))
    with pytest.raises(ArchiveError, match=r"month=10/.*\(2 more like it\)"):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")


@pytest.mark.parametrize("start", range(0, 100, 7))
def test_damaged_pages_are_an_error_that_names_the_file(tmp_path: Path, start: int):
    """The footer is fine, so only reading the rows shows it."""
    write_file(tmp_path, [memory(i) for i in range(2_000, 2_200)], month="2024-11")
    broken = write_file(tmp_path, [memory(i, verbatim=f"{i} text " * 20) for i in range(2_000)])
    content = bytearray(broken.read_bytes())
    data = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    position = 4 + (data - 300) * start // 100
    content[position : position + 200] = b"\xff" * 200
    broken.write_bytes(content)
    analyst = RepoAnalyst(tmp_path)
    for ask in (analyst.query_archive, analyst.query_df, lambda sql: analyst.query_arrow(sql).read_all()):
        with pytest.raises(ArchiveError) as caught:
            ask("SELECT * FROM history_all")
        assert str(broken) in str(caught.value)


def test_a_foreign_file_is_named(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11")
    foreign = tmp_path / "year=2024" / "month=11" / "taxi.parquet"
    pq.write_table(pa.table({"trip": [1], "fare": [2.5]}), foreign)
    with pytest.raises(ArchiveError, match=rf"{foreign} is not an archive of memories.*no column 'id', 'verbatim'"):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")


@pytest.mark.parametrize(
    ("column", "type_", "value"),
    [
        ("id", pa.string(), "one"),
        ("outcome", pa.string(), "good"),
        ("verbatim", pa.binary(), b"\xff\xfe"),
        ("tags", pa.list_(pa.string()), ["py"]),
        ("project_id", pa.timestamp("us"), 0),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: str, type_: pa.DataType, value: object):
    write_file(tmp_path, [memory(1)], month="2024-11")
    schema = OWN.set(OWN.get_field_index(column), pa.field(column, type_))
    odd = write_file(tmp_path, [memory(2, **{column: value})], schema=schema)
    with pytest.raises(ArchiveError) as caught:
        RepoAnalyst(tmp_path).query_archive("SELECT 1")
    assert str(odd) in str(caught.value)
    assert repr(column) in str(caught.value)


@pytest.mark.parametrize("column", ["id", "access_count", "outcome", "project_id"])
@pytest.mark.parametrize("type_", [pa.float32(), pa.float64(), pa.decimal128(10, 2)], ids=str)
def test_fractions_in_an_integer_column_are_named_never_rounded(tmp_path: Path, column: str, type_: pa.DataType):
    """Whole numbers are welcome: pandas makes floats of an integer column with gaps."""
    schema = OWN.set(OWN.get_field_index(column), pa.field(column, type_))
    cast = decimal.Decimal if pa.types.is_decimal(type_) else float
    whole = [memory(1, **{column: cast(7)}), memory(2, **{column: cast(8) if column == "id" else None})]
    write_file(tmp_path, whole, month="2024-10", schema=schema)
    analyst = RepoAnalyst(tmp_path)
    rows = analyst.query_archive(f"SELECT {column} AS c FROM history ORDER BY c")
    assert [row["c"] for row in rows] == [7, 8 if column == "id" else None]
    odd = write_file(tmp_path, [memory(3, **{column: cast("0.5")})], month="2024-11", schema=schema)
    for _ in range(2):
        with pytest.raises(
            ArchiveError, match=rf"{odd} is not .*: its column '{column}' holds fractions, not integers"
        ):
            analyst.query_archive("SELECT 1")


def test_further_columns_of_several_types_become_one_or_are_named(tmp_path: Path):
    write_file(tmp_path, [memory(1, extra=5)], month="2024-10", schema=OWN.append(pa.field("extra", pa.int32())))
    write_file(tmp_path, [memory(2, extra=0.5)], month="2024-11", schema=OWN.append(pa.field("extra", pa.float64())))
    analyst = RepoAnalyst(tmp_path)
    rows = analyst.query_archive("SELECT extra, typeof(extra) AS t FROM history ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(5.0, "DOUBLE"), (0.5, "DOUBLE")]
    write_file(tmp_path, [memory(3, extra="text")], month="2024-12", schema=OWN.append(pa.field("extra", pa.string())))
    rows = analyst.query_archive("SELECT extra FROM history ORDER BY id")
    assert [row["extra"] for row in rows] == ["5", "0.5", "text"]
    odd = OWN.append(pa.field("extra", pa.list_(pa.int64())))
    write_file(tmp_path, [memory(4, extra=[1])], month="2025-01", schema=odd)
    with pytest.raises(ArchiveError, match="disagrees with the other files: its column 'extra'"):
        analyst.query_archive("SELECT 1")


OF_EACH_TYPE = {
    "blob": (pa.binary(), b"\x00\xff'\\", r"\x00\xFF\x27\x5C"),
    "text": (pa.string(), "नमस्ते \\x", "नमस्ते \\x"),
    "real": (pa.float64(), 0.1, "0.1"),
    "integer": (pa.int64(), 2**63 - 1, "9223372036854775807"),
    "truth": (pa.bool_(), True, "true"),
    "time": (pa.timestamp("us"), datetime.datetime(2024, 2, 29, 1, 2, 3), "2024-02-29 01:02:03"),
}


@pytest.mark.parametrize(
    ("one", "other"), [p for p in itertools.permutations(OF_EACH_TYPE, 2) if not set(p) <= {"real", "integer", "truth"}]
)
def test_a_further_column_of_types_that_differ_is_shown_as_text(tmp_path: Path, one: str, other: str):
    for number, kind in enumerate((one, other), start=1):
        type_, value, _ = OF_EACH_TYPE[kind]
        schema = OWN.append(pa.field("extra", type_))
        write_file(tmp_path, [memory(number, extra=value), memory(number + 2)], month=f"2024-1{number}", schema=schema)
    rows = RepoAnalyst(tmp_path).query_archive("SELECT extra FROM history ORDER BY id")
    assert [row["extra"] for row in rows] == [OF_EACH_TYPE[one][2], OF_EACH_TYPE[other][2], None, None]


def test_nested_values_that_cannot_be_united_are_named_where_they_are_asked_for(tmp_path: Path):
    for month, type_, value in (("2024-10", pa.float64(), 0.5), ("2024-11", pa.binary(), b"\xff")):
        schema = OWN.append(pa.field("extra", pa.list_(pa.struct([("v", type_)]))))
        number = 1 if value == 0.5 else 2
        odd = write_file(tmp_path, [memory(number, extra=[{"v": value}])], month=month, schema=schema)
    analyst = RepoAnalyst(tmp_path)
    assert analyst.query_archive("SELECT count(*) AS n, max(id) AS last FROM history") == [{"n": 2, "last": 2}]
    with pytest.raises(ArchiveError) as caught:
        analyst.query_archive("SELECT extra FROM history")
    assert str(odd.parent.parent) in str(caught.value)
    assert "disagrees with the other files: its column 'extra'" in str(caught.value)
    assert str(caught.value).endswith(
        ": ask without that column, and move the file out of the archive only if another program wrote it"
    )


@pytest.mark.parametrize(
    ("types", "values", "shown"),
    [
        ((pa.int64(), pa.float64()), (2**53 + 1, 0.5), ("9007199254740993", "0.5")),
        ((pa.int32(), pa.float32()), (16_777_217, 0.5), (16_777_217.0, 0.5)),
        ((pa.int64(), pa.int8()), (2**53 + 1, 5), (2**53 + 1, 5)),
        ((pa.uint64(), pa.int8()), (2**64 - 1, -5), (2**64 - 1, -5)),
        ((pa.float32(), pa.float64()), (0.5, 0.1), (0.5, 0.1)),
        (
            (pa.decimal128(38, 30), pa.decimal128(38, 0)),
            (decimal.Decimal("0.125"), decimal.Decimal(7)),
            (f"0.125{'0' * 27}", "7"),
        ),
        ((pa.decimal128(30, 2), pa.float64()), (decimal.Decimal("1234567890123456789.25"), 0.5), None),
    ],
    ids=str,
)
def test_numbers_of_several_types_keep_every_digit(tmp_path: Path, types: tuple, values: tuple, shown: tuple | None):
    for number, (type_, value) in enumerate(zip(types, values, strict=True), start=1):
        write_file(
            tmp_path,
            [memory(number, extra=value)],
            month=f"2024-1{number}",
            schema=OWN.append(pa.field("extra", type_)),
        )
    rows = RepoAnalyst(tmp_path).query_archive("SELECT extra FROM history ORDER BY id")
    assert tuple(row["extra"] for row in rows) == (shown or ("1234567890123456789.25", "0.5"))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, kind: str):
    write_file(tmp_path, [memory(1)])
    odd = tmp_path / "year=2024" / "month=12" / "odd.parquet"
    if kind == "folder":
        odd.mkdir()
        assert RepoAnalyst(tmp_path).query_archive("SELECT id FROM history") == [{"id": 1}]
        return
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero")
    with pytest.raises(ArchiveError, match=f"{odd} is not a file of the archive"):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")
    assert f"{odd} is not a file of the archive" in DreamCycle(tmp_path, tmp_path / "q.json").run()["error"]
    found, _ = archive_readable(Archive(tmp_path), thorough=True)
    assert (found.status, str(odd) in found.detail) == ("failed", True)


def test_a_file_that_this_user_may_not_read_is_not_called_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_file(tmp_path, [memory(1)])
    truncated(path)  # as DuckDB fails for another user, whom root is not
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ArchiveError, match=f"{path} can't be read: it is not readable for this user"):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")


def test_columns_may_have_any_name(tmp_path: Path):
    names = ["it's", 'dou"ble', "semi;colon", "Ünï", "select", "year", "filename", "file_row_number", "place", "x y"]
    schema = OWN
    for name in names:
        schema = schema.append(pa.field(name, pa.string()))
    nested = pa.list_(pa.struct([('f "q" )', pa.int64()), ("g;'", pa.string())]))
    schema = schema.append(pa.field("nested) --", nested))
    row = memory(1, **dict.fromkeys(names, "v"), **{"nested) --": [{'f "q" )': 1, "g;'": "z"}]})
    write_file(tmp_path, [row, row | {"archived_at": "2025"}], schema=schema)
    (found,) = RepoAnalyst(tmp_path).query_archive("FROM history")
    assert {found[name] for name in names if name not in ("year", "filename", "file_row_number")} == {"v"}
    assert found["year"] == 2024
    assert found["nested) --"] == [{'f "q" )': 1, "g;'": "z"}]


def test_files_without_rows_are_no_trouble(tmp_path: Path):
    write_file(tmp_path, [])
    analyst = RepoAnalyst(tmp_path)
    assert analyst.query_archive("SELECT count(*) AS n FROM history") == [{"n": 0}]
    assert analyst.get_memory_stats()["total_memories"] == 0


def test_names_that_duckdb_would_take_for_patterns_are_refused(tmp_path: Path):
    odd = write_file(tmp_path, [memory(1)], name="memories_[copy].parquet")
    with pytest.raises(ArchiveError, match="rename it") as caught:
        RepoAnalyst(tmp_path).query_archive("SELECT 1")
    assert str(odd) in str(caught.value)


def test_an_archive_that_is_no_folder_is_named(tmp_path: Path):
    path = tmp_path / "archive"
    path.write_text("a file")
    with pytest.raises(ArchiveError, match=f"{path} is a file"):
        RepoAnalyst(path).query_archive("SELECT 1")


def test_a_link_to_nowhere_is_named_and_one_in_a_circle_is_harmless(tmp_path: Path):
    path = write_file(tmp_path, [memory(1)])
    (path.parent / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(RepoAnalyst(tmp_path).query_archive("FROM history_all")) == 1
    (path.parent / "gone.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArchiveError, match=r"gone\.parquet can't be read"):
        RepoAnalyst(tmp_path).query_archive("SELECT 1")


def test_linked_folders_are_part_of_the_archive(tmp_path: Path):
    write_file(tmp_path / "disk", [memory(1)])
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "year=2024").symlink_to(tmp_path / "disk" / "year=2024", target_is_directory=True)
    assert RepoAnalyst(tmp_path / "archive").query_archive("SELECT month FROM history") == [{"month": 12}]


def test_the_package_runs_without_pandas_until_a_frame_is_asked_for():
    assert "pd" not in vars(engine)


@pytest.mark.parametrize(
    ("type_", "value", "shown"),
    [
        (pa.string(), "own", "own"),
        (pa.int64(), 7, "7"),
        (pa.list_(pa.string()), ["x"], "[x]"),
        (pa.binary(), b"\xff", "\\xFF"),
        (pa.null(), None, "memory 2"),
    ],
)
def test_a_files_own_content_of_any_type_is_shown_as_text(
    tmp_path: Path, type_: pa.DataType, value: object, shown: str
):
    write_file(tmp_path, [memory(1)], month="2024-11")
    write_file(tmp_path, [memory(2, Content=value)], schema=OWN.append(pa.field("Content", type_)))
    analyst = RepoAnalyst(tmp_path, hot_store=tmp_path / "none.db")
    sql = "SELECT content, typeof(content) AS t FROM history ORDER BY id"
    assert [tuple(row.values()) for row in analyst.query_archive(sql)] == [("memory 1", "VARCHAR"), (shown, "VARCHAR")]
    assert len(analyst.search_archive("memory")) == 2


def test_columns_that_differ_only_in_case_are_one(tmp_path: Path):
    write_file(tmp_path, [memory(1)], month="2024-11")
    odd = pa.schema([*BASE, ("Gist", pa.string()), ("ID", pa.int64()), ("TIER", pa.string())])
    write_file(tmp_path, [memory(2, Gist="upper", ID=99, TIER="own")], schema=odd)
    rows = RepoAnalyst(tmp_path).query_archive("SELECT id, gist FROM history ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(1, "gist 1"), (2, "gist 2")]


def test_thousands_of_columns_are_no_trouble(tmp_path: Path):
    wide = pa.schema([*OWN, *(pa.field(f"c{number}", pa.int64()) for number in range(1_500))])
    write_file(tmp_path, [memory(1, c7=7)], schema=wide)
    assert RepoAnalyst(tmp_path).query_archive("SELECT c7, c8 FROM history") == [{"c7": 7, "c8": None}]
