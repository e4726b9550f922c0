"""The search by meaning: what it finds that words don't, and that its vectors follow every change of the archive."""

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from vidurai_pipeline.analytics import embeddings
from vidurai_pipeline.analytics.embeddings import EmbeddingModel, load_model
from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Mode
from vidurai_pipeline.analytics.vector_index import VectorIndex
from vidurai_pipeline.analytics.vectors import Vectors, nearest, whole_numbers
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.archival.eraser import MemoryEraser
from vidurai_pipeline.care.compaction import compact
from vidurai_pipeline.care.health import search_index
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.cold.keys import KeyRing
from vidurai_pipeline.errors import SearchIndexError, SearchIndexWarning
from vidurai_pipeline_tests.support.archives import BASE, memory, write_file

#: Texts, and questions that share no telling word with the one that they ask for.
PARAPHRASES = {
    "Login fails after the session expired": "users are signed out unexpectedly",
    "The database runs out of connections under load": "postgres refuses new clients when traffic is high",
    "Images are resized before upload to save bandwidth": "why do we shrink pictures",
    "Rounding happens twice, so invoices are off by a cent": "money amounts are slightly wrong",
    "The nightly backup did not run for three days": "data was not saved at night",
    "Memory grows until the kernel kills the worker": "process leaks RAM",
    "Clocks on the boats drift by a few seconds": "time synchronisation problem on ships",
    "We chose Rust over C++ for the parser": "which language was picked and why",
    "The test passes locally but fails on the build server": "flaky CI",
    "Customers can't pay with an expired card": "purchase declined",
    "The dark theme has too little contrast": "colours are hard to read",
    "Deleting an account leaves rows in the audit table": "removing a user keeps orphaned records",
    "The cache returns stale prices for an hour": "outdated values are shown to shoppers",
    "Emails to Gmail end up in the spam folder": "our messages are marked as junk",
    "The API limits each client to ten requests a second": "throttling",
    "Translate the settings page into German": "localise preferences for other languages",
    "The map shows the wrong harbour for Oslo": "incorrect geographic location",
    "Passwords are hashed with argon2": "how are credentials protected",
    "Searching takes eight seconds on a phone": "slow lookup on mobile devices",
    "The certificate of the web server has run out": "TLS is no longer valid",
    "Two workers took the same job from the queue": "race condition, task done twice",
    "The export writes commas into unquoted fields": "CSV file is malformed",
    "Undo does not bring back a removed drawing": "can't revert deletion of a sketch",
    "The recording stops when the screen is locked": "audio capture ends if the display turns off",
    "Screen readers skip the menu button": "accessibility for blind people",
    "The installer needs administrator rights": "setup asks for elevated privileges",
    "The index was dropped, so each query scans the table": "select statements became sluggish",
    "Users in Brazil see dates in American order": "month and day are swapped",
    "The disk filled up with old log files": "no space left because of verbose traces",
    "Firefox blocks the pop-up with the receipt": "browser does not open the new window",
    "The license forbids commercial use": "are we allowed to sell this",
    "Sensors lose their calibration in the cold": "measurements are off at low temperature",
}


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load_model(None)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, model: EmbeddingModel) -> RepoAnalyst:
    """An archive of the texts above, in which memory 0 is the first."""
    root = tmp_path_factory.mktemp("texts")
    rows = [memory(number, gist="", verbatim=text, tags="[]") for number, text in enumerate(PARAPHRASES)]
    schema = pa.schema([*BASE, ("project_name", pa.string())])
    write_file(root, [row | {"project_name": f"p{row['id'] % 2}"} for row in rows], schema=schema)
    indexed(root, model)
    return RepoAnalyst(root)


def indexed(root: Path, model: EmbeddingModel | None, seconds: float = 600.0) -> VectorIndex:
    WordIndex(root).update(Archive(root))
    index = VectorIndex(root)
    index.update(Archive(root), model, seconds=seconds)
    return index


def stored(index: VectorIndex) -> dict[int, bytes]:
    """The vectors by the digest of their memory."""
    return {
        version: row.tobytes()
        for part in index.held().values()
        for version, row in zip(part.versions.tolist(), part.values, strict=True)
    }


def ids(analyst: RepoAnalyst, question: str, limit: int = 5, mode: Mode = "meaning", **options) -> list[int]:
    return [row["id"] for row in analyst.search_archive(question, limit, mode=mode, **options)]


