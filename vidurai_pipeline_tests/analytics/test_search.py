import datetime as dt
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import HIT, pattern, snippet
from vidurai_pipeline.errors import QueryError
from vidurai_pipeline_tests.support.archives import REFERENCE, memory, write_file

# These are about searches that read every memory; most of them have no index to use.


def ids(analyst: RepoAnalyst, words: str, **filters) -> list[int]:
    return [row["id"] for row in analyst.search_archive(words, **filters)]


def searchable(tmp_path: Path, *texts: str, **columns) -> RepoAnalyst:
    write_file(tmp_path, [memory(i, verbatim=text, **columns) for i, text in enumerate(texts)])
    return RepoAnalyst(tmp_path)


def test_all_words_must_match_somewhere(tmp_path: Path):
    rows = [
        memory(1, verbatim="fix the AUTH token", gist="x"),
        memory(2, verbatim="fix", gist="auth"),
        memory(3, verbatim="fix", file_path="src/auth.py"),
        memory(4, verbatim="fix", tags='["auth"]'),
        memory(5, verbatim="auth only"),
        memory(6, verbatim="fix", gist=None, tags=None, file_path=None),
    ]
    write_file(tmp_path, rows)
    assert set(ids(RepoAnalyst(tmp_path), "Fix auth")) == {1, 2, 3, 4}
    assert ids(RepoAnalyst(tmp_path), "fix auth token") == [1]
    assert ids(RepoAnalyst(tmp_path), "missing") == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ПРИВЕТ мир", "привет"),
        ("Größe", "GRÖßE"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("οδυσσευς", "ΟΔΥΣΣΕΥΣ"),
        ("naïve", "NAÏVE"),
        ("nai\u0308ve", "naïve"),
        ("na\u00efve", "nai\u0308ve"),
        ("認証トークン", "認証"),
        ("مرحبا بالعالم", "مرحبا"),
        ("ĄĆĘ", "ąćę"),
        ("\uff21\uff22\uff23", "\uff41\uff42\uff43"),
        ("emoji 😀 here", "😀"),
        ("ԲԱՐԵՎ", "բարեվ"),
    ],
)
def test_case_does_not_matter_in_any_script(tmp_path: Path, text: str, word: str):
    analyst = searchable(tmp_path, text, "something else")
    (row,) = analyst.search_archive(word)
    assert row["id"] == 0
    assert HIT[0] in row["snippet"]


@pytest.mark.parametrize(
    ("word", "matching", "other"),
    [
        ("100%", "it is 100% done", "it is 1000 done"),
        ("a_b", "call a_b()", "call axb()"),
        ("it's", "it's here", "its here"),
        ('"x"', 'say "x"', "say x"),
        ("a.b", "a.b", "axb"),
        ("a*", "a*", "aaa"),
        ("[ab]", "[ab]", "a"),
        ("(?i)x", "(?i)x", "x"),
        ("\\d", "\\d", "7"),
        ("\\", "back\\slash", "none"),
        ("a|b", "a|b", "a"),
        ("^a", "^a", "a"),
        ("x$", "x$", "x"),
        ("$word_0", "$word_0", "x"),
        ("--", "-- comment", "x"),
        ("';DROP", "';DROP TABLE", "x"),
        ("a\x00b", "a\x00b", "ab"),
        ("\\Qx\\E", "\\Qx\\E", "x"),
        ("{2}", "a{2}", "aa"),
    ],
)
def test_words_are_plain_text(tmp_path: Path, word: str, matching: str, other: str):
    analyst = searchable(tmp_path, other, matching, file_path=None, gist="", tags="[]")
    assert ids(analyst, word) == [1]


@pytest.mark.parametrize("word", ['"', "[", "]", ",", '","', '["a'])
def test_the_json_around_tags_is_no_text(tmp_path: Path, word: str):
    bare = {"verbatim": "v", "gist": "g", "file_path": "f"}
    write_file(tmp_path, [memory(1, tags='["a","b"]', **bare), memory(2, tags=json.dumps([f"x{word}y"]), **bare)])
    assert ids(RepoAnalyst(tmp_path), word) == [2]


def test_tags_are_searched_as_they_read_not_as_they_are_stored(tmp_path: Path):
    tags = json.dumps(["naïve", "日本"])
    assert "\\u" in tags
    write_file(tmp_path, [memory(1, tags=tags), memory(2, tags="broken \\u json"), memory(3, tags='{"a": "\\u00ef"}')])
    analyst = RepoAnalyst(tmp_path)
    (row,) = analyst.search_archive("NAÏVE 日本")
    assert (row["id"], row["snippet"]) == (1, "«naïve», «日本»")
    assert ids(analyst, "broken") == [2]


def test_the_most_relevant_come_first_then_the_newest(tmp_path: Path):
    rows = [
        memory(1, verbatim="auth", created_at="2024-01-01T00:00:00"),
        memory(2, verbatim="auth", created_at="2024-01-03T00:00:00"),
        memory(3, verbatim="auth", created_at=None),
        memory(4, verbatim="auth", gist="the author", created_at="2024-01-01T00:00:00"),
        memory(5, verbatim="auth", gist="the auth flow", created_at="2024-01-01T00:00:00"),
        memory(6, verbatim="auth", file_path="auth.py", created_at="2024-01-01T00:00:00"),
    ]
    write_file(tmp_path, rows)
    analyst = RepoAnalyst(tmp_path)
    assert ids(analyst, "auth") == [5, 4, 6, 2, 1, 3]
    assert ids(analyst, "auth", limit=2) == [5, 4]
    assert ids(analyst, "auth", limit=0) == []


