"""The search index: what it finds and in which order, and that it follows every change of the archive."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.index_process import FlushIndexing
from vidurai_pipeline.analytics.search import Mode, Tier
from vidurai_pipeline.analytics.word_index import Lag, WordIndex
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.care.compaction import compact
from vidurai_pipeline.care.health import search_index
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.cold.listing import list_settled
from vidurai_pipeline.errors import QueryError, SearchIndexError, SearchIndexWarning
from vidurai_pipeline.settings import load_settings
from vidurai_pipeline_tests.support.archives import BASE, memory, write_file
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.stores import change

QUIET = {"gist": "g", "verbatim": "v", "file_path": "f", "tags": "[]"}


def indexed(root: Path, *rows: dict, name: str = "memories_20240102_030405.parquet") -> RepoAnalyst:
    write_file(root, list(rows), name=name)
    WordIndex(root).update(Archive(root))
    return RepoAnalyst(root)


def ids(analyst: RepoAnalyst, words: str, mode: Mode = "words", **options) -> list[int]:
    return [row["id"] for row in analyst.search_archive(words, mode=mode, **options)]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("fixed the crash in watchRecipe", "how did we fix the crash in watchRecipe"),
        ("fixed the crash in watchRecipe", "recipe"),
        ("call watch_recipe()", "watchRecipe"),
        ("call watchRecipe()", "watch_recipe"),
        ("parseHTTPHeader", "http header"),
        ("src/berths/token.py", "berths/token.py"),
        ("error TS2345 in build", "ts2345"),
        ("ERR_CONNECTION_RESET", "connection_reset"),
        ("das Café an der Größe", "cafe grosse"),
        ("das Cafe", "CAFÉ"),
        ("nai\u0308ve", "naïve"),
        ("認証トークンの期限", "トークン"),
        ("文字コードでした", "文字コード"),
        ("ПРИВЕТ мир", "привет"),
        ("authentication failed", "authn failed auth"),
        ("connection reset", "conection rset"),
        ("subscription expired", "subscriptoin"),
        ("to be or not", "to be or not"),
    ],
)
def test_a_memory_is_found_in_the_words_of_who_asks(tmp_path: Path, text: str, question: str) -> None:
    analyst = indexed(tmp_path, memory(1, **{**QUIET, "verbatim": text}), memory(2, **QUIET))
    assert ids(analyst, question) == [1]


@pytest.mark.fast
def test_the_best_answer_comes_first(tmp_path: Path) -> None:
    def row(id_: int, **where: str) -> dict:
        return memory(id_, **{**QUIET, **where})

    rows = [
        row(1, file_path="payment_timeout.py"),
        row(2, verbatim="payment timeout"),
        row(3, gist="payment timeout"),
        row(4, gist="payment"),
        row(5, gist="payments timeouts"),
        row(6, gist="nothing of it"),
    ]
    found = indexed(tmp_path, *rows).search_archive("payment timeout", mode="words")
    assert [hit["id"] for hit in found] == [3, 2, 1, 5, 4]
    scores = [hit["score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert [score // 1000 for score in scores] == [2, 2, 2, 1, 0]


def test_what_stands_between_quotation_marks_is_found_as_it_stands(tmp_path: Path) -> None:
    rows = [
        memory(1, **{**QUIET, "verbatim": "reset of the connection"}),
        memory(2, **{**QUIET, "gist": "connection reset"}),
    ]
    analyst = indexed(tmp_path, *rows)
    assert ids(analyst, '"connection reset"') == [2]
    assert set(ids(analyst, "connection reset")) == {1, 2}
    assert ids(analyst, '"connection resets"') == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {1, 2, 3}),
        ({"project": 7}, {1}),
        ({"project": "Harbor"}, {2}),
        ({"project": "nowhere"}, set()),
        ({"since": "2024-02"}, {2, 3}),
        ({"until": "2024-01"}, {1}),
        ({"salience": "HIGH"}, {3}),
        ({"salience": ["HIGH", "LOW"]}, {2, 3}),
        ({"outcome": 0}, {2}),
        ({"outcome": -1}, {3}),
    ],
)
def test_filters_are_those_of_every_search(tmp_path: Path, filters: dict, expected: set[int]) -> None:
    rows = [
        memory(1, created_at="2024-01-05T00:00:00", salience="NOISE", outcome=1, project_id=7, project_name=None),
        memory(2, created_at="2024-02-05T00:00:00", salience="LOW", outcome=0, project_id=8, project_name="harbor"),
        memory(3, created_at="2024-03-05T00:00:00", salience="HIGH", outcome=-1, project_id=9, project_name=None),
    ]
    schema = pa.schema([*BASE, ("project_name", pa.string())])
    write_file(tmp_path, [row | {"verbatim": "needle"} for row in rows], schema=schema)
    WordIndex(tmp_path).update(Archive(tmp_path))
    analyst = RepoAnalyst(tmp_path)
    assert set(ids(analyst, "needle", **filters)) == set(ids(analyst, "needle", mode="exact", **filters)) == expected


@pytest.mark.parametrize("question", ["", "   ", "word " * 10_000, "x" * 2_000])
def test_what_is_no_question_is_one_clear_error(tmp_path: Path, question: str) -> None:
    analyst = indexed(tmp_path, memory(1))
    with pytest.raises(QueryError):
        analyst.search_archive(question)


@pytest.mark.parametrize(
    "question", ["\x00\x01", "a\x00b", '"', '""', "((", "AND OR NOT", "gist:x", "a*", "🙂", "-" * 30]
)
def test_no_question_is_a_command(both: RepoAnalyst, question: str) -> None:
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(both.search_archive(question, 5, tier="all"), list)


@pytest.mark.parametrize("limit", [0, 1, 10**12, 10**30])
def test_any_limit_is_kept(both: RepoAnalyst, limit: int) -> None:
    write_file(both.archive_base, [memory(100_000 + number, verbatim="zyzzyva") for number in range(5)])
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    assert len(ids(both, "zyzzyva", limit=limit, tier="all")) == min(limit, 5)


@pytest.mark.parametrize("mode", ["words", "exact"])
def test_a_number_that_can_be_no_id_is_a_projects_name(both: RepoAnalyst, mode: Mode) -> None:
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    for digits in (19, 20, 5_000):
        assert ids(both, "e", mode=mode, tier="all", project="9" * digits) == []


def test_of_several_versions_the_newest_is_given_once(tmp_path: Path) -> None:
    indexed(tmp_path, memory(1, verbatim="needle old", archived_at="2024-01-01T00:00:00"))
    newer = memory(1, verbatim="needle new", archived_at="2024-02-01T00:00:00")
    found = indexed(tmp_path, newer, name="memories_20240202_030405.parquet").search_archive("needle", mode="words")
    assert [row["content"] for row in found] == ["needle new"]


# The index and the archive


@pytest.fixture(scope="module")
def _indexed(_stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    db = Path(shutil.copy(_stores / "guardian.db", folder / "vidurai.db"))
    MemoryArchiver(db, folder / "archive", rows_per_file=400).flush()
    archive = Archive(folder / "archive")
    WordIndex(archive.root).update(archive)
    return folder


@pytest.fixture
def archive(_indexed: Path, tmp_path: Path) -> Archive:
    """An archive of three files with their index."""
    return Archive(shutil.copytree(_indexed, tmp_path / "guardian") / "archive")


def agrees(archive: Archive) -> bool:
    return search_index(archive).status == "ok"


def test_an_update_reads_only_what_came_and_drops_what_went(archive: Archive) -> None:
    words = WordIndex(archive.root)
    assert agrees(archive)
    assert (again := words.update(archive)).added == again.removed == 0
    write_file(archive.root, [memory(1, verbatim="zyzzyva")], month="2020-05")
    assert not agrees(archive)
    came = words.update(archive)
    assert (came.added, came.removed, came.documents) == (1, 0, again.documents + 1)
    shutil.rmtree(archive.root / "year=2020")
    went = words.update(archive)
    assert (went.added, went.removed, went.documents) == (0, 1, again.documents)
    assert agrees(archive)


def test_a_compaction_leaves_each_memory_in_it_once(archive: Archive) -> None:
    before = WordIndex(archive.root).update(archive)
    month = next(path for path in archive.root.glob("year=*/month=*"))
    old = month.parent.with_name("year=2020") / "month=01"
    old.parent.mkdir()
    month.rename(old)
    (archive.root / ".manifest.json").unlink(missing_ok=True)
    compact(archive, month="2020-01")
    after = WordIndex(archive.root).update(archive)
    assert after.documents == before.documents
    assert after.files < before.files
    assert agrees(archive)


def test_files_that_the_index_lacks_are_read(archive: Archive) -> None:
    write_file(archive.root, [memory(77_777, verbatim="zyzzyva pytest")], month="2020-05")
    with RepoAnalyst(archive.root) as analyst, pytest.warns(SearchIndexWarning, match="lacks 1 of 4 files"):
        assert ids(analyst, "zyzzyva", tier="all") == [77_777]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "meta.json").write_text("{}"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: [path.unlink() for path in folder.glob("*.term")],
        lambda folder: [
            os.truncate(path, path.stat().st_size // 2) for path in folder.glob("*.*") if path.stem != "meta"
        ],
        shutil.rmtree,
        lambda folder: folder.rename(folder.with_name("words-0")),
    ],
    ids=["garbage", "no list", "no terms", "truncated", "gone", "another version"],
)
def test_a_broken_index_is_worked_around_and_mended(archive: Archive, harm: Callable[[Path], object]) -> None:
    words = WordIndex(archive.root)
    (folder,) = words.folder.glob("words-*")
    harm(folder)
    with RepoAnalyst(archive.root) as analyst:
        with pytest.raises(SearchIndexError):
            analyst.search_archive("pytest", mode="words")
        with pytest.warns(SearchIndexWarning) if words.present() else contextlib.nullcontext():
            found = ids(analyst, "pytest", mode="auto")
        assert found == ids(analyst, "pytest", mode="exact")
        words.update(archive)
        assert agrees(archive)
        assert set(ids(analyst, "pytest", limit=9_999)) >= set(found)
    assert len(list(words.folder.glob("words-*"))) == 1


@pytest.mark.parametrize("suffix", ["term", "idx", "pos", "fast", "store", "fieldnorm"])
def test_changed_bytes_are_noticed_and_mended(archive: Archive, suffix: str) -> None:
    words = WordIndex(archive.root)
    (path, *_) = words.folder.glob(f"*/*.{suffix}")
    content = bytearray(path.read_bytes())
    for place in range(0, len(content) - 120, 7):
        content[place] ^= 0x55
    path.write_bytes(content)
    with RepoAnalyst(archive.root) as analyst, warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchIndexWarning)
        ids(analyst, "pytest faild", mode="auto")
    assert search_index(archive).status == "warning"
    words.update(archive, verify=True)
    assert search_index(archive).status == "ok"
    assert words.update(archive, verify=True).added == 0


def test_an_index_that_lost_memories_of_a_file_reads_it_again(archive: Archive) -> None:
    words = WordIndex(archive.root)
    key = next(iter(words.held()))
    writer = words.index.writer(15_000_000, 1)
    writer.delete_documents_by_term("file", key)
    writer.add_json(f'{{"file": "{key}", "gist": "x"}}')
    writer.commit()
    writer.wait_merging_threads()
    assert not agrees(archive)
    words.update(archive)
    assert agrees(archive)


def test_an_index_that_does_not_find_memories_is_noticed(archive: Archive) -> None:
    words = WordIndex(archive.root)
    writer = words.index.writer(15_000_000, 1)
    for key, rows in words.held().items():
        writer.delete_documents_by_term("file", key)
        for _ in range(rows):
            writer.add_json(json.dumps({"file": key, "id": [1], "text": "other words"}))
    writer.commit()
    writer.wait_merging_threads()
    assert words.lag(list_settled(archive.root), archive.manifests) == Lag([], [])
    assert "does not find 20 of 20" in search_index(archive).detail
    words.update(archive, rebuild=True)
    assert agrees(archive)


def test_two_updates_at_once_are_one_error_and_no_harm(archive: Archive) -> None:
    words = WordIndex(archive.root)
    writer = words.index.writer(15_000_000, 1)
    with pytest.raises(SearchIndexError, match="another process"):
        WordIndex(archive.root).update(archive)
    writer.wait_merging_threads()
    WordIndex(archive.root).update(archive)
    assert agrees(archive)


def test_what_updates_a_deleted_index_keeps_others_from_making_it_anew(archive: Archive) -> None:
    write_file(archive.root, [memory(77_777, verbatim="zyzzyva pytest")], month="2020-05")

    refused = []

    def delete(*_: object) -> None:
        WordIndex(archive.root).discard()
        with pytest.raises(SearchIndexError, match="another process") as error:
            WordIndex(archive.root).update(archive)
        refused.append(error)

    with pytest.raises(SearchIndexError):
        WordIndex(archive.root).update(archive, progress=delete)
    assert refused
    assert not WordIndex(archive.root).present()
    WordIndex(archive.root).update(archive)
    assert agrees(archive)


DYING = """
import os, sys
from pathlib import Path
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.cold.archive import Archive
archive = Archive(Path(sys.argv[1]))
WordIndex(archive.root).update(archive, rebuild=len(sys.argv) > 2, progress=lambda *_: os.kill(os.getpid(), 9))
"""


@pytest.mark.parametrize("arguments", [[], ["rebuild"]], ids=["update", "rebuild"])
def test_an_update_that_dies_is_worked_around_and_mended(archive: Archive, arguments: list[str]) -> None:
    write_file(archive.root, [memory(77_777, verbatim="zyzzyva pytest")], month="2020-05")
    died = subprocess.run([sys.executable, "-c", DYING, str(archive.root), *arguments], check=False)
    assert died.returncode == -signal.SIGKILL
    with RepoAnalyst(archive.root) as analyst, pytest.warns(SearchIndexWarning):
        assert ids(analyst, "zyzzyva", mode="auto") == [77_777]
    WordIndex(archive.root).update(archive)
    assert agrees(archive)
    assert ids(RepoAnalyst(archive.root), "zyzzyva") == [77_777]


def test_an_encrypted_archive_has_no_index(archive: Archive, tmp_path: Path) -> None:
    encrypted = Archive(archive.root, keys=KeyRing(tmp_path / "keys"))
    with pytest.raises(SearchIndexError, match="encrypted"):
        WordIndex(archive.root).update(encrypted)
    assert not (archive.root / ".index").exists()


# Both tiers


def test_both_tiers_are_one_ranking(both: RepoAnalyst) -> None:
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    everywhere = both.search_archive("pytest failed", 50, tier="all", mode="words")
    assert {row["tier"] for row in everywhere} == {"hot", "cold"}
    assert [row["score"] for row in everywhere] == sorted((row["score"] for row in everywhere), reverse=True)
    alone = {row["id"] for tier in ("hot", "cold") for row in both.search_archive("pytest failed", 50, tier=tier)}
    assert {row["id"] for row in everywhere} <= alone


def test_hot_memories_that_the_stores_own_index_lacks_are_found(both: RepoAnalyst) -> None:
    db = both.archive_base.parent / "vidurai.db"
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    id_ = 900_001
    change(
        db,
        "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, created_at) "
        f"VALUES ({id_}, 1, 'zyzzyva', 'chat', 'LOW', 'g', '2024-01-01T00:00:00')",
    )
    assert ids(both, "zyzzyva", tier="all") == [id_]
    assert ids(both, "zyzzyva", tier="hot") == [id_]
    assert ids(both, "zyzzyva", tier="hot", salience="HIGH") == []


def test_a_memory_in_both_tiers_is_given_once(both: RepoAnalyst) -> None:
    WordIndex(both.archive_base).update(Archive(both.archive_base))
    copy = both.query_archive("SELECT id, created_at, verbatim, gist FROM history LIMIT 1")[0]
    db = both.archive_base.parent / "vidurai.db"
    change(
        db,
        "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, created_at) "
        f"VALUES ({copy['id']}, 1, 'zyzzyva', 'chat', 'LOW', 'g', '{copy['created_at']}')",
    )
    words = copy["gist"]
    found = [
        row["tier"] for row in both.search_archive(words, 999, tier="all", mode="words") if row["id"] == copy["id"]
    ]
    assert found in (["hot"], [])


# The command line


@pytest.fixture(params=[1, 10**9], ids=["beside the flush", "after it"])
def indexing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a flush updates the index."""
    monkeypatch.setattr(FlushIndexing, "rows_worth_a_process", request.param)


