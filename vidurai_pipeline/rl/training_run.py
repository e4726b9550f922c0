"""A training run: from a table as it was read to the table that replaces it, or to the candidate beside it.

It decides what to learn and on top of what, trains, lets the gate judge what came out, and saves. When another program
wrote the table meanwhile, nothing is saved, and the same run can be made again from what it wrote: the archive is not
read again.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vidurai_pipeline.errors import ConfigError, QTableError
from vidurai_pipeline.rl.checkpoint import Ahead, Baseline, Checkpoint, Order, find_baseline, read_checkpoint
from vidurai_pipeline.rl.dataset import Experiences, Watermark
from vidurai_pipeline.rl.evaluation import QTable, TransitionCount, Verdict, compare, find_faults, value_bound
from vidurai_pipeline.rl.learning_curve import extend
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import StoredTable, TableContents, TableFile
from vidurai_pipeline.rl.report import DreamReport
from vidurai_pipeline.rl.trainer import Trainer, TrainingResult, add_visits
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


class _Segment(NamedTuple):
    """Experiences from one place up to another; ``again`` if they were learned, but what came before them was not."""

    start: Watermark | None = None
    end: Watermark | None = None
    again: bool = False


@dataclass(slots=True)
class _Plan:
    """What to learn, and on top of what; the counts are those of ``DreamReport``."""

    baseline: Baseline
    segments: list[_Segment] = field(default_factory=lambda: [_Segment()])
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
        now: the place behind all that was archived up to the dream; what is dated later is learned last, and noted
            apart (see ``checkpoint.Ahead``).
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
        result, checkpoint = self._train(plan, trainer, policy)
        if result.episodes:
            policy.end_episode()
        report.gate = None
        report.skipped, report.duplicates = self.experiences.skipped, self.experiences.duplicates
        report.already_learned, report.late, report.missing = plan.already_learned, plan.late, plan.missing
        if result.episodes or baseline.daemon in ("merged", "overwritten"):
            judged = shadow if shadow is not None and result.episodes else policy
            bound = value_bound(self.hyperparameters.reward_profile, self.hyperparameters.gamma)
            faults, inherited = find_faults(policy.q_table, baseline.contents.q_table, bound)
            verdict = judge(rival, judged.q_table, trainer.held_out(), self.hyperparameters)
            report.gate = replace(verdict, faults=faults, inherited=inherited, enforced=not self.rebuild)
            contents = policy.contents() if checkpoint is None else checkpoint.stored_with(policy.contents())
            if not report.gate.passed:
                report.error = self._refuse(contents, report.gate)
                report.held_back = result.episodes
                report.show_table(QLearningPolicy.of(self.hyperparameters, live.contents if live else None))
                return
            self._save(live, contents)
        elif live is not None and live.contents.note is not None:
            self.file.remember(live.raw)
        try:
            self.file.drop_candidate()
        except QTableError as error:
            logger.warning("%s", error)  # the table is safe, and the next dream tries again
        report.episodes = result.episodes
        report.positive_rewards, report.negative_rewards = result.positive, result.negative
        report.total_reward = result.reward
        report.rebuilt = plan.rebuild and result.episodes > 0
        report.daemon, report.replaced = baseline.daemon, baseline.replaced
        if dated_ahead := self.experiences.count(self.now):
            plan.notices.append(
                f"{dated_ahead} experiences are dated in the future, as by a wrong clock, and are learned last: "
                "`vidurai-pipeline doctor` names their files"
            )
        report.notice = "; ".join(plan.notices) or None
        report.show_table(policy)

    def _plan(self, live: StoredTable | None) -> _Plan:
        unknown = live.contents.unknown if live is not None else {}
        if self.rebuild and self.experiences.total:
            return _Plan(Baseline(TableContents(unknown=unknown)), rebuild=True)
        baseline = find_baseline(live, self.file.remembered())
        plan = _Plan(baseline)
        if (checkpoint := baseline.checkpoint) is not None:
            _require_alike(checkpoint.hyperparameters, self.hyperparameters)
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
        """Go on from a checkpoint: with what is new, and in its place if some of the table is dated in the future."""
        count, behind = self.experiences.count, checkpoint.watermark.next
        exact, ahead = self._is_exact(checkpoint), checkpoint.ahead
        if exact and ahead is not None and ahead.table is None:
            ahead = None
        if not exact and ahead is None:
            ahead = self._presumed_ahead(checkpoint)
        if ahead is None:
            parts = [(count(None, behind), checkpoint.settled)]
            segments = [_Segment(behind)]
        else:
            reached = None if ahead.reached is None else ahead.reached.next
            before = 0 if reached is None else count(None, reached)
            parts = [(before, ahead.settled), (count(ahead.first, behind), checkpoint.settled - ahead.settled)]
            segments = [_Segment(reached, ahead.first), _Segment(behind)]
            if exact and sum(count(segment.start, segment.end) for segment in segments):
                segments.insert(1, _Segment(ahead.first, behind, again=True))
                contents = replace(baseline.contents, q_table=ahead.table or {}, total_reward=ahead.total_reward)
                checkpoint = replace(checkpoint, settled=ahead.settled, visits=ahead.visits, curve=ahead.curve)
                baseline = replace(baseline, contents=contents, checkpoint=checkpoint)
        return _Plan(
            baseline,
            segments,
            already_learned=sum(min(present, settled) for present, settled in parts),
            late=sum(max(0, present - settled) for present, settled in parts),
            missing=sum(max(0, settled - present) for present, settled in parts),
        )

    def _presumed_ahead(self, checkpoint: Checkpoint) -> Ahead | None:
        """What is dated in the future of a table whose dream did not know that, for its own clock was wrong too.

        The experiences that came since then are the last ones before.
        """
        first = self.experiences.first(self.now)
        if first is None or checkpoint.watermark < first:
            return None
        settled = max(0, checkpoint.settled - self.experiences.count(first, checkpoint.watermark.next))
        before = self.experiences.count(None, first)
        return Ahead(first, self.experiences.nth(min(settled, before)), settled)

    def _train(
        self, plan: _Plan, trainer: Trainer, policy: QLearningPolicy
    ) -> tuple[TrainingResult, Checkpoint | None]:
        """Train on the segments of a plan.

        Returns:
            What training on new experiences amounted to, and how far the table has come: None while nothing at all
            was learned.
        """
        new, trained = TrainingResult(), TrainingResult()
        before = plan.baseline.checkpoint or Checkpoint(
            watermark=Watermark("", 0),
            settled=0,
            order=self.order,
            archive_only=plan.baseline.daemon is None,
            hyperparameters=self.hyperparameters,
            erasures=self.erasures,
        )
        newest_first = self.order == "newest-first"
        ahead = None
        for segment in plan.segments:
            for part in [segment] if newest_first else self._split(segment):
                if ahead is None and part.start is not None and part.start >= self.now:
                    ahead = self._ahead(before, trained, policy)
                limit = None if self.limit is None else self.limit - trained.episodes
                result = trainer.train(part.start, part.end, newest_first=newest_first, limit=limit, again=part.again)
                trained.add(result)
                if not part.again:
                    new.add(result)
        if trained.last is None:
            return new, plan.baseline.checkpoint
        checkpoint = replace(
            before,
            watermark=max(before.watermark, trained.last),
            # What came late and is not learned must not count as settled, or it would be forgotten.
            settled=before.settled + trained.episodes,
            hyperparameters=self.hyperparameters,
            visits=add_visits(before.visits, trained.visits),
            curve=extend(before.curve, trained.points),
        )
        if newest_first:
            # A limit leaves out the oldest on purpose.
            last = self.experiences.last() or trained.last
            checkpoint = replace(checkpoint, watermark=last, settled=self.experiences.total)
        return new, replace(checkpoint, ahead=self._settle_ahead(checkpoint, ahead, trained))

    def _split(self, segment: _Segment) -> list[_Segment]:
        """Part a segment where the future begins, if some of it is dated in the future."""
        outside = (segment.start or self.now) > self.now or (segment.end is not None and segment.end <= self.now)
        if outside or not self.experiences.count(self.now, segment.end):
            return [segment]
        return [segment._replace(end=self.now), segment._replace(start=self.now)]

    def _ahead(self, before: Checkpoint, trained: TrainingResult, policy: QLearningPolicy) -> Ahead | None:
        """The table as it is before the first experience that is dated in the future."""
        first = self.experiences.first(self.now)
        if first is None:
            return None
        return Ahead(
            first=first,
            reached=self.experiences.last(self.now),
            settled=before.settled + trained.episodes,
            table={state: dict(row) for state, row in policy.q_table.items()},
            total_reward=policy.total_reward,
            visits=add_visits(before.visits, trained.visits),
            curve=extend(before.curve, trained.points),
        )

    def _settle_ahead(self, checkpoint: Checkpoint, ahead: Ahead | None, trained: TrainingResult) -> Ahead | None:
        first = self.experiences.first(self.now)
        if first is None or checkpoint.watermark < first:
            return None
        if self._is_exact(checkpoint):
            return ahead
        reached = self.experiences.last(self.now)
        if trained.last is not None and trained.last < first and self.limit == trained.episodes:
            reached = trained.last  # the limit left out some before the future
        return Ahead(first, reached, checkpoint.settled - self.experiences.count(first, checkpoint.watermark.next))

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

    def _save(self, live: StoredTable | None, contents: TableContents) -> None:
        written = self.file.write(contents, expected=live)
        try:
            self.file.remember(written.raw)
        except QTableError as error:
            # The table is safe, and the next dream makes the copy again; only a daemon that writes before then
            # would be taken for one that nobody dreamt beside.
            logger.warning("%s", error)


def judge(
    rival: StoredTable | None, table: QTable, held_out: list[TransitionCount], hyperparameters: Hyperparameters
) -> Verdict:
    """Compare a new table with one in use, if they can be compared.

    Args:
        rival: the table in use; None if there is none.
        table: the new one.
        held_out: the experiences to judge by.
        hyperparameters: what the new one was trained with.

    Returns:
        The verdict, without faults.
    """
    if rival is None or not any(rival.contents.q_table.values()):
        return Verdict(reason="not compared: it is the first table")
    before = read_checkpoint(rival)
    if rival.contents.note is not None and (before is None or not _alike(before.hyperparameters, hyperparameters)):
        return Verdict(reason="not compared: the table in use was trained with other parameters")
    return compare(rival.contents.q_table, table, held_out, hyperparameters.alpha, hyperparameters.gamma)


def _alike(was: Hyperparameters, now: Hyperparameters) -> bool:
    """Whether values learned with these can stand in one table; epsilon has no part in them."""
    return (was.reward_profile, was.alpha, was.gamma) == (now.reward_profile, now.alpha, now.gamma)


def _require_alike(was: Hyperparameters, now: Hyperparameters) -> None:
    if not _alike(was, now):
        raise ConfigError(
            f"the Q-table was trained with profile {was.reward_profile.value}, alpha {was.alpha}, gamma {was.gamma}; "
            f"to train it with profile {now.reward_profile.value}, alpha {now.alpha}, gamma {now.gamma} learn the "
            "archive again with `vidurai-pipeline dream --rebuild`"
        )
