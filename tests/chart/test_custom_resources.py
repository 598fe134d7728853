"""Custom resources that the chart makes, against the definitions that a cluster has: unknown fields are faults too.

An API server drops unknown fields without an error, so a misspelt field would have no effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from harness.service import ROOT
from tests.chart.harness import Object, render

DEFINITIONS = ROOT / "build" / "crds"
FILES = {
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules",
    "ScaledObject": "keda.sh_scaledobjects",
    "HTTPRoute": "gateway.networking.k8s.io_httproutes",
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "more": (
        *("monitoring.relabelings[0].targetLabel=a", "monitoring.metricRelabelings[0].action=drop"),
        *("monitoring.labels.release=prometheus", "monitoring.namespace=there"),
    ),
    "KEDA": ("autoscaling.engine=keda", "autoscaling.keda.authenticationRef.name=reader", "autoscaling.spareReplicas=1"),
    "KEDA alone": ("autoscaling.engine=keda-metrics-api",),
    "route": ("httpRoute.enabled=true", "httpRoute.parentRefs[0].name=front", "httpRoute.hostnames={a.example.com}"),
}


def schema(kind: str, version: str) -> dict[str, Any]:
    """Return the schema of a kind, with every unknown field forbidden."""
    path = DEFINITIONS / f"{FILES[kind]}.yaml"
    if not path.exists():
        pytest.skip(f"no {Path(*path.parts[-2:])}: tools/install-test-programs brings it, if there is Go")
    definition = yaml.safe_load(path.read_text())
    [found] = [each for each in definition["spec"]["versions"] if each["name"] == version]
    forbidding: dict[str, Any] = strict(found["schema"]["openAPIV3Schema"])
    return forbidding


def strict(part: Any) -> Any:
    """Forbid fields that the schema does not have, in all of its objects."""
    if isinstance(part, list):
        return [strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    changed = {key: strict(value) for key, value in part.items()}
    if changed.get("x-kubernetes-int-or-string"):
        changed.pop("type", None)
    if changed.get("type") == "object" and "properties" in changed and not changed.get("x-kubernetes-preserve-unknown-fields"):
        changed.setdefault("additionalProperties", False)
    return changed


def checked(each: Object) -> None:
    found = schema(each["kind"], each["apiVersion"].partition("/")[2])
    found["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(found).validate(each)


@pytest.mark.parametrize("variant", VARIANTS)
def test_custom_resources_have_the_fields_of_their_definitions(variant: str) -> None:
    custom = [each for each in render(*VARIANTS[variant]) if each["kind"] in FILES]
    assert custom
    for each in custom:
        checked(each)


def test_a_field_that_does_not_exist_is_found() -> None:
    [monitor, *_] = [each for each in render() if each["kind"] == "ServiceMonitor"]
    monitor["spec"]["endpoints"][0]["no_such_field"] = "2s"
    with pytest.raises(jsonschema.ValidationError, match="no_such_field"):
        checked(monitor)
