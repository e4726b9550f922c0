"""The dream: one offline pass of Q-learning over the memories that were archived since the last one.

What a dream promises:

- **Once.** Each archived version with an outcome is learned once, in order of ``archived_at, id``. How far learning
  has come is noted in the table's own file, so table and note change in one step, whatever crashes.
- **Late files.** Experiences that turn up before that mark (files of Vidurai's own archiver, copied in later) are
  counted on every run. Where the table was learned from this archive alone, the dream learns the whole archive again,
  in order, which gives the table that it would have given had they been there in time. Where it wasn't (the daemon
  taught it something too, or it was begun newest first, or runs are limited), learning anew would forget: the
  statistics say how many there are, and leave it to ``--rebuild``.
- **Missing files.** Experiences that were learned and left the archive stay learned; the statistics count them.
- **The daemon.** If another program wrote the table since the last dream, see ``progress`` for what is done. If it
  writes while we dream, nothing is replaced, and the dream starts again from what it wrote, a few times at most.
- **Damage.** A file that is no Q-table is moved aside and the dream fails, so that someone can restore an older one;
  if nobody does, the next dream learns the whole archive from an empty table.
- **Determinism.** From the same table and archive comes the same file, byte for byte. If there is nothing new, the
  table is not touched.
"""

import logging
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from vidurai_pipeline.config import load_settings
from vidurai_pipeline.errors import ConfigError, PipelineError, QTableError
from vidurai_pipeline.rl.experiences import Experiences, Watermark, decode_experience
from vidurai_pipeline.rl.inference import infer_experience
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.progress import Order, Parameters, Progress, Start, find_start
from vidurai_pipeline.rl.states import Action, RewardProfile
from vidurai_pipeline.rl.table_file import DamagedTableError, Snapshot, TableChangedError, TableContents, TableFile

logger = logging.getLogger(__name__)
# Who asked for the dream reads of its failure in the statistics; without a handler, Python would print it once more.
logger.addHandler(logging.NullHandler())

_ATTEMPTS = 5


@dataclass(slots=True)
class _Lesson:
    """What one pass over experiences amounted to."""

    positive: int = 0
    negative: int = 0
    reward: float = 0.0
    last: Watermark | None = None

    @property
    def episodes(self) -> int:
        return self.positive + self.negative


@dataclass(slots=True)
class _Plan:
    """What a dream is going to learn, and on top of what."""

    start: Start
    rebuild: bool
    after: Watermark | None
    behind: int
    late: int = 0
    missing: int = 0
    notices: list[str] = field(default_factory=list)


