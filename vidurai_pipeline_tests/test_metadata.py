"""The labels of what the assets report: what one reads, another writes."""

import ast
import sqlite3
from pathlib import Path

import dagster as dg

import vidurai_pipeline
from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.defs import metadata
from vidurai_pipeline.rl.dreamer import DreamCycle
from vidurai_pipeline.settings import Settings
from vidurai_pipeline_tests.support.dagster_runs import execute, materialized
from vidurai_pipeline_tests.support.stores import flush

PACKAGE = Path(vidurai_pipeline.__file__).parent
LABELS = {name: value for name, value in vars(metadata).items() if name.isupper() and isinstance(value, str)}


def labels_read() -> set[str]:
    """The names of all labels that are read anywhere but where they are written."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name != "metadata.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "metadata"
        and node.attr in LABELS
    }


def labels_written(result: dg.ExecuteInProcessResult) -> set[str]:
    """The labels of what assets and checks reported."""
    reported = [*materialized(result).values(), *(check.metadata for check in result.get_asset_check_evaluations())]
    reported += [event.step_output_data.metadata for event in result.all_events if event.is_successful_output]
    return {label for metadata in reported for label in metadata}


def test_runs_write_each_label_that_is_read_and_no_two_are_alike(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    con = sqlite3.connect(settings.db_path, isolation_level=None)
    # There is a table already, with which the new one is compared.
    con.execute("UPDATE memories SET status = 'LATER' WHERE status = 'ARCHIVED' AND id % 2")
    flush(settings.db_path)
    assert DreamCycle(settings=settings).dream().success
    con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE status = 'LATER'")
    con.execute("UPDATE memories SET access_count = 'many' WHERE id = (SELECT max(id) FROM memories)")
    con.execute("UPDATE memories SET status = 'ARCHIVED' WHERE access_count = 'many'")
    con.close()
    settings = settings.model_copy(update={"fleet_q_table": settings.home / "fleet.json"})
    jobs = ("maintenance", "care", "health", "fleet")
    written = {label for job in jobs for label in labels_written(execute(settings, instance, job))}
    for job in ("restore", "erase"):
        config = {"ops": {f"{job}_memories": {"config": {"ids": [1]}}}}
        done = build_definitions(settings).resolve_job_def(job).execute_in_process(config, instance=instance)
        written |= labels_written(done)
    elsewhere = {metadata.OBJECT_STORE, metadata.BEHIND, metadata.UNUSABLE}  # with a bucket, or with many stores
    read = labels_read()
    assert {"ROW_COUNT", "KEPT", "REJECTED", "MEMORIES_PURGED"} <= read
    assert {LABELS[name] for name in read} - elsewhere <= written
    assert len(set(LABELS.values())) == len(LABELS)
    of_rules = {label for label in written if label.startswith(metadata.EXPIRED_BY)}
    assert written - of_rules == set(LABELS.values()) - {metadata.EXPIRED_BY} - elsewhere, (
        "unwritten, or written under no name"
    )
