"""What is learned, in which order, how often, and what the statistics say."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.rl.agent import Action, Outcome, RewardProfile, VismritiRLAgent
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.inference import SALIENCES, infer_action, infer_next_state, infer_outcome, infer_state
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.trainer import TransitionIndex
from vidurai_pipeline_tests.rl.dreams import (
    SECRET,
    Rows,
    daemon_writes,
    dream,
    failed,
    generated,
    goes_on,
    learned,
)
from vidurai_pipeline_tests.support.archives import experience, write_file


def plain_agent(rows: Rows, profile: RewardProfile) -> QLearningPolicy:
    """What the dream must equal: the agent itself, told of one memory after the other."""
    agent = VismritiRLAgent(profile)
    for row in sorted(rows, key=lambda row: (row["archived_at"], row["id"])):
        if row["outcome"]:
            importance = SALIENCES.get((row["salience"] or "medium").lower(), 0.5)
            state = infer_state(importance, (len(row["verbatim"] or "") + len(row["gist"] or "")) // 4)
            agent.current_state = state
            agent.current_action = action = infer_action(importance, row["outcome"])
            agent.learn(infer_outcome(action, row["outcome"]), infer_next_state(state, row["outcome"]))
    agent.end_episode()
    return agent.policy


@pytest.mark.fast
@pytest.mark.parametrize("profile", RewardProfile)
def test_the_table_is_the_plain_agent_s(archive: Path, table: Path, profile: RewardProfile) -> None:
    rows = generated(0, 5000)
    write_file(archive, rows, "memories.parquet")
    stats = dream(archive, table, reward_profile=profile)
    expected = plain_agent(rows, profile)
    policy = QLearningPolicy.load(table)
    assert [(s, list(r.items())) for s, r in policy.q_table.items()] == [
        (s, list(r.items())) for s, r in expected.q_table.items()
    ]
    assert policy.total_reward == expected.total_reward == stats["total_reward"]
    assert stats["episodes"] == sum(bool(row["outcome"]) for row in rows)
    assert stats["positive_rewards"] == sum(row["outcome"] == 1 for row in rows)
    assert (stats["states"], stats["table_episodes"]) == (sum(map(bool, policy.q_table.values())), 1)
    assert stats["epsilon"] == policy.get_epsilon() == json.loads(table.read_text())["epsilon"]


@pytest.mark.fast
def test_the_same_archive_gives_the_same_file(archive: Path, table: Path, tmp_path: Path) -> None:
    write_file(archive, generated(0, 800), "memories.parquet")
    dream(archive, table)
    other = tmp_path / "other.json"
    with duckdb.connect(config={"threads": 1}) as connection:
        dream(archive, other, connection=connection)
    assert other.read_bytes() == table.read_bytes()
    stats = dream(archive, table, rebuild=True)
    assert stats["rebuilt"]
    assert other.read_bytes() == table.read_bytes()


def test_nothing_new_changes_nothing(archive: Path, table: Path) -> None:
    rows = generated(0, 300)
    write_file(archive, rows, "memories.parquet")
    first = dream(archive, table)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in table.parent.glob("q_table*")}
    second = dream(archive, table)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in table.parent.glob("q_table*")} == before
    assert (second["episodes"], second["already_learned"]) == (0, first["episodes"])
    assert second["states"] == first["states"]


@pytest.mark.fast
def test_nights_add_up(archive: Path, table: Path, tmp_path: Path) -> None:
    """Learned night by night, with a crash-proof pause between, or in one: the same values."""
    for night in range(4):
        write_file(archive, generated(night * 200, night * 200 + 200), f"memories_{night}.parquet")
        stats = dream(archive, table)
        assert stats["table_episodes"] == night + 1
        assert stats["late"] == stats["missing"] == 0
    whole = tmp_path / "whole.json"
    dream(archive, whole)
    assert learned(table) == learned(whole)
    assert QLearningPolicy.load(table).total_reward == QLearningPolicy.load(whole).total_reward


@given(st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=5), st.integers(0, 2**32))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_into_nights_and_limits(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("nights")
    archive, table = folder / "archive", folder / "q_table.json"
    first, rows = 0, []
    for size in sizes:
        batch = generated(first, first + size, seed)
        rows += batch
        write_file(archive, batch, f"memories_{first}.parquet")
        dream(archive, table, max_episodes=7)
        first += size
    while dream(archive, table, max_episodes=7)["episodes"]:
        pass
    expected = plain_agent(rows, RewardProfile.BALANCED)
    plain = {s: {a.value: v for a, v in r.items()} for s, r in expected.q_table.items()}
    assert (learned(table) if table.exists() else {}) == plain


def test_compacted_files_are_not_learned_again(archive: Path, table: Path) -> None:
    files = [write_file(archive, generated(n * 50, n * 50 + 50), f"{n}.parquet") for n in range(3)]
    dream(archive, table)
    before = table.read_bytes()
    write_file(archive, [row for n in range(3) for row in generated(n * 50, n * 50 + 50)], "compacted.parquet")
    for file in files:
        file.unlink()
    stats = dream(archive, table)
    assert (stats["episodes"], stats["late"], stats["missing"]) == (0, 0, 0)
    assert table.read_bytes() == before


def test_copies_of_another_night_are_not_learned_again(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1), experience(2, -1)], "1.parquet")
    dream(archive, table)
    before = table.read_bytes()
    write_file(archive, [experience(1, archived_at="2025-01-01T00:00:00")], "2.parquet")
    stats = dream(archive, table)
    assert (stats["episodes"], stats["duplicates"], table.read_bytes()) == (0, 1, before)


@pytest.mark.parametrize("rebuild", [False, True])
def test_nothing_to_learn_makes_no_table(archive: Path, table: Path, rebuild: bool) -> None:
    for rows in (None, [], [experience(1, 0), experience(2, None)]):
        if rows is not None:
            write_file(archive, rows, "memories.parquet")
        stats = dream(archive, table, rebuild=rebuild)
        assert (stats["episodes"], stats["states"], stats["rebuilt"]) == (0, 0, False)
        assert list(table.parent.glob("*q_table*")) == []


def test_rebuilding_from_nothing_keeps_the_table(archive: Path, table: Path, tmp_path: Path) -> None:
    write_file(archive, [experience(1)], "memories.parquet")
    dream(archive, table)
    before = table.read_bytes()
    stats = dream(tmp_path / "elsewhere", table, rebuild=True)
    assert "nothing to learn" in stats["notice"]
    assert (stats["rebuilt"], stats["missing"], table.read_bytes()) == (False, 1, before)


def test_skipped_rows_are_counted(archive: Path, table: Path) -> None:
    write_file(
        archive, [experience(1), experience(2, 5), experience(3, salience="odd"), experience(4, -9)], "memories.parquet"
    )
    stats = dream(archive, table)
    assert (stats["episodes"], stats["skipped"]) == (2, {"outcome not -1, 0 or 1": 2})


def test_newest_first_then_night_by_night(archive: Path, table: Path) -> None:
    write_file(archive, generated(0, 100), "1.parquet")
    first = dream(archive, table, rebuild=True, order="newest-first", max_episodes=30)
    assert first["episodes"] == 30
    again = dream(archive, table)
    assert (again["episodes"], again["late"]) == (0, 0), "the reference's limit leaves the oldest out on purpose"
    write_file(archive, generated(100, 150), "2.parquet")
    assert dream(archive, table)["episodes"] == sum(bool(row["outcome"]) for row in generated(100, 150))


def test_what_makes_no_sense_is_refused(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "memories.parquet")
    assert "newest-first needs a rebuild" in failed(archive, table, order="newest-first")
    assert "chronological or newest-first" in failed(archive, table, order="random")
    assert "max_episodes" in failed(archive, table, max_episodes=0)
    assert not table.exists()


def test_other_parameters_ask_for_a_rebuild(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "memories.parquet")
    dream(archive, table)
    before = table.read_bytes()
    error = failed(archive, table, reward_profile=RewardProfile.COST_FOCUSED)
    assert "trained with profile balanced" in error
    assert "--rebuild" in error
    assert "alpha 0.5" in failed(archive, table, alpha=0.5)
    assert table.read_bytes() == before
    dream(archive, table, reward_profile=RewardProfile.COST_FOCUSED, rebuild=True)


def test_parameters_come_from_the_settings_and_stay_with_the_table(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    monkeypatch.setenv("VIDURAI_REWARD_PROFILE", "cost_focused")
    monkeypatch.setenv("VIDURAI_ALPHA", "0.5")
    monkeypatch.setenv("VIDURAI_EPSILON_MIN", "0.01")
    stats = dream(archive, table)
    assert learned(table)["2|1|0|5|5|1"] == {"compress_now": 0.5 * 55.0}
    assert json.loads(table.read_text())["vidurai_pipeline"]["parameters"] == {
        "reward_profile": "cost_focused",
        "alpha": 0.5,
        "gamma": 0.9,
        "epsilon_max": 0.3,
        "epsilon_min": 0.01,
        "epsilon_decay": 0.003,
    }
    assert stats["epsilon"] == QLearningPolicy(epsilon_min=0.01).epsilon_min + 0.29 * math.exp(-0.003)
    for name, value in (("REWARD_PROFILE", "balanced"), ("ALPHA", "0.2"), ("GAMMA", "0.5")):
        with monkeypatch.context() as patch:
            patch.setenv(f"VIDURAI_{name}", value)
            error = failed(archive, table)
        assert "profile cost_focused, alpha 0.5, gamma 0.9, not with profile" in error
        assert f"{name.lower()} {value}".removeprefix("reward_") in error
        assert "--rebuild" in error
        assert "\n" not in error
    assert "VIDURAI_ALPHA='0'" in failed_with(archive, table, monkeypatch, "VIDURAI_ALPHA", "0")


def failed_with(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    with monkeypatch.context() as patch:
        patch.setenv(name, value)
        return failed(archive, table)


def test_epsilon_is_no_part_of_what_was_learned(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    dream(archive, table)
    monkeypatch.setenv("VIDURAI_EPSILON_DECAY", "1")
    write_file(archive, [experience(2)], "2.parquet")
    stats = dream(archive, table)
    assert stats["episodes"] == 1
    assert stats["epsilon"] == json.loads(table.read_text())["epsilon"] == 0.05 + (0.3 - 0.05) * math.exp(-2)


def test_a_note_from_before_epsilon_was_kept(archive: Path, table: Path) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    dream(archive, table)
    document = json.loads(table.read_text())
    note = document["vidurai_pipeline"]
    del note["visits"], note["curve"]
    note["parameters"] = {"reward_profile": "balanced", "alpha": 0.1, "gamma": 0.9}
    table.write_text(json.dumps(document))
    write_file(archive, [experience(2)], "2.parquet")
    assert dream(archive, table)["episodes"] == 1


def test_late_files_are_learned_in_their_place(archive: Path, table: Path, tmp_path: Path) -> None:
    write_file(archive, generated(100, 200), "2.parquet")
    dream(archive, table)
    write_file(archive, generated(0, 100), "1.parquet", month="2024-10")
    write_file(archive, generated(200, 220), "3.parquet", month="2024-12")
    stats = dream(archive, table)
    late = sum(bool(row["outcome"]) for row in generated(0, 100))
    assert (stats["late"], stats["rebuilt"], stats["table_episodes"]) == (late, True, 2)
    assert f"{late} experiences came late" in stats["notice"]
    in_time = tmp_path / "in_time.json"
    dream(archive, in_time)
    assert learned(table) == learned(in_time)
    assert dream(archive, table)["episodes"] == 0


def test_late_files_never_make_it_forget_the_daemon(archive: Path, table: Path) -> None:
    write_file(archive, generated(100, 200), "2.parquet")
    dream(archive, table)
    daemon_writes(table, goes_on)
    write_file(archive, generated(0, 100), "1.parquet")
    write_file(archive, generated(200, 220), "3.parquet")
    late = sum(bool(row["outcome"]) for row in generated(0, 100))
    for new in (sum(bool(row["outcome"]) for row in generated(200, 220)), 0):
        stats = dream(archive, table)
        assert (stats["late"], stats["episodes"], stats["rebuilt"]) == (late, new, False)
        assert "--rebuild" in stats["notice"]
        assert learned(table)["9|9|9|5|5|1"] == {"consolidate": 3.0}
    assert dream(archive, table, rebuild=True)["late"] == 0
    assert dream(archive, table)["late"] == 0


def test_experiences_that_left_the_archive_stay_learned(archive: Path, table: Path) -> None:
    files = [write_file(archive, generated(n * 50, n * 50 + 50), f"{n}.parquet") for n in range(2)]
    dream(archive, table)
    before = table.read_bytes()
    files[0].unlink()
    stats = dream(archive, table)
    assert stats["missing"] == sum(bool(row["outcome"]) for row in generated(0, 50))
    assert (stats["episodes"], table.read_bytes()) == (0, before)


def test_a_damaged_archive_fails_the_dream(archive: Path, table: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = write_file(archive, [experience(n, verbatim=SECRET * 50) for n in range(40)], "1.parquet")
    bad = good.with_name("2.parquet")
    bad.write_bytes(good.read_bytes()[:-40])
    error = failed(archive, table)
    assert str(bad) in error
    assert "restore it from a backup" in error
    assert SECRET not in error + caplog.text
    assert not table.exists()


def test_a_table_that_can_t_be_written(archive: Path, tmp_path: Path) -> None:
    write_file(archive, [experience(1)], "1.parquet")
    (tmp_path / "file").touch()
    error = failed(archive, tmp_path / "file" / "q_table.json")
    assert "can't be read: Not a directory" in error


def test_a_setting_that_makes_no_sense(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDURAI_THREADS", "many")
    stats = DreamCycle(archive).run()
    assert not stats["success"]
    assert "VIDURAI_THREADS" in stats["error"]


def test_an_error_that_nobody_foresaw_quotes_nothing(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(SECRET)

    write_file(archive, [experience(1)], "1.parquet")
    monkeypatch.setattr(TransitionIndex, "teach", fail)
    with caplog.at_level(logging.DEBUG):
        error = failed(archive, table)
    assert "RuntimeError" in error
    assert SECRET not in error + caplog.text


def test_paths_come_from_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDURAI_HOME", str(tmp_path))
    write_file(tmp_path / "archive", [experience(1)], "1.parquet")
    assert DreamCycle().run()["episodes"] == 1
    assert (tmp_path / "q_table.json").exists()


def test_the_specification_s_statistics(archive: Path, table: Path) -> None:
    stats = DreamCycle(archive, table).run()
    keys = ["success", "episodes", "positive_rewards", "negative_rewards", "total_reward", "error"]
    assert list(stats)[:8] == [*keys, "started_at", "completed_at"]
    assert stats["started_at"] <= stats["completed_at"]
    json.dumps(stats)


def test_outcomes_hold_what_the_dream_tells_the_agent() -> None:
    assert infer_outcome(Action.COMPRESS_NOW, 1) == Outcome(Action.COMPRESS_NOW, user_satisfaction=1.0)
    assert infer_outcome(Action.COMPRESS_NOW, 1).calculate_reward(RewardProfile.BALANCED) == 80.0
    assert infer_outcome(Action.COMPRESS_NOW, -1).calculate_reward(RewardProfile.BALANCED) == -35.0
