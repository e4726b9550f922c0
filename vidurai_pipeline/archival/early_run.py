"""Is there so much to archive that the nightly run should not be waited for?"""

from dataclasses import dataclass

from vidurai_pipeline.hot.backlog import WORTH_A_RUN, BacklogCount, bytes_needed

#: The longest wait for a daemon that never pauses; runs are made to go beside it.
PATIENCE_SECONDS = 3_600.0
#: A failed run is tried again after so long, then after twice as long, and so on.
FIRST_RETRY_SECONDS = 1_800.0
LAST_RETRY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Thresholds:
    """When a run starts early; 0 switches one off.

    Attributes:
        rows: waiting memories.
        bytes: growth of the hot store since the last run.
        free_disk: bytes free on the hot store's disk, or fewer.
        quiet: seconds without a write to the store for which a run waits.
    """

    rows: int
    bytes: int
    free_disk: int
    quiet: float


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
class Decision:
    """Whether to start a run now, and why, in words.

    Attributes:
        start: start one.
        wanted: a threshold is passed, whether or not something stands in the way.
        why: for whoever looks at the sensor's ticks.
    """

    start: bool
    wanted: bool
    why: str


def decide(
    counted: BacklogCount,
    thresholds: Thresholds,
    past: Past,
    *,
    now: float,
    written: float,
    wanted_since: float | None,
    store_free: int,
    archive_free: int,
) -> Decision:
    """Decide whether to start a run.

    Args:
        counted: what waits.
        thresholds: when a run starts early.
        past: what the runs before tell.
        now: the time, in seconds since 1970, as are the next two.
        written: when the store was last written to.
        wanted_since: since when a run has been wanted without a pause, if it has.
        store_free: bytes free on the hot store's disk.
        archive_free: bytes free on the archive's.
    """
    fresh = max(0, counted.waiting - past.left)
    grown = counted.used_bytes - past.used_bytes if past.used_bytes is not None else counted.used_bytes
    reasons = []
    if thresholds.rows and fresh >= thresholds.rows:
        reasons.append(f"{fresh:,} memories wait (a run starts at {thresholds.rows:,})")
    if thresholds.bytes and fresh >= WORTH_A_RUN and grown >= thresholds.bytes:
        reasons.append(f"the hot store has grown by {_mb(grown)} (a run starts at {_mb(thresholds.bytes)})")
    if thresholds.free_disk and fresh >= WORTH_A_RUN and store_free < thresholds.free_disk:
        reasons.append(f"only {_mb(store_free)} are free on its disk (a run starts below {_mb(thresholds.free_disk)})")
    if not reasons:
        waiting = f"{fresh:,} of {thresholds.rows:,} memories" if thresholds.rows else f"{fresh:,} memories"
        left = f", and {past.left:,} that the last run could not move" if past.left else ""
        growth = _mb(max(0, grown)) + (f" of {_mb(thresholds.bytes)}" if thresholds.bytes else "")
        room = _mb(store_free) + (f" (a run starts below {_mb(thresholds.free_disk)})" if thresholds.free_disk else "")
        why = f"no need: {waiting} wait{left}; the hot store has grown by {growth}; free on its disk: {room}"
        return Decision(start=False, wanted=False, why=why)
    why = "; ".join(reasons)
    if obstacle := _obstacle(
        counted, thresholds, past, now=now, written=written, wanted_since=wanted_since, archive_free=archive_free
    ):
        return Decision(start=False, wanted=True, why=f"{why}. {obstacle}")
    return Decision(start=True, wanted=True, why=why)


def _obstacle(
    counted: BacklogCount,
    thresholds: Thresholds,
    past: Past,
    *,
    now: float,
    written: float,
    wanted_since: float | None,
    archive_free: int,
) -> str | None:
    if archive_free < (needed := bytes_needed(counted)):
        return f"But the archive's disk has {_mb(archive_free)} free and may need {_mb(needed)}: free some"
    if past.failures:
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (past.failures - 1))
        if (wait := past.ended + delay - now) > 0:
            runs = "the last run" if past.failures == 1 else f"the last {past.failures} runs"
            return f"But {runs} failed or was stopped: waits for another {_minutes(wait)}"
    quiet, patience = now - written, PATIENCE_SECONDS - (now - (wanted_since or now))
    if 0 <= quiet < thresholds.quiet and patience > 0:
        return (
            f"But the store was written to {quiet:.0f} s ago: waits for {thresholds.quiet:g} s without a write, "
            f"at most for another {_minutes(patience)}"
        )
    return None


def _mb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"
