"""The server for assistants, as a client of the protocol's own SDK meets it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cli.mcp_server import History
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.cli import COMMAND, cli
from vidurai_pipeline_tests.support.stores import WAITING, change, changing, flush, insert

pytestmark = pytest.mark.processes
READING = ["search_history", "read_memory", "query_history", "history_stats"]
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}


class Assistant:
    """A client that expects each answer to be one text."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def raw(self, tool: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        result = await self.client.call_tool(tool, arguments)
        (content,) = result.content
        return bool(result.is_error), content.text  # pyright: ignore[reportAttributeAccessIssue]

    async def ask(self, tool: str, **arguments: Any) -> Any:
        failed, text = await self.raw(tool, arguments)
        assert not failed, text
        return json.loads(text)

    async def refused(self, tool: str, **arguments: Any) -> str:
        failed, text = await self.raw(tool, arguments)
        assert failed, text
        assert "Traceback" not in text
        return text


def talk(
    home: Path, *scripts: Callable[[Assistant], Awaitable[None]], arguments: tuple[str, ...] = (), **environment: str
) -> str:
    """Let each script talk with a server of its own, all at once; gives what the servers wrote to stderr."""
    log = home.parent / "stderr"
    server = StdioServerParameters(
        command=COMMAND[0],
        args=[*COMMAND[1:], "mcp", *arguments],
        env={"VIDURAI_HOME": str(home), **environment},
    )

    async def one(script: Callable[[Assistant], Awaitable[None]]) -> None:
        with log.open("a") as errors:
            async with Client(stdio_client(server, errors)) as client:
                await script(Assistant(client))

    async def all_of_them() -> None:
        with anyio.fail_after(120):
            async with anyio.create_task_group() as group:
                for script in scripts:
                    group.start_soon(one, script)

    anyio.run(all_of_them)
    return log.read_text()


@pytest.fixture
def archived(home: Path) -> Path:
    """A home whose archived memories are in the archive."""
    flush(home / "vidurai.db")
    return home


def test_an_assistant_finds_its_way(archived: Path) -> None:
    long = "the tail of a long text " * 2_000
    id_ = insert(archived / "vidurai.db", verbatim=f"quokka {long}", gist="all about quokkas", status="ACTIVE")

    async def script(assistant: Assistant) -> None:
        tools = (await assistant.client.list_tools()).tools
        assert [tool.name for tool in tools] == READING
        assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
        assert "search_history" in (assistant.client.instructions or "")

        stats = await assistant.ask("history_stats", max_tokens=20_000)
        assert {tier["tier"]: tier["memories"] for tier in stats["tiers"]}["cold"] == WAITING["guardian"]
        assert stats["columns_of_memories"]["created_ts"] == "TIMESTAMP"
        assert stats["projects"]

        found = await assistant.ask("search_history", question="QUOKKA tail")
        (hit,) = found["memories"]
        assert (hit["id"], hit["tier"]) == (id_, "hot")
        assert "«quokka»" in hit["snippet"]
        assert "left_out" not in found

        text = ""
        answer: dict[str, Any] = {"left_out": "offset=0", "memory": {}}
        while "left_out" in answer:
            offset = int(answer["left_out"].rpartition("offset=")[2])
            answer = await assistant.ask("read_memory", id=id_, offset=offset, max_tokens=5_000)
            text += answer["memory"]["content"]
        assert text == f"quokka {long}"
        assert (answer["memory"]["tier"], answer["versions"]) == ("hot", 1)

        rows = await assistant.ask("query_history", sql="SELECT tier, count(*) FROM memories GROUP BY 1 ORDER BY 1")
        assert rows["columns"] == ["tier", "count_star()"]
        assert rows["rows"][0] == ["cold", WAITING["guardian"]]

        nothing = await assistant.ask("search_history", question="nobodywroteit")
        assert nothing["memories"] == []
        assert "fewer" in nothing["hint"]

    assert talk(archived, script) == ""


