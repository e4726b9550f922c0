"""One policy for many stores: solved from counts, judged in each store, and written as any other Q-table."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.errors import ArchiveError, ConfigError, QTableError
from vidurai_pipeline.rl.evaluation import TransitionCount
from vidurai_pipeline.rl.fleet import learn_fleet, solve
from vidurai_pipeline.rl.inference import Transition
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.states import Action, Experience, MemoryState
from vidurai_pipeline.rl.stores import Store, count_with_duckdb, find_stores
from vidurai_pipeline.settings import Settings
from vidurai_pipeline_tests.rl.dreams import Rows, dream, generated
from vidurai_pipeline_tests.support.archives import experience, flip, write_file
from vidurai_pipeline_tests.support.cli import cli, loads
from vidurai_pipeline_tests.support.dagster_runs import materialized
from vidurai_pipeline_tests.support.stores import small_store

ACTIONS = (Action.COMPRESS_NOW, Action.DO_NOTHING)
FEW = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(ACTIONS), st.sampled_from([1, -1]), st.sampled_from("abcz")),
    min_size=1,
    max_size=12,
)


def counted(steps: list[tuple[str, Action, int, str]]) -> list[TransitionCount]:
    return [TransitionCount(Transition(*step), 80.0 if step[2] > 0 else -35.0, n) for step, n in Counter(steps).items()]


def best_by_trying_every_policy(counts: list[TransitionCount], gamma: float) -> dict[tuple[str, Action], float]:
    """The action values of the best policy: every deterministic policy is evaluated by solving linear equations."""
    pairs = sorted({one.transition[:2] for one in counts})
    states = sorted({state for state, _ in pairs})
    size = {pair: sum(one.occurrences for one in counts if one.transition[:2] == pair) for pair in pairs}
    best = np.full(len(pairs), -np.inf)
    for choice in itertools.product(*([a for s, a in pairs if s == state] for state in states)):
        chosen = dict(zip(states, choice, strict=True))
        transition, reward = np.zeros((len(pairs), len(pairs))), np.zeros(len(pairs))
        for (state, action, _, after), points, number in counts:
            row, share = pairs.index((state, action)), number / size[state, action]
            reward[row] += share * points
            if after in chosen:
                transition[row, pairs.index((after, chosen[after]))] += share
        best = np.maximum(best, np.linalg.solve(np.eye(len(pairs)) - gamma * transition, reward))
    return dict(zip(pairs, best.tolist(), strict=True))


@hypothesis_settings(max_examples=60, deadline=None)
@given(FEW, st.sampled_from([0.0, 0.5, 0.9]))
def test_the_values_are_those_of_the_best_policy(steps: list[tuple[str, Action, int, str]], gamma: float) -> None:
    solution = solve(counted(steps), gamma)
    values = {(state, action): value for state, row in solution.q_table.items() for action, value in row.items()}
    assert values == pytest.approx(best_by_trying_every_policy(counted(steps), gamma), abs=1e-6)
    assert solution.residual < 1e-9


def test_q_learning_ends_at_the_same_values() -> None:
    states = [MemoryState(5 * n, 0, 0) for n in range(3)]
    steps = [(0, 0, 80.0, 1), (0, 1, -35.0, 2), (1, 0, -35.0, 0), (1, 1, 80.0, 2), (2, 0, 80.0, 2)]
    policy = QLearningPolicy(alpha=0.5)
    for start, action, reward, end in steps * 400:
        policy.learn(Experience(states[start], ACTIONS[action], reward, states[end]))
    hashes = [state.to_hash() for state in states]
    counts = [TransitionCount(Transition(hashes[s], ACTIONS[a], 1, hashes[e]), r, 7) for s, a, r, e in steps]
    solved = solve(counts, policy.gamma).q_table
    assert solved.keys() == policy.q_table.keys()
    for state, row in solved.items():
        assert row == pytest.approx(policy.q_table[state], abs=1e-6)


def test_what_was_never_tried_has_no_value() -> None:
    table = solve(counted([("a", Action.COMPRESS_NOW, 1, "z")]), 0.9).q_table
    assert table == {"a": {Action.COMPRESS_NOW: 80.0}}, "the state that followed is worth nothing"
    assert solve([], 0.9).q_table == {}


def test_values_that_grow_for_ever_are_refused() -> None:
    with pytest.raises(ConfigError, match="VIDURAI_GAMMA"):
        solve(counted([("a", Action.COMPRESS_NOW, 1, "a")]), 1.0)
    assert solve(counted([("a", Action.COMPRESS_NOW, 1, "z")]), 1.0).iterations == 2


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def fill(settings: Settings) -> Callable[[str, Rows], Path]:
    """Writes the archive of one store."""

    def write(name: str, rows: Rows) -> Path:
        root = settings.archive_path / f"store={name}"
        write_file(root, rows, "1.parquet")
        return root

    return write


def outcomes(good: int, bad: int) -> Rows:
    order = [1] * good + [-1] * bad
    random.Random(0).shuffle(order)
    return [experience(n, outcome) for n, outcome in enumerate(order)]


@hypothesis_settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=30, max_size=30), st.integers(0, 5))
def test_the_counts_of_stores_add_up(tmp_path_factory: pytest.TempPathFactory, store_of: list[int], seed: int) -> None:
    base, rows = tmp_path_factory.mktemp("fleet"), generated(0, 30, seed)
    settings = Settings(home=base)
    for store in range(3):
        if chosen := [row for row, number in zip(rows, store_of, strict=True) if number == store]:
            write_file(base / f"archive/store={store}", chosen)
    write_file(base / "whole", rows)
    whole, parts = Store("whole", base / "whole", None), find_stores(settings)
    count_with_duckdb(settings, [whole, *parts])
    assert not any(one.left_out for one in parts)
    assert sum((one.total for one in parts), Counter()) == whole.total
    assert sum((one.held_out for one in parts), Counter()) == whole.held_out


def test_the_same_id_in_two_stores_is_two_memories_and_a_copy_is_none(
    settings: Settings, fill: Callable[[str, Rows], Path]
) -> None:
    for name in ("alice", "bob"):
        write_file(fill(name, outcomes(30, 10)), outcomes(30, 10), "again.parquet")
    report = learn_fleet(settings)
    assert {name: one.experiences for name, one in report.stores.items()} == {"alice": 40, "bob": 40}
    assert report.experiences == 80
    table = QLearningPolicy.load(settings.fleet_q_table_path)
    assert [value for row in table.q_table.values() for value in row.values()] == pytest.approx([0.75 * 80 - 0.25 * 35])
    assert table.total_reward == pytest.approx(60 * 80 - 20 * 35)


def test_a_single_archive_is_a_fleet_of_one(settings: Settings) -> None:
    write_file(settings.archive_path, outcomes(200, 50))
    dream(settings.archive_path, settings.q_table_path)
    report = learn_fleet(settings)
    [one] = report.stores.values()
    assert (one.own_table, one.verdict.not_worse) == (settings.q_table_path, True)
    first = settings.fleet_q_table_path.read_bytes()
    assert not learn_fleet(settings).refused
    assert settings.fleet_q_table_path.read_bytes() == first


def test_a_store_that_is_unlike_the_others_should_keep_its_own_table(
    settings: Settings, fill: Callable[[str, Rows], Path]
) -> None:
    for name in ("alice", "bob", "carol"):
        fill(name, outcomes(900, 100))
    odd = fill("odd", outcomes(20, 280))
    report = learn_fleet(settings)
    assert (report.worse, report.refused) == (["odd"], None)
    assert report.stores["odd"].own_table is None, "compared with what its archive alone teaches"
    tables = {name: settings.home / f"{name}.json" for name in ("odd", "alice")}
    dream(odd, tables["odd"])
    dream(odd, tables["alice"])
    report = learn_fleet(settings, tables)
    assert report.worse == ["odd"]
    assert report.to_dict()["stores"]["odd"]["own_table"] == str(tables["odd"])
    alice = report.stores["alice"].verdict
    assert alice.not_worse
    assert alice.old_error is not None
    assert alice.new_error is not None
    assert alice.old_error > 10 * alice.new_error + 10, "her own table is a bad one"
    tables["odd"].write_text("{")
    damaged = learn_fleet(settings, tables).stores["odd"].verdict
    assert damaged.not_worse is None
    assert str(tables["odd"]) in damaged.reason


def test_a_table_that_most_stores_are_worse_off_with_stays_a_candidate(
    settings: Settings, fill: Callable[[str, Rows], Path]
) -> None:
    fill("large", outcomes(900, 100))
    learn_fleet(settings)
    before = settings.fleet_q_table_path.read_bytes()
    for name in ("alice", "bob", "carol"):
        fill(name, outcomes(10, 190))
    report = learn_fleet(settings)
    assert report.refused
    assert "of 4 stores" in report.refused
    assert settings.fleet_q_table_path.read_bytes() == before
    assert (settings.home / "fleet_q_table.candidate.json").exists()


def test_a_store_that_cannot_be_read_is_left_out_by_name(settings: Settings, fill: Callable[[str, Rows], Path]) -> None:
    fill("sound", outcomes(40, 10))
    flip(fill("broken", outcomes(40, 10)) / "year=2024/month=12/1.parquet", at=1.0)
    report = learn_fleet(settings)
    assert list(report.stores) == ["sound"]
    assert "store=broken" in report.left_out["broken"]
    flip(settings.archive_path / "store=sound/year=2024/month=12/1.parquet", at=1.0)
    with pytest.raises(ArchiveError, match="no store's archive can be read"):
        learn_fleet(settings)


def test_without_an_experience_no_table_is_made(settings: Settings) -> None:
    assert learn_fleet(settings).experiences == 0
    assert not settings.fleet_q_table_path.exists()


def test_a_file_of_another_program_is_left_alone(settings: Settings, fill: Callable[[str, Rows], Path]) -> None:
    fill("alice", outcomes(4, 1))
    settings.fleet_q_table_path.write_text(json.dumps({"mine": 1}))
    with pytest.raises(QTableError, match="VIDURAI_FLEET_Q_TABLE"):
        learn_fleet(settings)
    assert json.loads(settings.fleet_q_table_path.read_text()) == {"mine": 1}


def test_a_store_s_own_table_is_not_replaced(settings: Settings, fill: Callable[[str, Rows], Path]) -> None:
    own = settings.fleet_q_table_path
    dream(fill("alice", outcomes(4, 1)), own)
    before = own.read_bytes()
    with pytest.raises(ConfigError, match="own table of the store alice"):
        learn_fleet(settings, {"alice": own})
    assert own.read_bytes() == before


def test_dream_for_the_fleet_on_the_command_line(settings: Settings, fill: Callable[[str, Rows], Path]) -> None:
    fill("alice", outcomes(900, 100))
    fill("odd", outcomes(20, 280))
    home = {"VIDURAI_HOME": str(settings.home)}
    done = cli("dream", "--fleet", **home)
    assert done.returncode == 0, done.stderr
    assert "1,300 experiences of 2 stores" in done.stdout
    assert "should keep their own tables: odd" in done.stderr
    report = loads(cli("dream", "--fleet", "--format", "json", **home))
    assert {name: one["experiences"] for name, one in report["stores"].items()} == {"alice": 1000, "odd": 300}
    assert not (settings.home / "q_table.json").exists(), "the own table is another one"
    wrong = cli("dream", "--fleet", "--rebuild", **home)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_the_fleet_s_asset(settings: Settings, fill: Callable[[str, Rows], Path]) -> None:
    for name in ("alice", "bob"):
        fill(name, outcomes(900, 100))
    fill("odd", outcomes(20, 280))
    definitions = build_definitions(settings.model_copy(update={"fleet_q_table": settings.fleet_q_table_path}))
    assert definitions.resolve_schedule_def("daily_fleet").job_name == "fleet"
    with dg.DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_job_def("fleet").execute_in_process(instance=instance)
    [evaluation] = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "odd" in (evaluation.description or "")
    assert materialized(result)["fleet_q_table"]["experiences learned"] == 2300


def test_one_run_makes_the_table_of_all_the_stores_that_a_setting_names(
    settings: Settings, fill: Callable[[str, Rows], Path]
) -> None:
    lines = []
    for name in ("alice", "bob"):
        root = fill(name, outcomes(900, 100))
        small_store(settings.home / name / "vidurai.db")
        dream(root, settings.home / name / "q_table.json")
        lines.append(f"{name},{settings.home / name / 'vidurai.db'}\n")
    (settings.home / "stores.csv").write_text("".join(lines))
    listed = str(settings.home / "stores.csv")
    several = {"stores": listed, "fleet_q_table": settings.fleet_q_table_path}
    definitions = build_definitions(settings.model_copy(update=several))
    with dg.DagsterInstance.ephemeral() as instance, dg.build_schedule_context(instance) as context:
        tick = definitions.resolve_schedule_def("daily_fleet").evaluate_tick(context)
        assert [request.partition_key for request in tick.run_requests or ()] == [None]
        result = definitions.resolve_job_def("fleet").execute_in_process(instance=instance)
    assert result.success
    report = loads(cli("dream", "--fleet", "--format", "json", VIDURAI_HOME=str(settings.home), VIDURAI_STORES=listed))
    own = {name: one["own_table"] for name, one in report["stores"].items()}
    assert own == {name: str(settings.home / name / "q_table.json") for name in ("alice", "bob")}
