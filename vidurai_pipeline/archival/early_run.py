"""Is there so much to archive that the nightly run should not be waited for?"""

from dataclasses import dataclass

from vidurai_pipeline.hot.backlog import WORTH_A_RUN, BacklogCount, bytes_needed
from vidurai_pipeline.settings import Settings

#: The longest wait for a daemon that never pauses; runs are made to go beside it.
PATIENCE_SECONDS = 3_600.0
#: A failed run is tried again after so long, then after twice as long, and so on.
FIRST_RETRY_SECONDS = 1_800.0
LAST_RETRY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Past:
    """What the runs before tell.

    Attributes:
        left: memories that the last run could not move; they are no reason for another.
        used_bytes: the hot store's size without free pages after the last run, if known.
        failures: how many runs in a row have failed, up to the last.
        ended: when the last run ended, in seconds since 1970.
    """

    left: int = 0
    used_bytes: int | None = None
    failures: int = 0
    ended: float = 0.0


@dataclass(frozen=True)
class Situation:
    """How things stand; times are in seconds since 1970.

    Attributes:
        counted: what waits.
        past: what the runs before tell.
        now: the time.
        written: when the store was last written to.
        wanted_since: since when a run has been wanted without a pause, if it has.
        store_free: bytes free on the hot store's disk.
        archive_free: bytes free on the archive's.
    """

    counted: BacklogCount
    past: Past
    now: float
    written: float
    wanted_since: float | None
    store_free: int
    archive_free: int

    @property
    def fresh(self) -> int:
        """Memories that wait and that the last run has not tried in vain."""
        return max(0, self.counted.waiting - self.past.left)

    @property
    def grown(self) -> int:
        """By how many bytes the hot store has grown since the last run."""
        return self.counted.used_bytes - (self.past.used_bytes or 0)

    def reasons(self, settings: Settings) -> list[str]:
        """Which limits are passed, in words."""
        rows, growth, free = settings.early_run_rows, settings.early_run_bytes, settings.early_run_free_disk
        reasons = []
        if rows and self.fresh >= rows:
            reasons.append(f"{self.fresh:,} memories wait (a run starts at {rows:,})")
        if self.fresh < WORTH_A_RUN:
            return reasons
        if growth and self.grown >= growth:
            reasons.append(f"the hot store has grown by {_mb(self.grown)} (a run starts at {_mb(growth)})")
        if free and self.store_free < free:
            reasons.append(f"only {_mb(self.store_free)} are free on its disk (a run starts below {_mb(free)})")
        return reasons

    def no_need(self, settings: Settings) -> str:
        """How far each figure is from its limit, in words."""
        rows, growth, free = settings.early_run_rows, settings.early_run_bytes, settings.early_run_free_disk
        waiting = f"{self.fresh:,} of {rows:,} memories" if rows else f"{self.fresh:,} memories"
        left = f", and {self.past.left:,} that the last run could not move" if self.past.left else ""
        grown = _mb(max(0, self.grown)) + (f" of {_mb(growth)}" if growth else "")
        limit = f" (a run starts below {_mb(free)})" if free else ""
        return (
            f"no need: {waiting} wait{left}; the hot store has grown by {grown}; free on its disk: "
            f"{_mb(self.store_free)}{limit}"
        )

    def obstacle(self, quiet: float) -> str | None:
        """What stands in the way of a run, in words.

        Args:
            quiet: seconds without a write to the store for which a run waits.
        """
        if self.archive_free < (needed := bytes_needed(self.counted)):
            return f"But the archive's disk has {_mb(self.archive_free)} free and may need {_mb(needed)}: free some"
        if failures := self.past.failures:
            delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (failures - 1))
            if (wait := self.past.ended + delay - self.now) > 0:
                runs = "the last run" if failures == 1 else f"the last {failures} runs"
                return f"But {runs} failed or was stopped: waits for another {_minutes(wait)}"
        patience = PATIENCE_SECONDS - (self.now - (self.wanted_since or self.now))
        if 0 <= (since := self.now - self.written) < quiet and patience > 0:
            return (
                f"But the store was written to {since:.0f} s ago: waits for {quiet:g} s without a write, "
                f"at most for another {_minutes(patience)}"
            )
        return None


@dataclass(frozen=True)
class Decision:
    """Whether to start a run now, and why in words; it may be wanted although something stands in the way."""

    start: bool
    wanted: bool
    why: str


def decide(situation: Situation, settings: Settings) -> Decision:
    """Decide whether to start a run."""
    why = "; ".join(situation.reasons(settings))
    if not why:
        return Decision(start=False, wanted=False, why=situation.no_need(settings))
    if obstacle := situation.obstacle(settings.early_run_quiet):
        return Decision(start=False, wanted=True, why=f"{why}. {obstacle}")
    return Decision(start=True, wanted=True, why=why)


def _mb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"
