"""The values that a platform team needs, each with its effect: one table, one row for each value."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.chart.harness import CHART, NOT_OF_KUBERNETES, Object, containers, helm, one, pod_specs, render

INFERENCE, GATEWAY = "Deployment/first-percore-inference", "Deployment/first-percore-gateway"
POD = "spec.template.spec."
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
SELF = {"app.kubernetes.io/name": "percore", "app.kubernetes.io/instance": "first", "app.kubernetes.io/component": "inference"}
MOUNT, VOLUME = {"name": "data", "mountPath": "/data"}, {"name": "data", "emptyDir": {}}
BESIDE = {"name": "beside", "image": "a/b:1"}
SOURCE = {"secretRef": {"name": "keys"}}
ALIAS = {"ip": "10.0.0.1", "hostnames": ["db"]}
RELABEL = {"sourceLabels": ["a"], "targetLabel": "b"}
DNS = {"options": [{"name": "ndots", "value": "1"}]}
ROLE = {"example.com/role": "models"}
OTHER_SPREAD = {**SPREAD, "labelSelector": {"matchLabels": {"a": "b"}}}

Row = tuple[str, Any, str, Any]
"""A value's key, the value, the place of its effect, and the effect."""


def of_pods(prefix: str, of: str, component: str) -> list[Row]:
    """Return the rows of the values that both inference pods and gateways have."""
    mine = {**SELF, "app.kubernetes.io/component": component}
    main = f"{POD}containers.0."
    return [
        (f"{prefix}priorityClassName", "high", f"{of}:{POD}priorityClassName", "high"),
        (f"{prefix}runtimeClassName", "gvisor", f"{of}:{POD}runtimeClassName", "gvisor"),
        (f"{prefix}dnsConfig", DNS, f"{of}:{POD}dnsConfig", DNS),
        (f"{prefix}hostAliases", [ALIAS], f"{of}:{POD}hostAliases", [ALIAS]),
        (f"{prefix}nodeSelector", {"a": "b"}, f"{of}:{POD}nodeSelector", {"a": "b"}),
        (f"{prefix}tolerations", [{"key": "a"}], f"{of}:{POD}tolerations", [{"key": "a"}]),
        (f"{prefix}affinity", {"nodeAffinity": {}}, f"{of}:{POD}affinity", {"nodeAffinity": {}}),
        (
            f"{prefix}topologySpreadConstraints",
            [SPREAD],
            f"{of}:{POD}topologySpreadConstraints",
            [{**SPREAD, "labelSelector": {"matchLabels": mine}}],
        ),
        (f"{prefix}topologySpreadConstraints", [OTHER_SPREAD], f"{of}:{POD}topologySpreadConstraints", [OTHER_SPREAD]),
        (f"{prefix}initContainers", [BESIDE], f"{of}:{POD}initContainers.0", BESIDE),
        (f"{prefix}extraContainers", [BESIDE], f"{of}:{POD}containers.1", BESIDE),
        (f"{prefix}extraVolumes", [VOLUME], f"{of}:{POD}volumes.-1", VOLUME),
        (f"{prefix}extraVolumeMounts", [MOUNT], f"{of}:{main}volumeMounts.-1", MOUNT),
        (f"{prefix}env", [{"name": "A", "value": "b"}], f"{of}:{main}env.-1", {"name": "A", "value": "b"}),
        (f"{prefix}envFrom", [SOURCE], f"{of}:{main}envFrom", [SOURCE]),
        (f"{prefix}podLabels", {"team": "a"}, f"{of}:spec.template.metadata.labels", {**mine, "team": "a"}),
        (f"{prefix}podAnnotations", {"a": "b"}, f"{of}:spec.template.metadata.annotations|a", "b"),
        (f"{prefix}serviceAccount.annotations", ROLE, f"ServiceAccount/first-percore-{component}:metadata.annotations", ROLE),
        (f"{prefix}serviceAccount.name", f"my-{component}", f"{of}:{POD}serviceAccountName", f"my-{component}"),
        (f"{prefix}serviceAccount.name", f"my-{component}", f"ServiceAccount/my-{component}:kind", "ServiceAccount"),
        (f"{prefix}serviceAccount.create", False, f"{of}:{POD}serviceAccountName", "default"),
        (f"{prefix}serviceAccount.create", False, f"ServiceAccount/first-percore-{component}", None),
        (f"{prefix}serviceAccount.automount", True, f"{of}:{POD}automountServiceAccountToken", True),
        (
            f"{prefix}serviceAccount.automount",
            True,
            f"ServiceAccount/first-percore-{component}:automountServiceAccountToken",
            True,
        ),
        (f"{prefix}podDisruptionBudget.enabled", False, f"PodDisruptionBudget/first-percore-{component}", None),
        (
            f"{prefix}podDisruptionBudget.maxUnavailable",
            "30%",
            f"PodDisruptionBudget/first-percore-{component}:spec.maxUnavailable",
            "30%",
        ),
        (f"{prefix}podDisruptionBudget.minAvailable", 0, f"PodDisruptionBudget/first-percore-{component}:spec.minAvailable", 0),
        (
            f"{prefix}podDisruptionBudget.minAvailable",
            0,
            f"PodDisruptionBudget/first-percore-{component}:spec.maxUnavailable",
            None,
        ),
    ]


