"""The dream: one offline pass of Q-learning over the memories that were archived since the last one.

The way of an experience: ``archive_query`` reads it from Parquet, ``dataset`` hands it over in order, ``trainer``
teaches it to the policy, ``evaluation`` judges the new table, and ``q_table_file`` writes it. ``training_run`` calls
the last three; ``checkpoint`` tells it where to begin. What a dream promises stands in ``docs/learning.md``.
"""

import logging
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from vidurai_pipeline.cold.erasures import Erasures
from vidurai_pipeline.cold.mirror import open_archive
from vidurai_pipeline.errors import ConfigError, PipelineError, QTableError, refuse_to_run
from vidurai_pipeline.rl.checkpoint import Checkpoint, Order, read_checkpoint
from vidurai_pipeline.rl.dataset import Watermark, open_experiences
from vidurai_pipeline.rl.q_table_file import DamagedTableError, StoredTable, TableChangedError, TableFile
from vidurai_pipeline.rl.report import DreamReport
from vidurai_pipeline.rl.training_run import TAUGHT_BY_OTHERS, TrainingRun
from vidurai_pipeline.settings import Hyperparameters, RewardProfile, Settings, load_settings

logger = logging.getLogger(__name__)
# Who asked for the dream reads of its failure in the report; without a handler, Python would print it once more.
logger.addHandler(logging.NullHandler())

_ATTEMPTS = 5


