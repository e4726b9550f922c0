"""The public vidurai package beside ours: the same numbers, to the last bit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidurai_pipeline.rl.agent import Action, MemoryState, Outcome, RewardProfile, VismritiRLAgent
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.rl.inference import SALIENCES, infer_transition
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline_tests.support.archives import DATA, experience, write_file

pytestmark = pytest.mark.slow

Reference = Callable[[str, Any], Any]

HEX_TABLE = """
def hex_table(policy):
    return [[s, [[a.value, v.hex()] for a, v in row.items()]] for s, row in policy.q_table.items()]
"""


def hex_table(policy: QLearningPolicy) -> list[Any]:
    return [[state, [[a.value, v.hex()] for a, v in row.items()]] for state, row in policy.q_table.items()]


def fraction(rng: random.Random) -> float:
    """Fractions of every kind: any, tenths, sums of tenths (which miss the tenth by a bit), the ends."""
    return rng.choice(
        [rng.random(), rng.randrange(11) / 10, rng.randrange(11) * 0.1, rng.randrange(1, 11) / 10 - 0.1, 0.0, 1.0]
    )


def generated_state(rng: random.Random) -> dict[str, Any]:
    return {
        "working_memory_count": rng.choice([rng.randrange(80), 0]),
        "episodic_memory_count": rng.randrange(2000),
        "total_tokens": rng.choice([rng.randrange(12_000), rng.randrange(24) * 500, rng.randrange(10**7)]),
        "average_entropy": fraction(rng),
        "average_importance": fraction(rng),
        "messages_since_last_compression": rng.randrange(30),
    }


def generated_outcome(rng: random.Random) -> dict[str, Any]:
    return {
        "tokens_saved": rng.choice([0, rng.randrange(5000), -rng.randrange(100)]),
        "retrieval_accuracy": fraction(rng),
        "information_loss": fraction(rng),
        "user_satisfaction": fraction(rng),
    }


def test_hashes_of_states(reference: Reference) -> None:
    rng = random.Random(1)
    states = [generated_state(rng) for _ in range(10_000)]
    states += [{**states[0], "average_importance": value} for value in (0.3 - 0.1, 0.1 + 0.2, 0.8 + 0.1, 1.0 - 0.1)]
    code = """
from vidurai.core.rl_agent_v2 import MemoryState
result = [MemoryState(**state).to_hash() for state in data]
"""
    assert [MemoryState(**state).to_hash() for state in states] == reference(code, states)


def test_rewards(reference: Reference) -> None:
    rng = random.Random(2)
    outcomes = [generated_outcome(rng) for _ in range(5_000)]
    code = """
from vidurai.core.rl_agent_v2 import Action, Outcome, RewardProfile
result = [[Outcome(Action.DO_NOTHING, **o).calculate_reward(p).hex() for p in RewardProfile] for o in data]
"""
    ours = [[Outcome(Action.DO_NOTHING, **o).calculate_reward(p).hex() for p in RewardProfile] for o in outcomes]
    assert ours == reference(code, outcomes)


def test_names_in_their_order(reference: Reference) -> None:
    code = """
from vidurai.core.rl_agent_v2 import Action, RewardProfile
result = [[[a.name, a.value] for a in Action], [[p.name, p.value] for p in RewardProfile]]
"""
    assert reference(code, None) == [[[a.name, a.value] for a in Action], [[p.name, p.value] for p in RewardProfile]]


@pytest.mark.parametrize("profile", RewardProfile)
def test_whole_lives_of_an_agent(reference: Reference, profile: RewardProfile) -> None:
    """Deciding, learning and ageing, from the same random numbers; few states, so that values build on each other."""
    rng = random.Random(3)
    lives = []
    for seed in range(12):
        states = [generated_state(rng) for _ in range(12)]
        steps = [[rng.randrange(12), generated_outcome(rng), rng.randrange(12), rng.random() < 0.3] for _ in range(250)]
        parameters = {} if seed % 2 else {"alpha": rng.random(), "gamma": rng.random(), "epsilon_decay": rng.random()}
        lives.append([seed, states, steps, parameters])
    code = (
        HEX_TABLE
        + """
import random, tempfile
from vidurai.core import rl_agent_v2 as v
result = []
profile, lives = data
for seed, states, steps, parameters in lives:
    folder = tempfile.mkdtemp()
    agent = v.VismritiRLAgent(v.RewardProfile(profile), storage_dir=folder)
    for name, value in parameters.items():
        setattr(agent.policy, name, value)
    random.seed(seed)
    states = [v.MemoryState(**s) for s in states]
    actions = []
    for state, outcome, next_state, ends in steps:
        action = agent.decide(states[state])
        actions.append(action.value)
        agent.learn(v.Outcome(action, **outcome), states[next_state])
        if ends:
            agent.end_episode()
    statistics = {k: x.hex() if isinstance(x, float) else x for k, x in agent.get_statistics().items()}
    result.append([actions, hex_table(agent.policy), statistics])
