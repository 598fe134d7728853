"""Renders the chart by `helm template`, without a cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/helm/percore"
HELM = str(Path(sys.executable).parent / "helm")
WITHOUT_AUTOSCALING = ("autoscaling.enabled=false", "monitoring.enabled=false")
CLUSTER_API_VERSIONS = ("--api-versions", "apiregistration.k8s.io/v1")
"""API versions that a real API server has. Helm does not know them without a cluster."""
WITH_CRDS = ("--api-versions", "monitoring.coreos.com/v1/ServiceMonitor")
VOLUME = ("calls.enabled=true",)
CLAIMED = (*VOLUME, "calls.persistence.existingClaim=mine")
DATABASE = (*VOLUME, "calls.database.existingSecret=database")
WEBHOOKS = ("calls.webhooks.hosts={a.example.com,10.0.0.0/8}", "calls.webhooks.existingSecret=signing")
NOT_OF_KUBERNETES = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "BackendConfig"}
"""Kinds whose schemas are not part of Kubernetes itself."""
Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(
    *values: str, release: str = "first", namespace: str = "here", more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Render with values in the form of ``--set``."""
    given = [word for value in values for word in ("--set", value)]
    return helm("template", release, str(CHART), "--namespace", namespace, *given, *more)


def render(*values: str, release: str = "first", namespace: str = "here", more: tuple[str, ...] = ()) -> list[Object]:
    """Return the rendered objects."""
    done = template(*values, release=release, namespace=namespace, more=more)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refusal(*values: str, more: tuple[str, ...] = ()) -> str:
    """Return the error of Helm for values that it refuses."""
    done = template(*values, more=more)
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def notes(*values: str, release: str = "first", namespace: str = "here", more: tuple[str, ...] = ()) -> str:
    """Return the notes of an installation.

    Helm shows them only if there is a cluster, so a copy of the chart renders them as an object.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "percore"
        shutil.copytree(CHART, copy)
        text = (copy / "templates/NOTES.txt").read_text()
        (copy / "templates/_notes.tpl").write_text('{{ define "notes" }}' + text + "{{ end }}")
        (copy / "templates/notes.yaml").write_text('kind: Notes\nmetadata: {name: n}\ntext: {{ include "notes" . | quote }}\n')
        given = [word for value in values for word in ("--set", value)]
        done = helm("template", release, str(copy), "--namespace", namespace, *given, *more)
    assert done.returncode == 0, done.stderr
    said: str = one([each for each in yaml.safe_load_all(done.stdout) if each], "Notes")["text"]
    return said


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """Return the only object of a kind, or of a kind and a name that ends in ``name``."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in found]
    return found[0]


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield the name and the specification of every pod and pod template."""
    for each in objects:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]
        elif "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(container: Object) -> dict[str, str]:
    """Return the environment variables with a fixed value."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}
