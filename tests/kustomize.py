"""Builds overlays as `kubectl apply -k` does, and compares them with what the chart renders. Needs kubectl, and no cluster."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import yaml

from deploy.kustomize import manifests
from tests.chart.harness import ROOT, Object, render

KUSTOMIZE = ROOT / "deploy/kustomize"
CLUSTER_WIDE = ("Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
Key = tuple[str, str]
CHART_VALUES = {
    "dev": ("autoscaling.enabled=false", "monitoring.enabled=false", "networkPolicy.enabled=false", "memory=1Gi"),
    "production": ("gateway.replicas=2",),
}
"""The values with which the chart installs the same objects as an overlay."""


def build(folder: Path) -> dict[Key, Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return by_key([each for each in yaml.safe_load_all(done.stdout) if each])


def chart(*values: str, namespace: str) -> dict[Key, Object]:
    """Return the objects that Helm installs, without its own objects and labels."""
    more = ("--kube-version", manifests.KUBERNETES)
    objects = render(*values, release=manifests.RELEASE, namespace=namespace, more=more)
    return by_key([each for each in objects if "helm.sh/hook" not in each["metadata"].get("annotations", {})])


def drift(overlay: str) -> dict[Key, tuple[Object | None, Object | None]]:
    """Return the differences between the objects of an overlay and those of the chart with its values.

    The Namespace is ignored.
    """
    built = build(KUSTOMIZE / "overlays" / overlay)
    [namespace] = [name for kind, name in built if kind == "Namespace"]
    del built["Namespace", namespace]
    return difference(built, chart(*CHART_VALUES[overlay], namespace=namespace))


def by_key(objects: list[Object]) -> dict[Key, Object]:
    found: dict[Key, Object] = {}
    for each in copy.deepcopy(objects):
        labels = each["metadata"].get("labels", {})
        labels.pop("helm.sh/chart", None)
        assert labels.pop("app.kubernetes.io/managed-by", "Helm") == "Helm"
        annotations = each["metadata"].get("annotations", {})
        if annotations.pop("helm.sh/resource-policy", None) and not annotations:
            del each["metadata"]["annotations"]
        if each["kind"] in CLUSTER_WIDE:
            # Policies have no namespace. Kustomize sets one all the same, and the API server ignores it.
            each["metadata"].pop("namespace", None)
        key = (each["kind"], each["metadata"]["name"])
        assert key not in found, key
        found[key] = each
    return found


def difference(one: dict[Key, Object], other: dict[Key, Object]) -> dict[Key, tuple[Object | None, Object | None]]:
    """Return the objects that are not the same on both sides."""
    return {key: (one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)}


def write_overlay(folder: Path, components: list[str], namespace: str) -> Path:
    """Write an overlay as a user would, for another namespace."""
    up = Path(os.path.relpath(KUSTOMIZE, folder.resolve()))
    overlay = {
        "namespace": namespace,
        "resources": [str(up / "base")],
        "components": [str(up / "components" / each) for each in components],
        "replacements": [{"path": "replacements.yaml"}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (folder / "replacements.yaml").write_text((KUSTOMIZE / "overlays/production/replacements.yaml").read_text())
    return folder