@pytest.mark.parametrize("max_tokens", [200, 1_000])
def test_answers_fit_their_budget_and_say_what_is_left_out(archived: Path, max_tokens: int) -> None:
    async def script(assistant: Assistant) -> None:
        for tool, arguments in {
            "search_history": {"question": "e", "limit": 200},
            "query_history": {"sql": "SELECT * FROM memories"},
            "read_memory": {"id": insert(archived / "vidurai.db", verbatim="字 " * 20_000)},
        }.items():
            _, text = await assistant.raw(tool, {**arguments, "max_tokens": max_tokens})
            assert "left_out" in json.loads(text), tool
            assert len(text.encode()) < 4 * max_tokens + 2_000, tool
        few = await assistant.ask("search_history", question="e", limit=2, max_tokens=20_000)
        assert len(few["memories"]) == 2
        assert "limit" in few["left_out"]
        rows = await assistant.ask("query_history", sql="FROM range(300)", max_tokens=200)
        assert rows["left_out"].startswith(f"{300 - len(rows['rows'])} more rows")
        for sql in ("FROM range(90000)", f"SELECT '{'x' * 90_000}'", "SELECT unnest(range(5000))"):
            _, text = await assistant.raw("query_history", {"sql": sql, "max_tokens": max_tokens})
            assert len(text.encode()) < 4 * max_tokens + 200, sql

    talk(archived, script)


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("search_history", {"question": ""}, "at least one word"),
    ("search_history", {"question": " \t\n"}, "at least one word"),
    ("search_history", {"question": "word " * 10_000}, "at most"),
    ("search_history", {"question": 5}, "string"),
    ("search_history", {"question": ["x"]}, "string"),
    ("search_history", {"question": None}, "string"),
    ("search_history", {}, "question"),
    ("search_history", {"question": "x", "projet": "y"}, "projet"),
    ("search_history", {"question": "x", "limit": 10**30}, "limit"),
    ("search_history", {"question": "x", "limit": -1}, "limit"),
    ("search_history", {"question": "x", "limit": "many"}, "limit"),
    ("search_history", {"question": "x", "max_tokens": 10**9}, "max_tokens"),
    ("search_history", {"question": "x", "since": "'; DROP TABLE memories"}, "time"),
    ("search_history", {"question": "x", "until": "0000-13-99"}, "time"),
    ("search_history", {"question": "x", "salience": "high"}, "HIGH"),
    ("read_memory", {"id": 10**15}, "search_history"),
    ("read_memory", {"id": 10**40}, "id"),
    ("read_memory", {"id": "1 OR 1=1"}, "id"),
    ("read_memory", {"id": 1, "offset": -1}, "offset"),
    ("read_memory", {"id": 1, "version": 99}, "version"),
    ("search_history", {"question": "x", "since": "9" * 5_000}, "time"),
    ("query_history", {"sql": f"SELECT {', '.join(map(str, range(5_000)))}"}, "fewer columns"),
    ("query_history", {"sql": ""}, "SELECT"),
    ("query_history", {"sql": "DROP TABLE history"}, "can only be read"),
    ("query_history", {"sql": "SELECT 1; SELECT 2"}, "2 statements"),
    ("query_history", {"sql": "COPY history TO '/tmp/stolen'"}, "can only be read"),
    ("query_history", {"sql": "FROM read_text('/etc/passwd')"}, "not allowed"),
    ("query_history", {"sql": "SELECT \x00"}, "Error"),
    ("query_history", {"sql": "SELECT nonsense FROM memories"}, "Candidate"),
    ("query_history", {"sql": "(" * 5_000}, "Error"),
    ("query_history", {"sql": "SELECT repeat('x', 3000000000)"}, "memory"),
    ("query_history", {"sql": "SELECT max(hash(range)) FROM range(1000000000000)"}, "took longer"),
    ("restore_memories", {"ids": [1]}, "restore_memories"),
    ("nonsense", {}, "nonsense"),
]
HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("search_history", {"question": "'; DROP TABLE memories; --"}),
    ("search_history", {"question": "\x00\x1b[31m\x7f"}),
    ("search_history", {"question": "データ ошибка שגיאה 🦘 e\u0301"}),
    ("search_history", {"question": "% _ * ( [ \\ ?"}),
    ("search_history", {"question": "x", "project": "' OR 1=1"}),
    ("search_history", {"question": "x", "project": "9" * 5_000}),
    ("query_history", {"sql": "SELECT 'a' || chr(0) || chr(27) AS \"\n\", 'NaN'::DOUBLE, 1e400::VARCHAR, NULL"}),
    ("query_history", {"sql": "SELECT 170141183460469231731687303715884105727, '\\xFF'::BLOB, [1, NULL], {'a': 1}"}),
    ("query_history", {"sql": "SELECT now(), INTERVAL 3 DAY, DATE '0044-03-15 (BC)'"}),
]