"""
    )
    ours = []
    for seed, generated, steps, parameters in lives:
        agent = VismritiRLAgent(profile, QLearningPolicy(**parameters, rng=random.Random(seed)))
        states = [MemoryState(**state) for state in generated]
        actions = []
        for state, outcome, next_state, ends in steps:
            action = agent.decide(states[state])
            actions.append(action.value)
            agent.learn(Outcome(action, **outcome), states[next_state])
            if ends:
                agent.end_episode()
        statistics = {k: x.hex() if isinstance(x, float) else x for k, x in agent.get_statistics().items()}
        ours.append([actions, hex_table(agent.policy), statistics])
    assert ours == reference(code, [profile.value, lives])


def test_what_a_memory_teaches(reference: Reference) -> None:
    rng = random.Random(4)
    saliences = [*SALIENCES, *(s.upper() for s in SALIENCES), None, "", "urgent", "Medium "]
    memories = [
        {
            "verbatim": "x" * rng.choice([rng.randrange(900), rng.randrange(60_000)]) if rng.random() < 0.9 else None,
            "gist": "é" * rng.randrange(90) if rng.random() < 0.9 else None,
            "salience": rng.choice(saliences),
            "outcome": rng.choice([1, -1]),
            "access_count": rng.randrange(9),
        }
        for _ in range(800)
    ]
    code = """
from vidurai.core.rl.dreamer import DreamCycle
result = []
dream = DreamCycle()
for m in data:
    state = dream._create_state_from_memory(m)
    next_state = dream._create_next_state(state, m["outcome"])
    result.append([state.to_hash(), next_state.to_hash(), dream._infer_action(m).value])
"""
    ours = []
    for m in memories:
        importance = SALIENCES.get((m["salience"] or "medium").lower(), 0.5)
        tokens = (len(m["verbatim"] or "") + len(m["gist"] or "")) // 4
        found = infer_transition(importance, tokens, m["outcome"])
        ours.append([found.state, found.next_state, found.action.value])
    assert ours == reference(code, memories)


def test_a_dream_in_the_reference_s_order(reference: Reference, archive: Path, table: Path, tmp_path: Path) -> None:
    """Both dream of the same generated archive, from an empty table, newest first."""
    rng = random.Random(5)
    rows = [
        experience(
            n,
            rng.choice([1, -1, 1, 0, None]),
            verbatim=rng.choice(["x", "ñ", "日本", "👨‍👩‍👧", "e\u0301"]) * rng.randrange(3000),
            gist="g" * rng.randrange(200),
            salience=rng.choice([*SALIENCES, "HIGH", "LOW", "HİGH", "other", "", None]),
        )
        for n in range(1000)
    ]
    write_file(archive, rows[:600], "memories_20241130_020000.parquet")
    write_file(archive, rows[600:], "memories_20241201_020000.parquet", month="2024-12")
    shutil.copytree(archive, tmp_path / "reference_home" / ".vidurai" / "archive")
    code = """
from pathlib import Path
from vidurai.core.rl.dreamer import DreamCycle
stats = DreamCycle().run()
result = [stats, (Path.home() / ".vidurai" / "q_table.json").read_text()]
"""
    stats, text = reference(code, None)
    ours = DreamCycle(archive, table).run(rebuild=True, order="newest-first")
    for key in ("success", "episodes", "positive_rewards", "negative_rewards", "total_reward", "error"):
        assert ours[key] == stats[key], key
    mine, theirs = json.loads(table.read_text()), json.loads(text)
    del mine["vidurai_pipeline"]
    assert json.dumps(mine) == json.dumps(theirs)


def test_the_sample_table(table: Path) -> None:
    stats = DreamCycle(DATA / "reference_archive", table).run(rebuild=True, order="newest-first")
    ours, sample = json.loads(table.read_text()), json.loads((DATA / "reference_q_table.json").read_text())
    del ours["vidurai_pipeline"]
    assert json.dumps(ours) == json.dumps(sample)
    expected = json.loads((DATA / "reference_dream_stats.json").read_text())
    assert {key: stats[key] for key in expected} == expected


def test_our_file_loads_in_the_reference(reference: Reference, table: Path) -> None:
    """Its loader looks up each state before it has one, and fails; with rows made on demand it shows its format."""
    DreamCycle(DATA / "reference_archive", table).run()
    policy = QLearningPolicy.load(table)
    code = (
        HEX_TABLE
        + """
import collections, pathlib
from vidurai.core.rl_agent_v2 import QLearningPolicy
policy = QLearningPolicy()
policy.q_table = collections.defaultdict(dict)
policy.storage_path = pathlib.Path(data)
policy.load_q_table()
result = [[row for row in hex_table(policy) if row[1]], policy.episodes, policy.total_reward.hex()]
"""
    )
    rows = [row for row in hex_table(policy) if row[1]]
    assert rows
    assert reference(code, str(table)) == [rows, policy.episodes, policy.total_reward.hex()]


def test_its_file_loads_in_ours(table: Path) -> None:
    shutil.copyfile(DATA / "reference_q_table.json", table)
    policy = QLearningPolicy.load(table)
    assert (policy.episodes, policy.total_reward, len(policy.q_table)) == (1, 6945.0, 28)
    policy.save(table)
    assert json.loads(table.read_text()) == json.loads((DATA / "reference_q_table.json").read_text())
