"""The same counts by Apache Spark, for more experiences than one machine likes to read.

One job reads the files of all stores. Which files there are, and whether they are what was written, is found out here,
as for every other reader. Spark's workers must see them under the same paths.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vidurai_pipeline.cold.files import make_present
from vidurai_pipeline.errors import ArchiveError, ConfigError
from vidurai_pipeline.rl.archive_query import level_of, sound_files
from vidurai_pipeline.rl.dataset import HELD_OUT
from vidurai_pipeline.rl.inference import CHARACTERS_PER_TOKEN, IMPORTANCES, MAX_TOKENS
from vidurai_pipeline.rl.stores import NO_NAME, Store
from vidurai_pipeline.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

_FILES = (
    "id BIGINT, verbatim STRING, gist STRING, salience STRING, created_at STRING, outcome BIGINT, archived_at STRING",
    (
        "archived_at",
        "CAST(outcome AS DOUBLE) AS outcome",
        "salience",
        "coalesce(length(verbatim), 0) + coalesce(length(gist), 0) AS characters",
    ),
)
_TOMBSTONES = (
    "id BIGINT, created_at STRING, "
    "experience STRUCT<archived_at: STRING, outcome: STRING, salience: STRING, characters: BIGINT>",
    (
        "experience.archived_at",
        "try_cast(experience.outcome AS DOUBLE) AS outcome",
        "experience.salience",
        "experience.characters",
    ),
)
# Names of stores need no escapes in an address. A file of no store gives an empty name.
_STORE = "regexp_extract(_metadata.file_path, '.*/store=([^/]+)/', 1) AS store"
_COUNT = f"""
    SELECT store, code, count(*) AS total, count_if({HELD_OUT}) AS held_out
    FROM (
        SELECT store, id, (tokens * {len(IMPORTANCES)} + level) * 2 + CAST(outcome > 0 AS INT) AS code
        FROM (
            SELECT store, id, created_at, outcome, {level_of("octet_length")} AS level,
                least(characters div {CHARACTERS_PER_TOKEN}, {MAX_TOKENS}) AS tokens,
                CASE WHEN archived_at RLIKE '^[0-9]+-[0-9]+-[0-9]+'
                    THEN try_cast(replace(archived_at, 'z', 'Z') AS TIMESTAMP) END AS moment
            FROM {{experiences}}
            WHERE id IS NOT NULL AND outcome IN (-1, 1)
        )
        GROUP BY store, id, created_at, outcome, level, tokens
        HAVING count(moment) > 0
    )
    GROUP BY store, code
"""


def count_with_spark(settings: Settings, stores: Sequence[Store]) -> None:
    """Count the experiences of all stores in one job.

    Raises:
        ConfigError: Spark does not start.
        ArchiveError: Spark can't read the files.
    """
    files: list[str] = []
    removed: list[str] = []
    by_name: dict[str, Store] = {}
    for store in stores:
        try:
            settled, tombstones = sound_files(store.archive)
            if any(file.key for file in settled):
                raise ArchiveError(f"{store.archive} is encrypted, and Spark has no keys", "unset VIDURAI_SPARK_MASTER")
            for file in (*settled, *tombstones):
                make_present(store.archive / file.relative)
        except ArchiveError as error:
            store.left_out = str(error)
            continue
        by_name[store.name] = store
        files += [f"{store.archive.absolute()}/{file.relative}" for file in settled]
        removed += [f"{store.archive.absolute()}/{file.relative}" for file in tombstones]
    sources = [(paths, *how) for paths, how in ((files, _FILES), (removed, _TOMBSTONES)) if paths]
    if not sources:
        return
    only = next(iter(by_name)) if len(by_name) == 1 else None
    with _session(settings) as spark:
        frames = [
            spark.read.schema(schema).parquet(*paths).selectExpr("id", "created_at", *columns, _STORE)
            for paths, schema, columns in sources
        ]
        experiences = frames[0] if len(frames) == 1 else frames[0].unionByName(frames[1])
        for row in spark.sql(_COUNT, experiences=experiences).collect():
            store = by_name[only or row.store or NO_NAME]
            store.total[row.code] = row.total
            if row.held_out:
                store.held_out[row.code] = row.held_out


@contextlib.contextmanager
def _session(settings: Settings) -> Iterator["SparkSession"]:
    """A session of its own, or the one that this process has."""
    try:
        from py4j.protocol import Py4JError  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from pyspark.errors import PySparkException  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from pyspark.sql import SparkSession  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "VIDURAI_SPARK_MASTER is set, but pyspark is not installed",
            "install `vidurai-pipeline[spark]`, or unset it to count with DuckDB",
        ) from None
    running = SparkSession.getActiveSession()
    spark = None
    try:
        spark = running or (
            SparkSession.builder.master(settings.spark_master or "local[*]")
            .appName("vidurai-pipeline")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.enabled", "false")
            .config("spark.log.level", "OFF")
            .getOrCreate()
        )
        yield spark
    except (PySparkException, Py4JError, OSError) as error:  # whose text may quote a value; its name does not
        if spark is None:
            raise ConfigError(
                f"VIDURAI_SPARK_MASTER={settings.spark_master!r}: Spark does not start",
                "name a master such as local[4] or spark://host:7077, and install Java 17 or later",
            ) from None
        name = re.search(r"\[([A-Z_.]+)\]", str(error))
        raise ArchiveError(
            f"Spark could not count what is in {settings.archive_path} ({name[1] if name else type(error).__name__})",
            "let its workers see the files under the same paths, or unset VIDURAI_SPARK_MASTER: DuckDB reads more",
        ) from None
    finally:
        if running is None and spark is not None:
            spark.stop()