def test_hostile_arguments_get_one_plain_error(archived: Path) -> None:
    async def script(assistant: Assistant) -> None:
        for tool, arguments, said in HOSTILE:
            try:
                text = await assistant.refused(tool, **arguments)
            except Exception as error:  # an unknown tool may be the protocol's own error
                assert tool in {"nonsense", "restore_memories"}, (tool, arguments)
                text = str(error)
            assert said in text, (tool, arguments, text)
            assert len(text) < 1_500, text
        for tool, arguments in HARMLESS:
            failed, text = await assistant.raw(tool, arguments)
            assert not failed, (tool, arguments, text)
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert (await assistant.ask("query_history", sql="SELECT count(*) FROM history"))["rows"] == [
            [WAITING["guardian"]]
        ]

    assert "Traceback" not in talk(archived, script, arguments=("--timeout", "2"))


def test_several_ask_while_memories_move(home: Path) -> None:
    total = 300
    with changing(home / "vidurai.db") as con:
        con.execute("DELETE FROM memories WHERE id > ?", (total,))
        (total,) = con.execute("SELECT count(*) FROM memories").fetchone()
    done = anyio.Event()

    async def reader(assistant: Assistant) -> None:
        while not done.is_set():
            answer = await assistant.ask("query_history", sql="SELECT count(*), count(DISTINCT id) FROM memories")
            assert answer["rows"] == [[total, total]]
            await assistant.ask("search_history", question="e", limit=3)

    async def mover(assistant: Assistant) -> None:
        for first in range(0, 400, 100):
            change(home / "vidurai.db", f"UPDATE memories SET status = 'ARCHIVED' WHERE id < {first + 100}")
            await anyio.to_thread.run_sync(lambda: flush(home / "vidurai.db"))
        stats = await assistant.ask("history_stats")
        assert stats["tiers"] == [{**stats["tiers"][0], "tier": "cold", "memories": total}]
        done.set()

    assert talk(home, reader, reader, mover) == ""


def test_a_cancelled_question_is_stopped(archived: Path) -> None:
    async def script(assistant: Assistant) -> None:
        await assistant.ask("query_history", sql="SELECT 1")
        with anyio.move_on_after(0.5) as patience:
            await assistant.ask("query_history", sql="SELECT max(hash(range)) FROM range(1000000000000)")
        assert patience.cancelled_caught
        with anyio.fail_after(30):  # one waits for the other
            await assistant.ask("query_history", sql="SELECT 1")

    talk(archived, script, arguments=("--timeout", "3000"))


def test_restoring_must_be_allowed_and_is_by_id(archived: Path) -> None:
    async def script(assistant: Assistant) -> None:
        sql = "SELECT id FROM history ORDER BY id LIMIT 2"
        (one,), (other,) = (await assistant.ask("query_history", sql=sql))["rows"]
        done = await assistant.ask("restore_memories", ids=[one, 10**12])
        assert done["restored"] == 1
        assert [refusal["id"] for refusal in done["refused"]] == [10**12]
        assert (await assistant.ask("read_memory", id=one))["memory"]["tier"] == "hot"
        assert (await assistant.ask("read_memory", id=other))["memory"]["tier"] == "cold"
        assert (await assistant.ask("restore_memories", ids=[10**12]))["restored"] == 0
        for ids in ([], ["1 OR 1=1"], [10**40], list(range(101)), 5):
            await assistant.refused("restore_memories", ids=ids)

    talk(archived, script, arguments=("--allow-restore",))


