"""Objects of a cluster: the kinds that it knows, and everything that a release could leave behind."""

from __future__ import annotations

import re
import subprocess
import time

from tests.e2e.harness import kubectl

TRANSIENT_KINDS = {"events", "events.events.k8s.io", "pods.metrics.k8s.io"}
"""Kinds of objects that Kubernetes itself creates and removes."""


def knows(kind: str) -> bool:
    """Return whether the cluster has a custom resource, such as ``scaledobjects.keda.sh``."""
    command = ["kubectl", "get", "crd", kind, "--ignore-not-found", "--output", "name"]
    return bool(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)


def of(namespace: str) -> set[str]:
    """Return every object in a namespace, and every cluster-wide one that names it, as ``kind/name``."""
    inside = set(_names("-n", namespace, namespaced=True))
    named = re.compile(rf"(?<![\w-]){re.escape(namespace)}(?![\w-])")  # the whole name, not only its beginning
    return inside | {name for name in _names(namespaced=False) if named.search(name) and not name.startswith("namespace/")}


def settled(namespace: str, wanted: set[str], seconds: float) -> set[str]:
    """Wait until there are no objects other than ``wanted``. Return the others that are left after ``seconds``."""
    ends = time.monotonic() + seconds
    while (more := of(namespace) - wanted) and time.monotonic() < ends:
        time.sleep(1)
    return more


def _names(*where: str, namespaced: bool) -> list[str]:
    kinds = set(kubectl("api-resources", "--verbs=list", f"--namespaced={str(namespaced).lower()}", "-o", "name").split())
    return kubectl(*where, "get", ",".join(sorted(kinds - TRANSIENT_KINDS)), "-o", "name", "--ignore-not-found").split()
