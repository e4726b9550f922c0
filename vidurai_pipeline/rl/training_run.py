"""One attempt at a dream: from a table as it was read to the table that replaces it, or the candidate beside it."""

import logging
from dataclasses import replace
from typing import Any

from vidurai_pipeline.errors import QTableError
from vidurai_pipeline.rl.checkpoint import Order, Parameters, Progress
from vidurai_pipeline.rl.dataset import Experiences
from vidurai_pipeline.rl.evaluation import QTable, Verdict, compare, find_faults, value_bound
from vidurai_pipeline.rl.learning_curve import extend
from vidurai_pipeline.rl.lesson import Lesson, Teacher, add_visits
from vidurai_pipeline.rl.plan import Plan, make_plan
from vidurai_pipeline.rl.policy import QLearningPolicy
from vidurai_pipeline.rl.q_table_file import Snapshot, TableContents, TableFile, decode
from vidurai_pipeline.rl.states import Action

logger = logging.getLogger(__name__)


class Attempt:
    """A dream of an archive that was read, for as many attempts as it takes."""

    def __init__(
        self,
        file: TableFile,
        experiences: Experiences,
        parameters: Parameters,
        *,
        rebuild: bool,
        order: Order,
        limit: int | None,
    ) -> None:
        """Set it up.

        Args:
            file: of the table.
            experiences: of the archive.
            parameters: what to train with.
            rebuild: learn the whole archive anew, and replace the table also with one that is worse.
            order: of learning.
            limit: learn no more than this many experiences.
        """
        self._file = file
        self._experiences = experiences
        self._parameters = parameters
        self._rebuild = rebuild
        self._order: Order = order
        self._limit = limit

    def dream(self, live: Snapshot | None) -> dict[str, Any]:
        """Learn on top of a table as it was read, and replace it if the gate lets the new one through.

        Returns:
            What ``DreamCycle.run`` tells of it; ``error`` if the gate refused the new table.

        Raises:
            TableChangedError: another program wrote the table meanwhile: nothing was replaced.
            PipelineError: something failed: nothing was replaced.
        """
        plan = make_plan(
            live,
            self._file.remembered(),
            self._experiences,
            self._parameters,
            rebuild=self._rebuild,
            limited=self._limit is not None,
        )
        start = plan.start.contents
        in_use = {} if live is None else _copy(live.contents.q_table)
        begun_with = _copy(start.q_table)
        teacher = Teacher(self._experiences, self._parameters.reward_profile)
        policy = self._policy(start)
        # What both tables are judged by must not have been taught to one of them alone. A rebuilt table and the one
        # in use have both learned it.
        shadow = (
            None
            if plan.rebuild or not any(in_use.values())
            else self._policy(replace(start, q_table=_copy(begun_with)))
        )
        lesson = teacher.teach(
            policy, shadow, after=plan.after, newest_first=self._order == "newest-first", limit=self._limit
        )
        facts = {
            "skipped": self._experiences.skipped,
            "duplicates": self._experiences.duplicates,
            "already_learned": plan.behind,
            "late": plan.late,
            "missing": plan.missing,
        }
        verdict = None
        if lesson.episodes:
            policy.end_episode()
        progress = self._progress(plan, lesson)
        if lesson.episodes or plan.start.daemon == "merged":
            faults, inherited = find_faults(
                policy.q_table, begun_with, value_bound(self._parameters.reward_profile, policy.gamma)
            )
            judged = policy if shadow is None or not lesson.episodes else shadow
            verdict = replace(
                self._compare(live, in_use, judged.q_table, teacher),
                faults=faults,
                inherited=inherited,
                enforced=not self._rebuild,
            )
            if not verdict.passed:
                in_use_still = self._policy(TableContents() if live is None else decode(live.raw))
                return {
                    "error": self._refuse(policy, progress, verdict),
                    "held_back": lesson.episodes,
                    **facts,
                    **_table_facts(in_use_still),
                    "gate": verdict.to_dict(),
                }
            self._save(live, policy, progress)
        elif live is not None and live.contents.progress is not None:
            self._file.remember(live.raw)
        try:
            self._file.drop_candidate()
        except QTableError as error:
            logger.warning("%s", error)  # the table is safe, and the next dream tries again
        return {
            "episodes": lesson.episodes,
            "positive_rewards": lesson.positive,
            "negative_rewards": lesson.negative,
            "total_reward": lesson.reward,
            **facts,
            "rebuilt": plan.rebuild and lesson.episodes > 0,
            "daemon": plan.start.daemon,
            "replaced": plan.start.replaced,
            **_table_facts(policy),
            "gate": verdict and verdict.to_dict(),
            "notice": "; ".join(plan.notices) or None,
        }

    def _policy(self, contents: TableContents) -> QLearningPolicy:
        policy = self._parameters.policy()
        policy.adopt(contents)
        return policy

    def _compare(self, live: Snapshot | None, in_use: QTable, new: QTable, teacher: Teacher) -> Verdict:
        if live is None or not any(in_use.values()):
            return Verdict(reason="not compared: it is the first table")
        if live.contents.progress is not None:
            try:
                parameters = Progress.from_json(live.contents.progress).parameters
            except QTableError:
                parameters = None
            if parameters is None or not parameters.value_alike(self._parameters):
                return Verdict(reason="not compared: the table in use was trained with other parameters")
        return compare(in_use, new, teacher.held_out(), self._parameters.alpha, self._parameters.gamma)

    def _refuse(self, policy: QLearningPolicy, progress: Progress | None, verdict: Verdict) -> str:
        """Keep the new table beside the one in use, which stays as it is, and so does what it has learned."""
        why = f"not well-formed ({verdict.faults[0]})" if verdict.faults else f"worse ({verdict.reason})"
        contents = policy.contents()
        if progress is not None:
            # With its note a person can put it in the place of the table in use, and learning goes on from there.
            contents.progress = replace(progress, table_digest=contents.digest()).to_json()
        self._file.write_candidate(contents)
        return (
            f"the newly learned table is {why}: it is kept as {self._file.candidate_path}, and {self._file.path} stays "
            "as it was. Each dream tries again with what the archive holds by then; look for a bad night in it, or "
            "take what it says with `vidurai-pipeline dream --rebuild`"
        )

    def _progress(self, plan: Plan, lesson: Lesson) -> Progress | None:
        """The note for the table that comes out of a plan; None while nothing at all was learned."""
        before = plan.start.progress
        if lesson.last is None:
            return before
        if before is not None:
            # What came late and is not learned must not count as settled, or it would be forgotten.
            return replace(
                before,
                watermark=lesson.last,
                parameters=self._parameters,
                accounted=before.accounted + lesson.episodes,
                visits=add_visits(before.visits, lesson.visits),
                curve=extend(before.curve, lesson.points),
            )
        # Newest first with a limit leaves out the oldest on purpose.
        last = self._experiences.last() if self._order == "newest-first" else lesson.last
        assert last is not None  # noqa: S101 (something was learned)
        accounted = self._experiences.total if self._order == "newest-first" else lesson.episodes
        return Progress(
            watermark=last,
            accounted=accounted,
            order=self._order,
            pure=plan.start.daemon is None,
            parameters=self._parameters,
            table_digest="",
            visits=lesson.visits,
            curve=extend((), lesson.points),
        )

    def _save(self, live: Snapshot | None, policy: QLearningPolicy, progress: Progress | None) -> None:
        contents = policy.contents()
        if progress is not None:
            contents.progress = replace(progress, table_digest=contents.digest()).to_json()
        written = self._file.write(contents, expected=live)
        try:
            self._file.remember(written.raw)
        except QTableError as error:
            # The table is safe, and the next dream makes the copy again; only a daemon that writes before then
            # would be taken for one that nobody dreamt beside.
            logger.warning("%s", error)


def _copy(table: QTable) -> dict[str, dict[Action, float]]:
    return {state: dict(row) for state, row in table.items()}


def _table_facts(policy: QLearningPolicy) -> dict[str, Any]:
    return {"states": len(policy.q_table), "table_episodes": policy.episodes, "epsilon": policy.get_epsilon()}
