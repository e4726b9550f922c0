"""What was learned, as people see it: states in words, what stands behind them, the map, the curve, the pictures."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from vidurai_pipeline.rl.learning_curve import MAX_POINTS, Point, thin
from vidurai_pipeline.rl.plots import draw_curve, draw_heat_map
from vidurai_pipeline.rl.states import Action, MemoryState
from vidurai_pipeline.rl.summary import bucket_in_words, heat_map, learned_states, read_summary
from vidurai_pipeline.settings import Hyperparameters
from vidurai_pipeline_tests.rl.dreams import daemon_writes, dream, generated, goes_on
from vidurai_pipeline_tests.support.archives import experience, write_file

NOW, AGGRESSIVE = Action.COMPRESS_NOW, Action.COMPRESS_AGGRESSIVE
PARAMETERS = Hyperparameters()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, 4, "0-4"),
        (0, 999, "50+"),
        (1, 100, "100-199"),
        (2, 1499, "1,000-1,499"),
        (2, 10_000, "10,000+"),
        (5, 5, "3-5"),
        (5, 99, "15+"),
    ],
)
def test_words_are_the_buckets(place: int, value: int, words: str) -> None:
    counts = [0] * 6
    counts[place] = value
    state = MemoryState(counts[0], counts[1], counts[2], messages_since_last_compression=counts[5])
    assert bucket_in_words(place, int(state.to_hash().split("|")[place])) == words


def test_words_of_fractions() -> None:
    assert [bucket_in_words(4, bucket) for bucket in (0, 3, 9, 10)] == ["0.0-0.1", "0.3-0.4", "0.9-1.0", "1"]


def test_only_what_differs_is_told_of_each_state() -> None:
    table = {
        "2|1|0|5|5|1": {NOW: 1.0},
        "2|1|4|5|5|1": {NOW: -1.0, AGGRESSIVE: 2.0},
        "1|1|0|5|6|0": {},
        "odd": {NOW: 1.0},
    }
    states, common = learned_states(table, {"2|1|4|5|5|1": {NOW: 9, AGGRESSIVE: 2}})
    assert [(one.words, one.best_action, one.value, one.experiences) for one in states] == [
        ("tokens 2,000-2,499, importance 0.5-0.6", AGGRESSIVE, 2.0, 2),
        ("tokens 0-499, importance 0.5-0.6", NOW, 1.0, 0),
    ]
    assert common == "working memories 10-14, episodic memories 100-199, entropy 0.5-0.6, messages 3-5"
    assert learned_states({}, {}) == ([], "")


def test_every_experience_stands_behind_a_value(archive: Path, table: Path) -> None:
    for night in range(3):
        write_file(archive, generated(night * 200, night * 200 + 200), f"{night}.parquet")
        dream(archive, table)
    learned = sum(bool(row["outcome"]) for night in range(3) for row in generated(night * 200, night * 200 + 200))
    note = read_summary(table, PARAMETERS)
    assert sum(point.experiences for point in note.curve) == learned
    assert {point.episode for point in note.curve} == {1, 2, 3}
    assert sum(one.experiences for one in note.states) <= learned
    before = note
    daemon_writes(table, goes_on)
    after = read_summary(table, PARAMETERS)
    assert [one.experiences for one in after.states if one.experiences] == [
        one.experiences for one in before.states if one.experiences
    ], "the daemon drops the note, the copy beside the table keeps it"
    assert next(one for one in after.states if one.state == "9|9|9|5|5|1").experiences == 0
    dream(archive, table, rebuild=True)
    rebuilt = read_summary(table, PARAMETERS)
    assert sum(point.experiences for point in rebuilt.curve) == learned
    assert {one.state: one.experiences for one in rebuilt.states} == {
        one.state: one.experiences for one in before.states
    }


def test_the_curve_measures_error_before_learning(archive: Path, table: Path) -> None:
    write_file(archive, [experience(n) for n in range(40)], "1.parquet")
    dream(archive, table)
    value, squares = 0.0, 0.0
    for _ in range(20):
        squares += (80.0 - value) ** 2
        value += 0.1 * (80.0 - value)
    first, second = read_summary(table, PARAMETERS).curve
    assert first.squared_error == pytest.approx(squares)
    assert (first.mean_reward, first.experiences) == (80.0, 20)
    assert second.rms_td_error < first.rms_td_error
    assert first.archived_at == "2024-11-30T02:00:00.000019"


def test_the_curve_stays_bounded_and_whole() -> None:
    point = Point("2024-01-01", 3, 10.0, 12.0, 5, 1)
    curve: tuple[Point, ...] = ()
    for night in range(1000):
        curve = thin([*curve, replace(point, episode=night)])
        assert len(curve) <= MAX_POINTS
    assert sum(one.experiences for one in curve) == 3000
    assert sum(one.reward for one in curve) == 10_000.0
    assert [one.episode for one in curve][-1] == 999
    assert {one.rms_td_error for one in curve} == {2.0}
    assert len(thin(curve, 1)) == 1


def test_a_table_that_is_not_there(table: Path) -> None:
    nothing = read_summary(table, PARAMETERS)
    assert (nothing.states, list(nothing.curve), nothing.episodes) == ([], [], 0)
    for picture in (draw_heat_map(nothing), draw_curve(nothing)):
        assert picture.startswith(b"\x89PNG")


def test_the_map_weighs_by_experiences_and_fits() -> None:
    table = {
        "2|1|0|5|5|1": {NOW: 10.0},
        "3|1|0|5|5|1": {AGGRESSIVE: 30.0},
        "2|1|20|5|8|1": {NOW: -5.0},
    }
    states, _ = learned_states(table, {"2|1|0|5|5|1": {NOW: 3}, "3|1|0|5|5|1": {AGGRESSIVE: 1}})
    whole = heat_map(states)
    assert (len(whole.tokens), whole.importances) == (21, [8, 5])
    assert whole.cells[1][0] == (15.0, NOW)
    assert (whole.cells[0][20], whole.cells[0][0]) == ((-5.0, NOW), None)
    narrow = heat_map(states, columns=4)
    assert narrow.tokens == [(0, 6), (6, 12), (12, 18), (18, 21)]
    assert narrow.cells[0] == [None, None, None, (-5.0, NOW)]


def test_pictures_are_the_same_for_the_same_table(archive: Path, table: Path) -> None:
    write_file(archive, generated(0, 300), "1.parquet")
    dream(archive, table)
    summary = read_summary(table, PARAMETERS)
    for draw in (draw_heat_map, draw_curve):
        picture = draw(summary)
        assert picture == draw(summary)
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) == (810, 378)