# The model


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        ("Login fails after the session expired", "users are signed out unexpectedly", 0.499),
        ("Login fails after the session expired", "a recipe for apple pie", 0.025),
        ("The database runs out of connections", "ERR_CONNECTION_RESET in src/net/socket.ts", 0.366),
        ("x", "認証トークンの期限が切れた", 0.257),
        ("memory", "Fixed the crash in watchRecipe: " + "the parser read beyond the end of the buffer. " * 40, 0.191),
    ],
)
def test_texts_are_as_near_as_the_original_model_says(
    model: EmbeddingModel, one: str, other: str, cosine: float
) -> None:
    """The numbers are those of all-MiniLM-L6-v2 in 32 bits, of at most 256 tokens."""
    vectors = model.embed([one, other])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-3)
    assert float(vectors[0] @ vectors[1]) == pytest.approx(cosine, abs=0.015)


def test_a_vector_does_not_depend_on_what_is_embedded_beside_it(model: EmbeddingModel) -> None:
    together = model.embed(["short", "a much longer text than the other one " * 20])
    assert np.allclose(together[0], model.embed(["short"])[0], atol=0.01)


@pytest.mark.parametrize("text", ["", "\x00\x01\x1b[0m", "🙂" * 300, "a" * 1_000_000, "\u202eعربى", "x\ufffdy"])
def test_any_text_has_a_vector(model: EmbeddingModel, text: str) -> None:
    assert np.linalg.norm(model.embed([text])[0]) == pytest.approx(1.0, abs=1e-3)


def test_a_models_folder_is_used(tmp_path: Path, model: EmbeddingModel) -> None:
    for package in embeddings.PACKAGES:
        (place,) = sys.modules["importlib.util"].find_spec(package).submodule_search_locations
        for name in ("model.onnx", "tokenizer.json"):
            for path in Path(place).rglob(name):
                (tmp_path / name).symlink_to(path)
    assert load_model(str(tmp_path)).digest == model.digest


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{tmp}", "lacks model.onnx and tokenizer.json"),
        ("{tmp}/nowhere", "neither a folder nor an installed package"),
        ("no_such_package", "neither a folder nor an installed package"),
        ("../json", "neither a folder nor an installed package"),
        ("json", "lacks model.onnx"),
        ("{tmp}/broken", "can't be used as an embedding model"),
    ],
)
def test_what_is_no_model_is_one_clear_line(tmp_path: Path, setting: str, message: str) -> None:
    (tmp_path / "broken").mkdir()
    if "broken" in setting:
        for name in ("model.onnx", "tokenizer.json"):
            (tmp_path / "broken" / name).write_text("{}")
    with pytest.raises(SearchIndexError, match=message) as failed:
        load_model(setting.format(tmp=tmp_path))
    assert "\n" not in str(failed.value)
    assert "VIDURAI_EMBED_MODEL" in str(failed.value)


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    write_file(tmp_path, [memory(1)])
    load = EmbeddingModel
    with (
        mock.patch.object(embeddings, "_loaded", load),
        pytest.raises(SearchIndexError, match=r"pip install .vidurai-pipeline\[semantic\]"),
    ):
        RepoAnalyst(tmp_path).search_archive("anything", mode="meaning")


# What is found


def test_a_question_finds_what_it_means(texts: RepoAnalyst) -> None:
    """Words find next to nothing of it: the questions were written to share none with the texts."""
    modes: tuple[Mode, ...] = ("words", "meaning", "auto")
    found = {mode: [ids(texts, question, 10, mode) for question in PARAPHRASES.values()] for mode in modes}
    recall = {mode: np.mean([number in hits for number, hits in enumerate(lists)]) for mode, lists in found.items()}
    first = np.mean([hits[0] == number for number, hits in enumerate(found["meaning"])])
    assert recall["words"] < 0.4
    assert recall["meaning"] > 0.95
    assert first > 0.8
    assert recall["auto"] > 0.85


def test_what_the_words_find_stays_found(texts: RepoAnalyst) -> None:
    for number, text in enumerate(PARAPHRASES):
        assert ids(texts, text, 3, "auto")[0] == number
    assert ids(texts, "argon2", 1, "auto") == [17]


def test_a_score_is_the_cosine_and_falls(texts: RepoAnalyst) -> None:
    scores = [row["score"] for row in texts.search_archive("TLS is no longer valid", mode="meaning")]
    assert scores == sorted(scores, reverse=True)
    assert 0.3 < scores[0] <= 1.0


def test_filters_hold_before_the_nearest_are_picked(texts: RepoAnalyst) -> None:
    question = "our messages are marked as junk"
    assert ids(texts, question, 1) == [13]
    assert ids(texts, question, 1, project="p1") == [13]
    other = ids(texts, question, 40, project="p0")
    assert sorted(other) == list(range(0, len(PARAPHRASES), 2))
    assert ids(texts, question, since="2099") == []


