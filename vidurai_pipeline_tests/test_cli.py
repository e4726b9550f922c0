"""The command line, run as people run it."""

import contextlib
import csv
import io
import json
import os
import pty
import shlex
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline_tests.support.archives import experience, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.stores import QUICK, Store
from vidurai_pipeline_tests.support.tiers import assert_one_tier, hot_rows


@pytest.mark.fast
def test_flush(home: Path) -> None:
    before = hot_rows(home / "vidurai.db")
    dry = loads(cli("flush", "--dry-run", "--format", "json"))
    assert (dry["archived"], dry["purged"], dry["files"], dry["dry_run"]) == (1_148, 0, [], True)
    assert not (home / "archive").exists()
    done = loads(cli("flush", "--format", "json"))
    assert {name: done[name] for name in ("archived", "purged", "kept", "rejected")} == {
        "archived": 1_148,
        "purged": 1_148,
        "kept": 0,
        "rejected": [],
    }
    assert [Path(path).is_file() for path in done["files"]] == [True]
    assert_one_tier(before, home / "vidurai.db", home / "archive")
    plain = cli("flush")
    assert plain.returncode == 0
    assert "archived: 0" in plain.stdout


def test_run_and_run_again(home: Path) -> None:
    before = hot_rows(home / "vidurai.db")
    first = loads(cli("run", "--format", "json"))
    assert (first["success"], first["archived"], first["purged"], first["learned"]) == (True, 1_148, 1_148, 439)
    assert_one_tier(before, home / "vidurai.db", home / "archive")
    table = (home / "q_table.json").read_bytes()
    second = loads(cli("run", "--format", "json"))
    assert (second["success"], second["archived"], second["purged"], second["learned"]) == (True, 0, 0, 0)
    assert (home / "q_table.json").read_bytes() == table
    plain = cli("run")
    assert "archived: 0" in plain.stdout
    assert "next:" in plain.stdout


