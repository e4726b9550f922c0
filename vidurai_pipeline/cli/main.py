"""The command line. Each command calls one thing and shows what came back."""

import contextlib
import shlex
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidurai_pipeline.cli import output
from vidurai_pipeline.cli.compact import compact
from vidurai_pipeline.cli.encryption import new_key, rekey
from vidurai_pipeline.cli.erase import erase
from vidurai_pipeline.cli.expire import expire
from vidurai_pipeline.cli.index import index
from vidurai_pipeline.cli.limits import bound_memory, lower_priority
from vidurai_pipeline.cli.mcp import mcp
from vidurai_pipeline.cli.move import move
from vidurai_pipeline.cli.restore import restore
from vidurai_pipeline.cli.salvage import salvage
from vidurai_pipeline.cli.secrets import secrets
from vidurai_pipeline.errors import (
    MORE_MEMORY,
    ArchiveWarning,
    ConfigError,
    HotStoreWarning,
    PipelineError,
    QueryError,
    QueryTimeoutError,
    SearchIndexWarning,
    plural,
)
from vidurai_pipeline.settings import Hyperparameters, Settings, load_settings, memory_bytes, unknown_variables

if TYPE_CHECKING:
    from vidurai_pipeline.analytics.engine import RepoAnalyst

#: Commands that go on where they were stopped.
_RESUMABLE = {"compact", "dream", "erase", "expire", "flush", "index", "rekey", "restore", "run", "scrub"}