class DreamCycle:
    """Trains the Q-table on archived memories.

    Nothing is read before a dream begins.

    Example:
        >>> stats = DreamCycle(Path("archive"), Path("q_table.json")).run()
        >>> stats["success"], stats["episodes"]
        (True, 0)

    Args:
        archive_base: the cold archive's folder; default the settings'.
        q_table_path: the table's file; default the settings'.
        reward_profile: what the user wants most; this and the next five default to the settings'.
        max_episodes: learn no more than this many experiences in a run; the next run goes on from there.
        alpha: learning rate, above 0 up to 1.
        gamma: discount of later rewards, 0 to 1.
        epsilon_max: share of random decisions at the beginning, 0 to 1.
        epsilon_min: share of random decisions that remains, 0 to 1.
        epsilon_decay: of that share, per episode.
        connection: a DuckDB connection to read the archive with; default a private one.
        settings: default the environment's.
    """

    def __init__(
        self,
        archive_base: Path | None = None,
        q_table_path: Path | None = None,
        *,
        reward_profile: RewardProfile | None = None,
        max_episodes: int | None = None,
        alpha: float | None = None,
        gamma: float | None = None,
        epsilon_max: float | None = None,
        epsilon_min: float | None = None,
        epsilon_decay: float | None = None,
        connection: duckdb.DuckDBPyConnection | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.archive_base = archive_base
        self.q_table_path = q_table_path
        self.max_episodes = max_episodes
        self.connection = connection
        self.settings = settings
        #: Tells the time, with its zone.
        self.clock = lambda: datetime.now(UTC)
        self._given = {
            "reward_profile": reward_profile,
            "alpha": alpha,
            "gamma": gamma,
            "epsilon_max": epsilon_max,
            "epsilon_min": epsilon_min,
            "epsilon_decay": epsilon_decay,
        }

    def run(self, *, rebuild: bool = False, order: Order = "chronological") -> dict[str, Any]:
        """Dream once, and say what came of it as the specification's statistics: ``dream`` as a dictionary."""
        return self.dream(rebuild=rebuild, order=order).to_dict()

    def dream(self, *, rebuild: bool = False, order: Order = "chronological") -> DreamReport:
        """Dream once. If something goes wrong, the report's ``error`` says so; nothing is raised.

        Args:
            rebuild: learn the whole archive from an empty table. With an archive that has nothing to learn the table
                stays as it is.
            order: ``newest-first`` is the order of Vidurai's own dreamer; it needs ``rebuild``.
        """
        report = DreamReport()
        try:
            self._dream(report, rebuild, order)
            report.success = report.error is None
            logger.info("Learned %d experiences, reward %.2f", report.episodes, report.total_reward)
        except PipelineError as error:
            report.error = str(error)
        except OSError as error:
            report.error = f"{error.filename or 'the file system'}: {error.strerror or type(error).__name__}"
        except Exception as error:
            # Its text may quote a memory; the kind and the place may not.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            report.error = f"the dream failed: {type(error).__name__} at {place}; the Q-table is unchanged"
        if report.error:
            logger.error("The dream failed: %s", report.error)
        report.completed_at = datetime.now().isoformat()
        return report

    def forget(self) -> tuple[bool, str]:
        """Learn anew without memories that were erased, as the next dream would.

        Returns:
            Whether the table had learned from any; and if it still has, why, and what to do.
        """
        settings = self.settings or load_settings()
        file = TableFile(self.q_table_path or settings.q_table_path)
        try:
            erasures = Erasures(self.archive_base or settings.archive_path).taught()
            live = file.read()
            if live is None or not erasures:
                return False, ""
            checkpoint = _exact_checkpoint(live)
            if checkpoint is None:
                return True, f"it may have learned from them {TAUGHT_BY_OTHERS}"
            if checkpoint.erasures >= erasures:
                return False, ""
            dream = self.dream()
        except PipelineError as error:
            return True, str(error)
        return True, dream.error or ("" if dream.rebuilt else "nothing is left to learn: delete it")

    def _dream(self, report: DreamReport, rebuild: bool, order: Order) -> None:
        if order not in ("chronological", "newest-first"):
            raise ConfigError("the order of learning is chronological or newest-first")
        if order == "newest-first" and not rebuild:
            raise ConfigError("the order newest-first needs a rebuild", "a table can't be learned in two orders")
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ConfigError("max_episodes must be at least 1")
        settings = self.settings or load_settings()
        given = {name: value for name, value in self._given.items() if value is not None}
        hyperparameters = replace(Hyperparameters.of(settings), **given)
        file = TableFile(self.q_table_path or settings.q_table_path)
        # The table first: a damaged one should be known before minutes go into the archive.
        live = _read_table(file, report, rebuild)
        archive = self.archive_base or open_archive(settings).root
        with open_experiences(settings, archive, self.connection) as experiences:
            erasures, exact = Erasures(archive).taught(), _exact_checkpoint(live)
            training = TrainingRun(
                file,
                experiences,
                hyperparameters,
                rebuild=rebuild or (exact is not None and exact.erasures < erasures),
                order=order,
                limit=self.max_episodes,
                now=Watermark.behind(self.clock()),
                erasures=erasures,
            )
            for _ in range(_ATTEMPTS):
                try:
                    training.run(live, report)
                    return
                except TableChangedError:
                    live = _read_table(file, report, rebuild)
        raise QTableError(f"{file.path} changes too often: another program keeps writing it", "dream again later")


def _exact_checkpoint(live: StoredTable | None) -> Checkpoint | None:
    """How far a table has come that is what the archive alone gives; None for any other."""
    checkpoint = read_checkpoint(live)
    if live is None or checkpoint is None or checkpoint.table_digest != live.contents.digest():
        return None
    return checkpoint if checkpoint.archive_only else None


def _read_table(file: TableFile, report: DreamReport, rebuild: bool) -> StoredTable | None:
    try:
        live = file.read()
        file.require_ours()
        if live is not None and live.contents.note is not None and not rebuild:
            try:
                Checkpoint.from_json(live.contents.note)
            except DamagedTableError as error:
                raise file.unusable(live.raw, str(error)) from None
        return live
    except DamagedTableError as error:
        aside = file.set_aside()
        report.set_aside = str(aside)
        if rebuild:
            return None
        raise QTableError(
            f"{error.args[0]}. It is now {aside.name}",
            f"{error.hint}; otherwise the next dream learns the whole archive from an empty table",
        ) from None


if __name__ == "__main__":
    refuse_to_run("`vidurai-pipeline dream`, or `vidurai-pipeline doctor` to test")