def test_an_excluded_project_is_nowhere(home: Path) -> None:
    archive = home / "archive"
    known = {"project_id": 1, "project_path": "/code/open"}
    secret = {"project_id": 77, "project_name": "secret", "project_path": "/code/secret"}
    files = [
        memory(10**6, verbatim="xyzzy open", project_name="open", **known),
        memory(10**6 + 1, verbatim="xyzzy", **secret),
    ]
    schema = pa.Table.from_pylist(files).schema
    write_file(archive, files, schema=schema)
    change(home / "vidurai.db", "INSERT INTO projects (id, name, path) VALUES (77, 'secret', '/code/secret')")
    hidden = insert(home / "vidurai.db", project_id=77, verbatim="xyzzy", status="ACTIVE")

    async def script(assistant: Assistant) -> None:
        found = await assistant.ask("search_history", question="xyzzy")
        assert [hit["id"] for hit in found["memories"]] == [10**6]
        assert (await assistant.ask("search_history", question="xyzzy", project="secret"))["memories"] == []
        for id_ in (hidden, 10**6 + 1):
            assert "no memory has the id" in await assistant.refused("read_memory", id=id_)
            assert (await assistant.ask("restore_memories", ids=[id_]))["restored"] == 0
        for view in ("memories", "history", "history_all"):
            sql = f"SELECT count(*) FROM {view} WHERE content LIKE '%xyzzy%'"
            assert (await assistant.ask("query_history", sql=sql))["rows"] == [[1]]
        assert "secret" not in json.dumps(await assistant.ask("history_stats", max_tokens=20_000))
        for sql in ("EXPLAIN FROM memories", "FROM duckdb_views()", "FROM _hot", "SELECT stats(content) FROM history"):
            assert "secret" not in await assistant.refused("query_history", sql=sql)

    log = talk(home, script, arguments=("--allow-restore",), VIDURAI_MCP_EXCLUDE_PROJECTS="other, Secret ,")
    assert "secret" not in log
    assert MemoryArchiver(home / "vidurai.db", archive).backlog().total > 0


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    async def script(assistant: Assistant) -> None:
        assert "no hot store" in (await assistant.ask("history_stats"))["notes"][0]
        found = await assistant.ask("search_history", question="x")
        assert found["memories"] == []
        assert "Nothing has been archived yet" in found["hint"]
        await assistant.refused("read_memory", id=1)

    assert talk(tmp_path / "none", script) == ""
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("end", ["closed", signal.SIGINT, signal.SIGTERM], ids=str)
def test_it_ends_when_it_should(archived: Path, end: str | signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [*COMMAND, "mcp"],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "history_stats", "arguments": {}}}
    for message in (HELLO, {"jsonrpc": "2.0", "method": "notifications/initialized"}, call):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.write(b"this is no message\n\xff\xfe\n")
    process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert 1 in {answer.get("id") for answer in answers}
    if isinstance(end, signal.Signals):
        process.send_signal(end)
    else:
        process.stdin.close()
    assert process.wait(60) == (0 if end == "closed" else 1)
    for line in process.stdout:
        assert json.loads(line)["jsonrpc"] == "2.0"
    assert b"Traceback" not in process.stderr.read()
    assert list((tmp_path / "temporary").glob("vidurai-history-*")) == []
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = cli("mcp")
    assert done.returncode == 2
    assert done.stderr == "error: the package `mcp` is not installed: pip install 'vidurai-pipeline[mcp]'\n"


def test_a_wrong_setting_is_one_line_before_it_serves(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("VIDURAI_THREADS", "many")
    done = cli("mcp")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "VIDURAI_THREADS" in done.stderr


@pytest.mark.usefixtures("home")
def test_a_client_that_leaves_at_once_leaves_no_work_behind() -> None:
    async def visit() -> None:
        async with History(load_settings(), timeout=60).lifespan(None):
            pass

    anyio.run(visit)
    assert "opening" not in {thread.name for thread in threading.enumerate()}
