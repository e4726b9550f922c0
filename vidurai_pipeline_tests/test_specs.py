"""What Dagster shows: every asset, check, job, schedule and sensor, as a reviewed file has them.

After a change that is meant, renew the file with ``make snapshot`` and read its difference.
"""

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg

from vidurai_pipeline.definitions import build_definitions
from vidurai_pipeline.settings import Settings

SNAPSHOT = Path(__file__).parent / "data/specs.json"


def specs(definitions: dg.Definitions) -> dict[str, Any]:
    """All that people see and rely on, in an order of its own."""
    repository = definitions.get_repository_def()
    checks = [
        *(spec for check in definitions.asset_checks or () for spec in check.check_specs),
        *(
            spec
            for asset in definitions.assets or ()
            if isinstance(asset, dg.AssetsDefinition)
            for spec in asset.check_specs
        ),
    ]
    return {
        "assets": {
            spec.key.to_user_string(): {
                "depends on": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
                "description": spec.description,
                "freshness": str(spec.freshness_policy) if spec.freshness_policy else None,
                "group": spec.group_name,
                "kinds": sorted(spec.kinds),
                "owners": list(spec.owners),
            }
            for spec in definitions.resolve_all_asset_specs()
        },
        "checks": {
            spec.name: {
                "asset": spec.asset_key.to_user_string(),
                "after": sorted(dep.asset_key.to_user_string() for dep in spec.additional_deps),
                "blocking": spec.blocking,
                "description": spec.description,
            }
            for spec in checks
        },
        "jobs": {
            job.name: {
                "description": job.description,
                "steps": sorted(node.name for node in job.graph.nodes),
                "tags": dict(job.tags),
            }
            for job in repository.get_all_jobs()
        },
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "description": schedule.description,
                "job": schedule.job_name,
                "status": schedule.default_status.value,
                "time zone": schedule.execution_timezone,
            }
            for schedule in repository.schedule_defs
        },
        "sensors": {
            sensor.name: {
                "description": sensor.description,
                "interval": sensor.minimum_interval_seconds,
                "jobs": sorted(target.job_name for target in sensor.targets if target.job_name),
                "status": sensor.default_status.value,
            }
            for sensor in repository.sensor_defs
        },
    }


def test_dagster_shows_what_was_reviewed(settings: Settings) -> None:
    settings = settings.model_copy(update={"timezone": "Europe/Paris"})
    found = specs(build_definitions(settings))
    assert {len(found[kind]) > 2 for kind in found} == {True}
    assert all(one["description"] for kind in found.values() for name, one in kind.items() if name != "__ASSET_JOB")
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("RENEW_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text(), "if this change is meant, renew the file with `make snapshot`"
