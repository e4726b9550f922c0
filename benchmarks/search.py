"""How well, and how fast, a search finds what was asked for: by the search index and by reading every memory.

    python -m benchmarks.search [--rows 20000] [--questions 120]

The questions are made from memories of the sample store, each in four ways: a person's question, the name written in
another style, a typo, and the words as they stand. The answers are all memories about the same name and, where the
question says so, of the same kind. recall@10 is the share of the answers (10 at most) among the first ten hits; MRR is
the mean of one over the place of the first answer.
"""

import argparse
import random
import re
import statistics
import tempfile
import time
import warnings
from pathlib import Path

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Mode
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.hot.sample_store import make_store

AMONG = 10
#: Gists of the sample store, and what a person may ask for them.
KINDS = {
    r"(\w+) crashed on an? (\w+):": "why did {name} crash on the {noun}",
    r"(\w+) guards the (\w+),": "where does {name} guard the {noun}",
    r"fix\(.*\): (\w+) keeps the (\w+)": "what did we fix so that {name} keeps the {noun}",
    r"Decided: (\w+) stays synchronous, (\w+) behind": "what was decided on {name} and the {noun}",
}
WAYS = ("question", "other style", "typo", "as it stands")


def other_style(name: str) -> str:
    """A name in snake_case for one in camelCase, and the other way round."""
    if "_" in name:
        first, *rest = name.split("_")
        return "".join([first, *(word.capitalize() for word in rest)])
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name)


def typo(word: str) -> str:
    """A word with two letters exchanged."""
    return f"{word[:1]}{word[2]}{word[1]}{word[3:]}" if len(word) > 3 else word


def ask(pattern: str, name: str, noun: str, way: str) -> str:
    """A question for the memories whose gist fits a pattern with this name and noun."""
    if way == "as it stands":
        return f"{name} {noun}"
    name = other_style(name) if way == "other style" else name
    return KINDS[pattern].format(name=name, noun=typo(noun) if way == "typo" else noun)


def meant(answers: dict[tuple[str, str, str], set[int]], subject: tuple[str, str, str], way: str) -> set[int]:
    """The memories that answer a question; one that names no kind is answered by those of any kind."""
    kinds = KINDS if way == "as it stands" else [subject[0]]
    return set().union(*(answers.get((kind, *subject[1:]), set()) for kind in kinds))


def measure(analyst: RepoAnalyst, mode: Mode, questions: list[tuple[str, set[int]]]) -> str:
    """What a way of searching finds, in words."""
    recalls, ranks, seconds = [], [], []
    for question, answers in questions:
        began = time.perf_counter()
        found = [row["id"] for row in analyst.search_archive(question, AMONG, mode=mode)]
        seconds.append(time.perf_counter() - began)
        hits = [place for place, id_ in enumerate(found, 1) if id_ in answers]
        recalls.append(len(hits) / min(AMONG, len(answers)))
        ranks.append(1 / hits[0] if hits else 0.0)
    return (
        f"recall@{AMONG} {statistics.mean(recalls):.2f}, MRR {statistics.mean(ranks):.2f}, "
        f"median {statistics.median(seconds) * 1e3:.0f} ms"
    )


def main() -> None:
    """Make a store, flush it, index it, and ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = Path(folder)
        make_store(home / "vidurai.db", arguments.rows)
        began = time.perf_counter()
        MemoryArchiver(home / "vidurai.db", home / "archive").flush()
        flushed = time.perf_counter() - began
        report = WordIndex(home / "archive").update(Archive(home / "archive"))
        print(f"flush {flushed:.2f} s, index {report.seconds:.2f} s ({report.seconds / flushed:.0%} of the flush)")
        with RepoAnalyst(home / "archive") as analyst:
            answers: dict[tuple[str, str, str], set[int]] = {}
            for row in analyst.query_archive("SELECT id, gist FROM history ORDER BY id"):
                for pattern in KINDS:
                    if found := re.match(pattern, row["gist"]):
                        answers.setdefault((pattern, found[1], found[2]), set()).add(row["id"])
            subjects = random.Random(0).sample(sorted(answers), min(arguments.questions // len(WAYS), len(answers)))
            for way in WAYS:
                asked = [(ask(*subject, way), meant(answers, subject, way)) for subject in subjects]
                for mode in ("exact", "words"):
                    print(f"{way:13} {mode:6} {measure(analyst, mode, asked)}")


if __name__ == "__main__":
    main()
