"""The Helm values: what the chart makes of them is what this package and this version of Dagster understand."""

import importlib
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import RunLauncher

from vidurai_pipeline.settings import Settings

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/values.yaml").read_text())
TEMPLATE: dict[str, Any] = yaml.safe_load((ROOT / "vidurai_pipeline/dagster.yaml").read_text())
#: The chart's top-level values that a file may set, without those for Celery; it passes over any other silently.
CHART_VALUES = {
    "global",
    "nameOverride",
    "fullnameOverride",
    "rbacEnabled",
    "imagePullSecrets",
    "dagsterWebserver",
    "computeLogManager",
    "pythonLogs",
    "dagster-user-deployments",
    "scheduler",
    "runLauncher",
    "postgresql",
    "generatePostgresqlPasswordSecret",
    "ingress",
    "dagsterDaemon",
    "busybox",
    "extraManifests",
    "migrate",
    "telemetry",
    "serviceAccount",
    "retention",
    "concurrency",
    "additionalInstanceConfig",
}


def test_the_chart_reads_each_value() -> None:
    assert set(VALUES) <= CHART_VALUES


def test_the_instance_is_set_as_on_one_machine() -> None:
    pools = VALUES["concurrency"]["pools"]
    as_rendered = {"granularity": pools["granularity"], "default_limit": pools["defaultLimit"]}
    assert as_rendered == TEMPLATE["concurrency"]["pools"]
    assert VALUES["concurrency"]["enabled"] is True
    retention = dict(VALUES["retention"])
    assert retention.pop("enabled") is True
    kept = {name: {"purge_after_days": value["purgeAfterDays"]} for name, value in retention.items()}
    assert kept == TEMPLATE["retention"]
    monitoring = VALUES["dagsterDaemon"]["runMonitoring"]
    snake = {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name): value for name, value in monitoring.items()}
    assert snake == TEMPLATE["run_monitoring"]
    assert VALUES["telemetry"] == TEMPLATE["telemetry"]
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]
    assert issubclass(getattr(importlib.import_module(launcher["module"]), launcher["class"]), RunLauncher)
    dagster_yaml = (ROOT / "deploy/compose/dagster.yaml").read_text()
    assert f"scheme: {VALUES['postgresql']['postgresqlScheme']}\n" in dagster_yaml


def test_each_deployment_has_its_own_volume_and_settings_that_exist() -> None:
    claims = []
    for deployment in VALUES["dagster-user-deployments"]["deployments"]:
        environment = {pair["name"]: pair["value"] for pair in deployment["env"]}
        assert set(environment) <= {f"VIDURAI_{name.upper()}" for name in Settings.model_fields}
        assert all(isinstance(value, str) for value in environment.values())
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in deployment["volumes"]}
        (mount,) = deployment["volumeMounts"]
        assert mount["mountPath"] == environment["VIDURAI_HOME"]
        claims.append(volumes[mount["name"]])
        assert deployment["dagsterApiGrpcArgs"] == ["--module-name", "vidurai_pipeline.definitions"]
        assert deployment["podSecurityContext"]["runAsNonRoot"] is True
    assert len(set(claims)) == len(claims)


def test_the_guide_names_the_chart_of_the_images_dagster() -> None:
    text = (ROOT / "docs/deployment.md").read_text()
    (pinned,) = re.findall(r"^dagster==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"--version (\S+) --values deploy/helm/values.yaml", text)) == {pinned}
    assert dg.__version__ == pinned


def test_a_pod_for_a_run_has_the_rights_of_the_pod_that_its_code_is_from() -> None:
    pods = yaml.safe_load((ROOT / "deploy/helm/run-pods.yaml").read_text())
    launcher = pods["runLauncher"]["config"]["k8sRunLauncher"]
    for deployment in VALUES["dagster-user-deployments"]["deployments"]:
        assert launcher["runK8sConfig"]["podSpecConfig"]["securityContext"] == deployment["podSecurityContext"]
        assert launcher["securityContext"] == deployment["securityContext"]
