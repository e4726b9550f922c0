"""A training run: from a table as it was read to the table that replaces it, or to the candidate beside it.

It decides what to learn and on top of what, trains, lets the gate judge what came out, and saves. When another program
wrote the table meanwhile, nothing is saved, and the same run can be made again from what it wrote: the archive is not
read again.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vidurai_pipeline.errors import ConfigError, QTableError
from vidurai_pipeline.rl.checkpoint import Ahead, Baseline, Checkpoint, Order, find_baseline, read_checkpoint
from vidurai_pipeline.rl.dataset import Experiences, Watermark
from vidurai_pipeline.rl.evaluation import QTable, TransitionCount, Verdict, compare, find_faults, value_bound
from vidurai_pipeline.rl.learning_curve import thin
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import StoredTable, TableContents, TableFile
from vidurai_pipeline.rl.report import DreamReport
from vidurai_pipeline.rl.trainer import Trainer
from vidurai_pipeline.settings import Hyperparameters

logger = logging.getLogger(__name__)


# What to say of another program that wrote the table since the last dream.
_NOTICES = {
    "overwritten": "Vidurai's own dreamer had overwritten the table. It learns from the same archive, so nothing is "
    "lost: the table of the last dream took its place again. Turn Vidurai's loop off, as docs/operations.md says",
    "adopted": "the table was begun by another program and is learned on: what that one had learned from this archive "
    "counts twice. `vidurai-pipeline dream --rebuild` learns the archive alone",
    "merged": "another program had begun a new table: the learned values that it lacked were put back "
    "({replaced} of its own took the place of ours)",
}

#: Why a table does not forget by itself.
TAUGHT_BY_OTHERS = (
    "and from another program (numbers, no text): `vidurai-pipeline dream --rebuild` learns the archive alone, without "
    "them"
)


@dataclass(slots=True)
class _Plan:
    """What to learn, and on top of what; the counts are those of ``DreamReport``."""

    baseline: Baseline
    start: Watermark | None = None
    #: From and up to where the table has learned all, but is to learn it again behind what has come before it.
    again: tuple[Watermark, Watermark] | None = None
    #: Experiences to learn besides, without their place in the order: from one place up to another.
    besides: tuple[Watermark | None, Watermark] | None = None
    rebuild: bool = False
    already_learned: int = 0
    late: int = 0
    missing: int = 0
    notices: list[str] = field(default_factory=list)


@dataclass(slots=True)
class TrainingRun:
    """Trains a table on experiences that were read from an archive.

    Attributes:
        file: of the table.
        experiences: of the archive.
        hyperparameters: what to train with.
        rebuild: learn the whole archive anew, and replace the table also with one that is worse.
        order: of learning.
        limit: learn no more than this many experiences.
        now: the place behind all that was archived up to the dream.
        erasures: how often memories that had taught something were erased from the archive.
    """

    file: TableFile
    experiences: Experiences
    hyperparameters: Hyperparameters
    rebuild: bool
    order: Order
    limit: int | None
    now: Watermark
    erasures: int = 0

    def run(self, live: StoredTable | None, report: DreamReport) -> None:
        """Learn on top of a table as it was read, and replace it if the gate lets the new one through.

        Args:
            live: the table.
            report: what came of it is noted here; ``error``, if the gate refused the new table.

        Raises:
            TableChangedError: another program wrote the table meanwhile: nothing was replaced.
            PipelineError: something failed: nothing was replaced.
        """
        plan = self._plan(live)
        baseline = plan.baseline
        rival = self.file.remembered() if baseline.daemon == "overwritten" else live
        policy = QLearningPolicy.of(self.hyperparameters, baseline.contents)
        shadow = None
        if not plan.rebuild and rival is not None and any(rival.contents.q_table.values()):
            # What both tables are judged by must not have been taught to one of them alone. A rebuilt table and the
            # one in use have both learned it.
            shadow = QLearningPolicy.of(self.hyperparameters, baseline.contents)
        trainer = Trainer(self.experiences, self.hyperparameters.reward_profile, policy, shadow)
        checkpoint = self._train(plan, trainer, policy)
        if trainer.episodes:
            policy.end_episode()
        report.gate = None
        report.skipped, report.duplicates = self.experiences.skipped, self.experiences.duplicates
        report.already_learned, report.late, report.missing = plan.already_learned, plan.late, plan.missing
        if trainer.episodes or baseline.daemon in ("merged", "overwritten"):
            judged = shadow if shadow is not None and trainer.episodes else policy
            bound = value_bound(self.hyperparameters.reward_profile, self.hyperparameters.gamma)
            faults, inherited = find_faults(policy.q_table, baseline.contents.q_table, bound)
            verdict = judge(rival, judged.q_table, trainer.held_out(), self.hyperparameters)
            report.gate = replace(verdict, faults=faults, inherited=inherited, enforced=not self.rebuild)
            contents = policy.contents() if checkpoint is None else checkpoint.stored_with(policy.contents())
            if not report.gate.passed:
                report.error = self._refuse(contents, report.gate)
                report.held_back = trainer.episodes
                report.show_table(QLearningPolicy.of(self.hyperparameters, live.contents if live else None))
                return
            written = self.file.write(contents, expected=live)
            # If this fails, the table is safe, and the next dream makes the copy again; only a daemon that writes
            # before then would be taken for one that nobody dreamt beside.
            self._tidy(self.file.remember, written.raw)
        elif live is not None and live.contents.note is not None:
            self.file.remember(live.raw)
        self._tidy(self.file.drop_candidate)
        report.episodes = trainer.episodes
        report.positive_rewards, report.negative_rewards = trainer.positive, trainer.negative
        report.total_reward = trainer.reward
        report.rebuilt = plan.rebuild and trainer.episodes > 0
        report.daemon, report.replaced = baseline.daemon, baseline.replaced
        if dated_ahead := self.experiences.count(self.now):
            plan.notices.append(
                f"{dated_ahead} experiences are dated in the future, as by a wrong clock, and are learned last: "
                "`vidurai-pipeline doctor` names their files"
            )
        report.notice = "; ".join(plan.notices) or None
        report.show_table(policy)

    def _tidy(self, step: Callable[..., None], *arguments: bytes) -> None:
        """Take a step after which the table is safe in any case; the next dream tries again."""
        try:
            step(*arguments)
        except QTableError as error:
            logger.warning("%s", error)

    def _plan(self, live: StoredTable | None) -> _Plan:
        unknown = live.contents.unknown if live is not None else {}
        if self.rebuild and self.experiences.total:
            return _Plan(Baseline(TableContents(unknown=unknown)), rebuild=True)
        baseline = find_baseline(live, self.file.remembered())
        plan = _Plan(baseline)
        if (checkpoint := baseline.checkpoint) is not None:
            was, now = _meaning(checkpoint.hyperparameters), _meaning(self.hyperparameters)
            if was != now:
                raise ConfigError(
                    f"the Q-table was trained with {was}, not with {now}",
                    "learn the archive again with `vidurai-pipeline dream --rebuild`, or set what it was trained with",
                )
            plan = self._go_on(baseline, checkpoint)
            if checkpoint.erasures < self.erasures:
                plan.notices.append(f"the table has learned from memories that were erased since, {TAUGHT_BY_OTHERS}")
            if plan.late and self._is_exact(checkpoint):
                # Episodes stay: they say how mature the policy is, and that is not undone.
                return _Plan(
                    Baseline(TableContents(episodes=baseline.contents.episodes, unknown=unknown)),
                    rebuild=True,
                    late=plan.late,
                    notices=[f"{plan.late} experiences came late: the whole archive was learned again, in order"],
                )
        if self.rebuild:
            plan.notices.append("the archive has nothing to learn from: the table stays as it is")
        if plan.late:
            plan.notices.append(
                f"{plan.late} experiences came late and are not learned: `vidurai-pipeline dream --rebuild` learns the "
                "whole archive again, and forgets what else the table was taught"
            )
        if baseline.daemon in _NOTICES:
            plan.notices.append(_NOTICES[baseline.daemon].format(replaced=baseline.replaced))
        return plan

    def _is_exact(self, checkpoint: Checkpoint) -> bool:
        """Whether the table is to be what the archive alone gives, learned in order."""
        return checkpoint.archive_only and checkpoint.order == "chronological" and self.limit is None

    def _go_on(self, baseline: Baseline, checkpoint: Checkpoint) -> _Plan:
        """Go on from a checkpoint."""
        count, behind, settled = self.experiences.count, checkpoint.watermark.next, checkpoint.settled
        present = count(None, behind)
        plan = _Plan(baseline, behind, already_learned=min(present, settled))
        plan.late, plan.missing = max(0, present - settled), max(0, settled - present)
        if not plan.late:
            return plan
        ahead = checkpoint.ahead
        if not self._is_exact(checkpoint):
            if dated_ahead := count(self.now, behind):
                # These are learned, by the table's count. All that came since then stands before them.
                reached = self.experiences.nth(settled - dated_ahead)
                plan.besides, plan.late = (reached and reached.next, self.now), 0
        elif ahead is not None and ahead.table is not None:
            start = ahead.reached and ahead.reached.next
            late = start is not None and count(None, start) > ahead.settled
            if not late and count(ahead.first, behind) <= settled - ahead.settled:
                contents = replace(baseline.contents, q_table=ahead.table, total_reward=ahead.total_reward)
                before = replace(checkpoint, settled=ahead.settled, visits=ahead.visits, curve=ahead.curve, ahead=None)
                plan.baseline = replace(baseline, contents=contents, checkpoint=before)
                plan.start, plan.again, plan.late = start, (ahead.first, behind), 0
        return plan

    def _train(self, plan: _Plan, trainer: Trainer, policy: QLearningPolicy) -> Checkpoint | None:
        """Train as planned; returns how far the table has come, None while nothing was learned."""
        before = plan.baseline.checkpoint or Checkpoint(
            watermark=Watermark("", 0),
            settled=0,
            order=self.order,
            archive_only=plan.baseline.daemon is None,
            hyperparameters=self.hyperparameters,
            erasures=self.erasures,
        )
        newest_first = self.order == "newest-first"
        if plan.besides is not None:
            trainer.train(*plan.besides, limit=self.limit)
        cuts = [] if newest_first else sorted({self.now, *(plan.again or ())})
        inner = [cut for cut in cuts if plan.start is None or cut > plan.start]
        in_time = self.experiences.count(None, self.now)
        first = self.experiences.nth(in_time + 1) if self._is_exact(before) else None
        ahead = first and before.ahead
        for start, end in itertools.pairwise([plan.start, *inner, None]):
            if start == self.now and first is not None:
                ahead = Ahead(
                    first,
                    reached=self.experiences.nth(in_time),
                    settled=before.settled + trainer.learned,
                    table={state: dict(row) for state, row in policy.q_table.items()},
                    total_reward=policy.total_reward,
                    visits=trainer.visits_after(before.visits),
                    curve=thin([*before.curve, *trainer.points]),
                )
            again = plan.again is not None and start is not None and plan.again[0] <= start < plan.again[1]
            limit = None if self.limit is None else self.limit - trainer.episodes
            trainer.train(start, end, newest_first=newest_first, limit=limit, again=again)
        if trainer.last is None:
            return plan.baseline.checkpoint
        if newest_first:  # a limit leaves out the oldest on purpose
            settled, last = self.experiences.total, self.experiences.nth(self.experiences.total)
        else:
            settled, last = before.settled + trainer.learned, trainer.last
        return replace(
            before,
            watermark=max(before.watermark, last or trainer.last),
            # What came late and is not learned must not count as settled, or it would be forgotten.
            settled=settled,
            hyperparameters=self.hyperparameters,
            visits=trainer.visits_after(before.visits),
            curve=thin([*before.curve, *trainer.points]),
            ahead=ahead,
        )

    def _refuse(self, contents: TableContents, verdict: Verdict) -> str:
        """Keep the new table beside the one in use, which stays as it is, and so does what it has learned."""
        why = f"not well-formed ({verdict.faults[0]})" if verdict.faults else f"worse ({verdict.reason})"
        # With its note a person can put it in the place of the table in use, and learning goes on from there.
        self.file.write_candidate(contents)
        return (
            f"the newly learned table is {why}: it is kept as {self.file.candidate_path}, and {self.file.path} stays "
            "as it was. Each dream tries again with what the archive holds by then; look for a bad night in it, or "
            "take what it says with `vidurai-pipeline dream --rebuild`"
        )


def judge(
    rival: StoredTable | None, table: QTable, held_out: list[TransitionCount], hyperparameters: Hyperparameters
) -> Verdict:
    """Compare a new table with the one in use, by held-out experiences, if they can be compared; without faults."""
    if rival is None or not any(rival.contents.q_table.values()):
        return Verdict(reason="not compared: it is the first table")
    before = read_checkpoint(rival)
    if rival.contents.note is not None and (
        before is None or _meaning(before.hyperparameters) != _meaning(hyperparameters)
    ):
        return Verdict(reason="not compared: the table in use was trained with other parameters")
    return compare(rival.contents.q_table, table, held_out, hyperparameters.alpha, hyperparameters.gamma)


def _meaning(hyperparameters: Hyperparameters) -> str:
    """What gives values their meaning; epsilon has no part in them."""
    profile = hyperparameters.reward_profile.value
    return f"profile {profile}, alpha {hyperparameters.alpha}, gamma {hyperparameters.gamma}"
