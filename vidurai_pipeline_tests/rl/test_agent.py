import math
import random

import pytest

from vidurai_pipeline.rl.agent import Action, Experience, MemoryState, Outcome, RewardProfile, VismritiRLAgent
from vidurai_pipeline.rl.policy import QLearningPolicy

pytestmark = pytest.mark.fast

STATE = MemoryState(working_memory_count=10, episodic_memory_count=100, total_tokens=700)
NEXT = MemoryState(working_memory_count=8, episodic_memory_count=101, total_tokens=650)


def test_a_hash_names_six_buckets() -> None:
    assert STATE.to_hash() == "2|1|1|5|5|0"
    assert MemoryState(10**6, 10**6, 10**6, 1.0, 1.0, 10**6).to_hash() == "10|10|20|10|10|5"
    assert MemoryState(0, 0, 0, 0.0, 0.0, 0).to_hash() == "0|0|0|0|0|0"


def test_fractions_are_cut_in_floating_point() -> None:
    assert MemoryState(0, 0, 0, average_importance=0.3 - 0.1).to_hash().split("|")[4] == "1"


@pytest.mark.parametrize(
    ("profile", "reward"),
    [
        (RewardProfile.BALANCED, 10 + 45 - 10 + 24),
        (RewardProfile.COST_FOCUSED, 30 + 22.5 - 2.5 + 24),
        (RewardProfile.QUALITY_FOCUSED, 3 + 90 - 25 + 24),
    ],
)
def test_rewards_by_profile(profile: RewardProfile, reward: float) -> None:
    outcome = Outcome(
        Action.COMPRESS_NOW, tokens_saved=100, retrieval_accuracy=0.9, information_loss=0.05, user_satisfaction=0.8
    )
    assert outcome.calculate_reward(profile) == pytest.approx(reward)


def test_the_update_rule() -> None:
    policy = QLearningPolicy(alpha=0.5, gamma=0.8)
    policy.learn(Experience(STATE, Action.COMPRESS_NOW, 10.0, NEXT))
    assert policy.q_table == {STATE.to_hash(): {Action.COMPRESS_NOW: 5.0}, NEXT.to_hash(): {}}
    policy.learn(Experience(NEXT, Action.DECAY_LOW_VALUE, 0.0, STATE))
    assert policy.q_table[NEXT.to_hash()] == {Action.DECAY_LOW_VALUE: 0.5 * 0.8 * 5.0}
    assert policy.total_reward == 10.0


def test_negative_values_of_the_next_state_count() -> None:
    policy = QLearningPolicy(alpha=1.0, gamma=1.0)
    policy.q_table[NEXT.to_hash()] = {Action.DO_NOTHING: -3.0}
    policy.learn(Experience(STATE, Action.COMPRESS_NOW, 1.0, NEXT))
    assert policy.q_table[STATE.to_hash()][Action.COMPRESS_NOW] == -2.0


def test_the_best_action() -> None:
    policy = QLearningPolicy()
    assert policy.best_action(STATE) is Action.DO_NOTHING
    policy.row(STATE.to_hash()).update({Action.CONSOLIDATE: 1.0, Action.COMPRESS_NOW: 2.0, Action.DECAY_LOW_VALUE: 2.0})
    assert policy.best_action(STATE) is Action.COMPRESS_NOW


def test_epsilon_decays_from_youth_to_maturity() -> None:
    policy = QLearningPolicy()
    assert policy.get_epsilon() == 0.3
    policy.end_episode()
    assert policy.get_epsilon() == 0.05 + 0.25 * math.exp(-0.003)
    policy.episodes = 10**6
    assert policy.get_epsilon() == 0.05


def test_exploring_and_exploiting() -> None:
    explorer = QLearningPolicy(epsilon_max=1.0, rng=random.Random(1))
    assert {explorer.select_action(STATE) for _ in range(200)} == set(Action)
    exploiter = QLearningPolicy(epsilon_max=0.0, epsilon_min=0.0)
    assert {exploiter.select_action(STATE) for _ in range(50)} == {Action.DO_NOTHING}


def test_an_agent_repeats_itself_with_the_same_random_numbers() -> None:
    decisions = []
    for _ in range(2):
        agent = VismritiRLAgent(rng=random.Random(7))
        decisions.append([agent.decide(STATE) for _ in range(100)])
    assert decisions[0] == decisions[1]


def test_an_agent_learns_from_a_decision_once() -> None:
    agent = VismritiRLAgent()
    agent.learn(Outcome(Action.DO_NOTHING), NEXT)
    assert agent.policy.q_table == {}
    action = agent.decide(STATE)
    for _ in range(2):
        agent.learn(Outcome(action), NEXT)
    agent.end_episode()
    statistics = agent.get_statistics()
    assert statistics == {
        "episodes": 1,
        "total_reward": 65.0,
        "avg_reward_per_episode": 65.0,
        "epsilon": agent.policy.get_epsilon(),
        "q_table_size": 2,
        "maturity": 0.1,
        "reward_profile": "balanced",
        "actions_taken": 1,
        "experiences_stored": 1,
    }


def test_an_agent_remembers_only_the_latest_experiences() -> None:
    agent = VismritiRLAgent(remembered=3)
    for _ in range(5):
        agent.learn(Outcome(agent.decide(STATE)), NEXT)
    assert len(agent.experiences) == agent.get_statistics()["experiences_stored"] == 3
