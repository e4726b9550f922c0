"""The table beside other programs: a daemon that writes it, damage, kills, older versions put back."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl import q_table_file
from vidurai_pipeline.rl.checkpoint import read_checkpoint
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import TableFile
from vidurai_pipeline.rl.summary import read_summary
from vidurai_pipeline.settings import Hyperparameters
from vidurai_pipeline_tests.rl.dreams import (
    daemon_writes,
    dream,
    failed,
    generated,
    goes_on,
    learned,
    starts_anew,
)
from vidurai_pipeline_tests.support.archives import DATA, experience, write_file


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q_table_file, "REREAD_PAUSE", 0.01)


def test_a_daemon_that_went_on_from_our_table(archive: Path, table: Path) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    dream(archive, table)
    daemon_writes(table, goes_on)
    before = table.read_bytes()
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"], table.read_bytes()) == ("continued", 0, before)
    write_file(archive, new := generated(100, 150), "2.parquet")
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"]) == ("continued", sum(bool(row["outcome"]) for row in new))
    assert (stats["table_episodes"], learned(table)["9|9|9|5|5|1"]) == (52, {"consolidate": 3.0})
    assert dream(archive, table)["daemon"] is None


def test_a_daemon_that_began_from_nothing(archive: Path, table: Path) -> None:
    write_file(
        archive, [experience(1), experience(2, -1, salience="noise"), experience(3, salience="HIGH")], "1.parquet"
    )
    dream(archive, table)
    ours, reward = learned(table), QLearningPolicy.load(table).total_reward
    daemon_writes(table, starts_anew)
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"], stats["replaced"]) == ("merged", 0, 1)
    assert "put back" in stats["notice"]
    assert learned(table) == {
        **ours,
        "9|9|9|5|5|1": {"consolidate": 3.0},
        "2|1|0|5|5|1": {"compress_now": 1.25},  # the daemon's value, for it knows what it did
    }
    policy = QLearningPolicy.load(table)
    assert (policy.episodes, policy.total_reward) == (51, reward + 500.0)

    # The same process saves again: it still knows nothing of ours, and is not counted twice.
    merged = learned(table)

    def saves_again(document: dict[str, Any]) -> None:
        starts_anew(document)
        document.update(episodes=100, total_reward=900.0)

    daemon_writes(table, saves_again)
    stats = dream(archive, table)
    policy = QLearningPolicy.load(table)
    assert (stats["daemon"], policy.episodes, policy.total_reward) == ("merged", 101, reward + 900.0)
    assert learned(table) == merged

    # Another process begins again from nothing: its episodes come on top.
    daemon_writes(table, starts_anew)
    dream(archive, table)
    assert QLearningPolicy.load(table).episodes == 151
    assert dream(archive, table)["daemon"] is None


def vidurai_dreams(archive: Path, table: Path, reference: Callable[[str, Any], Any], home: Path) -> None:
    """Vidurai's own dreamer learns the archive and writes the table over ours."""
    folder = home / ".vidurai"
    folder.mkdir(parents=True)
    (folder / "archive").symlink_to(archive)
    (folder / "q_table.json").write_bytes(table.read_bytes())
    reference("from vidurai.core.rl.dreamer import DreamCycle\nresult = DreamCycle().run()", None)
    table.write_bytes((folder / "q_table.json").read_bytes())


def test_vidurai_s_own_dreamer_counts_nothing_twice(
    archive: Path, table: Path, reference: Callable[[str, Any], Any], tmp_path: Path
) -> None:
    write_file(archive, generated(0, 300), "1.parquet")
    dream(archive, table)
    ours, reward = learned(table), QLearningPolicy.load(table).total_reward
    before = read_summary(table, Hyperparameters())
    vidurai_dreams(archive, table, reference, tmp_path / "reference_home")
    assert learned(table) != ours
    shown = read_summary(table, Hyperparameters())
    assert "Vidurai's own dreamer has overwritten" in (shown.notice or "")
    kept = {(one.state, one.value): one.experiences for one in shown.states if one.experiences}
    assert kept.items() <= {(one.state, one.value): one.experiences for one in before.states}.items()
    write_file(archive, new := generated(300, 350), "2.parquet")
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"]) == ("overwritten", sum(bool(row["outcome"]) for row in new))
    assert "Vidurai's own dreamer had overwritten the table" in stats["notice"]
    alone = tmp_path / "alone.json"
    dream(archive, alone)
    assert learned(table) == learned(alone)
    assert QLearningPolicy.load(table).total_reward == QLearningPolicy.load(alone).total_reward != reward
    assert dream(archive, table)["daemon"] is None
    assert read_summary(table, Hyperparameters()).notice is None


def test_a_replaced_value_has_no_experiences_of_ours(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1), experience(2, -1, salience="noise")], "1.parquet")
    dream(archive, table)
    daemon_writes(table, starts_anew)
    for _ in range(2):
        shown = {one.state: one.experiences for one in read_summary(table, Hyperparameters()).states}
        assert shown["2|1|0|5|5|1"] == shown["9|9|9|5|5|1"] == 0
        dream(archive, table)
    checkpoint = read_checkpoint(TableFile(table).read())
    assert checkpoint is not None
    assert checkpoint.visits == {"2|1|0|5|1|1": {"decay_low_value": 1}}


