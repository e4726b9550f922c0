"""What looks like a credential is found, counted and named, and never shown."""

import json
from pathlib import Path

import pytest

from vidurai_pipeline.care.secrets import NAME, find_secrets
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import ArchiveError
from vidurai_pipeline_tests.support.archives import memory, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.stores import change, flush

# Put together here: a scanner of this repository would take them for real.
SECRETS = {
    "AWS Access Key": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub Token": "ghp_" + "a1B2" * 9,
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Basic Auth Credentials": "https://me:" + "hunter2secret@example.org/x",
    "Secret Keyword": 'password = "' + 'correcthorsebattery9"',
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("column", ["verbatim", "gist", "tags"])
def test_each_kind_is_found_in_each_text(tmp_path: Path, kind: str, column: str) -> None:
    rows = [memory(1), memory(2) | {column: f"see {SECRETS[kind]}\nand so on"}, memory(3)]
    write_file(tmp_path / "archive", rows)
    report = find_secrets(Archive(tmp_path / "archive"))
    assert [suspect.id for suspect in report.suspects] == [2]
    assert kind in report.suspects[0].kinds
    assert SECRETS[kind] not in (tmp_path / "archive" / NAME).read_text()


def test_hashes_and_paths_are_no_secrets(tmp_path: Path) -> None:
    texts = ["commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "10.0.0.1 refused", "token expired", "src/a/key.py"]
    write_file(tmp_path / "archive", [memory(n) | {"verbatim": text} for n, text in enumerate(texts)])
    assert find_secrets(Archive(tmp_path / "archive")).suspects == []


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(tmp_path / "archive")
    write_file(archive.root, [memory(1) | {"verbatim": SECRETS["AWS Access Key"]}])
    first = find_secrets(archive)
    write_file(archive.root, [memory(2) | {"verbatim": SECRETS["GitHub Token"]}], "memories_20260102_030405.parquet")
    assert find_secrets(archive, seconds=-1).left == 1
    read, columns = [], archive.columns
    monkeypatch.setattr(archive, "columns", lambda file, names: read.append(file.name) or columns(file, names))
    assert {suspect.id for suspect in find_secrets(archive).suspects} == {1, 2}
    assert read == ["memories_20260102_030405.parquet"]
    assert len(first.suspects) == 1
    (archive.root / NAME).write_text("{")
    assert {suspect.id for suspect in find_secrets(archive).suspects} == {1, 2}


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(SECRETS["AWS Access Key"])
    with pytest.raises(ArchiveError, match="holds other files"):
        find_secrets(Archive(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_doctor_and_the_way_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_SECRETS_CHECK", "true")
    db, secret = home / "vidurai.db", SECRETS["AWS Access Key"]
    change(db, ("UPDATE memories SET verbatim = ?, status = 'ARCHIVED' WHERE id = 7", (f"the key is {secret}",)))
    flush(db)
    found = loads(cli("secrets", "--format", "json"))
    assert [(row["id"], row["kinds"]) for row in found["memories"]] == [(7, ["AWS Access Key"])]
    table, doctor = cli("secrets"), cli("doctor")
    assert "1 archived memory may hold some (AWS Access Key 1)" in doctor.stdout
    assert secret not in table.stdout + table.stderr + doctor.stdout + doctor.stderr
    monkeypatch.setenv("VIDURAI_SECRETS_CHECK", "false")
    assert "credentials" not in cli("doctor").stdout
    assert cli("erase", "--id", "7", "--yes").returncode == 0
    assert json.loads(cli("secrets", "--format", "json").stdout)["memories"] == []
    assert "no archived memory looks" in cli("secrets").stdout
