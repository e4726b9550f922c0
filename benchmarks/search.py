"""How well, and how fast, a search finds what was asked for, in each of its modes; and what the index costs a flush.

    python -m benchmarks.search [--rows 100000] [--questions 120] [--rounds 3]

Two sets of questions, whose answers are known:

sample store  made from its memories, each in four ways: a person's question, the name written in another style, a typo,
              and name and noun alone. The answers are all memories about the same name and, where the question says
              so, of the same kind.
docstrings    of Python's standard library and of numpy. The first line of each is the question, the rest of it is the
              memory: real text, in which the question's words may or may not occur.

recall@10 is the share of the answers (10 at most) among the first ten hits; MRR is the mean of one over the place of
the first answer.
"""

import argparse
import importlib
import inspect
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from vidurai_pipeline.analytics.engine import RepoAnalyst
from vidurai_pipeline.analytics.search import Mode
from vidurai_pipeline.analytics.vector_index import update_vectors
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.archival.archiver import MemoryArchiver
from vidurai_pipeline.cold.archive import Archive
from vidurai_pipeline.errors import SearchIndexError
from vidurai_pipeline.hot.fresh_store import new_store
from vidurai_pipeline.hot.sample_store import make_store
from vidurai_pipeline.settings import load_settings

AMONG = 10
#: Gists of the sample store, and what a person may ask for them.
KINDS = {
    r"(\w+) crashed on an? (\w+):": "why did {name} crash on the {noun}",
    r"(\w+) guards the (\w+),": "where does {name} guard the {noun}",
    r"fix\(.*\): (\w+) keeps the (\w+)": "what did we fix so that {name} keeps the {noun}",
    r"Decided: (\w+) stays synchronous, (\w+) behind": "what was decided on {name} and the {noun}",
}
WAYS = ("question", "other style", "typo", "name and noun")
# fmt: off
MODULES = [
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "doctest", "email", "fractions", "ftplib",
    "functools", "getpass", "gettext", "glob", "gzip", "hashlib", "heapq", "html", "http.client", "imaplib",
    "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging", "mailbox", "math", "multiprocessing",
    "operator", "os", "pathlib", "pickle", "platform", "pprint", "queue", "random", "re", "sched", "secrets",
    "select", "shelve", "shutil", "signal", "smtplib", "socket", "sqlite3", "ssl", "statistics", "string", "struct",
    "subprocess", "sys", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "tokenize", "traceback",
    "types", "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.dom.minidom",
    "zipfile", "zlib", "numpy", "numpy.fft", "numpy.linalg", "numpy.random", "numpy.char", "numpy.ma",
    "numpy.polynomial",
]
# fmt: on
Question = tuple[str, set[int]]


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
    if way == "name and noun":
        return f"{name} {noun}"
    name = other_style(name) if way == "other style" else name
    return KINDS[pattern].format(name=name, noun=typo(noun) if way == "typo" else noun)