def test_a_table_from_before_the_first_dream(archive: Path, table: Path) -> None:
    table.write_bytes((DATA / "reference_q_table.json").read_bytes())
    write_file(archive, [experience(1)], "1.parquet")
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"], stats["table_episodes"]) == ("adopted", 1, 2)
    assert "--rebuild` learns the archive alone" in stats["notice"]
    assert TableFile(table).version_path(1).read_bytes() == (DATA / "reference_q_table.json").read_bytes()
    assert dream(archive, table)["episodes"] == 0


def test_an_edited_table_is_taken_as_it_is(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    dream(archive, table)
    document = json.loads(table.read_text())
    document["q_table"]["2|1|0|5|5|1"]["compress_now"] = -1.0
    table.write_text(json.dumps(document))
    stats = dream(archive, table)
    assert (stats["daemon"], stats["episodes"]) == ("edited", 0)
    assert learned(table)["2|1|0|5|5|1"] == {"compress_now": -1.0}


def test_a_deleted_table_is_a_new_beginning(archive: Path, table: Path) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    dream(archive, table)
    before = table.read_bytes()
    table.unlink()
    dream(archive, table)
    assert table.read_bytes() == before


def test_an_older_version_put_back_learns_the_rest_again(archive: Path, table: Path) -> None:
    for night in range(2):
        write_file(archive, generated(night * 100, night * 100 + 100), f"{night}.parquet")
        dream(archive, table)
    whole = table.read_bytes()
    table.with_name("q_table.json.1").replace(table)
    stats = dream(archive, table)
    assert stats["episodes"] == sum(bool(row["outcome"]) for row in generated(100, 200))
    assert table.read_bytes() == whole


@pytest.mark.parametrize("raw", [b"", b"{", b'{"q_table": {"s": {"compress_now": NaN}}}'])
def test_a_damaged_table_is_set_aside_and_the_dream_fails(archive: Path, table: Path, raw: bytes) -> None:
    write_file(archive, generated(0, 50), "1.parquet")
    dream(archive, table)
    good = table.read_bytes()
    table.write_bytes(raw)
    stats = DreamCycle(archive, table).run()
    assert not stats["success"]
    aside = Path(stats["set_aside"])
    assert aside.name.startswith("q_table.json.damaged-")
    assert aside.read_bytes() == raw
    assert aside.name in stats["error"]
    assert "put q_table.state.json from beside it in its place" in stats["error"]
    assert "--rebuild" in stats["error"]
    assert not table.exists()
    dream(archive, table)  # nobody put an older one back
    assert table.read_bytes() == good
    table.write_bytes(raw)
    failed(archive, table)
    TableFile(table).remembered_path.replace(table)
    assert dream(archive, table)["episodes"] == 0
    assert table.read_bytes() == good


@pytest.mark.parametrize("note", ["text", {"format": 1}, {"format": 1, "watermark": {"archived_at": 3, "id": "x"}}])
def test_a_damaged_note_is_damage(archive: Path, table: Path, note: Any) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    table.write_text(json.dumps({"q_table": {}, "vidurai_pipeline": note}))
    assert "its note on what it has learned" in failed(archive, table)
    assert not table.exists()


@pytest.mark.parametrize(
    "broken",
    [
        {"watermark": {"archived_at": "soon", "id": 1}},
        {"watermark": {"archived_at": "2024-12-01T00:00:00", "id": True}},
        {"accounted": -1},
        {"accounted": "1"},
        {"pure": 1},
        {"order": "random"},
        {"parameters": {"reward_profile": "greedy"}},
        {"parameters": {"alpha": "0.1"}},
        {"visits": {"2|1|0|5|5|1": {"explode": 1}}},
        {"curve": [{"archived_at": "2024-12-01T00:00:00", "experiences": 0}]},
        {"ahead": {"first": None}},
        {"foreign_reward": 10**400},
        {"unknown": 1},
    ],
    ids=str,
)
def test_one_wrong_entry_damages_a_note(archive: Path, table: Path, broken: dict[str, Any]) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    dream(archive, table)
    document = json.loads(table.read_text())
    document["vidurai_pipeline"].update(broken)
    table.write_text(json.dumps(document))
    assert "its note on what it has learned" in failed(archive, table)


def test_a_note_of_a_later_version_is_left_alone(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    table.write_text('{"q_table": {}, "vidurai_pipeline": {"format": 2}}')
    assert "another version of vidurai-pipeline" in failed(archive, table)
    assert table.exists()
    dream(archive, table, rebuild=True)


@pytest.mark.parametrize("raw", [b"", b"{", b"SQLite format 3\0", b'{"q_table": {"s": {"x": 1}}}'])
@pytest.mark.parametrize("rebuild", [False, True])
def test_a_file_that_is_no_table_stops_the_dream(archive: Path, table: Path, raw: bytes, rebuild: bool) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    table.write_bytes(raw)
    assert "set VIDURAI_Q_TABLE to another file" in failed(archive, table, rebuild=rebuild)
    assert [(path, path.read_bytes()) for path in table.parent.glob("*q_table*")] == [(table, raw)]
    table.unlink()
    beside = TableFile(table).candidate_path
    beside.write_bytes(raw)
    assert f"{beside} is in the way" in failed(archive, table, rebuild=rebuild)
    assert [(path, path.read_bytes()) for path in table.parent.glob("*q_table*")] == [(beside, raw)]


def test_rebuilding_over_a_damaged_table(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    table.write_bytes(damaged := b'{"q_table": {}, "episodes": -1}')
    stats = dream(archive, table, rebuild=True)
    assert Path(stats["set_aside"]).read_bytes() == damaged
    assert stats["rebuilt"]
    assert learned(table)["2|1|0|5|5|1"] == {"compress_now": 8.0}


def test_unknown_entries_outlive_dreams(archive: Path, table: Path) -> None:
    table.write_text('{"q_table": {}, "owner": "me"}')
    write_file(archive, [experience(1)], "1.parquet")
    for rebuild in (False, True):
        dream(archive, table, rebuild=rebuild)
        assert json.loads(table.read_text())["owner"] == "me"


def interfere(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object], times: int) -> None:
    """Runs an action while the new table is written, between the dream's reading and its replacing."""
    left = [times]
    sync = os.fsync

    def sync_and_act(descriptor: int) -> None:
        sync(descriptor)
        if left[0]:
            left[0] -= 1
            action()

    monkeypatch.setattr(os, "fsync", sync_and_act)


@pytest.mark.parametrize("times", [1, 3])
def test_a_daemon_that_writes_while_we_dream(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    dream(archive, table)
    write_file(archive, generated(100, 150), "2.parquet")
    interfere(monkeypatch, lambda: daemon_writes(table, goes_on), times)
    stats = dream(archive, table)
    assert stats["episodes"] == sum(bool(row["outcome"]) for row in generated(100, 150))
    assert (stats["daemon"], stats["table_episodes"]) == ("continued", 2 + 50 * times)
    assert learned(table)["9|9|9|5|5|1"] == {"consolidate": 3.0}


def test_a_table_that_appears_while_we_dream(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(archive, [experience(1)], "1.parquet")

    def adopt() -> None:
        table.write_bytes((DATA / "reference_q_table.json").read_bytes())

    interfere(monkeypatch, adopt, 1)
    stats = dream(archive, table)
    assert (stats["daemon"], stats["table_episodes"], stats["episodes"]) == ("adopted", 2, 1)


def test_a_daemon_that_never_rests(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    dream(archive, table)
    write_file(archive, generated(100, 150), "2.parquet")
    interfere(monkeypatch, lambda: daemon_writes(table, goes_on), 10**6)
    assert "changes too often" in failed(archive, table)
    assert "vidurai_pipeline" not in json.loads(table.read_text())


def test_another_dream_meanwhile_does_not_learn_twice(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    alone = tmp_path / "alone.json"
    dream(archive, alone)
    interfere(monkeypatch, lambda: dream(archive, table), 1)
    assert dream(archive, table)["episodes"] == 0
    assert table.read_bytes() == alone.read_bytes()


def test_a_copy_that_can_t_be_written_costs_nothing_yet(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise QTableError("no room")

    write_file(archive, [experience(1)], "1.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(TableFile, "remember", fail)
        assert dream(archive, table)["episodes"] == 1
    assert not TableFile(table).remembered_path.exists()
    assert dream(archive, table)["episodes"] == 0
    assert TableFile(table).remembered_path.read_bytes() == table.read_bytes()


KILLER = """
import sys
from pathlib import Path
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline_tests.rl.dreams import dream, killed_at

archive, path, old, new = map(Path, sys.argv[1:])
old, new = old.read_bytes(), new.read_bytes()
dream(archive, path)  # so that the children need not import anything
at, killed = 0, True
while killed:
    at += 1
    for leftover in path.parent.iterdir():
        leftover.unlink()
    path.write_bytes(old)
    killed = killed_at(at, lambda: dream(archive, path))
    assert path.read_bytes() in (old, new), at
    assert killed or path.read_bytes() == new
    assert not killed_at(10**9, lambda: dream(archive, path))
    assert path.read_bytes() == new, at
    assert path.with_name("q_table.state.json").read_bytes() == new, at
print(at)
"""


def test_a_dream_that_is_killed_and_run_again(archive: Path, table: Path, tmp_path: Path) -> None:
    """Whenever it is killed, the table is the old or the new one, and the next dream makes it the new one."""
    write_file(archive, generated(0, 20), "1.parquet")
    dream(archive, table)
    old = tmp_path / "old.json"
    old.write_bytes(table.read_bytes())
    write_file(archive, generated(20, 40), "2.parquet")
    dream(archive, table)
    folder = tmp_path / "killed"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(archive), str(folder / "q_table.json"), str(old), str(table)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