def test_filters(tmp_path: Path):
    rows = [
        memory(1, project_id=1, created_at="2024-03-01T00:00:00", salience="HIGH", outcome=1),
        memory(2, project_id=2, created_at="2024-03-31 23:59:59", salience="low", outcome=-1),
        memory(3, project_id=2, created_at="2024-04-01T00:00:00.5", salience="NOISE", outcome=0),
        memory(4, project_id=None, created_at="never", salience=None, outcome=None),
    ]
    write_file(tmp_path, rows)
    analyst = RepoAnalyst(tmp_path)

    def found(**filters) -> set[int]:
        return set(ids(analyst, "memory", **filters))

    assert found() == {1, 2, 3, 4}
    assert found(project=2) == {2, 3}
    assert found(since="2024-03-31") == {2, 3}
    assert found(since=dt.date(2024, 3, 2), until="2024-04-01") == {2}
    assert found(until=dt.datetime(2024, 3, 1, 0, 0, 1)) == {1}
    assert found(since="2024-04-01T02:00:00+02:00") == {3}
    assert found(salience="high") == {1}
    assert found(salience=["LOW", "noise"]) == {2, 3}
    assert found(outcome=0) == {3}
    assert found(project=2, salience="LOW", outcome=-1, since="2024-01-01", until="2025-01-01") == {2}


@pytest.mark.parametrize(
    ("words", "filters", "said"),
    [
        ("", {}, "at least one word"),
        (" \n\t", {}, "at least one word"),
        ("x", {"limit": -1}, "negative"),
        ("x", {"since": "last spring"}, "since can't be read as a time: .* write it like 7d, 2w, today"),
        ("x", {"until": "2024-13-01"}, "until can't be read as a time"),
        ("x", {"until": "9999-12-31T23:59:59-14:00"}, "until is not within the years 1 to 9999"),
        ("x", {"since": "0001-01-01T00:00:00+14:00"}, "since is not within the years 1 to 9999"),
        ("x", {"salience": "HIHG"}, "no salience 'HIHG'"),
        ("x " * 600, {}, "1000 characters"),
        (" ".join(map(str, range(40))), {}, "32 words"),
        ("\ud800", {}, "no text can hold"),
    ],
)
@pytest.mark.parametrize("archive", [REFERENCE, REFERENCE / "nothing"])
def test_what_can_not_be_searched_for_is_an_error(archive: Path, words: str, filters: dict, said: str):
    with pytest.raises(QueryError, match=said):
        RepoAnalyst(archive).search_archive(words, **filters)


def test_a_result_has_what_a_reader_needs():
    rows = RepoAnalyst(REFERENCE).search_archive("retry_later NAÏVE", 5)
    assert len(rows) == 5
    assert list(rows[0]) == [
        "id",
        "snippet",
        "content",
        "gist",
        "salience",
        "outcome",
        "project_id",
        "project_name",
        "file_path",
        "event_type",
        "tags",
        "created_at",
        "archived_at",
        "score",
    ]
    assert all("«retry_later»" in row["snippet"] for row in rows)


def test_snippets_show_the_first_hit_on_one_line():
    text = "word " * 100 + "the\n\tNeedle is here " + "word " * 100
    cut = snippet([text, "gist"], "needle")
    assert "the «Needle» is here" in cut
    assert cut.startswith("…")
    assert cut.endswith("…")
    assert len(cut) < 200
    assert snippet(["nothing", None, "a Needle"], "needle") == "a «Needle»"
    assert snippet(["a b"], "b a") == "«a» «b»"
    assert snippet(["text of the memory"], "zzz") == "text of the memory"
    assert snippet([None, ""], "zzz") == ""
    assert len(snippet(["x" * 1000], "x" * 400)) > 400


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(lambda text: text.split())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT, other=ANY_TEXT)
def test_any_text_finds_itself_and_is_never_a_pattern(text: str, other: str):
    """Whatever is typed, it finds the memory that holds it; and nothing that doesn't hold it."""
    with tempfile.TemporaryDirectory() as folder:
        bare = {"gist": "", "tags": None, "file_path": None}
        write_file(
            Path(folder), [memory(1, verbatim=f"before {text} after", **bare), memory(2, verbatim=other, **bare)]
        )
        with RepoAnalyst(Path(folder)) as analyst:
            found = ids(analyst, text)
            snippet_of = analyst.search_archive(text, 1)[0]["snippet"]
    assert 1 in found
    assert snippet_of
    if 2 in found:  # then each word's letters are there, one by one, whatever their case
        folded = {*other, *other.lower(), *other.upper(), *other.casefold(), *other.swapcase()}
        assert all(set(word.casefold()) & {c for f in folded for c in f.casefold()} for word in text.split())


@settings(max_examples=100, deadline=None)
@given(
    word=st.text("ab%_.*+?()[]{}|^$\\'\"-&~#@ 0é", min_size=1, max_size=8).filter(lambda word: word.split() == [word])
)
def test_escaped_words_match_only_themselves(word: str):
    # Python's syntax agrees with RE2's for what is escaped.
    assert re.fullmatch(pattern(word), word)
    assert not re.fullmatch(pattern(word), word + "a")
    assert not re.search(pattern(word), word[1:] + "b" * len(word) if word[0] not in word[1:] + "b" else "")
