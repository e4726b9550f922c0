"""Tell a dead man's switch of each night, so that someone hears of it when no night runs any more.

All alerts come from Dagster's daemon, which can't tell of its own death. A service such as https://healthchecks.io
takes a ping at ``VIDURAI_HEARTBEAT_URL`` when a run has ended well (at ``…/start`` when it begins, at ``…/fail`` when
it fails), and tells people when the ping does not come. Where there are many stores, the sensor `stores` sends one ping
a night, after all of them had a good run.
"""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
import requests
from requests.adapters import HTTPAdapter

from vidurai_pipeline.settings import Settings

_JOB, _LAST_STEP = "maintenance", "q_table"
_TIMEOUT_SECONDS = 10


def ping(url: str, end: str = "") -> str | None:
    """Call an address, or one below it such as ``/start``; three times, if need be.

    Returns:
        What went wrong, without the address, which is secret; None if nothing did.
    """
    parts = urlsplit(url)
    target = urlunsplit(parts._replace(path=parts.path.rstrip("/") + end if end else parts.path))
    try:
        with requests.Session() as session:
            session.mount(f"{parts.scheme}://", HTTPAdapter(max_retries=2))
            response = session.get(target, timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        return f"no answer ({type(error).__name__})"
    return None if response.ok else f"the answer was {response.status_code} {response.reason}"


@contextlib.contextmanager
def heartbeat(settings: Settings, context: dg.InitResourceContext) -> Iterator[None]:
    """Ping at a nightly run's start, and at its end by how it went. A ping that fails stops nothing."""
    run, url = context.run, settings.heartbeat_url
    if url is None or run is None or run.job_name != _JOB:
        yield
        return

    def tell(end: str) -> None:
        if (trouble := ping(url.get_secret_value(), end)) and context.log:
            context.log.warning(f"The heartbeat's address could not be told of this run: {trouble}")

    tell("/start")
    well = False
    try:
        yield
        well = context.instance is not None and _went_well(context.instance, run.run_id)
    finally:
        tell("" if well else "/fail")


def _went_well(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run came to its last step and no step failed; its own end is not reported yet."""
    steps = {step.step_key: step.status for step in instance.get_run_step_stats(run_id)}
    ended_well = {key for key, status in steps.items() if status and status.value == "SUCCESS"}
    return _LAST_STEP in ended_well and ended_well == steps.keys()
