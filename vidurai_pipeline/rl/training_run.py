"""A training run: from a table as it was read to the table that replaces it, or to the candidate beside it.

It decides what to learn and on top of what, trains, lets the gate judge the result, and saves it. If another program
wrote the table meanwhile, nothing is saved. The run can then be made again on what that program wrote, without reading
the archive again.
"""

import logging
from dataclasses import dataclass, replace

from vidurai_pipeline.errors import ConfigError, QTableError
from vidurai_pipeline.rl.checkpoint import Baseline, Checkpoint, Order, find_baseline, read_checkpoint
from vidurai_pipeline.rl.dataset import Experiences
from vidurai_pipeline.rl.evaluation import Verdict, compare, find_faults, value_bound
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
    "lost: the table of the last dream was put back. Turn Vidurai's loop off, as docs/operations.md says",
    "adopted": "another program began this table, and the dream goes on from it. What that program had learned from "
    "this archive counts twice. `vidurai-pipeline dream --rebuild` learns from the archive alone",
    "merged": "another program had begun a new table: the learned values that it lacked were put back "
    "({replaced} of its own values replaced ours)",
}


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Trains a table on experiences that were read from an archive.

    Attributes:
        file: of the table.
        experiences: of the archive.
        hyperparameters: what to train with.
        rebuild: learn the whole archive anew, and replace the table even with one that is worse.
        order: of learning.
        limit: learn no more than this many experiences.
    """

    file: TableFile
    experiences: Experiences
    hyperparameters: Hyperparameters
    rebuild: bool
    order: Order
    limit: int | None

    def run(self, live: StoredTable | None, report: DreamReport) -> None:
        """Learn on top of a table as it was read, and replace it if the gate lets the new one through.

        Args:
            live: the table.
            report: is filled in; its ``error`` says so if the gate refused the new table.

        Raises:
            TableChangedError: another program wrote the table meanwhile: nothing was replaced.
            PipelineError: something failed: nothing was replaced.
        """
        report.gate = report.notice = None
        baseline = self._baseline(live, report)
        rival = self.file.remembered() if baseline.daemon == "overwritten" else live
        policy = QLearningPolicy.of(self.hyperparameters, baseline.contents)
        shadow = None
        if not baseline.anew and rival is not None and any(rival.contents.q_table.values()):
            # What both tables are judged by must not have been taught to one of them alone. A rebuilt table and the
            # one in use have both learned it.
            shadow = QLearningPolicy.of(self.hyperparameters, baseline.contents)
        trainer = Trainer(self.experiences, self.hyperparameters.reward_profile, policy, shadow)
        start = None if baseline.checkpoint is None else baseline.checkpoint.watermark.next
        result = trainer.train(start, newest_first=self.order == "newest-first", limit=self.limit)
        if result.episodes:
            policy.end_episode()
        if result.episodes or baseline.daemon in ("merged", "overwritten"):
            checkpoint = self._checkpoint(baseline, result)
            contents = policy.contents() if checkpoint is None else checkpoint.stored_with(policy.contents())
            judged = shadow if shadow is not None and result.episodes else policy
            report.gate = self._judge(baseline, rival, policy, judged, trainer)
            if not report.gate.passed:
                report.held_back, report.notice = result.episodes, None
                report.error = self._refuse(contents, report.gate)
                report.show_table(QLearningPolicy.of(self.hyperparameters, live.contents if live else None))
                return
            self._save(live, contents)
        elif live is not None and live.contents.note is not None:
            self.file.remember(live.raw)
        try:
            self.file.drop_candidate()
        except QTableError as error:
            logger.warning("%s", error)  # the table is safe, and the next dream tries again
        report.show_result(result)
        report.show_table(policy)
        report.rebuilt = baseline.anew and result.episodes > 0
        report.daemon, report.replaced = baseline.daemon, baseline.replaced

    def _baseline(self, live: StoredTable | None, report: DreamReport) -> Baseline:
        """Decide what to learn on top of, and note in the report how that table and the archive differ."""
        unknown = live.contents.unknown if live is not None else {}
        report.skipped, report.duplicates = self.experiences.skipped, self.experiences.duplicates
        report.already_learned = report.late = report.missing = 0
        if self.experiences.dated_ahead:
            report.add_notice(
                f"{self.experiences.dated_ahead} experiences are dated in the future, as by a wrong clock, and are "
                "learned when their time has come: `vidurai-pipeline doctor` names their files"
            )
        if self.rebuild and self.experiences.total:
            return Baseline(TableContents(unknown=unknown), anew=True)
        baseline = find_baseline(live, self.file.remembered())
        if (checkpoint := baseline.checkpoint) is not None:
            _require_alike(checkpoint.hyperparameters, self.hyperparameters)
            exact = checkpoint.archive_only and checkpoint.order == "chronological" and self.limit is None
            clock_was_ahead = checkpoint.watermark > self.experiences.now
            if clock_was_ahead:
                checkpoint = self._set_back(checkpoint)
                baseline = replace(baseline, checkpoint=checkpoint)
            present = self.experiences.count(None, checkpoint.watermark.next)
            report.late = max(0, present - checkpoint.settled)
            if exact and (report.late or clock_was_ahead):
                why = f"{report.late} experiences came late" if report.late else "the last dream's clock was ahead"
                report.add_notice(f"{why}: the whole archive was learned again, in order")
                # Episodes stay: they say how mature the policy is, and that is not undone.
                return Baseline(TableContents(episodes=baseline.contents.episodes, unknown=unknown), anew=True)
            report.already_learned = min(present, checkpoint.settled)
            report.missing = max(0, checkpoint.settled - present)
        if self.rebuild:
            report.add_notice("the archive has nothing to learn from: the table stays as it is")
        if report.late:
            report.add_notice(
                f"{report.late} experiences came late and are not learned: `vidurai-pipeline dream --rebuild` learns "
                "the whole archive again, and forgets what else the table was taught"
            )
        if baseline.daemon in _NOTICES:
            report.add_notice(_NOTICES[baseline.daemon].format(replaced=baseline.replaced))
        return baseline

    def _set_back(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint of a dream whose clock was ahead, without what is dated in the future."""
        settled = checkpoint.settled - self.experiences.count(self.experiences.now, checkpoint.watermark.next)
        settled = min(max(settled, 0), self.experiences.total)
        return replace(checkpoint, watermark=self.experiences.nth(settled), settled=settled)

    def _checkpoint(self, baseline: Baseline, result: TrainingResult) -> Checkpoint | None:
        """How far the new table has come; None while nothing at all was learned."""
        if result.last is None:
            return baseline.checkpoint
        before = baseline.checkpoint or Checkpoint(
            result.last, 0, self.order, archive_only=baseline.daemon is None, hyperparameters=self.hyperparameters
        )
        newest_first = self.order == "newest-first"  # a limit leaves out the oldest then, on purpose
        return replace(
            before,
            watermark=self.experiences.nth(self.experiences.total) if newest_first else result.last,
            # What came late and is not learned must not count as settled, or it would be forgotten.
            settled=self.experiences.total if newest_first else before.settled + result.episodes,
            hyperparameters=self.hyperparameters,
            visits=add_visits(before.visits, result.visits),
            curve=extend(before.curve, result.points),
        )

    def _judge(
        self,
        baseline: Baseline,
        rival: StoredTable | None,
        policy: QLearningPolicy,
        judged: QLearningPolicy,
        trainer: Trainer,
    ) -> Verdict:
        now = self.hyperparameters
        before = read_checkpoint(rival)
        if rival is None or not any(rival.contents.q_table.values()):
            verdict = Verdict(reason="not compared: it is the first table")
        elif rival.contents.note is not None and (before is None or not _alike(before.hyperparameters, now)):
            verdict = Verdict(reason="not compared: the table in use was trained with other parameters")
        else:
            verdict = compare(rival.contents.q_table, judged.q_table, trainer.held_out(), now.alpha, now.gamma)
        bound = value_bound(now.reward_profile, now.gamma)
        faults, inherited = find_faults(policy.q_table, baseline.contents.q_table, bound)
        return replace(verdict, faults=faults, inherited=inherited, enforced=not self.rebuild)

    def _refuse(self, contents: TableContents, verdict: Verdict) -> str:
        """Keep the new table beside the one in use, which stays as it is, and so does what it has learned."""
        why = f"not well-formed ({verdict.faults[0]})" if verdict.faults else f"worse ({verdict.reason})"
        # With its note a person can put it in the place of the table in use, and learning goes on from there.
        self.file.write_candidate(contents)
        return (
            f"the newly learned table is {why}: it is kept as {self.file.candidate_path}, and {self.file.path} stays "
            "as it was. Each dream tries again with what the archive holds by then. Look for a night with wrong "
            "outcomes, or accept the new table with `vidurai-pipeline dream --rebuild`"
        )

    def _save(self, live: StoredTable | None, contents: TableContents) -> None:
        written = self.file.write(contents, expected=live)
        try:
            self.file.remember(written.raw)
        except QTableError as error:
            # The table is safe, and the next dream makes the copy again. Only a daemon that writes before then would
            # be mistaken for one that began the table.
            logger.warning("%s", error)


def _alike(was: Hyperparameters, now: Hyperparameters) -> bool:
    """Whether values learned with these can stand in one table; epsilon has no part in them."""
    return (was.reward_profile, was.alpha, was.gamma) == (now.reward_profile, now.alpha, now.gamma)


def _require_alike(was: Hyperparameters, now: Hyperparameters) -> None:
    if not _alike(was, now):
        raise ConfigError(
            f"the Q-table was trained with profile {was.reward_profile.value}, alpha {was.alpha}, gamma {was.gamma}",
            f"to train it with profile {now.reward_profile.value}, alpha {now.alpha}, gamma {now.gamma}, learn the "
            "archive again with `vidurai-pipeline dream --rebuild`",
        )
