"""The search index: brought in line with the archive each night, and no night fails for it."""

import time
from collections.abc import Iterator

import dagster as dg

from vidurai_pipeline.analytics.vector_index import VectorIndex, update_vectors
from vidurai_pipeline.analytics.word_index import WordIndex
from vidurai_pipeline.care import health
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.defs.assets import LIFECYCLE, purged_rows
from vidurai_pipeline.defs.resources import Tiers
from vidurai_pipeline.errors import PipelineError, plural


@dg.asset(deps=[purged_rows], kinds={"python"}, **LIFECYCLE, output_required=False)
def search_index(context: dg.AssetExecutionContext, tiers: dg.ResourceParam[Tiers]) -> Iterator[dg.MaterializeResult]:
    """The words of all archived memories, and what they mean, by which `vidurai-pipeline search` finds them at once.

    It is made from the archive's files, and each run brings it in line with them: it reads new files and drops what it
    holds of files that are gone. With `vidurai-pipeline[semantic]`, memories are embedded for the search by meaning,
    the newest first, for `VIDURAI_EMBED_MINUTES` a night. An encrypted archive has no index.

    **Next:** nothing. If it could not be updated, the log says why, the run goes on, and searches read what is missing
    from the archive. `vidurai-pipeline index --rebuild` makes it from nothing.
    """
    archive = tiers.cold
    if archive.keys.path is not None:
        WordIndex(archive.root).discard()
        VectorIndex(archive.root).discard()
        context.log.info("An encrypted archive has no search index")
        return
    try:
        words = WordIndex(archive.root)
        report = words.update(archive, verify=True)
        recall = words.recall(archive)
        vectors, note = update_vectors(archive, tiers.settings, progress=_Log(context))
    except PipelineError as error:
        context.log.warning(f"The search index was not updated: {error}")
        return
    context.log.info(
        f"The search index holds {plural(report.documents, 'memory')}; {plural(report.added, 'file')} read"
    )
    if note is None:
        context.log.info(f"{plural(vectors.embedded, 'memory')} embedded; search by meaning: {vectors.state}")
    else:
        context.log.info(f"Nothing was embedded: {note}")
    yield dg.MaterializeResult(metadata=metadata.of_index(report, recall, vectors))


class _Log:
    """Tells the run's log once a minute how far the work is."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context, self._told = context, time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            self._context.log.info(f"{stage}: {done:,} of {total:,} memories")


@dg.asset_check(asset=search_index, additional_deps=[purged_rows])
def index_agrees_with_archive(tiers: dg.ResourceParam[Tiers]) -> dg.AssetCheckResult:
    """Whether the search index holds every file of the archive, with as many memories as were recorded of it.

    Vectors may lack for memories that are not embedded yet, but none may be of a file that is gone.
    """
    finding = health.search_index(tiers.cold)
    return dg.AssetCheckResult(
        passed=finding.status == "ok", severity=dg.AssetCheckSeverity.WARN, description=finding.detail
    )
