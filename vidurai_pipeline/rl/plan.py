"""What a dream is going to learn, and on top of what."""

from dataclasses import dataclass, field

from vidurai_pipeline.errors import ConfigError
from vidurai_pipeline.rl.checkpoint import Parameters, Start, find_start
from vidurai_pipeline.rl.dataset import Experiences, Watermark
from vidurai_pipeline.rl.q_table_file import Snapshot, TableContents


@dataclass(slots=True)
class Plan:
    """What a dream is going to do.

    Attributes:
        start: the table to go on from.
        rebuild: whether the whole archive is learned anew.
        after: where learning goes on; None for the beginning.
        behind: experiences that are learned already.
        late: experiences that came late (see ``dreamer``).
        missing: experiences that were learned and left the archive.
        notices: what the user should know.
    """

    start: Start
    rebuild: bool
    after: Watermark | None
    behind: int
    late: int = 0
    missing: int = 0
    notices: list[str] = field(default_factory=list)


def make_plan(
    live: Snapshot | None,
    remembered: Snapshot | None,
    experiences: Experiences,
    parameters: Parameters,
    *,
    rebuild: bool,
    limited: bool,
) -> Plan:
    """Decide what to learn, and on top of what.

    Args:
        live: the table in use.
        remembered: the last table that a dream wrote.
        experiences: of the archive.
        parameters: what to train with.
        rebuild: learn the whole archive anew.
        limited: whether this dream may be unable to learn all there is.

    Raises:
        ConfigError: the table was trained with other parameters.
        QTableError: the table's note can't be read.
    """
    unknown = live.contents.unknown if live is not None else {}
    if rebuild and experiences.total:
        return Plan(Start(TableContents(unknown=unknown), None), True, None, 0)
    start = find_start(live, remembered)
    progress = start.progress
    if progress is None:
        plan = Plan(start, False, None, 0)
    else:
        _check_parameters(progress.parameters, parameters)
        present = experiences.count_up_to(progress.watermark)
        plan = Plan(
            start,
            rebuild=False,
            after=progress.watermark,
            behind=min(present, progress.accounted),
            late=max(0, present - progress.accounted),
            missing=max(0, progress.accounted - present),
        )
        if plan.late and progress.pure and progress.order == "chronological" and not limited:
            # Episodes stay: they say how mature the policy is, and that is not undone.
            empty = TableContents(episodes=start.contents.episodes, unknown=unknown)
            return Plan(
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


def _check_parameters(was: Parameters, now: Parameters) -> None:
    if not was.value_alike(now):
        raise ConfigError(
            f"the Q-table was trained with profile {was.reward_profile.value}, alpha {was.alpha}, gamma {was.gamma}; "
            f"to train it with profile {now.reward_profile.value}, alpha {now.alpha}, gamma {now.gamma} learn the "
            "archive again with `vidurai-pipeline dream --rebuild`"
        )
