"""`query` and `search` as people run them: what is printed where."""

import csv
import io
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidurai_pipeline.analytics.execution import unique_names
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cli import output
from vidurai_pipeline.errors import MORE_MEMORY
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.cli import cli

Store = Callable[[str], Path]
PEAK = r"""
import pathlib, re, sys
from vidurai_pipeline.cli.main import main
try:
    main.main()
finally:
    # In kB. Of the resources used, getrusage() would count those of the process that this one was forked from.
    status = pathlib.Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s*(\d+)", status).group(1), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDURAI_HOME", str(tmp_path))
    return tmp_path


def test_json_keeps_every_digit_of_a_decimal(home: Path) -> None:
    write_file(home / "archive", [memory(1)])
    values = {"short": "0.10", "long": "12345678901234567.89", "tiny": "0.12345678901234567890123", "sum": "7"}
    columns = ", ".join(
        f"CAST({text!r} AS DECIMAL(38, {len(text.partition('.')[2])})) AS {name}" for name, text in values.items()
    )
    done = cli("query", f"SELECT {columns} FROM history", "--format", "json")
    assert json.loads(done.stdout) == [{"short": 0.1, "long": values["long"], "tiny": values["tiny"], "sum": 7}]


def test_a_terminal_is_shown_the_text_as_it_is_and_not_steered_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb")
    texts = [r"\[0-9]+", "a\\", "[red]x[/red]", "tab\tnew\nline", "\x1b]0;pwned\x07 \x1b[2J \x9b"]
    output.print_rows(["x"], [[text] for text in texts], "table")
    shown = out.getvalue()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    for text in (*texts[:3], r"\x1b]0;pwned\x07 \x1b[2J \x9b"):
        assert text in shown


@pytest.fixture
def both(sample_store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    db = sample_store("guardian")
    MemoryArchiver(db, db.parent / "archive").flush_archived_memories()
    monkeypatch.setenv("VIDURAI_HOME", str(db.parent))
    return db.parent


@pytest.mark.parametrize("command", [("query", "SELECT count(*) AS n FROM history"), ("search", "word")])
def test_without_an_archive_a_line_says_so(home: Path, command: tuple[str, str]):
    for form, expected in (("json", "[]\n"), ("table", ""), ("csv", "")):
        done = cli(*command, "--format", form)
        assert done.returncode == 0
        if form == "json":
            assert done.stdout == expected
        else:
            assert len(done.stdout.splitlines()) <= 1  # the header
        assert f"no archive yet at {home}/archive; " in done.stderr


def test_with_an_archive_nothing_is_said(home: Path):
    write_file(home / "archive", [])
    done = cli("query", "SELECT count(*) AS n FROM history", "--format", "json")
    assert (json.loads(done.stdout), done.stderr) == ([{"n": 0}], "")


def test_csv_of_no_hits_has_its_header(both: Path):
    for tier in ("all", "cold", "hot"):
        none, some = (cli("search", word, "--tier", tier, "--format", "csv") for word in ("nosuchword", "pytest"))
        assert none.returncode == 0
        assert none.stdout.splitlines() == some.stdout.splitlines()[:1]
        assert "id,snippet,content" in none.stdout
        assert list(csv.DictReader(io.StringIO(some.stdout)))


def test_search_looks_in_both_tiers_unless_told(both: Path):
    found = {
        tier: json.loads(cli("search", "pytest", "--limit", "9999", "--format", "json", *option).stdout)
        for tier, option in {"default": (), "cold": ("--tier", "cold"), "hot": ("--tier", "hot")}.items()
    }
    assert {row["tier"] for row in found["default"]} == {"hot", "cold"}
    assert len(found["default"]) == len(found["cold"]) + len(found["hot"])


def test_search_without_a_hot_store_says_nothing_of_it(home: Path):
    write_file(home / "archive", [memory(1)])
    done = cli("search", "memory", "--mode", "exact", "--format", "json")
    assert [row["id"] for row in json.loads(done.stdout)] == [1]
    assert done.stderr == ""


def test_odd_values_of_the_hot_store_are_noted_in_one_line(both: Path):
    with sqlite3.connect(both / "vidurai.db") as con:
        con.execute("UPDATE memories SET access_count = 'a secret' WHERE id = (SELECT min(id) FROM memories)")
    done = cli("query", "SELECT count(*) AS n, count(access_count) AS c FROM memories", "--format", "json")
    assert json.loads(done.stdout) == [{"n": 2_000, "c": 1_999}]
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: the hot store ")
    assert "access_count: text where the column holds integer" in line
    assert "secret" not in line


def test_json_is_json(home: Path):
    write_file(home / "archive", [memory(1)])
    sql = """
        SELECT 'nan'::DOUBLE AS a, '-inf'::FLOAT AS b, [1.5, 'inf'::DOUBLE] AS c, {'x': {'y': 'nan'::DOUBLE}} AS d,
            sum(id) AS e, 340282366920938463463374607431768211455::UHUGEINT AS f, MAP {DATE '2024-01-01': 1} AS g,
            DATE '20000-01-01' AS h, INTERVAL '26 hours' AS i, '101'::BIT AS j, 1.50 AS k, TIMESTAMP 'infinity' AS l,
            1 AS a
        FROM history
    """

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    done = cli("query", sql, "--format", "json")
    (row,) = json.loads(done.stdout, parse_constant=refuse)
    assert row == {
        "a": None,
        "b": None,
        "c": [1.5, None],
        "d": {"x": {"y": None}},
        "e": 1,
        "f": 2**128 - 1,
        "g": {"2024-01-01": 1},
        "h": "20000-01-01",
        "i": "1 day, 2:00:00",
        "j": "101",
        "k": 1.5,
        "l": "9999-12-31T23:59:59.999999",
        "a_1": 1,
    }
    assert isinstance(row["e"], int)
    for form in ("csv", "table"):
        assert cli("query", sql, "--format", form).returncode == 0


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT\n  nope\nFROM history", ['"nope"', "Candidate", "in line 2, at: nope"]),
        ("SELECT id FROM history\nWERE x", ["syntax error", "in line 2, at: "]),
        ("SELECT lenght(gist) FROM history", ['Did you mean "length"', "in line 1, at: lenght(gist)"]),
        ("SELECT * FROM nowhere", ["history, history_all, memories and projects", "in line 1, at: nowhere"]),
        ("SELECT gist + 1 FROM history", ["in line 1, at: + 1"]),
        ("SELECT gist::INTEGER FROM history", ["Conversion Error", "in line 1, at: ::INTEGER"]),
        ("SELECT * FROM history WHERE", ["syntax error"]),
        ("FROM read_csv('/etc/passwd')", ["not allowed here"]),
        ("SELECT 1; SELECT 2", ["2 statements", "give one statement"]),
        ("SELECT h.gits FROM history h", ["Candidates: gist"]),
        ("", ["no statement"]),
    ],
)
def test_an_error_is_one_line_with_its_place(home: Path, sql: str, said: list[str]):
    write_file(home / "archive", [memory(1)])
    done = cli("query", sql)
    assert (done.returncode, done.stdout) == (2, "" if done.stdout == "" else "CAST(gist AS INTEGER)\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for words in said:
        assert words in line
    assert "^" not in line


def test_a_query_may_be_given_a_time(home: Path):
    write_file(home / "archive", [memory(1)])
    done = cli("query", "SELECT count(*) FROM range(1000000000000) a(i) WHERE hash(i) = 1", "--timeout", "0.3")
    assert done.returncode == 4
    assert "longer than 0.3 s" in done.stderr


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_a_long_answer_is_written_while_it_comes(home: Path, form: str):
    """What is printed is never all in memory: a million rows need no more than a thousand do."""
    write_file(home / "archive", [memory(1)])

    def peak(rows: int) -> int:
        sql = f"SELECT i, repeat('x', 200) AS text FROM range({rows}) t(i)"
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "query", sql, "--format", form],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        return int(done.stderr.split()[-1])

    assert peak(1_000_000) - peak(1_000) < 120_000  # of 200 MB of text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory this way")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 3000000000))",
        "SELECT len(range(500000000))",
        "SELECT max(len(range(i))) FROM range(1000000, 1100000) t(i)",
        "SELECT len(list_resize([1], 800000000))",
        "SELECT length(printf('%2000000000d', 1))",
        "SELECT length(format('{:>2000000000}', 'x'))",
        "SELECT length(replace(repeat('a', 100000), 'a', repeat('b', 100000)))",
        "SELECT length(to_json(range(300000000))::VARCHAR)",
        "SELECT length(hex(repeat('x', 1000000000)))",
        "SELECT len(list(i)) FROM range(1000000000) t(i)",
        "SELECT repeat('x', 1000000) FROM range(2000)",
    ],
)
def test_no_single_value_takes_more_memory_than_a_query_may(
    home: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """DuckDB's own limit doesn't count them."""
    write_file(home / "archive", [memory(1)])
    monkeypatch.setenv("VIDURAI_MEMORY_LIMIT", "200MB")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "query", sql],
        capture_output=True,
        text=True,
        check=False,
    )
    *said, peak = done.stderr.splitlines()
    assert (done.returncode, said) == (2, [f"error: {MORE_MEMORY}"])
    assert int(peak) < 1_200_000


@pytest.mark.parametrize(("limit", "threads"), [("1MB", "2"), ("100MB", "64"), ("1GB", "300")])
def test_too_little_memory_is_not_a_broken_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, limit: str, threads: str
) -> None:
    write_file(home / "archive", [memory(1)])
    monkeypatch.setenv("VIDURAI_MEMORY_LIMIT", limit)
    monkeypatch.setenv("VIDURAI_THREADS", threads)
    done = cli("query", "SELECT count(*) FROM history", "--format", "csv")
    assert (done.stdout.splitlines()[-1:], done.returncode) in ((["1"], 0), ([], 2)), done.stderr
    assert "readable" not in done.stderr


def test_thousands_of_columns_of_one_name_take_no_time() -> None:
    names = unique_names(["id"] * 20_000)
    assert (names[:3], len(set(names))) == (["id", "id_1", "id_2"], 20_000)
    assert unique_names(["a_1", "a", "a"]) == ["a_1", "a", "a_2"]


def on_a_terminal(programs: Path, *arguments: str, height: int = 24, width: int = 100, **environment: str) -> str:
    leader, follower = pty.openpty()
    size = {"LINES": str(height), "COLUMNS": str(width), "TERM": "xterm"}
    process = subprocess.Popen(
        [programs / "vidurai-pipeline", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, **size, **environment},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65_536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0, shown
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


def test_only_what_is_longer_than_the_screen_is_paged(programs: Path, home: Path, tmp_path: Path):
    write_file(home / "archive", [memory(1)])
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho PAGED; cat\n")
    pager.chmod(0o755)
    short = on_a_terminal(programs, "query", "SELECT * FROM range(5)", PAGER=str(pager))
    long = on_a_terminal(programs, "query", "SELECT i AS number FROM range(100) t(i)", PAGER=str(pager))
    assert "PAGED" not in short
    assert "5 rows" in short
    assert "PAGED" in long
    assert re.search(r"\b99\b", long)
    assert "100 rows" in long
    assert "PAGED" not in on_a_terminal(programs, "query", "FROM range(100)", "--format", "csv", PAGER=str(pager))


@pytest.mark.parametrize("width", [80, 120, 200])
def test_rows_that_are_too_wide_are_shown_one_below_the_other(programs: Path, home: Path, width: int):
    write_file(home / "archive", [memory(n, verbatim=f"said {n} " + "word " * 60) for n in range(1, 4)])
    shown = on_a_terminal(programs, "query", "SELECT * FROM history", width=width, PAGER="cat")
    assert all(len(line) <= width for line in shown.splitlines())
    for n in range(1, 4):
        assert re.search(rf"^row {n} ", shown, re.MULTILINE)
        assert re.search(rf"^file_path +src/file_{n}.py", shown, re.MULTILINE)
    assert shown.count("word") == 180
    assert "3 rows" in shown


def test_the_table_fits_the_terminal(programs: Path, home: Path):
    write_file(home / "archive", [memory(1, verbatim="word " * 200)])
    shown = on_a_terminal(programs, "query", "SELECT id, verbatim, gist FROM history")
    assert max(map(len, shown.splitlines())) <= 100


def test_a_pager_that_is_left_ends_the_query(programs: Path, home: Path, tmp_path: Path):
    write_file(home / "archive", [memory(1)])
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nhead -n 5\n")
    pager.chmod(0o755)
    shown = on_a_terminal(programs, "query", "FROM range(1000000000)", PAGER=str(pager))
    assert len(shown.splitlines()) <= 10


def test_stats_show_growth_and_shares(home: Path):
    write_file(home / "archive", [memory(1), memory(2, salience="HIGH", outcome=1)], month="2024-11")
    write_file(home / "archive", [memory(3), memory(4, salience="LOW")], month="2025-02")
    done = cli("stats")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    months = [line.replace("█", "").split() for line in lines if re.match(r"20\d\d-", line)]
    assert [(month[0], month[1], month[2]) for month in months] == [
        ("2024-11", "2", "2"),
        ("2024-12", "0", "2"),
        ("2025-01", "0", "2"),
        ("2025-02", "2", "4"),
    ]
    assert any(line.startswith("MEDIUM") and line.endswith("50.0%") for line in lines)
    assert any(line.startswith("positive") and line.endswith("25.0%") for line in lines)
    assert "memories per month: 1" in lines
    assert "memories: 4" in lines


def test_stats_of_many_years_show_the_last_two(home: Path):
    for year in range(2010, 2016):
        write_file(home / "archive", [memory(year, archived_at=f"{year}-01-01")], month=f"{year}-01")
    lines = cli("stats").stdout.splitlines()
    assert sum(bool(re.match(r"\s+20\d\d-\d\d ", line)) for line in lines) == 24
    assert any("37 earlier months" in line for line in lines)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_search_says_when_there_is_more_than_the_limit(home: Path, form: str):
    write_file(home / "archive", [memory(number) for number in range(3)])
    cli("index")
    more = cli("search", "memory", "--limit", "2", "--format", form)
    assert more.stderr == "note: there are more matches than the 2 shown; --limit shows more\n"
    whole = cli("search", "memory", "--limit", "3", "--format", form)
    assert whole.stderr == ""
    assert len(whole.stdout) > len(more.stdout)


@pytest.mark.parametrize(("values", "said"), [((None, 1), "2 rows; · is NULL"), (("·",), "1 row")])
def test_a_table_explains_how_null_is_shown(monkeypatch: pytest.MonkeyPatch, values: tuple[object, ...], said: str):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb")
    output.print_rows(["x"], [[value] for value in values], "table")
    assert out.getvalue().splitlines()[-1].strip() == said


def test_the_comments_of_the_time_columns_say_that_they_are_in_utc(home: Path):
    write_file(home / "archive", [memory(1)])
    sql = (
        "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'history' AND suffix(column_name, '_ts')"
    )
    found = {row["column_name"]: row["comment"] for row in json.loads(cli("query", sql, "--format", "json").stdout)}
    assert set(found) == {"created_ts", "expires_ts", "archived_ts"}
    assert all("in UTC" in comment for comment in found.values())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_width_of_the_terminal_cuts_anything_off(programs: Path, home: Path, width: int):
    cli("demo", str(home), "--rows", "50")
    written = write_file(home / "archive", [memory(900, gist="a gist that is longer than a narrow terminal is wide")])
    shown = {
        command: on_a_terminal(programs, *command.split(), width=width) for command in ("--help", "show 900", "stats")
    }
    assert not any("…" in text or "..." in text.replace("[ARGS]...", "") for text in shown.values())
    for command in ("show 900", "stats"):
        assert max(map(len, shown[command].splitlines())) <= width
    together = re.sub(r"\s", "", shown["show 900"])
    assert str(written) in together
    assert "agistthatislongerthananarrowterminaliswide" in together