def test_a_flush_keeps_the_index(home: Path, indexing: None) -> None:
    assert cli("flush").returncode == 0
    assert search_index(Archive(home / "archive")).detail.startswith("1,148 memories")
    change(home / "vidurai.db", "UPDATE memories SET status = 'ARCHIVED' WHERE id IN (SELECT max(id) FROM memories)")
    assert cli("flush").returncode == 0
    assert search_index(Archive(home / "archive")).detail.startswith("1,149 memories")
    done = cli("search", "how", "did", "pytest", "fial", "--mode", "words", "--limit", "3")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert cli("index", "--rebuild", "--format", "json").returncode == 0


def test_a_flush_succeeds_where_the_index_cant_be_written(home: Path, indexing: None) -> None:
    (home / "archive").mkdir()
    (home / "archive" / ".index").write_text("in the way")
    done = cli("flush")
    assert done.returncode == 0
    assert "the search index was not updated" in done.stderr + done.stdout


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_a_flush_that_fails_ends_what_updates_the_index(home: Path) -> None:
    before = children()
    with contextlib.suppress(KeyboardInterrupt), FlushIndexing(load_settings(), lambda *_: None) as indexing:
        indexing.progress("archiving", 0, 10**9)
        assert len(children() - before) == 1
        raise KeyboardInterrupt
    assert children() == before