@pytest.mark.parametrize("command", ["flush", "run"])
def test_progress_on_a_terminal(home: Path, programs: Path, command: str) -> None:
    """Shown once a second has gone by; here it is shown at once."""
    code = (
        "from vidurai_pipeline.cli.main import main, output; output.ProgressLine.slow_seconds = 0; "
        f"main([{command!r}, '--format', 'json'])"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen([programs / "python", "-c", code], stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(leader, 65_536):
            shown += part
    output, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(output)["archived"] == 1_148
    assert b"archiving" in shown
    assert b"1148/1148" in shown


def test_run_that_fails(sample_store: Store) -> None:
    folder = sample_store("pre_guardian").parent
    done = cli("run", VIDURAI_HOME=str(folder))
    assert done.returncode == 1
    assert "no column `status`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fast
def test_dream(home: Path) -> None:
    cli("flush")
    stats = loads(cli("dream", "--format", "json"))
    assert (stats["success"], stats["episodes"], stats["positive_rewards"], stats["negative_rewards"]) == (
        True,
        439,
        194,
        245,
    )
    assert loads(cli("dream", "--format", "json"))["episodes"] == 0
    rebuilt = loads(cli("dream", "--rebuild", "--order", "newest-first", "--format", "json"))
    assert rebuilt["episodes"] == 439
    wrong = cli("dream", "--order", "newest-first")
    assert (wrong.returncode, "add --rebuild" in wrong.stderr) == (2, True)


def test_dream_without_an_archive_says_so(tmp_path: Path) -> None:
    for form in ("table", "json"):
        done = cli("dream", "--format", form, VIDURAI_HOME=str(tmp_path))
        assert done.returncode == 0
        assert done.stderr == f"note: no archive in {tmp_path}/archive yet: `vidurai-pipeline flush` makes it\n"
    assert json.loads(done.stdout)["episodes"] == 0


def test_a_dream_s_report(home: Path) -> None:
    cli("flush")
    done = cli("dream")
    assert (done.returncode, done.stderr) == (0, "")
    assert "learned: 439 experiences (194 good, 245 bad)" in done.stdout
    assert "not compared: it is the first table" in done.stdout
    assert "None" not in done.stdout
    assert "{" not in done.stdout


def test_a_refused_table_is_an_error_and_stays_known(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    environment = {"VIDURAI_HOME": str(tmp_path)}
    write_file(archive, [experience(n) for n in range(1000)], "1.parquet")
    assert cli("dream", **environment).returncode == 0
    write_file(archive, [experience(n, -1) for n in range(1000, 1050)], "2.parquet")
    refused = cli("dream", **environment)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: the newly learned table is worse")
    assert refused.stderr.count("\n") == 1
    assert "q_table.candidate.json" in cli("policy", **environment).stderr
    findings = json.loads(cli("doctor", "--format", "json", **environment).stdout)
    assert [f["status"] for f in findings if f["check"] == "Q-table"] == ["warning"]


def test_policy(home: Path, tmp_path: Path) -> None:
    empty = cli("policy")
    assert (empty.returncode, "nothing learned yet" in empty.stderr) == (0, True)
    cli("flush")
    cli("dream")
    shown = loads(cli("policy", "--format", "json"))
    assert sum(state["experiences"] for state in shown["states"]) <= 439
    assert shown["states"][0]["words"] == "tokens 0-499, importance 0.3-0.4"
    assert sum(point["experiences"] for point in shown["curve"]) == 439
    done = cli("policy", "--limit", "3", "--pictures", str(tmp_path / "pictures"))
    assert done.returncode == 0
    assert "tokens 0-499, importance 0.3-0.4\tcompress_now\t" in done.stdout
    assert "more states: --limit" in done.stdout
    assert "Learning curve" in done.stdout
    for name in ("policy.png", "learning_curve.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    table = home / "q_table.json"
    table.write_text(table.read_text()[:-1])
    damaged = cli("policy")
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert "is damaged" in damaged.stderr


@pytest.mark.fast
def test_query_in_every_format(home: Path) -> None:
    cli("flush")
    sql = "SELECT id, verbatim, tags, audience_gists FROM history ORDER BY id LIMIT 20"
    rows = loads(cli("query", sql, "--format", "json"))
    assert len(rows) == 20
    table = list(csv.DictReader(io.StringIO(cli("query", sql, "--format", "csv").stdout)))
    assert [row["verbatim"] for row in table] == [row["verbatim"] for row in rows]
    plain = cli("query", sql).stdout.splitlines()
    assert plain[0].split("\t") == ["id", "verbatim", "tags", "audience_gists"]
    assert len(plain) == 21
    assert loads(cli("query", "SELECT 1 AS one WHERE FALSE", "--format", "json")) == []


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nope FROM history", "SELECT * FROM nowhere", "DROP VIEW history"])
def test_a_wrong_query_is_the_users_fault(home: Path, sql: str) -> None:
    cli("flush")
    done = cli("query", sql)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.fast
def test_search(home: Path) -> None:
    cli("flush")
    cli("index")
    asked = cli("search", "pytest", "passed", "--limit", "3", "--format", "json")
    assert asked.returncode == 0
    assert asked.stderr == "note: there are more matches than the 3 shown; --limit shows more\n"
    found = json.loads(asked.stdout)
    assert len(found) == 3
    assert all("pytest" in row["content"].lower() or "pytest" in row["gist"].lower() for row in found)
    none = cli("search", "no-such-word-anywhere")
    assert (none.returncode, none.stdout) == (0, "")


@pytest.mark.fast
def test_show_finds_a_memory_in_either_tier_whole(home: Path) -> None:
    before = {
        tier: dict(hot_rows(home / "vidurai.db", f"status {sign} 'ARCHIVED'"))
        for tier, sign in (("cold", "="), ("hot", "<>"))
    }
    (file,) = json.loads(cli("flush", "--format", "json").stdout)["files"]
    for tier, rows in before.items():
        id_, row = next(iter(rows.items()))
        (found,) = loads(cli("show", str(id_), "--format", "json"))
        assert (found["tier"], found["file"]) == (tier, file if tier == "cold" else str(home / "vidurai.db"))
        assert {name: found[name] for name, _ in row if name != "audience_gists"} == {
            name: value for name, value in row if name != "audience_gists"
        }
        plain = cli("show", str(id_)).stdout
        assert f"tier: {tier}" in plain
        assert f"id: {id_}\n" in plain
    missing = cli("show", "999999")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == "error: no memory has the id 999999: look for it with `vidurai-pipeline search WORDS`\n"


def test_stats(home: Path) -> None:
    empty = loads(cli("stats", "--format", "json"))
    assert (empty["hot_store"]["waiting"], empty["archive"]["total_memories"]) == (1_148, 0)
    cli("flush")
    full = loads(cli("stats", "--format", "json"))
    assert (full["hot_store"]["waiting"], full["archive"]["total_memories"], full["archive"]["files"]) == (0, 1_148, 1)
    assert sum(full["archive"]["by_month"].values()) == 1_148


def test_stats_in_plain_words(home: Path) -> None:
    assert "Archive\n  path: " in (empty := cli("stats").stdout)
    assert "memories: none yet: `vidurai-pipeline run` archives those that wait\n" in empty
    assert "states: none yet: `vidurai-pipeline dream` makes the table\n" in empty
    assert "waiting to be archived: 1,148\n" in empty
    cli("flush")
    full = cli("stats").stdout
    assert "memories: 1,148\n" in full
    assert not [word for word in ("archive empty", "memories: none yet", "True", "False", "avg") if word in full]


def test_doctor(home: Path) -> None:
    cli("run")
    findings = loads(cli("doctor", "--format", "json"))
    assert {finding["status"] for finding in findings} == {"ok"}
    (file,) = (home / "archive").rglob("*.parquet")
    os.truncate(file, 1_000)
    done = cli("doctor")
    assert done.returncode == 1
    assert str(file) in done.stdout


def test_doctor_keeps_to_one_line_for_a_folder_of_two(tmp_path: Path) -> None:
    done = cli("doctor", VIDURAI_HOME=f"{tmp_path}/two\nlines")
    assert f"{tmp_path}/two\\nlines" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} <= {"ok", "warning", "failed"}


def test_a_port_that_is_taken_is_named_with_the_option(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = cli("ui", "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: port {port} can't be used: Address already in use: ")
    assert f"vidurai-pipeline ui --port {port + 1 if port < 65_535 else 3000}`" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        (["flush"], [2]),
        (["flush", "--format", "json"], [1]),
        (["run"], [0, 1, 2]),
    ],
)
def test_standard_streams_may_be_closed(home: Path, closed: list[int], command: list[str]) -> None:
    before = hot_rows(home / "vidurai.db")
    redirections = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m vidurai_pipeline "$@" {redirections}', sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_one_tier(before, home / "vidurai.db", home / "archive")


@pytest.mark.parametrize("name", ["VIDURAI_SCHEDULE", "VIDURAI_CARE_SCHEDULE", "VIDURAI_HEALTH_SCHEDULE"])
def test_doctor_refuses_a_schedule_that_is_none(home: Path, name: str) -> None:
    done = cli("doctor", **{name: "nope"})
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert f"{name}='nope': not a cron line of five fields, such as `0 2 * * *`" in line


def test_a_share_of_the_memory_will_do(home: Path) -> None:
    cli("flush")
    done = cli("query", "SELECT count(*) AS n FROM history", "--format", "json", VIDURAI_MEMORY_LIMIT="50%")
    assert loads(done) == [{"n": 1_148}]


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("archiver.MemoryArchiver.publish", ""),
        ("archiver.MemoryArchiver.purge", " (1,148 of 1,148 written, 1,148 of 1,148 verified)"),
        ("run.Run.keep_small", " (1,148 of 1,148 written, 1,148 of 1,148 verified, 1,148 of 1,148 purged)"),
    ],
)
def test_a_run_that_ctrl_c_stops_says_in_one_line_how_far_it_came_and_goes_on(
    home: Path, programs: Path, step: str, done: str
) -> None:
    before = hot_rows(home / "vidurai.db")
    script = (
        "import os, signal; from unittest import mock\n"
        "def stop(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise AssertionError('not stopped')\n"
        f"with mock.patch('vidurai_pipeline.archival.{step}', stop):\n"
        "    from vidurai_pipeline.cli.main import main; main(['run'])"
    )
    stopped = subprocess.run([programs / "python", "-c", script], capture_output=True, text=True, check=False)
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert stopped.stderr == f"error: stopped by Ctrl-C or a signal{done}; running it again goes on from there\n"
    assert cli("run").returncode == 0
    assert_one_tier(before, home / "vidurai.db", home / "archive")


