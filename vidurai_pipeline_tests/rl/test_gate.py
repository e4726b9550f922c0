"""The gate in front of the live table: what it lets through, what it keeps out, and what happens then."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.dataset import HELD_OUT_SHARE, open_experiences
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.evaluation import MIN_HELD_OUT, TransitionCount, compare, find_faults, value_bound
from vidurai_pipeline.rl.inference import Transition
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import TableFile
from vidurai_pipeline.rl.states import Action, MemoryState, RewardProfile, is_state_hash
from vidurai_pipeline.rl.trainer import TransitionIndex
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.rl.dreams import Rows, daemon_writes, dream, failed, generated, goes_on, learned
from vidurai_pipeline_tests.support.archives import experience, write_file

STATE, OTHER = "2|1|0|5|5|1", "1|1|0|5|6|0"
NOW, CONSERVATIVE = Action.COMPRESS_NOW, Action.COMPRESS_CONSERVATIVE


def night(first: int, last: int, good: float, seed: int = 0) -> Rows:
    """Memories of medium salience and like size, a share of them with a good outcome."""
    rng = random.Random(f"{seed} {first}")
    return [experience(n, 1 if rng.random() < good else -1) for n in range(first, last)]


def seen(good: int, bad: int, state: str = STATE) -> list[TransitionCount]:
    return [
        TransitionCount(Transition(state, NOW, 1, OTHER), 80.0, good),
        TransitionCount(Transition(state, NOW, -1, "2|1|0|5|4|2"), -35.0, bad),
    ]


def worth(value: float, state: str = STATE) -> dict[str, dict[Action, float]]:
    return {state: {NOW: value}}


@pytest.mark.parametrize("profile", RewardProfile)
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999])
def test_learning_never_leaves_the_bound(archive: Path, table: Path, profile: RewardProfile, gamma: float) -> None:
    write_file(archive, [experience(n, (-1) ** (n % 3 == 0)) for n in range(300)], "1.parquet")
    stats = dream(archive, table, reward_profile=profile, gamma=gamma, alpha=1.0)
    assert stats["gate"]["well_formed"]
    bound = value_bound(profile, gamma)
    assert all(abs(value) <= bound for row in learned(table).values() for value in row.values())


def test_the_bound_is_the_largest_reward_s() -> None:
    assert value_bound(RewardProfile.BALANCED, 0.0) == 80.0
    assert value_bound(RewardProfile.BALANCED, 0.9) == pytest.approx(800.0)
    assert value_bound(RewardProfile.QUALITY_FOCUSED, 0.5) == pytest.approx(260.0)
    assert value_bound(RewardProfile.BALANCED, 1.0) == math.inf


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({NOW: 801.0}, "compress_now is beyond 800 points"),
        ({NOW: -801.0}, "compress_now is beyond 800 points"),
        ({NOW: math.nan}, "compress_now is not a finite number"),
        ({NOW: math.inf}, "compress_now is not a finite number"),
        ({"fly": 1.0}, "unknown action"),
    ],
)
def test_values_that_are_not_well_formed(row: Any, fault: str) -> None:
    assert find_faults({STATE: {**row, CONSERVATIVE: 800.0}}, {}, 800.0) == ([f"{STATE}: {fault}"], 0)


@pytest.mark.parametrize("state", ["", "2|1|0|5|5", "11|1|0|5|5|1", "2|1|21|5|5|1", "2|1|0|5|11|1", "2|1|0|5|5|6", "x"])
def test_states_that_are_not_well_formed(state: str) -> None:
    assert not is_state_hash(state)
    assert find_faults({state: {NOW: 1.0}}, {}, 800.0) == (["a state: its name is not six buckets"], 0)


def test_every_state_is_well_formed() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        counts = [rng.randrange(10 ** rng.randrange(1, 6)) for _ in range(3)]
        state = MemoryState(counts[0], counts[1], counts[2], rng.random(), rng.random())
        assert is_state_hash(state.to_hash())
    assert is_state_hash(MemoryState(10**9, 10**9, 10**9, 1.0, 1.0, 10**9).to_hash())


def test_what_others_taught_is_counted_and_not_judged() -> None:
    """A daemon earns more for tokens saved than any archived row can tell of."""
    begun_with = {STATE: {NOW: 5000.0}, "odd": {NOW: 1.0}}
    assert find_faults(begun_with, begun_with, 800.0) == ([], 2)
    learned_on = {STATE: {NOW: 4900.0}, "odd": {NOW: 1.0}}
    assert find_faults(learned_on, begun_with, 800.0) == ([], 2)
    assert find_faults({STATE: {NOW: 5100.0}}, begun_with, 800.0)[0] == [
        f"{STATE}: compress_now is beyond 5,000 points"
    ]


def test_many_faults_are_not_all_listed() -> None:
    faults, _ = find_faults({f"2|1|{n}|5|5|1": {NOW: 1e9} for n in range(20)}, {}, 1.0)
    assert faults[-1] == "and 15 more"
    assert len(faults) == 6


def test_errors_are_those_of_the_expected_reward() -> None:
    """A table that holds the mean reward has no error, however much the rewards vary."""
    verdict = compare(worth(22.5), worth(32.5), seen(500, 500), 0.1, 0.9)
    assert verdict.old_error == pytest.approx(0.0, abs=2.0)
    assert verdict.new_error == pytest.approx(10.0, abs=0.5)
    assert verdict.not_worse, "ten points are what a constant learning rate does"
    assert verdict.held_out == 1000


def test_the_next_state_counts() -> None:
    """Targets contain the discounted value of what follows, by the table's own lights."""
    follows = {**worth(22.5), OTHER: {NOW: 100.0}, "2|1|0|5|4|2": {NOW: 100.0}}
    without = compare(follows, follows, seen(500, 500), 0.1, 0.0)
    discounted = compare(follows, follows, seen(500, 500), 0.1, 0.9)
    assert without.old_error == pytest.approx(0.0, abs=2.0)
    assert discounted.old_error == pytest.approx(90.0, abs=0.5)