ROWS: list[Row] = [
    *of_pods("", INFERENCE, "inference"),
    *of_pods("gateway.", GATEWAY, "gateway"),
    ("gateway.serviceAccount.name", "my-gateway", "RoleBinding/first-percore-gateway:subjects.0.name", "my-gateway"),
    ("test.podLabels", {"a": "b"}, "Pod/first-percore-test:metadata.labels|a", "b"),
    ("test.podAnnotations", {"a": "b"}, "Pod/first-percore-test:metadata.annotations|a", "b"),
    ("gateway.nodeSelector", {"a": "b"}, "Pod/first-percore-test:spec.nodeSelector", {"a": "b"}),
    ("ephemeralStorage.request", "3Gi", f"{INFERENCE}:{POD}containers.0.resources.requests.ephemeral-storage", "3Gi"),
    ("ephemeralStorage.tmp", "3Gi", f"{INFERENCE}:{POD}volumes.1.emptyDir.sizeLimit", "3Gi"),
    ("gateway.uploadBytes", 5, f"{GATEWAY}:{POD}containers.0.env|PERCORE_GATEWAY_UPLOAD_BYTES", "5"),
    (
        "image.digest",
        f"sha256:{'0a' * 32}",
        f"{INFERENCE}:{POD}containers.0.image",
        f"localhost/percore/demo@sha256:{'0a' * 32}",
    ),
    ("service.labels", {"a": "b"}, "Service/first-percore:metadata.labels|a", "b"),
    ("service.annotations", {"a": "b"}, "Service/first-percore:metadata.annotations", {"a": "b"}),
    ("service.ipFamilyPolicy", "PreferDualStack", "Service/first-percore:spec.ipFamilyPolicy", "PreferDualStack"),
    *(
        ("service", {"type": "LoadBalancer", key: value}, f"Service/first-percore:spec.{key}", value)
        for key, value in {
            "loadBalancerClass": "service.k8s.aws/nlb",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "externalTrafficPolicy": "Local",
        }.items()
    ),
    *(
        (f"monitoring.{key}", [RELABEL], f"ServiceMonitor/first-percore-{component}:spec.endpoints.0.{key}", [RELABEL])
        for key in ("relabelings", "metricRelabelings")
        for component in ("gateway", "inference")
    ),
    ("monitoring.namespace", "there", "ServiceMonitor/first-percore-gateway:metadata.namespace", "there"),
    ("monitoring.namespace", "there", "ServiceMonitor/first-percore-gateway:spec.namespaceSelector.matchNames", ["here"]),
    ("monitoring.namespace", "there", "PrometheusRule/first-percore-rules:metadata.namespace", "there"),
    ("monitoring.namespace", "there", "ConfigMap/first-percore-dashboard:metadata.namespace", "there"),
    ("nameOverride", "small", "Deployment/first-small-inference:kind", "Deployment"),
    ("fullnameOverride", "mine", "Deployment/mine-inference:kind", "Deployment"),
    ("extraObjects", [{"kind": "Own", "metadata": {"name": "{{ .Release.Name }}-own"}}], "Own/first-own:kind", "Own"),
    ("extraObjects", ["kind: Own\nmetadata: {name: {{ .Release.Name }}-own}"], "Own/first-own:kind", "Own"),
]