def test_a_flush_that_ctrl_c_stops_says_how_far_it_came_and_goes_on(home: Path) -> None:
    before = hot_rows(home / "vidurai.db")
    with mock.patch("vidurai_pipeline.hot.purger.Purger.purge", side_effect=KeyboardInterrupt):
        done = cli("flush")
    assert done.returncode == 1
    told, error = done.stderr.splitlines()
    assert told.startswith("note: done so far: 1,148 of 1,148 written")
    assert error == "error: stopped by Ctrl-C; running it again goes on from there"
    assert cli("flush").returncode == 0
    assert_one_tier(before, home / "vidurai.db", home / "archive")


def test_a_file_that_held_the_only_copy_is_reported_by_run_and_doctor(home: Path) -> None:
    archiver = MemoryArchiver(home / "vidurai.db", home / "archive")
    with mock.patch.object(archiver.archive.pending, "remove"):
        (path,) = archiver.flush_archived_memories().files
    path.unlink()
    done = cli("run", "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["success"] is False
    assert f"{path}: the file is gone" in report["errors"][0]
    findings = {finding["check"]: finding for finding in json.loads(cli("doctor", "--format", "json").stdout)}
    assert findings["lost files"]["status"] == "failed"
    assert "restore them from a backup" in findings["lost files"]["detail"]


def test_run_names_what_it_rejects(home: Path) -> None:
    con = sqlite3.connect(home / "vidurai.db")
    con.execute("UPDATE memories SET access_count = 'many' WHERE id = 1")
    con.commit()
    con.close()
    done = cli("run")
    assert done.returncode == 0
    assert "rejected: memory 1: access_count: text where the column holds integer" in done.stderr


def test_doctor_knows_another_stores_marks(home: Path, sample_store: Store) -> None:
    other = sample_store("schema_v7")
    archiver = MemoryArchiver(other, home / "archive")
    with archiver.run("test"):
        archiver.publish()
    findings = {finding["check"]: finding for finding in json.loads(cli("doctor", "--format", "json").stdout)}
    assert findings["interrupted runs"]["status"] == "ok"
    assert str(other) in findings["other stores"]["detail"]


@pytest.mark.fast
def test_doctor_sees_an_archive_that_is_no_folder(home: Path) -> None:
    (home / "archive").write_text("in the way")
    done = cli("doctor")
    assert done.returncode == 1
    assert f"failed  archive folder: VIDURAI_ARCHIVE={home}/archive: Not a directory" in done.stdout


def test_doctor_sees_a_memory_in_both_tiers(home: Path) -> None:
    saved = (home / "vidurai.db").read_bytes()
    cli("flush")
    (home / "vidurai.db").write_bytes(saved)
    findings = {finding["check"]: finding for finding in loads(cli("doctor", "--format", "json"))}
    assert findings["one tier"]["status"] == "warning"
    assert "1,148 memories" in findings["one tier"]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["as inside make", "by its name", "as a module"])
