"""Values that the chart refuses, and the reasons."""

import json

import pytest
import yaml

from deploy.helm import values_table
from tests.chart.harness import CHART, CLUSTER_API_VERSIONS, WITH_CRDS, WITHOUT_AUTOSCALING, refusal, render, template

VALUES = (CHART / "values.yaml").read_text()


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("cpu=0", "cpu"),
        ("memory=lots", "memory"),
        ("timeouts.run=0", "timeouts.run"),
        ("timeouts.queue=-1", "timeouts.queue"),
        ("timeouts.load=604801", "timeouts.load"),
        ("timeouts.body=soon", "timeouts.body"),
        ("queue.length=0", "queue.length"),
        ("handler=no-class", "handler"),
        ("app=myapp:", "app"),
        ("app=folder/myapp:app", "app"),
        ("gateway.healthPaths={health}", "gateway.healthPaths.0"),
        ("gateway.healthPaths=/", "gateway.healthPaths"),
        ("env[0].name=PERCORE_APP", "env.0.name"),
        ("replicas=-1", "replicas"),
        ("autoscaling.engine=magic", "autoscaling.engine"),
        ("autoscaling.scaleDownStabilizationSeconds=5", "autoscaling.scaleDownStabilizationSeconds"),
        ("monitoring.interval=30s", "monitoring.interval"),
        ("gateway.replicas=0", "gateway.replicas"),
        ("gateway.connections=0", "gateway.connections"),
        ("gateway.uploads=0", "gateway.uploads"),
        ("gateway.spool.bytes=2Gi", "gateway.spool.bytes"),
        ("gateway.idleTimeoutSeconds=0", "gateway.idleTimeoutSeconds"),
        ("gateway.shutdownDelaySeconds=-1", "gateway.shutdownDelaySeconds"),
        ("networkPolicy.apiServerPorts={443,0}", "networkPolicy.apiServerPorts.1"),
        ("networkPolicy.apiServerPorts={443,443}", "networkPolicy.apiServerPorts"),
        ("networkPolicy.apiServerPorts=443", "networkPolicy.apiServerPorts"),
        ("image.pullPolicy=Sometimes", "image.pullPolicy"),
        ("env[0].name=PERCORE_RUN_TIMEOUT", "env.0.name"),
        ("env[0].name=PERCORE_PORT", "env.0.name"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_by_name(value: str, key: str) -> None:
    assert f"- {key}: " in refusal(value)


@pytest.mark.parametrize(
    "value", ["cpus=2", "timeouts.total=5", "gateway.image.name=x", "autoscaling.min=1", "gateway.slots=9"]
)
def test_a_value_that_does_not_exist_is_refused(value: str) -> None:
    assert "is not allowed" in refusal(value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("autoscaling.minReplicas=12",), "minReplicas=12: must be at most autoscaling.maxReplicas, 11"),
        (("autoscaling.spareReplicas=12",), "spareReplicas=12: must be at most autoscaling.maxReplicas, 11"),
        (("gateway.spool.bytes=33554431",), "maxBodyBytes=33554432: must be at most gateway.spool.bytes, 33554431"),
        (("monitoring.enabled=false",), "autoscaling.enabled=true: needs monitoring.enabled=true"),
        (
            ("model.image=a/b:1", "model.persistentVolumeClaim.claimName=c"),
            "model.image=a/b:1 model.persistentVolumeClaim.claimName=c: set one of them",
        ),
        (
            ("model.persistentVolumeClaim.subPath=a",),
            "model.persistentVolumeClaim.subPath=a: needs model.persistentVolumeClaim.claimName",
        ),
        (("app=myapp:app", "handler=a:B"), "app=myapp:app handler=a:B: set one of them"),
        (
            ("serviceAccount.name=one", "gateway.serviceAccount.name=one"),
            "serviceAccount.name=one: must differ from gateway.serviceAccount.name",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: tuple[str, ...], words: str) -> None:
    assert words in refusal(*values)


def test_the_worker_may_have_any_environment_that_the_chart_does_not_set() -> None:
    for name in ("PERCORE_MODEL_LABELS", "TF_CPP_MIN_LOG_LEVEL", "MY_PERCORE_PORT"):
        assert render(f"env[0].name={name}", "env[0].value=a")


def test_a_cluster_without_the_prometheus_operator_is_refused_with_the_value_to_set() -> None:
    said = refusal(more=CLUSTER_API_VERSIONS)
    for word in ("ServiceMonitor", "kube-prometheus-stack", "prometheus-adapter", "--set autoscaling.enabled=false"):
        assert word in said
    assert render(*WITHOUT_AUTOSCALING, more=CLUSTER_API_VERSIONS)
    assert render(more=(*CLUSTER_API_VERSIONS, *WITH_CRDS))


def test_without_a_cluster_the_defaults_are_rendered() -> None:
    assert template().returncode == 0


def test_every_value_has_a_rule_and_a_meaning() -> None:
    documented = values_table.documented(VALUES)
    keys = set(values_table.leaves(yaml.safe_load(VALUES), documented))
    assert documented == keys
    assert _ruled(json.loads((CHART / "values.schema.json").read_text())) - {"global", "enabled"} == keys


def _ruled(schema: dict[str, object], path: tuple[str, ...] = ()) -> set[str]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {".".join(path)}
    assert schema["additionalProperties"] is False, path
    return {key for name, each in properties.items() for key in _ruled(each, (*path, name))}


def test_the_readme_is_generated_from_the_values() -> None:
    assert (CHART / "README.md").read_text() == values_table.page()