def rendered(tmp_path: Path, values: Object) -> list[Object]:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return render(more=("--values", str(path)))


def nested(key: str, value: Any) -> Object:
    for part in reversed(key.split(".")):
        value = {part: value}
    found: Object = value
    return found


def at(objects: list[Object], place: str) -> Any:
    """Return the value at ``KIND/NAME:PATH``; None if there is none. A key after ``|`` may contain dots."""
    name, _, path = place.partition(":")
    found: Any = {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}.get(name)
    path, _, last = path.partition("|")
    for part in [*filter(None, path.split(".")), *filter(None, [last])]:
        if isinstance(found, list) and not part.lstrip("-").isdigit():
            found = {each["name"]: each["value"] for each in found if "value" in each}
        if isinstance(found, list):
            index = int(part)
            found = found[index] if index < len(found) else None
        else:
            found = (found or {}).get(part)
    return found


@pytest.mark.parametrize(("key", "value", "place", "effect"), ROWS, ids=[f"{row[0]}-{row[2]}" for row in ROWS])
def test_a_value_has_its_effect(tmp_path: Path, key: str, value: Any, place: str, effect: Any) -> None:
    assert at(without(), place) != effect, "the effect is there without the value"
    assert at(rendered(tmp_path, nested(key, value)), place) == effect


def test_all_values_of_the_table_together_make_objects_that_kubernetes_knows(tmp_path: Path) -> None:
    values: Object = {}
    for key, value, _, _ in ROWS:
        if value is not False:
            merge(values, nested(key, value))
    for each in rendered(tmp_path, values):
        if each["kind"] not in {*NOT_OF_KUBERNETES, "Own"}:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def merge(into: Object, more: Object) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


@functools.cache
def without() -> list[Object]:
    return render()


def test_common_labels_are_on_every_object_and_on_every_pod() -> None:
    for each in render("commonLabels.team=models"):
        assert each["metadata"]["labels"]["team"] == "models"
        if each["kind"] == "Deployment":
            assert each["spec"]["template"]["metadata"]["labels"]["team"] == "models"
            assert "team" not in each["spec"]["selector"]["matchLabels"]


def test_another_namespace_takes_the_place_of_the_release_s_everywhere() -> None:
    text = json.dumps(render("namespaceOverride=there", namespace="nowhere"))
    assert "nowhere" not in text
    there = json.dumps(render(namespace="there"))
    assert json.loads(text) == json.loads(there)


def test_a_key_that_is_null_is_dropped_from_security_contexts_as_openshift_needs_it() -> None:
    ids = ("runAsUser", "runAsGroup", "fsGroup")
    objects = render(*(f"podSecurityContext.{key}=null" for key in ids), "securityContext.readOnlyRootFilesystem=null")
    pods = dict(pod_specs(objects))
    assert len(pods) == 3
    for spec in pods.values():
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for container in containers(spec):
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_a_user_id_of_openshift_s_range_arrives_as_a_whole_number() -> None:
    done = helm("template", "first", str(CHART), "--set", "podSecurityContext.runAsUser=1000650000")
    assert set(re.findall(r"runAsUser: (.*)", done.stdout)) == {"1000650000"}


def test_a_pod_stays_guaranteed_whatever_disk_it_requests() -> None:
    for container in containers(
        one(render("ephemeralStorage.request=3Gi"), "Deployment", "inference")["spec"]["template"]["spec"]
    ):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {name: requests[name] for name in ("cpu", "memory")} == limits


def test_every_value_of_the_table_is_documented() -> None:
    readme = (CHART / "README.md").read_text()
    for key in {row[0] for row in ROWS} - {"service"}:
        assert f"| `{key}` |" in readme, key