def test_the_next_step_that_demo_names_works_as_it_stands(tmp_path: Path, programs: Path, way: str) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(programs)
    words = {
        "as inside make": [".venv/bin/vidurai-pipeline"],
        "by its name": ["vidurai-pipeline"],
        "as a module": [sys.executable, "-m", "vidurai_pipeline"],
    }[way]
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin" if way == "by its name" else "/usr/bin:/bin",
        "HOME": str(tmp_path),
        **QUICK,
    }

    def sh(line: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    _, _, following = sh(shlex.join([*words, "demo", "a folder", "--rows", "50"])).partition("next: ")
    assert following.rstrip().endswith(" run")
    if way == "as inside make":
        assert "Maintenance: done" in sh(following)
    else:  # the same program with a quicker command
        assert f"path: {tmp_path}/a folder/vidurai.db" in sh(following.rstrip().removesuffix("run") + "stats")


def test_demo_makes_a_store_and_never_overwrites_one(tmp_path: Path) -> None:
    made = loads(cli("demo", str(tmp_path / "new"), "--rows", "300", "--format", "json"))
    assert made["rows"] == 300
    again = cli("demo", str(tmp_path / "new"))
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    done = loads(cli("flush", "--format", "json", VIDURAI_HOME=str(tmp_path / "new")))
    assert done["archived"] == made["by_status"]["ARCHIVED"]


def test_paths_one_by_one(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    odd = tmp_path / "it's 100% [odd] *स्मृति*"
    odd.mkdir()
    moved = db.rename(odd / "store ?#.db")
    paths = {
        "VIDURAI_DB": str(moved),
        "VIDURAI_ARCHIVE": str(odd / "cold"),
        "VIDURAI_Q_TABLE": str(odd / "learned.json"),
    }
    report = loads(cli("run", "--format", "json", **paths))
    assert (report["success"], report["archived"]) == (True, 71)
    count = loads(cli("query", "SELECT count(*) AS n FROM history", "--format", "json", **paths))
    assert count == [{"n": 71}]
    assert (odd / "learned.json").exists()


def test_a_store_that_is_named_alone_keeps_its_archive_beside_it(sample_store: Store, tmp_path: Path) -> None:
    db = sample_store("schema_v7")
    report = loads(cli("run", "--format", "json", VIDURAI_DB=str(db), VIDURAI_HOME=""))
    assert report["archived"] == 71
    assert [Path(file).is_relative_to(db.parent) for file in report["files"]] == [True]
    assert (db.parent / "q_table.json").exists()
    assert "VIDURAI_DB=" in cli("run", VIDURAI_DB=str(db), VIDURAI_HOME="").stdout


@pytest.mark.parametrize("name", ["DAGSTER_HOME", "VIDURAI_HOME"])
def test_a_home_that_is_a_file_is_one_readable_line(sample_store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    environment = {"VIDURAI_DB": str(sample_store("schema_v7")), name: str(tmp_path / "file")}
    done = cli("run", **environment)
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_the_legacy_store_is_used_if_only_that_exists(sample_store: Store) -> None:
    db = sample_store("schema_v7")
    db.rename(db.with_name("memory.db"))
    assert loads(cli("flush", "--format", "json", VIDURAI_HOME=str(db.parent)))["archived"] == 71


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "environment", "message", "code"),
    [
        (["flush"], {}, "does not exist: start Vidurai once", 1),
        (["flush"], {"VIDURAI_COMPRESSION": "lzma"}, "VIDURAI_COMPRESSION", 2),
        (["flush"], {"VIDURAI_BUSY_TIMEOUT": "soon"}, "VIDURAI_BUSY_TIMEOUT", 2),
        (["flush"], {"VIDURAI_MEMORY_LIMIT": "lots"}, "VIDURAI_MEMORY_LIMIT='lots': not an amount of memory", 2),
        (["flush"], {"VIDURAI_MEMORY_LIMIT": "150%"}, "such as 1GB, 512MiB, or 50% of this machine's", 2),
        (["flush"], {"VIDURAI_EARLY_RUN_BYTES": "20%"}, "not a size, such as 500MB", 2),
        (["run"], {"DAGSTER_HOME": "/nowhere/dagster"}, "there is no folder /nowhere: create it", 2),
        (["run"], {"VIDURAI_TIMEZONE": "Mars/Olympus"}, "VIDURAI_TIMEZONE", 2),
        (["run"], {"VIDURAI_SCHEDULE": "every night"}, "VIDURAI_SCHEDULE", 2),
        (["fly"], {}, "No such command", 2),
        (["flush", "--format", "xml"], {}, "xml", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else None,
)
def test_errors_are_one_readable_line(
    arguments: list[str], environment: dict[str, str], message: str, code: int
) -> None:
    done = cli(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("module", "argument", "instead"),
    [
        ("archival.archiver", "--flush", "vidurai-pipeline flush"),
        ("analytics.engine", "--query=SELECT 1", "vidurai-pipeline query SQL"),
        ("rl.dreamer", "--run", "vidurai-pipeline dream"),
    ],
)
def test_a_module_that_is_no_program_says_what_to_type(module: str, argument: str, instead: str) -> None:
    command = [sys.executable, "-m", f"vidurai_pipeline.{module}", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this module is not a program: type `vidurai-pipeline ")
    assert instead in line


@pytest.mark.parametrize("command", ["stats", "doctor", "policy"])
def test_a_misspelt_variable_is_named_with_the_right_one(home: Path, command: str) -> None:
    done = cli(command, VIDURAI_ARCHVE="/x", VIDURAI_SEMANTIC_COMPRESSION_ENABLED="1", VIDURAI_NONSENSE="")
    assert done.stderr.startswith("warning: VIDURAI_ARCHVE is not a setting: did you mean VIDURAI_ARCHIVE?\n")
    assert done.stderr.count("warning: ") == 1
    if command == "doctor":
        assert "warning unknown variables: VIDURAI_ARCHVE is not a setting" in done.stdout


def test_a_variable_that_resembles_none_is_named_alone(home: Path) -> None:
    assert cli("stats", VIDURAI_XYZZY_QQ="1").stderr == "warning: VIDURAI_XYZZY_QQ is not a setting and has no effect\n"


def test_a_query_that_takes_too_long_has_an_exit_code_of_its_own(home: Path) -> None:
    done = cli("query", "SELECT count(*) FROM range(1e12::BIGINT) AS t(x) WHERE x % 7 = 3", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (4, "")
    assert "took longer than 0.2 s" in done.stderr


@pytest.mark.parametrize(
    ("command", "environment", "code"),
    [
        (["stats"], {}, 0),
        (["query", "SELECT * FROM range(100000)", "--format", "csv"], {}, 0),
        (["doctor"], {"VIDURAI_SCHEDULE": "nope"}, 1),
        (["flush", "--format", "json"], {"VIDURAI_ARCHIVE": "/proc/none"}, 1),
        (["query", "SELEC"], {}, 2),
    ],
)
def test_a_closed_pipe_does_not_change_the_exit_code(
    home: Path, programs: Path, command: list[str], environment: dict[str, str], code: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [programs / "vidurai-pipeline", *command],
        env={**os.environ, **environment},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