class _Group(click.Group):
    """Shows the errors that users are meant to read as one line, and ends with the exit code that `--help` promises."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; what click itself refuses is told in the same form as all other errors."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.UsageError as error:
            if error.ctx is not None:
                click.echo(error.ctx.get_usage(), err=True)
                click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
            click.echo(f"error: {error.format_message()}", err=True)
            code = error.exit_code
        except click.Abort:
            click.echo("error: stopped", err=True)
            code = 1
        sys.exit(code or 0)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's)
        """List the commands; click would cut off their summaries in a narrow terminal."""
        shown = [(name, command) for name, command in sorted(self.commands.items()) if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(_LONGEST_SUMMARY)) for name, command in shown])

    def invoke(self, ctx: click.Context) -> None:
        output.open_standard_streams()
        try:
            for line in unknown_variables():
                click.echo(f"warning: {line}", err=True)
            super().invoke(ctx)
        except PipelineError as error:
            wrong = 2 if isinstance(error, ConfigError | QueryError) else 1
            _end_with(4 if isinstance(error, QueryTimeoutError) else wrong)
            _complain(output.one_line(str(error)))
        except MemoryError:
            _end_with(2)
            _complain(MORE_MEMORY)
        except KeyboardInterrupt:
            _end_with(1)
            again = "; running it again goes on from there" if ctx.invoked_subcommand in _RESUMABLE else ""
            _complain(f"stopped by Ctrl-C{again}")
        except BrokenPipeError:  # the reader (head, less) has seen enough
            pass
        except OSError as error:
            _end_with(1)
            _complain(f"{error.filename or 'output'}: {error.strerror}")
        output.close_standard_streams()
        ctx.exit(ctx.meta.get(_EXIT_CODE, 0))


_EXIT_CODE = "vidurai_pipeline.exit_code"
_LONGEST_SUMMARY = 200


def _end_with(code: int) -> None:
    """Let the command end with this exit code, also if nobody reads to the end what it prints from here on."""
    click.get_current_context().meta[_EXIT_CODE] = code


def _complain(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"error: {message}", err=True)


_timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=31_536_000),
    metavar="SECONDS",
    help="Stop after this many seconds. By default there is no limit.",
)


_skip_option = click.option(
    "--skip-damaged",
    is_flag=True,
    help="Answer without damaged files of the archive, say what is missing, and exit with 3.",
)


_store_option = click.option(
    "--store", metavar="NAME", help="Of several stores that share the archive, ask this one alone."
)


@contextlib.contextmanager
def _analyst(timeout: float | None, skip_damaged: bool, store: str | None = None) -> "Iterator[RepoAnalyst]":
    """An analyst whose warnings are lines on stderr, and so is that there is nothing to ask yet."""
    from vidurai_pipeline.analytics.engine import RepoAnalyst
    from vidurai_pipeline.cold.working_copy import traffic_of

    settings = load_settings()
    bound_memory(memory_bytes(settings.memory_limit), settings.threads)
    with warnings.catch_warnings(record=True, action="always", category=HotStoreWarning) as caught:
        warnings.simplefilter("always", SearchIndexWarning)
        warnings.simplefilter("always", ArchiveWarning)
        try:
            with RepoAnalyst(timeout=timeout, skip_damaged=skip_damaged, store=store) as analyst:
                try:
                    yield analyst
                finally:
                    _end_with(3 if analyst.left_out else 0)
                if (traffic := traffic_of(analyst.archive_base)).bytes_read:
                    requests = plural(traffic.lists + traffic.reads, "request")
                    click.echo(
                        f"note: {traffic.bytes_read:,} bytes came from the object store, in {requests}", err=True
                    )
                if analyst.is_empty():
                    click.echo(
                        f"no archive yet at {analyst.archive_base}; `vidurai-pipeline run` makes one, and VIDURAI_HOME "
                        "or VIDURAI_ARCHIVE says where",
                        err=True,
                    )
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                click.echo(f"note: {message}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vidurai-pipeline")
def main() -> None:
    """Move archived memories from Vidurai's SQLite store to Parquet, query them, and learn from them.

    VIDURAI_HOME says where Vidurai's folder is (default ~/.vidurai). VIDURAI_DB, VIDURAI_ARCHIVE and VIDURAI_Q_TABLE
    name the hot store, the archive and the Q-table one by one.

    Exit code 0: done; 1: it failed; 2: the request was wrong; 3: answered without damaged files (`--skip-damaged`);
    4: the time was up.
    """


@main.command()
@output.format_option("table", "json")
def run(form: str) -> None:
    """Archive, verify, purge and learn: the nightly job, now.

    It runs through Dagster, which keeps its history for the UI.

    For example: vidurai-pipeline run --format json
    """
    from vidurai_pipeline.cli.run import print_report, run_maintenance

    settings = load_settings()
    report = run_maintenance(settings)
    _end_with(int(not report.success))
    if form == "json":
        output.print_json(report.to_dict())
    else:
        print_report(report, settings)


@main.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True, help="Where to serve it.")
def ui(port: int) -> None:
    """Open Dagster's UI.

    It shows the history of all runs. The nightly schedule is on for as long as it is open.

    For example: vidurai-pipeline ui --port 3001
    """
    from vidurai_pipeline.cli.run import open_ui

    open_ui(load_settings(), port)


@main.command()
def home() -> None:
    """Print where Dagster keeps its history.

    The folder is made ready, so that several services can start at the same time.

    For example: export DAGSTER_HOME="$(vidurai-pipeline home)"
    """
    from vidurai_pipeline.cli.run import dagster_home, workspace_file

    folder = dagster_home(load_settings())
    workspace_file(folder)
    click.echo(folder)


@main.command()
@click.option("--dry-run", is_flag=True, help="Read and check every row, but write and delete nothing.")
@output.format_option("table", "json")
def flush(dry_run: bool, form: str) -> None:
    """Archive and purge, without Dagster and without learning.

    For example: vidurai-pipeline flush --dry-run
    """
    from vidurai_pipeline.analytics.index_process import FlushIndexing
    from vidurai_pipeline.archival.archiver import MemoryArchiver

    settings = load_settings()
    with output.ProgressLine() as progress, FlushIndexing(settings, progress) as indexing:
        result = MemoryArchiver(settings=settings, progress=indexing.progress).flush(dry_run=dry_run)
        if not dry_run and (note := indexing.finish()):
            result.notes.append(note)
    _end_with(int(bool(result.problems)))
    report = result.to_dict()
    if form == "json":
        output.print_json(report)
    else:
        rejected, files = report.pop("rejected"), report.pop("files")
        problems, notes = report.pop("problems"), report.pop("notes")
        if traffic := report.pop("object_store", None):
            report["object store"] = ", ".join(f"{name.replace('_', ' ')}: {n:,}" for name, n in traffic.items())
        title = "Would be archived (dry run: nothing was changed)" if report.pop("dry_run") else "Flush"
        output.print_facts(title, {**report, "rejected": len(rejected), "files": ", ".join(files) or "none"})
        output.print_attention(rejected, notes, problems)


@main.command()
@click.option("--all", "everything", is_flag=True, help="Read every file, not only the share that is due.")
@click.option("--repair", is_flag=True, help="Heal the archive and its mirror, each from the other.")
@click.option("--forget", is_flag=True, help="Accept that missing files are gone: remove their records.")
@output.format_option("table", "json")
def scrub(everything: bool, repair: bool, forget: bool, form: str) -> None:
    """Prove that archived files are still what was written.

    Reads files from the disk, at low priority, and compares their SHA-256 with the manifest; in the mirror too if
    VIDURAI_MIRROR names one. Exit code 1: a file is damaged or missing.

    For example: vidurai-pipeline scrub --all
    """
    from vidurai_pipeline.care.healing import prove
    from vidurai_pipeline.care.scrub import ADVICE
    from vidurai_pipeline.cold.mirror import open_archive

    settings = load_settings()
    if repair and (settings.mirror is None or forget):
        raise ConfigError("--repair needs VIDURAI_MIRROR, and can't be used with --forget")
    lower_priority()
    with output.ProgressLine() as progress:
        report = prove(
            open_archive(settings),
            days=None if everything else settings.scrub_days,
            repair=repair,
            forget_missing=forget,
            lock_timeout=settings.lock_timeout,
            progress=progress,
        )
    if form == "json":
        output.print_json(report.to_dict())
    else:
        counts = {
            name: len(getattr(report, name)) for name in ("damaged", "missing", "unknown", "adopted", "forgotten")
        }
        facts = {"files read": report.files, "size": output.human_bytes(report.bytes), "intact": report.intact}
        output.print_facts("Scrub", {**facts, **counts, "oldest proof": report.oldest_proof})
        if copy := report.mirror:
            both = {"files read": copy.files, "size": output.human_bytes(copy.bytes), "intact": copy.intact}
            output.print_facts("Mirror", {**both, "oldest proof": copy.oldest_proof})
        for path in report.healed:
            click.echo(f"healed: {path}")
        for flaw in report.flaws:
            held = "" if flaw.memories is None else f" ({flaw.memories:,} memories)"
            click.echo(f"error: {settings.archive_path / flaw.file}: {flaw.reason}{held}", err=True)
        if not report.sound:
            click.echo(ADVICE, err=True)
    if not report.sound:
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--rebuild", is_flag=True, help="Learn the whole archive again, from an empty table.")
@click.option(
    "--order",
    type=click.Choice(["chronological", "newest-first"]),
    default="chronological",
    show_default=True,
    help="The order of learning. newest-first needs --rebuild; it is how Vidurai's own dreamer learns.",
)
@click.option("--fleet", is_flag=True, help="Make one table from all stores of the archive, and judge it in each.")
@output.format_option("table", "json")
def dream(rebuild: bool, order: Any, fleet: bool, form: str) -> None:
    """Learn from the archive what is worth keeping.

    Trains the Q-table on the archived memories with an outcome that it has not learned yet. With --fleet, the stores'
    own tables stay as they are, and the common one is written to VIDURAI_FLEET_Q_TABLE.

    For example: vidurai-pipeline dream --rebuild
    """
    from vidurai_pipeline.cold.listing import list_settled
    from vidurai_pipeline.cold.mirror import open_archive
    from vidurai_pipeline.rl.dreamer import DreamCycle

    if order == "newest-first" and not rebuild:
        raise ConfigError("--order newest-first can't add to a table learned in another order", "add --rebuild")
    settings = load_settings()
    if fleet:
        _dream_of_the_fleet(settings, form, alone=not rebuild and order == "chronological")
        return
    archive = open_archive(settings)
    empty = not list_settled(archive.root)
    with archive.lock("dream", settings.lock_timeout, make=False):
        report = DreamCycle(settings=settings).dream(rebuild=rebuild, order=order)
    _end_with(int(not report.success))
    if form == "json":
        output.print_json(report.to_dict())
    elif report.success:
        from vidurai_pipeline.cli.policy import print_dream

        print_dream(report, settings.q_table_path)
    if report.success and empty:
        click.echo(f"note: no archive in {settings.archive_path} yet: `vidurai-pipeline flush` makes it", err=True)
    if not report.success:
        _complain(str(report.error))


def _dream_of_the_fleet(settings: Settings, form: str, *, alone: bool) -> None:
    from vidurai_pipeline.cli.policy import print_fleet
    from vidurai_pipeline.hot.stores import q_tables
    from vidurai_pipeline.rl.fleet import learn_fleet

    if not alone:
        raise ConfigError("--fleet goes with neither --rebuild nor --order", "it always counts everything, in no order")
    report = learn_fleet(settings, q_tables(settings))
    _end_with(int(report.refused is not None))
    if form == "json":
        output.print_json(report.to_dict())
    else:
        print_fleet(report)
    if report.refused:
        _complain(f"{report.refused}; it is kept as {report.candidate}")


@main.command()
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The most states to list.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Also write PNG files there.")
@output.format_option("table", "json")
def policy(limit: int, pictures: Path | None, form: str) -> None:
    """Show what was learned.

    The best action in each state, a heat map, and the learning curve.

    For example: vidurai-pipeline policy --limit 5
    """
    from vidurai_pipeline.cli.policy import print_policy, save_pictures
    from vidurai_pipeline.rl.summary import read_summary

    settings = load_settings()
    summary = read_summary(settings.q_table_path, Hyperparameters.of(settings))
    if form == "json":
        output.print_json(summary.to_dict())
    else:
        print_policy(summary, limit)
    for path in save_pictures(summary, pictures) if pictures is not None else []:
        click.echo(f"wrote {path}", err=True)


@main.command()
@output.format_option("table", "json")
def stats(form: str) -> None:
    """Show the hot store, the archive and the Q-table at a glance.

    For example: vidurai-pipeline stats --format json
    """
    from vidurai_pipeline.cli.stats import overview, print_overview

    view = overview(load_settings())
    _end_with(int(any("error" in tier for tier in view.values())))
    if form == "json":
        output.print_json(view)
    else:
        print_overview(view)


@main.command()
@click.argument("sql")
@_store_option
@_skip_option
@_timeout_option
@output.format_option("table", "json", "csv")
def query(sql: str, store: str | None, skip_damaged: bool, timeout: float | None, form: str) -> None:
    """Run SQL over the memories.

    It reads these views: `history`, what is archived; `memories`, that and what is still in the hot store, with its
    `tier`; `history_all`, every stored copy; and `projects`.

    Times and salience are text. To compare them or to count with them, use created_ts, expires_ts and archived_ts
    (TIMESTAMP in UTC) and salience_score (CRITICAL 5 to NOISE 1):

    \b
      SELECT date_trunc('month', created_ts) AS month, count(*)
      FROM memories GROUP BY 1 ORDER BY 1
    \b
      SELECT id, gist FROM memories
      WHERE created_ts > now() - INTERVAL 30 DAY AND salience_score >= 4
    \b
      SELECT name, hot, cold, newest FROM projects ORDER BY newest DESC
    """  # noqa: D301  (click's mark for lines that stay as they are)
    with _analyst(timeout, skip_damaged, store) as analyst:
        output.print_rows(*analyst.query_rows(sql), form)


@main.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The most memories to show.")
@click.option("--project", help="Only memories of the project with this id, name or path.")
@click.option("--since", help="Only memories created at or after this time.")
@click.option("--until", help="Only memories created before this time, or before the end of this month or year.")
@click.option("--salience", help="Only memories of this salience, such as HIGH.")
@click.option("--outcome", type=click.IntRange(-1, 1), help="Only memories with this outcome: -1, 0 or 1.")
@click.option(
    "--tier",
    type=click.Choice(["all", "cold", "hot"]),
    default="all",
    show_default=True,
    help="Where to look: in the archive (cold), in the hot store (hot), or in both (all).",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "words", "meaning", "exact"]),
    default="auto",
    show_default=True,
    help="How to look: by the index of words, by meaning, by reading every memory (exact), or by words and meaning "
    "as far as they can be used (auto).",
)
@_store_option
@_skip_option
@_timeout_option
@output.format_option("table", "json", "csv")
def search(
    words: tuple[str, ...],
    *,
    limit: int,
    store: str | None,
    skip_damaged: bool,
    timeout: float | None,
    form: str,
    **filters: Any,
) -> None:
    """Find memories by words in their gist, text, tags or path.

    Memories with all the words come first, then those with similar words, then those with some of them. Ask in your
    own words; small words such as "how" and "the" don't count. Put a phrase between quotation marks:
    vidurai-pipeline search '"connection reset" pytest' --since 7d

    With --mode exact, all words must occur as plain text, in any case, also within longer words. Without a search
    index, `vidurai-pipeline index` makes one, and searches are exact until then.

    With --mode meaning, the memories come whose texts are most like the question's, whatever their words. This needs
    vidurai-pipeline[semantic]. Hot memories are found so only if Vidurai stored a vector with them.

    Times are written like 7d, 2w, today, yesterday, 2026, 2026-11, 2026-11-27 or 2026-11-27T08:30. 7d is seven days
    ago. today and yesterday are days of your time zone; the others are in UTC, as Vidurai stores them, unless they name
    a zone (2026-11-27T08:30+01:00). --until 2026-11 includes November; --until 2026-11-27 ends before that day.
    """
    with _analyst(timeout, skip_damaged, store) as analyst:
        found = analyst.search_archive(" ".join(words), limit + 1, **filters)
        more, found = len(found) > limit, found[:limit]
        if form == "json":
            output.print_json(found)
        elif found or form == "csv":
            names = analyst.search_columns(filters["tier"])
            if form == "table" and sys.stdout.isatty():  # which has no room for more
                shown = ("store", "id", "tier", "created_at", "salience", "gist", "file_path", "snippet")
                names = [name for name in shown if name in names]
            output.print_rows(names, ([row[name] for name in names] for row in found), form)
        else:
            project = filters["project"]
            click.echo((project and analyst.unknown_project(project)) or "no memory matches", err=True)
            if filters["mode"] in {"auto", "words"} and analyst.has_index:
                click.echo("note: `--mode exact` also finds what stands within longer words", err=True)
        if (
            filters["mode"] == "auto"
            and filters["tier"] != "hot"
            and not (analyst.has_index or analyst.is_empty() or load_settings().archive_key_file)
        ):
            click.echo("note: there is no search index: `vidurai-pipeline index` makes one", err=True)
        if more:
            click.echo(f"note: there are more matches than the {limit:,} shown; --limit shows more", err=True)


@main.command()
@click.argument("memory_id", metavar="ID", type=int)
@_store_option
@_skip_option
@_timeout_option
@output.format_option("table", "json")
def show(memory_id: int, store: str | None, skip_damaged: bool, timeout: float | None, form: str) -> None:
    """Show one memory, whole, and where it is.

    It is looked up in both tiers. Of a memory with several versions, each is shown, the newest first.

    For example: vidurai-pipeline show 1234
    """
    with _analyst(timeout, skip_damaged, store) as analyst:
        found = analyst.memory(memory_id)
        if not found and not analyst.left_out:
            raise QueryError(f"no memory has the id {memory_id}", "look for it with `vidurai-pipeline search WORDS`")
        if not found:
            click.echo(f"no memory that can be read has the id {memory_id}", err=True)
        if form == "json":
            output.print_json(found)
        for row in found if form == "table" else ():
            where = {name: row.pop(name) for name in ("tier", "file")}
            del row["content"]  # the text once more
            output.print_facts(f"Memory {memory_id}", where | {name: output.cell(value) for name, value in row.items()})


@main.command()
@output.format_option("table", "json")
def doctor(form: str) -> None:
    """Check settings, stores and files, and whether the tiers agree.

    For example: vidurai-pipeline doctor --format json
    """
    from vidurai_pipeline.cli.doctor import examine

    findings = list(examine(load_settings()))
    _end_with(int(any(finding.status == "failed" for finding in findings)))
    if form == "json":
        output.print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            colour = {"ok": "green", "warning": "yellow", "failed": "red"}[finding.status]
            detail = finding.detail.replace("\n", "\\n")  # a path may hold one
            click.echo(f"{click.style(f'{finding.status:<8}', fg=colour)}{finding.check}: {detail}")


@main.command()
@click.argument("folder", default="sample", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(min=0), default=2_000, show_default=True, help="How many memories.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same memories.")
@output.format_option("table", "json")
def demo(folder: Path, rows: int, seed: int, form: str) -> None:
    """Make a sample hot store in FOLDER, for a machine without Vidurai.

    For example: vidurai-pipeline demo sample --rows 500
    """
    from vidurai_pipeline.hot.sample_store import make_store

    with output.ProgressLine() as progress:
        made = make_store(
            folder / "vidurai.db", rows, seed=seed, progress=lambda done, total: progress("writing", done, total)
        )
    if form == "json":
        output.print_json({**asdict(made), "path": str(made.path)})
    else:
        output.print_facts("Sample store", {"path": made.path, "memories": made.rows, **made.by_status})
        click.echo(f"\nnext: VIDURAI_HOME={shlex.quote(str(folder))} {output.program()} run")


for _command in (compact, erase, expire, index, mcp, move, restore, salvage, secrets, new_key, rekey):
    main.add_command(_command)


if __name__ == "__main__":
    main()