def test_a_search_without_an_index_says_so_once(home: Path) -> None:
    MemoryArchiver(home / "vidurai.db", home / "archive").flush()
    done = cli("search", "pytest", "--limit", "9999")
    assert done.stderr == "note: there is no search index: `vidurai-pipeline index` makes one\n"
    refused = cli("search", "pytest", "--mode", "words")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: there is no search index")


def test_an_unknown_project_is_named_with_those_of_similar_names(home: Path) -> None:
    assert cli("flush").returncode == 0
    change(home / "vidurai.db", "UPDATE projects SET name = 'harbor' WHERE id = 1")
    assert cli("search", "zyzzyva", "--project", "harbor").stderr.startswith("no memory matches\n")
    done = cli("search", "pytest", "--project", "habor")
    assert done.returncode == 0
    assert done.stderr.startswith("there is no memory of a project 'habor'; did you mean harbor?\n")
    assert "did you mean" not in cli("search", "pytest", "--project", "nope").stderr


def test_times_that_leave_no_time_are_refused(home: Path) -> None:
    done = cli("search", "pytest", "--since", "2026-12", "--until", "2026-10")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nothing is since 2026-12 and until 2026-10: since must be the earlier time\n"


LANGUAGES = [
    ("der Absturz beim Löschen der Größentabelle", "warum gab es einen absturz beim loschen"),
    ("la requête échoue après l'expiration du jeton", "pourquoi la requete echoue"),
    ("утечка памяти в обработчике очереди", "утечка памяти"),
    ("修复了登录页面的崩溃", "登录 崩溃"),
    ("キャッシュの無効化に失敗した", "キャッシュ 失敗"),
    ("로그인 토큰 만료 오류를 고쳤다", "토큰 만료"),
    ("إصلاح انهيار صفحة الدخول", "انهيار صفحة"),
    ("pylint E1101 on Widget.width", "e1101"),
    ("exit code 0x80070005 in update", "0x80070005"),
]


@pytest.mark.parametrize("tier", ["cold", "hot"])
def test_questions_in_many_languages_are_answered_in_both_tiers(home: Path, tier: Tier) -> None:
    status = "ACTIVE" if tier == "hot" else "ARCHIVED"
    for number, (text, _) in enumerate(LANGUAGES, 900_000):
        quoted = text.replace("'", "''")
        change(
            home / "vidurai.db",
            "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, created_at, status) "
            f"VALUES ({number}, 1, '{quoted}', 'chat', 'LOW', 'note', '2024-01-01', '{status}')",
        )
    assert cli("flush").returncode == 0
    with RepoAnalyst() as analyst:
        found = [next(iter(ids(analyst, question, tier=tier, limit=3)), None) for _, question in LANGUAGES]
    assert found == list(range(900_000, 900_000 + len(LANGUAGES)))
