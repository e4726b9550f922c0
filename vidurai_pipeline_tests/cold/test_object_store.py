"""The archive in an object store: a real server, broken at one request after the other, and every memory counted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vidurai_pipeline.cold.storage import ObjectStorage
from vidurai_pipeline_tests.support import object_store
from vidurai_pipeline_tests.support.cli import cli
from vidurai_pipeline_tests.support.drivers import run_module
from vidurai_pipeline_tests.support.tiers import hot_rows

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object_store.Proxy]:
    """An object store, and a proxy before it."""
    with object_store.object_store(tmp_path_factory.mktemp("weed")) as upstream:
        proxy = object_store.Proxy.start(tmp_path_factory.mktemp("proxy"), upstream)
        yield proxy
        proxy.end()


@pytest.fixture
def environment(proxy: object_store.Proxy, monkeypatch: pytest.MonkeyPatch) -> object_store.Proxy:
    """That of a machine that may use the object store, by way of the proxy."""
    proxy.pass_all()
    for name, value in object_store.environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    return proxy


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("scenario", "numbers"),
    [
        ("another_machine_sees_all_and_a_second_question_transfers_nothing", []),
        ("a_question_about_a_month_brings_that_month_alone", []),
        ("a_flush_that_is_cut_off_loses_nothing", range(2, 60, 8)),
        ("a_rewriting_that_is_cut_off_loses_nothing_and_brings_nothing_back", range(9, 33, 5)),
        ("an_erasure_that_is_cut_off_is_finished_and_takes_nothing_else", [10, 26, 41]),
        ("two_machines_at_once_lose_nothing", []),
        ("a_machine_that_was_held_up_does_no_harm", []),
        ("a_lease_is_respected_unless_its_machine_died", []),
        ("an_archive_without_a_name_and_those_of_named_stores_never_share_a_prefix", []),
        ("an_archive_that_moves_is_cut_off_and_nothing_is_lost_or_shown_twice", [12, 45]),
        ("a_mirror_in_a_bucket_heals_the_archive", []),
        ("a_scrub_reads_the_bucket_and_heals_it_from_a_mirror", []),
    ],
)
def test_object_store(
    proxy: object_store.Proxy, programs: Path, tmp_path: Path, scenario: str, numbers: list[int]
) -> None:
    run_module(programs, "cold.object_store_driver", scenario, proxy.folder, proxy.port, tmp_path, *numbers)


UNUSABLE = {
    "no bucket": "there is no such bucket",
    "wrong secret": "denies access (SignatureDoesNotMatch)",
    "no server": "can't be reached",
    "no right to delete": "denies access (AccessDenied)",
    "other people's objects": "holds other objects and no archive",
}


@pytest.mark.parametrize("fault", UNUSABLE)
@pytest.mark.parametrize("setting", ["VIDURAI_ARCHIVE", "VIDURAI_MIRROR"])
def test_what_cannot_be_used_is_one_line_and_nothing_is_touched(
    environment: object_store.Proxy, home: Path, tmp_path: Path, setting: str, fault: str
) -> None:
    before, variables = hot_rows(home / "vidurai.db"), {}
    variables[setting] = url = f"s3://{object_store.BUCKET}/{tmp_path.name}"
    match fault:
        case "no bucket":
            variables[setting] = "s3://no-such-bucket/archive"
        case "wrong secret":
            variables["AWS_SECRET_ACCESS_KEY"] = f"not-{object_store.SECRET}"
        case "no server":
            variables["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{object_store.free_port()}"
        case "no right to delete":
            environment.break_request(0, "deny deletes")
        case _:
            ObjectStorage(url).write("holiday/photo.jpg", b"picture")
    done = cli("flush", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert UNUSABLE[fault] in done.stderr
    assert object_store.SECRET not in done.stderr
    assert hot_rows(home / "vidurai.db") == before
    if fault == "other people's objects":
        assert list(ObjectStorage(url).objects()) == ["holiday/photo.jpg"]