class DreamCycle:
    """Trains the Q-table on archived memories.

    Example:
        >>> stats = DreamCycle(Path("archive"), Path("q_table.json")).run()
        >>> stats["success"], stats["episodes"]
        (True, 0)
    """

    def __init__(
        self,
        archive_base: Path | None = None,
        q_table_path: Path | None = None,
        *,
        reward_profile: RewardProfile = RewardProfile.BALANCED,
        max_episodes: int | None = None,
        alpha: float = 0.1,
        gamma: float = 0.9,
        epsilon_max: float = 0.3,
        epsilon_min: float = 0.05,
        epsilon_decay: float = 0.003,
        connection: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        """Set up a dream; nothing is read yet.

        Args:
            archive_base: the cold archive's folder; default the settings'.
            q_table_path: the table's file; default the settings'.
            reward_profile: what the user wants most.
            max_episodes: learn no more than this many experiences in a run; the next run goes on from there.
            alpha: learning rate, 0 to 1.
            gamma: discount of later rewards, 0 to 1.
            epsilon_max: share of random decisions at the beginning, 0 to 1.
            epsilon_min: share of random decisions that remains, 0 to 1.
            epsilon_decay: of that share, per episode.
            connection: a DuckDB connection to read the archive with; default a private one.
        """
        self.archive_base = archive_base
        self.q_table_path = q_table_path
        self.reward_profile = reward_profile
        self.max_episodes = max_episodes
        self.connection = connection
        self._hyperparameters: dict[str, Any] = {
            "alpha": alpha,
            "gamma": gamma,
            "epsilon_max": epsilon_max,
            "epsilon_min": epsilon_min,
            "epsilon_decay": epsilon_decay,
        }
        self._parameters = Parameters(reward_profile.value, alpha, gamma)

    def run(self, *, rebuild: bool = False, order: Order = "chronological") -> dict[str, Any]:
        """Dream once. Whatever goes wrong, this returns and says so in ``error``.

        Args:
            rebuild: learn the whole archive from an empty table. With an archive that has nothing to learn the table
                stays as it is.
            order: ``newest-first`` is the order of Vidurai's own dreamer; it needs ``rebuild``.

        Returns:
            ``success``; ``episodes``, the experiences learned, of which ``positive_rewards`` and
            ``negative_rewards``; ``total_reward`` of these, in points; ``error``, one line or None; ``started_at``
            and ``completed_at``, local time. Then ``skipped``, rows that can't be learned by reason; ``duplicates``,
            further copies in the archive; ``already_learned``, ``late`` and ``missing``, experiences (see the
            module); ``rebuilt``; ``daemon`` and ``replaced``, what another program did (see ``progress.Start``);
            ``states``, ``table_episodes`` and ``epsilon`` of the table now; ``set_aside``, where a damaged table
            was moved to; ``notice``, what the user should know though nothing failed.
        """
        stats: dict[str, Any] = {
            "success": False,
            "episodes": 0,
            "positive_rewards": 0,
            "negative_rewards": 0,
            "total_reward": 0.0,
            "error": None,
            "started_at": datetime.now().isoformat(),
            "completed_at": None,
            "skipped": {},
            "duplicates": 0,
            "already_learned": 0,
            "late": 0,
            "missing": 0,
            "rebuilt": False,
            "daemon": None,
            "replaced": 0,
            "states": 0,
            "table_episodes": 0,
            "epsilon": None,
            "set_aside": None,
            "notice": None,
        }
        try:
            self._run(stats, rebuild, order)
            stats["success"] = True
            logger.info("Learned %d experiences, reward %.2f", stats["episodes"], stats["total_reward"])
        except PipelineError as error:
            stats["error"] = str(error)
        except OSError as error:
            stats["error"] = f"{error.filename or 'the file system'}: {error.strerror or type(error).__name__}"
        except Exception as error:
            # Its text may quote a memory; the kind and the place may not.
            stats["error"] = f"the dream failed: {type(error).__name__} at {_place(error)}; the Q-table is unchanged"
        if stats["error"]:
            logger.error("The dream failed: %s", stats["error"])
        stats["completed_at"] = datetime.now().isoformat()
        return stats

    def _run(self, stats: dict[str, Any], rebuild: bool, order: Order) -> None:
        if order not in ("chronological", "newest-first"):
            raise ConfigError("the order of learning is chronological or newest-first")
        if order == "newest-first" and not rebuild:
            raise ConfigError(
                "order newest-first needs a rebuild: it can't be added to a table learned in another order"
            )
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ConfigError("max_episodes must be at least 1")
        settings = load_settings()
        file = TableFile(self.q_table_path or settings.q_table_path)
        archive_base = self.archive_base or settings.archive_path
        # The table first: a damaged one should be known before minutes go into the archive.
        live = self._read_table(file, stats, rebuild)
        with Experiences.open(
            archive_base, self.connection, memory_limit=settings.memory_limit, threads=settings.threads
        ) as experiences:
            for _ in range(_ATTEMPTS):
                try:
                    stats.update(self._dream(file, live, experiences, rebuild, order))
                    return
                except TableChangedError:
                    live = self._read_table(file, stats, rebuild)
        raise QTableError(f"{file.path} changes too often: another program keeps writing it; dream again later")

    def _read_table(self, file: TableFile, stats: dict[str, Any], rebuild: bool) -> Snapshot | None:
        try:
            live = file.read()
            if live is not None and live.contents.progress is not None and not rebuild:
                self._check_note(file, live)
            return live
        except DamagedTableError as error:
            aside = file.set_aside()
            stats["set_aside"] = str(aside)
            if rebuild:
                return None
            raise QTableError(
                f"{error}. It is now {aside.name}; without an older version in its place the next dream learns the "
                "whole archive from an empty table"
            ) from None

    def _check_note(self, file: TableFile, live: Snapshot) -> None:
        try:
            Progress.from_json(live.contents.progress)
        except DamagedTableError as error:
            raise file.damaged(str(error)) from None

    def _dream(
        self, file: TableFile, live: Snapshot | None, experiences: Experiences, rebuild: bool, order: Order
    ) -> dict[str, Any]:
        """One attempt, from a table as it was read to the table that replaces it."""
        plan = self._plan(live, file.remembered(), experiences, rebuild)
        policy = QLearningPolicy(**self._hyperparameters)
        policy.adopt(plan.start.contents)
        lesson = self._learn(policy, experiences, plan.after, newest_first=order == "newest-first")
        if lesson.episodes:
            policy.end_episode()
        progress = self._progress(plan, lesson, experiences, order)
        if lesson.episodes or plan.start.daemon == "merged":
            self._save(file, live, policy, progress)
        elif live is not None and live.contents.progress is not None:
            file.remember(live.raw)
        return {
            "episodes": lesson.episodes,
            "positive_rewards": lesson.positive,
            "negative_rewards": lesson.negative,
            "total_reward": lesson.reward,
            "skipped": experiences.skipped,
            "duplicates": experiences.duplicates,
            "already_learned": plan.behind,
            "late": plan.late,
            "missing": plan.missing,
            "rebuilt": plan.rebuild and lesson.episodes > 0,
            "daemon": plan.start.daemon,
            "replaced": plan.start.replaced,
            "states": len(policy.q_table),
            "table_episodes": policy.episodes,
            "epsilon": policy.get_epsilon(),
            "notice": "; ".join(plan.notices) or None,
        }

    def _plan(
        self, live: Snapshot | None, remembered: Snapshot | None, experiences: Experiences, rebuild: bool
    ) -> _Plan:
        """Decide what to learn, and on top of what."""
        unknown = live.contents.unknown if live is not None else {}
        if rebuild and experiences.total:
            return _Plan(Start(TableContents(unknown=unknown), None), True, None, 0)
        start = find_start(live, remembered)
        progress = start.progress
        if progress is None:
            plan = _Plan(start, False, None, 0)
        else:
            self._check_parameters(progress)
            present = experiences.count_up_to(progress.watermark)
            plan = _Plan(
                start,
                rebuild=False,
                after=progress.watermark,
                behind=min(present, progress.accounted),
                late=max(0, present - progress.accounted),
                missing=max(0, progress.accounted - present),
            )
            if plan.late and progress.pure and progress.order == "chronological" and self.max_episodes is None:
                # Episodes stay: they say how mature the policy is, and that is not undone.
                empty = TableContents(episodes=start.contents.episodes, unknown=unknown)
                return _Plan(
                    Start(empty, None),
                    rebuild=True,
                    after=None,
                    behind=0,
                    late=plan.late,
                    notices=[f"{plan.late} experiences came late: the whole archive was learned again, in order"],
                )
        if rebuild:
            plan.notices.append("the archive has nothing to learn from: the table stays as it is")
        if plan.late:
            plan.notices.append(
                f"{plan.late} experiences came late and are not learned: `vidurai-pipeline dream --rebuild` learns the "
                "whole archive again, and forgets what else the table was taught"
            )
        if start.daemon == "merged":
            plan.notices.append(
                "another program had begun a new table: the learned values that it lacked were put back"
                f" ({start.replaced} of its own took the place of ours)"
            )
        return plan

    def _check_parameters(self, progress: Progress) -> None:
        if progress.parameters != self._parameters:
            was, now = progress.parameters, self._parameters
            raise ConfigError(
                f"the Q-table was trained with profile {was.reward_profile}, alpha {was.alpha}, gamma {was.gamma}; "
                f"to train it with profile {now.reward_profile}, alpha {now.alpha}, gamma {now.gamma} learn the "
                "archive again with `vidurai-pipeline dream --rebuild`"
            )

    def _learn(
        self, policy: QLearningPolicy, experiences: Experiences, after: Watermark | None, *, newest_first: bool
    ) -> _Lesson:
        """Learn all experiences after a watermark.

        The same as ``policy.learn`` for each of them. But experiences of the same code are the same, so what is looked
        up for one is kept: the two rows of the table, the action and the reward.
        """
        lesson = _Lesson()
        known: dict[int, tuple[dict[Action, float], Action, float, dict[Action, float]]] = {}
        update = policy.update
        total = 0.0
        for batch in experiences.stream(after=after, newest_first=newest_first, limit=self.max_episodes):
            for code in batch.codes:
                step = known.get(code)
                if step is None:
                    example = infer_experience(*decode_experience(code), self.reward_profile)
                    # In this order: it is the one in which policy.learn makes new rows.
                    values = policy.row(example.state.to_hash())
                    future = policy.row(example.next_state.to_hash())
                    step = known[code] = (values, example.action, example.reward, future)
                update(*step)
                total += step[2]
            positive = sum(code & 1 for code in batch.codes)
            lesson.positive += positive
            lesson.negative += len(batch.codes) - positive
            lesson.last = batch.last
        lesson.reward = total
        return lesson

    def _progress(self, plan: _Plan, lesson: _Lesson, experiences: Experiences, order: Order) -> Progress | None:
        """The note for the table that comes out of a plan; None while nothing at all was learned."""
        before = plan.start.progress
        if lesson.last is None:
            return before
        if before is not None:
            # What came late and is not learned must not count as settled, or it would be forgotten.
            return replace(before, watermark=lesson.last, accounted=before.accounted + lesson.episodes)
        # Newest first with a limit leaves out the oldest on purpose.
        last = experiences.last() if order == "newest-first" else lesson.last
        assert last is not None  # noqa: S101 (something was learned)
        accounted = experiences.total if order == "newest-first" else lesson.episodes
        return Progress(
            watermark=last,
            accounted=accounted,
            order=order,
            pure=plan.start.daemon is None,
            parameters=self._parameters,
            table_digest="",
        )

    def _save(self, file: TableFile, live: Snapshot | None, policy: QLearningPolicy, progress: Progress | None) -> None:
        contents = policy.contents()
        if progress is not None:
            contents.progress = replace(progress, table_digest=contents.digest()).to_json()
        written = file.write(contents, expected=live)
        try:
            file.remember(written.raw)
        except QTableError as error:
            # The table is safe, and the next dream makes the copy again; only a daemon that writes before then
            # would be taken for one that nobody dreamt beside.
            logger.warning("%s", error)


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
