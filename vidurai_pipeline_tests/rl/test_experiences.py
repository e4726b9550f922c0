from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.rl.dataset import Watermark, open_experiences
from vidurai_pipeline.rl.inference import IMPORTANCES, MAX_TOKENS, SALIENCES, infer_transition
from vidurai_pipeline.rl.trainer import TransitionIndex
from vidurai_pipeline.settings import RewardProfile, load_settings
from vidurai_pipeline_tests.support.archives import BASE, experience, write_file

SECRET = "the user's password"


def decoded(code: int) -> tuple[float, int, int]:
    """The importance, the tokens and the outcome that a code stands for."""
    rest, good = divmod(code, 2)
    tokens, level = divmod(rest, len(IMPORTANCES))
    return IMPORTANCES[level], tokens, 1 if good else -1


def all_of(archive: Path, **how: Any) -> list[tuple[float, int, int]]:
    with open_experiences(load_settings(), archive) as experiences:
        return [decoded(int(code)) for batch in experiences.stream(**how) for code in batch.codes]


def test_each_code_stands_for_the_transition_of_its_memory() -> None:
    index = TransitionIndex(RewardProfile.BALANCED)
    assert len(index.ids) == (MAX_TOKENS + 1) * len(IMPORTANCES) * 2
    assert all(
        index.transitions[id_] == infer_transition(*decoded(code)) for code, id_ in enumerate(index.ids.tolist())
    )


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(max_size=60),
            st.none() | st.text(st.sampled_from("ae\u0301\u200d👩👧🇩🇪\r\n\0ﷺ"), max_size=60),
            st.none() | st.sampled_from([*SALIENCES, "HIGH", "CrItIcAl", "HİGH", "high ", ""]) | st.text(max_size=9),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_and_importance_are_python_s(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    archive = tmp_path_factory.mktemp("archive")
    write_file(
        archive,
        [experience(n, verbatim=v, gist=g, salience=s) for n, (v, g, s) in enumerate(rows)],
        "memories.parquet",
    )
    assert all_of(archive) == [
        (SALIENCES.get((s or "medium").lower(), 0.5), (len(v or "") + len(g or "")) // 4, 1) for v, g, s in rows
    ]


@given(
    st.sampled_from([*SALIENCES.values()]),
    st.integers(min_value=MAX_TOKENS, max_value=10**9),
    st.sampled_from([1, -1]),
)
def test_beyond_the_last_bucket_more_tokens_change_nothing(importance: float, tokens: int, outcome: int) -> None:
    large, largest = (infer_transition(importance, size, outcome) for size in (tokens, MAX_TOKENS))
    assert large == largest


def test_no_state_is_another_one_s_next_state() -> None:
    """What learning by the batch rests on."""
    every = [
        infer_transition(importance, tokens, outcome)
        for importance in IMPORTANCES
        for tokens in range(0, MAX_TOKENS + 1, 50)
        for outcome in (1, -1)
    ]
    assert {one.state for one in every}.isdisjoint(one.next_state for one in every)


def test_no_archive_and_an_empty_one(archive: Path) -> None:
    assert all_of(archive) == []
    archive.mkdir()
    assert all_of(archive) == []


def test_a_file_in_the_archive_s_place(archive: Path) -> None:
    archive.touch()
    with pytest.raises(ArchiveError, match="is a file, not an archive's folder"):
        all_of(archive)


@pytest.mark.parametrize(
    "name", ["a[12]", "*", "?", "{1,2}", "[!a]", "o'clock", "é ü", "a\\b", "a\\*b", "**", "%41", "\n"]
)
def test_folders_with_characters_that_mean_something_to_a_glob(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    write_file(archive, [experience(1, -1)], "memories.parquet")
    for decoy in ("a1", "a2"):
        write_file(tmp_path / decoy, [experience(2), experience(3)], "memories.parquet")
        write_file(archive, [experience(4)], f"memories_{decoy}.parquet.not")
    assert all_of(archive) == [(0.5, 4, -1)]


@pytest.mark.parametrize("name", ["a[12]", "*", "?", "\n"])
def test_a_file_with_such_a_name_is_refused(archive: Path, name: str) -> None:
    write_file(archive, [experience(1, -1)], f"memories_{name}.parquet")
    with pytest.raises(ArchiveError, match="rename it"):
        all_of(archive)


def test_order_and_watermark(archive: Path) -> None:
    times = ["2024-11-30T02:00:00", "2024-11-30T02:00:00.000001", "2024-12-01T00:00:00", "2024-12-01T00:00:00"]
    rows = [experience(n, verbatim="x" * 8 * n, gist="", archived_at=time) for n, time in enumerate(times)]
    write_file(archive, rows[:2], "b.parquet")
    write_file(archive, rows[:1:-1], "a.parquet", month="2024-12")
    assert [e[1] for e in all_of(archive)] == [0, 2, 4, 6]
    assert [e[1] for e in all_of(archive, newest_first=True)] == [6, 4, 2, 0]
    assert [e[1] for e in all_of(archive, newest_first=True, limit=1)] == [6]
    assert [e[1] for e in all_of(archive, start=Watermark(times[2], 3))] == [6]
    assert [e[1] for e in all_of(archive, start=Watermark(times[1], 0).next, limit=2)] == [2, 4]
    with open_experiences(load_settings(), archive) as experiences:
        assert experiences.count(None, Watermark(times[2], 2).next) == 3
        assert experiences.count() == 4
        assert experiences.nth(2) == Watermark(times[1], 1)
        assert experiences.nth(0) is experiences.nth(5) is None


def test_many_rows_come_in_batches(archive: Path) -> None:
    write_file(archive, [experience(n, verbatim="x" * (n % 40)) for n in range(150_000)], "memories.parquet")
    with open_experiences(load_settings(), archive) as experiences:
        batches = list(experiences.stream())
    assert len(batches) > 2
    assert sum(len(batch.codes) for batch in batches) == 150_000
    assert batches[-1].last.id == 149_999


def test_a_version_that_was_archived_twice_counts_once(archive: Path) -> None:
    write_file(archive, [experience(1), experience(2), experience(3, 0)], "night1.parquet")
    later = "2024-12-01T02:00:00"
    write_file(
        archive,
        [
            experience(1, archived_at=later),  # the same again
            experience(2, -1, archived_at=later),  # another outcome: another version
            experience(3, 0, archived_at=later),
            experience(1, archived_at=later, created_at="2024-02-02T00:00:00"),  # another memory, of another store
        ],
        "night2.parquet",
    )
    with open_experiences(load_settings(), archive) as experiences:
        assert (experiences.total, experiences.duplicates) == (4, 1)
        assert experiences.count(None, Watermark("2024-11-30T23:59:59", 0)) == 2


def test_what_can_t_be_learned_is_counted(archive: Path) -> None:
    rows = [
        experience(1),
        experience(2, 2),
        experience(3, -7),
        experience(4, 0),
        experience(5, None),
        experience(6, archived_at=None),
    ]
    write_file(archive, [*rows, experience(7) | {"id": None}], "memories.parquet")
    with open_experiences(load_settings(), archive) as experiences:
        assert experiences.total == 1
        assert experiences.skipped == {"archived_at is no time": 1, "no usable id": 1, "outcome not -1, 0 or 1": 2}


@pytest.mark.parametrize(
    ("kind", "outcomes", "learned", "skipped"),
    [
        (pa.float64(), [1.0, -1.0, 0.0, 0.5, float("nan"), None], 2, 2),
        (pa.string(), ["1", "-1", "0", "yes", "1.0", None], 3, 1),
        (pa.null(), [None] * 6, 0, 0),
    ],
)
def test_outcomes_of_other_types(
    archive: Path, kind: pa.DataType, outcomes: list[Any], learned: int, skipped: int
) -> None:
    schema = BASE.set(BASE.get_field_index("outcome"), pa.field("outcome", kind))
    write_file(archive, [experience(n, outcome) for n, outcome in enumerate(outcomes)], "odd.parquet", schema=schema)
    write_file(archive, [experience(10)], "usual.parquet")
    with open_experiences(load_settings(), archive) as experiences:
        assert (experiences.total, sum(experiences.skipped.values())) == (learned + 1, skipped)


def test_files_with_more_columns(archive: Path) -> None:
    write_file(archive, [experience(1)], "old.parquet")
    more = BASE.append(pa.field("status", pa.string())).append(pa.field("pinned", pa.int64()))
    write_file(archive, [experience(2, status="ARCHIVED", pinned=0)], "new.parquet", schema=more)
    assert len(all_of(archive)) == 2


def test_a_damaged_file_is_named(archive: Path) -> None:
    good = write_file(archive, [experience(n, verbatim=SECRET * 50) for n in range(50)], "good.parquet")
    raw = good.read_bytes()
    bad = good.with_name("bad.parquet")
    for damage in (
        b"",
        b"PAR1",
        raw[:-30],
        raw[: len(raw) // 2],
        b"no Parquet" * 30,
        raw[:60] + bytes(200) + raw[260:],
    ):
        bad.write_bytes(damage)
        with pytest.raises(ArchiveError, match=r"/bad.parquet is not a readable Parquet file; .*restore") as caught:
            all_of(archive)
        assert SECRET not in str(caught.value)


def test_files_that_are_no_memories(archive: Path) -> None:
    write_file(
        archive,
        [{"id": 1, "name": "x"}],
        "other.parquet",
        schema=pa.schema([("id", pa.int64()), ("name", pa.string())]),
    )
    with pytest.raises(
        ArchiveError, match=r"no column verbatim, gist, .*: set VIDURAI_ARCHIVE to the folder of a Vidurai archive"
    ):
        all_of(archive)


def test_a_connection_of_the_caller_is_left_as_it_was(archive: Path) -> None:
    write_file(archive, [experience(1)], "memories.parquet")
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE vidurai_experiences AS SELECT 42 AS mine")
        with open_experiences(load_settings(), archive, connection) as experiences:
            assert experiences.total == 1
        assert connection.execute("FROM vidurai_experiences").fetchall() == [(42,)]


def test_a_memory_limit_that_is_none(archive: Path) -> None:
    much = load_settings().model_copy(update={"memory_limit": "much"})
    with pytest.raises(ConfigError, match="memory_limit = 'much'"), open_experiences(much, archive):
        pass
