"""Archives in which rows say themselves what was done: used where it is there, counted where it can't be read."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vidurai_pipeline.rl.inference import infer_next_state, infer_outcome, infer_transition
from vidurai_pipeline.rl.logged import LoggedTransition, UnreadableError, read_logged
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import Action, Experience, MemoryState, RewardProfile
from vidurai_pipeline_tests.rl.archives import SCHEMA, memory, write_file
from vidurai_pipeline_tests.rl.dreams import dream, learned

STATE = {
    "working_memory_count": 27,
    "episodic_memory_count": 430,
    "total_tokens": 2100,
    "average_entropy": 0.62,
    "average_importance": 0.3 - 0.1,
    "messages_since_last_compression": 7,
}
HASH = "5|4|4|6|1|2"
INFERRED = infer_transition(0.5, 4, 1)


def with_columns(*names: str, kind: pa.DataType | None = None) -> pa.Schema:
    schema = SCHEMA
    for name in names:
        schema = schema.append(pa.field(name, kind or pa.string()))
    return schema


@pytest.mark.parametrize(
    ("action", "state", "decision", "expected"),
    [
        ("consolidate", None, None, (INFERRED.state, Action.CONSOLIDATE, INFERRED.next_state)),
        (" Decay_Threshold_High ", None, None, (INFERRED.state, Action.DECAY_THRESHOLD_HIGH, INFERRED.next_state)),
        (None, HASH, None, (HASH, Action.COMPRESS_NOW, "4|4|3|6|2|0")),
        (None, json.dumps(STATE), None, (HASH, Action.COMPRESS_NOW, "5|4|4|6|3|0")),
        (None, None, '{"action": "do_nothing"}', (INFERRED.state, Action.DO_NOTHING, INFERRED.next_state)),
        (
            None,
            None,
            json.dumps({"state": STATE, "next_state": "0|0|0|0|0|0"}),
            (HASH, Action.COMPRESS_NOW, "0|0|0|0|0|0"),
        ),
        ("consolidate", HASH, '{"action": "fly", "state": 7}', (HASH, Action.CONSOLIDATE, "4|4|3|6|2|0")),
        (None, None, '{"note": "nothing of use"}', (INFERRED.state, INFERRED.action, INFERRED.next_state)),
    ],
)
def test_what_is_logged_goes_first(action: Any, state: Any, decision: Any, expected: Any) -> None:
    transition = read_logged(0.5, 4, 1, action=action, state=state, decision=decision).transition
    assert (transition.state, transition.action, transition.next_state) == expected
    assert transition.outcome == 1


@pytest.mark.parametrize(
    ("action", "state", "decision", "reason"),
    [
        ("fly", None, None, "unknown action"),
        (None, "2|1|0|5|5", None, "unreadable state"),
        (None, "[]", None, "unreadable state"),
        (None, json.dumps({**STATE, "total_tokens": -1}), None, "unreadable state"),
        (None, json.dumps({**STATE, "total_tokens": True}), None, "unreadable state"),
        (None, json.dumps({**STATE, "average_entropy": 1.5}), None, "unreadable state"),
        (None, json.dumps({**STATE, "average_entropy": float("nan")}), None, "unreadable state"),
        (None, json.dumps({"total_tokens": 5}), None, "unreadable state"),
        (None, None, "{", "unreadable decision"),
        (None, None, "[" * 100_000, "unreadable decision"),
        (None, None, "7", "unreadable decision"),
        (None, None, '{"action": 3}', "unknown action"),
        (None, None, '{"next_state": "x"}', "unreadable state"),
    ],
)
def test_what_can_t_be_read(action: Any, state: Any, decision: Any, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_logged(0.5, 4, 1, action=action, state=state, decision=decision)


def test_numbers_are_those_of_one_transition() -> None:
    rng = random.Random(1)
    for _ in range(500):
        states = [
            MemoryState(rng.randrange(90), rng.randrange(2000), rng.randrange(20_000), rng.random(), rng.random(), n)
            for n in (rng.randrange(30), rng.randrange(30))
        ]
        decision = {"action": rng.choice(list(Action)).value, "state": states[0].to_hash()}
        decision["next_state"] = states[1].to_hash()
        one = read_logged(0.5, 4, rng.choice([1, -1]), decision=json.dumps(decision))
        assert LoggedTransition.from_number(one.to_number()) == one
        assert 0 <= one.to_number() < 2**63


def test_files_with_and_without_the_columns(archive: Path, table: Path) -> None:
    write_file(archive, "1.parquet", [memory(1), memory(2, -1)])
    write_file(
        archive,
        "2.parquet",
        [
            memory(3, action="consolidate", state=json.dumps(STATE)),
            memory(4, action=None, state=HASH),
            memory(5, action="", state=None),
            memory(6, action="fly"),
            memory(7, action="fly", outcome=0),
            memory(8, state="somewhere"),
        ],
        with_columns("action", "state"),
    )
    rows = [memory(9, -1, decision='{"action": "do_nothing"}'), memory(10, decision="{")]
    write_file(archive, "3.parquet", rows, with_columns("decision"))
    stats = dream(archive, table)
    assert stats["episodes"] == 6
    assert (stats["logged_actions"], stats["logged_states"], stats["logged_share"]) == (2, 2, 2 / 6)
    assert stats["skipped"] == {"unknown action": 1, "unreadable decision": 1, "unreadable state": 1}
    values = learned(table)
    assert values[HASH] == {"consolidate": 8.0, "compress_now": 8.0}
    assert values[INFERRED.state]["do_nothing"] == -3.5
    assert dream(archive, table)["episodes"] == 0


def test_columns_of_other_types(archive: Path, table: Path) -> None:
    """A struct is what JSON says; a number is no action."""
    kind = pa.struct([("action", pa.string()), ("state", pa.string())])
    write_file(
        archive,
        "1.parquet",
        [memory(1, decision={"action": "consolidate", "state": HASH})],
        with_columns("decision", kind=kind),
    )
    write_file(archive, "2.parquet", [memory(2, action=3)], with_columns("action", kind=pa.int64()))
    stats = dream(archive, table)
    assert learned(table)[HASH] == {"consolidate": 8.0}
    assert stats["skipped"] == {"unknown action": 1}


def test_chains_of_logged_states_are_the_plain_agent_s(archive: Path, table: Path) -> None:
    """Here states follow on states, so that one value depends on another, in the order of learning."""
    rng = random.Random(3)
    states = [f"{n}|1|0|5|5|1" for n in range(4)]
    rows, policy = [], QLearningPolicy()
    for n in range(3000):
        outcome, action = rng.choice([1, -1]), rng.choice(list(Action))
        state, follows = rng.choice(states), rng.choice(states)
        decision = {"action": action.value, "state": state, "next_state": follows}
        if rng.random() < 0.2:
            decision = {}
        rows.append(memory(n, outcome, decision=json.dumps(decision) if decision else None))
        if decision:
            reward = infer_outcome(action, outcome).calculate_reward(RewardProfile.BALANCED)
            policy.update(policy.row(state), action, reward, policy.row(follows))
        else:
            before = MemoryState(10, 100, 4, 0.5, 0.5, 5)
            taken = Action.COMPRESS_NOW
            reward = infer_outcome(taken, outcome).calculate_reward(RewardProfile.BALANCED)
            policy.learn(Experience(before, taken, reward, infer_next_state(before, outcome)))
    write_file(archive, "1.parquet", rows, with_columns("decision"))
    stats = dream(archive, table)
    expected = {s: {a.value: v for a, v in row.items()} for s, row in policy.q_table.items()}
    assert json.dumps(learned(table)) == json.dumps(expected)
    assert stats["total_reward"] == policy.total_reward
    assert stats["gate"]["well_formed"]


def test_order_in_ties_is_the_same_on_every_machine(archive: Path, table: Path, tmp_path: Path) -> None:
    rows = [
        memory(1, decision=json.dumps({"action": action.value, "state": HASH}), archived_at="2024-11-30T02:00:00")
        for action in Action
    ] * 3
    for number, order in enumerate((rows, rows[::-1])):
        write_file(tmp_path / str(number), "1.parquet", order, with_columns("decision"))
        stats = dream(tmp_path / str(number), tmp_path / f"{number}.json")
        assert (stats["episodes"], stats["duplicates"]) == (8, 16)
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