@pytest.mark.parametrize("question", ["\x00", "🙂", "word " * 30, '"', "认证"])
def test_no_question_is_too_strange(texts: RepoAnalyst, question: str) -> None:
    for mode in ("meaning", "auto"):
        assert isinstance(ids(texts, question, mode=mode), list)


def test_sql_asks_for_what_is_similar(texts: RepoAnalyst) -> None:
    sql = "SELECT id, similarity FROM similar_memories(?, 3) WHERE similarity > 0.2 ORDER BY similarity DESC"
    rows = texts.query_archive(sql, ["TLS is no longer valid"])
    assert rows[0]["id"] == 19
    assert len(rows) <= 3
    joined = "SELECT count(*) AS n FROM similar_memories('flaky CI') JOIN history USING (id)"
    assert texts.query_archive(joined)[0]["n"] == 20


def test_what_is_hidden_takes_no_place_among_what_is_similar(texts: RepoAnalyst) -> None:
    sql = "SELECT id FROM similar_memories('TLS is no longer valid', 1)"
    assert texts.query_archive(sql) == [{"id": 19}]
    (found,) = RepoAnalyst(texts.archive_base, exclude_projects=["p1"]).query_archive(sql)
    assert found["id"] % 2 == 0


# The index and the archive


@pytest.fixture
def archive(tmp_path: Path, model: EmbeddingModel) -> Archive:
    """Two files of a past month, with vectors."""
    for number in range(2):
        rows = [memory(10 * number + one, gist=f"g{number} {one}") for one in range(3)]
        write_file(tmp_path, rows, name=f"memories_2024010{number + 1}_030405.parquet")
    indexed(tmp_path, model)
    return Archive(tmp_path)


def test_only_new_memories_are_embedded(archive: Archive, model: EmbeddingModel) -> None:
    index = VectorIndex(archive.root)
    again = index.update(archive, model, seconds=600)
    assert (again.vectors, again.memories, again.embedded, again.removed) == (6, 6, 0, 0)
    write_file(archive.root, [memory(77)], month="2020-05")
    assert index.update(archive, model, seconds=600).embedded == 1
    shutil.rmtree(archive.root / "year=2020")
    assert search_index(archive).status == "warning"
    gone = index.update(archive, model, seconds=600)
    assert (gone.vectors, gone.removed) == (6, 1)
    assert all(path.stat().st_mode & 0o077 == 0 for path in index.folder.iterdir())


def test_a_compaction_keeps_the_vectors(archive: Archive, model: EmbeddingModel) -> None:
    index = VectorIndex(archive.root)
    before = stored(index)
    compact(archive, month="2024-12")
    assert len(list(archive.root.rglob("memories_*.parquet"))) == 1
    report = index.update(archive)
    assert (report.moved, report.embedded, report.removed, report.vectors) == (6, 0, 2, 6)
    assert stored(index) == before


def test_a_night_embeds_as_long_as_it_may_and_the_next_one_goes_on(tmp_path: Path, model: EmbeddingModel) -> None:
    for month in ("2024-01", "2024-02"):
        write_file(tmp_path, [memory(int(month[-1]) * 100 + one) for one in range(12)], month=month)
    embedded: list[int] = []

    def embed(texts: list[str]) -> np.ndarray:
        embedded.append(len(texts))
        return np.ones((len(texts), model.dimensions), np.float32) / model.dimensions**0.5

    def now() -> float:
        """A second for each text."""
        return float(sum(embedded))

    index = VectorIndex(tmp_path)
    with mock.patch.object(model, "embed", embed), mock.patch("time.monotonic", now):
        first = index.update(Archive(tmp_path), model, seconds=15)
        assert (first.vectors, first.memories) == (20, 24)
        assert set(max(index.held().values(), key=len).ids.tolist()) == set(range(200, 212))
        second = index.update(Archive(tmp_path), model, seconds=1_000)
    assert (second.embedded, second.vectors) == (4, 24)


def test_vidurais_own_vectors_are_taken(tmp_path: Path, model: EmbeddingModel) -> None:
    vector = model.embed(["a recipe for apple pie"])[0]
    stored = pa.field("vec_memories", pa.list_(pa.struct([("embedding", pa.binary())])))
    rows = [
        memory(1) | {"vec_memories": [{"embedding": struct.pack("<384f", *(3 * vector))}]},
        memory(2) | {"vec_memories": []},
        memory(3) | {"vec_memories": [{"embedding": b"of another length"}]},
    ]
    write_file(tmp_path, rows, schema=pa.schema([*BASE, stored]))
    index = VectorIndex(tmp_path)
    report = index.update(Archive(tmp_path), model, seconds=600)
    assert (report.taken, report.embedded) == (1, 2)
    (hit,) = index.nearest(vector, 1, model.digest)
    assert hit.id == 1
    assert hit.similarity == pytest.approx(1.0, abs=0.01)