def about_samples(analyst: RepoAnalyst, number: int) -> Iterator[tuple[str, list[Question]]]:
    """Questions about the sample store, in each way to ask them."""
    answers: dict[tuple[str, str], set[int]] = {}
    subjects: set[tuple[str, str, str]] = set()
    for row in analyst.query_archive("SELECT id, gist, verbatim FROM history ORDER BY id"):
        # A name is the same in either style.
        for word in set(re.findall(r"\w+", f"{row['gist']} {row['verbatim']}")):
            answers.setdefault(("", plain(word)), set()).add(row["id"])
        for pattern in KINDS:
            if found := re.match(pattern, row["gist"]):
                answers.setdefault((pattern, plain(found[1])), set()).add(row["id"])
                subjects.add((pattern, found[1], found[2]))
    chosen = random.Random(0).sample(sorted(subjects), min(number // len(WAYS), len(subjects)))
    for way in WAYS:
        kinds = (("" if way == "name and noun" else pattern, pattern, name, noun) for pattern, name, noun in chosen)
        yield way, [(ask(pattern, name, noun, way), answers[kind, plain(name)]) for kind, pattern, name, noun in kinds]


def plain(name: str) -> str:
    """A name without its style."""
    return name.replace("_", "").lower()


def docstrings() -> dict[str, tuple[str, str]]:
    """The docstrings of functions and methods: by their names, the first line and the rest."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        owners = [
            module,
            *(one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__),
        ]
        for owner in owners:
            for name, value in inspect.getmembers(owner, callable):
                summary, _, rest = (inspect.getdoc(value) or "").partition("\n\n")
                if (
                    not name.startswith("_")
                    and len(summary.split()) >= 5
                    and len(rest) >= 100
                    and summary.count("\n") < 2
                ):
                    found.setdefault(" ".join(summary.split()), (f"{owner.__name__}.{name}", rest))
    return {name: (summary, rest) for summary, (name, rest) in found.items()}


def make_docstring_store(path: Path) -> dict[int, str]:
    """A store with a memory of each docstring, its first line left out; gives these lines by the memories' ids."""
    memories = [(number, *found) for number, found in enumerate(sorted(docstrings().items()), 1)]
    with new_store(path) as db:
        db.execute("INSERT INTO projects VALUES (1, '/docs', 'docs', '2026-01-01', '2026-01-01')")
        db.executemany(
            "INSERT INTO memories (id, project_id, verbatim, event_type, salience, gist, created_at, status) "
            "VALUES (?, 1, ?, 'chat', 'HIGH', ?, '2026-01-01T00:00:00', 'ARCHIVED')",
            [(number, rest, name) for number, name, (_, rest) in memories],
        )
        db.commit()
    return {number: summary for number, _, (summary, _) in memories}


def measure(analyst: RepoAnalyst, mode: Mode, questions: list[Question]) -> str:
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


def compare(analyst: RepoAnalyst, name: str, questions: list[Question]) -> None:
    """Print what each mode finds."""
    for mode in get_args(Mode):
        try:
            print(f"{name:14} {mode:8} {measure(analyst, mode, questions)}")
        except SearchIndexError as error:
            print(f"{name:14} {mode:8} not measured: {error}")


def cost_of_index(store: Path, folder: Path, rounds: int) -> None:
    """Print how long a flush takes, as a command, and without the index, side by side."""
    alone = "from vidurai_pipeline.archival.archiver import MemoryArchiver; MemoryArchiver().flush()"
    commands = {"without": ["-c", alone], "with": ["-m", "vidurai_pipeline", "flush", "--format", "json"]}
    seconds: dict[str, list[float]] = {how: [] for how in commands}
    for _ in range(rounds):
        for how, command in commands.items():
            home = folder / how
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            shutil.copy(store, home / "vidurai.db")
            os.sync()
            began = time.perf_counter()
            environment = {**os.environ, "VIDURAI_HOME": str(home)}
            subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds[how].append(time.perf_counter() - began)
    ratio = statistics.median(one / other for one, other in zip(seconds["with"], seconds["without"], strict=True)) - 1
    medians = ", ".join(f"{how} the index {statistics.median(took):.2f} s" for how, took in seconds.items())
    print(f"flush {medians}: {ratio:+.0%}")


def embed(archive: Path, minutes: float) -> None:
    """Embed memories for the search by meaning, and say how fast that is."""
    report, note = update_vectors(Archive(archive), load_settings(), minutes=minutes)
    pace = report.embedded / report.seconds if report.seconds else 0.0
    print(note or f"{report.vectors:,} of {report.memories:,} memories have a vector; {pace:.0f} embedded a second")


def main() -> None:
    """Make the stores, flush and index them, and ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to embed, each time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        make_store(folder / "vidurai.db", arguments.rows)
        cost_of_index(folder / "vidurai.db", folder, arguments.rounds)
        embed(folder / "with" / "archive", arguments.minutes)
        with RepoAnalyst(folder / "with" / "archive") as analyst:
            for way, questions in about_samples(analyst, arguments.questions):
                compare(analyst, way, questions)
        lines = make_docstring_store(folder / "docs" / "vidurai.db")
        archive = folder / "docs" / "archive"
        MemoryArchiver(folder / "docs" / "vidurai.db", archive).flush()
        WordIndex(archive).update(Archive(archive))
        print(f"{len(lines):,} docstrings")
        embed(archive, arguments.minutes)
        with RepoAnalyst(archive) as analyst:
            chosen = random.Random(0).sample(sorted(lines.items()), min(arguments.questions, len(lines)))
            compare(analyst, "docstrings", [(line, {id_}) for id_, line in chosen])


if __name__ == "__main__":
    main()