@pytest.mark.parametrize(
    ("old", "new", "good", "bad", "not_worse"),
    [
        (70.0, 70.0, 90, 10, True),  # the same
        (70.0, -35.0, 90, 10, False),  # turned upside down
        (-35.0, 70.0, 90, 10, True),  # put right
        (70.0, 60.0, 90, 10, True),  # a little off
        (70.0, 0.0, 900, 100, False),
        (0.0, 800.0, 50, 50, False),
        (70.0, -35.0, 10, 2, None),  # too few to tell
        (1e9, 70.0, 90, 10, True),
    ],
)
def test_verdicts(old: float, new: float, good: int, bad: int, not_worse: bool | None) -> None:
    verdict = compare(worth(old), worth(new), seen(good, bad), 0.1, 0.9)
    assert verdict.not_worse is not_worse, verdict
    assert verdict.passed is (not_worse is not False)
    assert verdict == compare(worth(old), worth(new), seen(good, bad), 0.1, 0.9)


def test_states_that_nobody_saw_again_say_nothing() -> None:
    single = [TransitionCount(Transition(f"2|1|{n}|5|5|1", NOW, 1, OTHER), 80.0, 1) for n in range(20)]
    verdict = compare({}, worth(1.0), single * 5, 0.1, 0.9)
    assert verdict.not_worse is not None
    verdict = compare({}, worth(1.0), single, 0.1, 0.9)
    assert (verdict.not_worse, verdict.held_out) == (None, 0)
    assert f"{MIN_HELD_OUT} are needed" in verdict.reason
    assert compare({}, {}, [], 0.1, 0.9).not_worse is None


def test_the_held_out_share(archive: Path) -> None:
    write_file(archive, [experience(n) for n in range(5000)], "1.parquet")
    with open_experiences(load_settings(), archive) as experiences:
        [(code, count)] = experiences.code_counts(held_out=True).items()
        batches = list(experiences.stream())
        held_out = [
            n for batch in batches for n, held in zip(batch.ids.to_pylist(), batch.held_out, strict=True) if held
        ]
        assert {int(one) for batch in batches for one in batch.codes} == {code}
    assert len(held_out) == count == pytest.approx(5000 * HELD_OUT_SHARE, rel=0.02)
    assert held_out[:9] == [0, 5, 10, 13, 18, 26, 31, 34, 39], "the same ones for ever"


def test_ordinary_nights_pass(archive: Path, table: Path) -> None:
    gate: dict[str, Any] = {}
    for n in range(12):
        write_file(archive, generated(n * 120, n * 120 + 120), f"{n}.parquet")
        gate = dream(archive, table)["gate"]
        assert gate["passed"]
    assert gate["held_out"] > MIN_HELD_OUT
    assert gate["not_worse"]


def test_a_bad_night_stays_outside_until_it_is_gone(archive: Path, table: Path, tmp_path: Path) -> None:
    write_file(archive, night(0, 2000, good=0.9), "1.parquet")
    dream(archive, table)
    before = table.read_bytes()
    bad = write_file(archive, night(2000, 2100, good=0.0), "2.parquet")
    candidate = TableFile(table).candidate_path
    for _ in range(2):
        stats = DreamCycle(archive, table).run()
        assert not stats["success"]
        assert (stats["episodes"], stats["held_back"], stats["already_learned"]) == (0, 100, 2000)
        assert (stats["table_episodes"], stats["gate"]["not_worse"]) == (1, False)
        assert str(candidate) in stats["error"]
        assert "--rebuild" in stats["error"]
        assert "\n" not in stats["error"]
        assert table.read_bytes() == before
        assert learned(candidate) != learned(table)
        json.dumps(stats)
    write_file(archive, night(2100, 2150, good=0.9), "3.parquet")
    bad.unlink()
    stats = dream(archive, table)
    assert (stats["episodes"], stats["missing"], stats["late"]) == (50, 0, 0)
    assert not candidate.exists()
    alone = tmp_path / "alone.json"
    dream(archive, alone)
    assert learned(table) == learned(alone)