def test_another_model_begins_anew(archive: Archive, model: EmbeddingModel) -> None:
    index = VectorIndex(archive.root)
    with mock.patch.object(model, "digest", "another"):
        with pytest.raises(SearchIndexError, match="no vectors"):
            index.nearest(model.embed(["x"])[0], 1, model.digest)
        report = index.update(archive, model, seconds=600)
    assert (report.embedded, report.vectors) == (6, 6)


@pytest.mark.parametrize("harm", [lambda _: b"", lambda content: content[: len(content) // 2], lambda _: b"ARROW1"])
def test_a_broken_file_is_said_and_made_anew(
    archive: Archive, model: EmbeddingModel, harm: Callable[[bytes], bytes]
) -> None:
    index = VectorIndex(archive.root)
    path = next(index.folder.glob("*.arrow"))
    path.write_bytes(harm(path.read_bytes()))
    (index.folder / f".{path.name}.x.part").write_text("of a killed process")
    with RepoAnalyst(archive.root) as analyst:
        with pytest.raises(SearchIndexError, match="damaged"):
            ids(analyst, "g1")
        with pytest.warns(SearchIndexWarning, match="words alone"):
            assert ids(analyst, "g1", mode="auto")
    assert search_index(archive).status == "warning"
    report = index.update(archive, model, seconds=600)
    assert (report.embedded, report.vectors) == (3, 6)
    assert search_index(archive).status == "ok"
    assert not list(index.folder.glob("*.part"))


def test_an_encrypted_archive_has_no_vectors(archive: Archive, tmp_path: Path, model: EmbeddingModel) -> None:
    encrypted = Archive(archive.root, keys=KeyRing(tmp_path / "keys"))
    assert VectorIndex(archive.root).update(encrypted, model, seconds=600).vectors == 0
    assert not VectorIndex(archive.root).exists()


def test_a_memory_without_text_is_near_to_nothing(tmp_path: Path, model: EmbeddingModel) -> None:
    write_file(tmp_path, [memory(1, gist="", verbatim=""), memory(2, gist="apple pie")])
    index = indexed(tmp_path, model)
    assert index.nearest(model.embed(["apple pie"])[0], 5, model.digest)[0].id == 2
    assert index.update(Archive(tmp_path), model, seconds=600).embedded == 0


def test_an_erasure_takes_the_vectors_along(sample_store: Callable[[str], Path], model: EmbeddingModel) -> None:
    db = sample_store("guardian")
    MemoryArchiver(db, db.parent / "archive").flush()
    archive = Archive(db.parent / "archive")
    index, rng = VectorIndex(archive.root), np.random.default_rng(0)
    with mock.patch.object(model, "embed", lambda texts: rng.standard_normal((len(texts), 384)).astype(np.float32)):
        assert (report := index.update(archive, model, seconds=600)).vectors == report.memories
    before = stored(index)
    first = next(iter(index.held().values()))
    gone, id_ = first.versions.tolist()[0], first.ids.tolist()[0]
    places = {place.place: place for place in MemoryEraser(db, archive.root).erase([id_]).places}
    assert (places["search index: vectors"].found, places["search index: vectors"].how) == (1, "erased")
    vector = before.pop(gone)
    assert stored(index) == before
    assert not [path for path in (archive.root / ".index").rglob("*") if path.is_file() and vector in path.read_bytes()]


# Many vectors


def test_of_many_vectors_the_nearest_are_found() -> None:
    """Recall against the comparison of all, of texts that lie in groups as real ones do."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((300, 384))
    texts = groups[rng.integers(0, 300, 20_000)] + 0.7 * rng.standard_normal((20_000, 384))
    numbers = np.arange(len(texts))
    values = whole_numbers((texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32))
    plain = Vectors(numbers, numbers, numbers.astype(np.uint64), values)
    recalls = []
    for text in texts[:50]:
        question = text + 0.3 * rng.standard_normal(384)
        question = (question / np.linalg.norm(question)).astype(np.float32)
        cosines = values.astype(np.float32) @ question / np.linalg.norm(values.astype(np.float32), axis=1)
        best = set(np.argsort(-cosines)[:10].tolist())
        ((part, scores),) = nearest([plain.with_signs()], question, 10)
        assert scores.tolist() == pytest.approx(np.sort(cosines)[::-1][:10].tolist(), abs=0.05)
        recalls.append(len(best & set(part.ids.tolist())) / 10)
    assert np.mean(recalls) > 0.97