def test_a_bad_night_is_outweighed_in_time_and_learned_once(archive: Path, table: Path, tmp_path: Path) -> None:
    """A world that changed looks like a bad night at first."""
    write_file(archive, night(0, 600, good=0.9), "0.parquet")
    dream(archive, table)
    nights: list[dict[str, Any]] = []
    while not (nights and nights[-1]["success"]):
        first = 600 + 150 * len(nights)
        write_file(archive, night(first, first + 150, good=0.1), f"{first}.parquet")
        nights.append(DreamCycle(archive, table).run())
    assert 1 < len(nights) < 20
    assert nights[-1]["episodes"] == 150 * len(nights)
    assert not TableFile(table).candidate_path.exists()
    alone = tmp_path / "alone.json"
    dream(archive, alone)
    assert learned(table) == learned(alone)


def test_a_person_can_take_what_the_archive_says(archive: Path, table: Path) -> None:
    write_file(archive, night(0, 2000, good=0.9), "1.parquet")
    dream(archive, table)
    write_file(archive, night(2000, 2100, good=0.0), "2.parquet")
    failed(archive, table)
    refused = learned(TableFile(table).candidate_path)
    stats = dream(archive, table, rebuild=True)
    assert (stats["gate"]["not_worse"], stats["gate"]["enforced"], stats["gate"]["passed"]) == (False, False, True)
    assert learned(table) == refused
    assert not TableFile(table).candidate_path.exists()


def test_a_person_can_put_the_candidate_in_place(archive: Path, table: Path) -> None:
    write_file(archive, night(0, 2000, good=0.9), "1.parquet")
    dream(archive, table)
    write_file(archive, night(2000, 2100, good=0.0), "2.parquet")
    failed(archive, table)
    candidate = TableFile(table).candidate_path
    refused = candidate.read_bytes()
    candidate.replace(table)
    stats = dream(archive, table)
    assert (stats["episodes"], stats["already_learned"], stats["daemon"]) == (0, 2100, None)
    assert table.read_bytes() == refused


def test_a_candidate_that_can_t_be_removed_costs_nothing(
    archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: TableFile) -> None:
        raise QTableError("no right to")

    write_file(archive, night(0, 100, good=0.9), "1.parquet")
    monkeypatch.setattr(TableFile, "drop_candidate", fail)
    assert dream(archive, table)["episodes"] == 100


def test_other_parameters_are_not_compared(archive: Path, table: Path) -> None:
    write_file(archive, night(0, 500, good=0.9), "1.parquet")
    dream(archive, table)
    stats = dream(archive, table, rebuild=True, reward_profile=RewardProfile.QUALITY_FOCUSED)
    assert stats["gate"]["not_worse"] is None
    assert "other parameters" in stats["gate"]["reason"]


def test_held_out_experiences_are_learned_too(archive: Path, table: Path) -> None:
    """The judged table knows nothing of them, the live one everything."""
    write_file(archive, night(0, 400, good=0.5), "1.parquet")
    assert dream(archive, table)["episodes"] == 400
    write_file(archive, night(400, 800, good=0.5), "2.parquet")
    assert dream(archive, table)["episodes"] == 400
    policy = QLearningPolicy()
    for row in [*night(0, 400, good=0.5), *night(400, 800, good=0.5)]:
        policy.update(policy.row(STATE), NOW, 80.0 if row["outcome"] == 1 else -35.0, {})
    assert learned(table)[STATE] == {"compress_now": policy.q_table[STATE][NOW]}


@pytest.mark.parametrize("value", [1e6, -1e6, math.nan, math.inf])
def test_a_learner_that_went_wrong(archive: Path, table: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    write_file(archive, night(0, 100, good=0.9), "1.parquet")
    dream(archive, table)
    before = table.read_bytes()
    write_file(archive, night(100, 110, good=0.9), "2.parquet")

    learn = TransitionIndex.teach

    def learn_badly(self: TransitionIndex, policy: QLearningPolicy, transition_ids: Any) -> float:
        squares = learn(self, policy, transition_ids)
        policy.q_table[STATE][NOW] = value
        return squares

    for rebuild in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(TransitionIndex, "teach", learn_badly)
            error = failed(archive, table, rebuild=rebuild)
        assert "not well-formed" in error or "not a finite number" in error
        assert table.read_bytes() == before
    assert dream(archive, table)["episodes"] == 10


def test_a_daemon_s_large_values_do_not_stop_learning(archive: Path, table: Path) -> None:
    write_file(archive, night(0, 100, good=0.9), "1.parquet")
    dream(archive, table)

    def saves_many_tokens(document: dict[str, Any]) -> None:
        goes_on(document)
        document["q_table"]["3|1|4|5|5|2"] = {"compress_aggressive": 4321.0}

    daemon_writes(table, saves_many_tokens)
    write_file(archive, night(100, 150, good=0.9), "2.parquet")
    assert dream(archive, table)["episodes"] == 50
    assert learned(table)["3|1|4|5|5|2"] == {"compress_aggressive": 4321.0}
