"""Volumes on a cluster that has no storage class: folders of the node."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.e2e.harness import documents, eventually, images, kubectl

DEFAULT = "storageclass.kubernetes.io/is-default-class"
SIZE = "20Gi"
STORED_CALLS = {"calls": {"enabled": True, "persistence": {"size": SIZE}}}
"""The values of a release that stores calls on such a volume."""


@contextlib.contextmanager
def volume(namespace: str, claim: str) -> Iterator[None]:
    """Create a volume for a claim; a cluster with a default storage class creates one itself."""
    made = not any(each["metadata"].get("annotations", {}).get(DEFAULT) == "true" for each in documents("storageclasses"))
    name = f"{namespace}-{claim}"
    folder = f"/var/tmp/{name}"
    if made:
        _as_root(f"{name}-open", folder, "chmod 0777 /volume")
        kubectl("apply", "-f", "-", given=json.dumps(_volume(name, folder, namespace, claim)))
    try:
        yield
    finally:
        kubectl("-n", namespace, "delete", "persistentvolumeclaim", claim, "--ignore-not-found", "--wait=false")
        if made:
            kubectl("delete", "persistentvolume", name, "--wait=false")
            _as_root(f"{name}-clear", folder, "rm -rf /volume/*")


def _volume(name: str, folder: str, namespace: str, claim: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": SIZE},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": folder},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }


def _as_root(name: str, folder: str, script: str) -> None:
    """Run a script in a pod that may write to a folder of the node. The tests' own namespace allows no such pod."""
    image = images()["gateway"]["image"]
    container = {
        "name": "script",
        "image": f"{image['repository']}:{image['tag']}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
    }
    host = {"name": "volume", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": [host]}
    where = ("-n", "default")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    kubectl("apply", "-f", "-", given=json.dumps(pod))
    phase = ("get", "pod", name, "-o", "jsonpath={.status.phase}")
    eventually(lambda: kubectl(*where, *phase) in ("Succeeded", "Failed"))
    assert kubectl(*where, *phase) == "Succeeded", kubectl(*where, "logs", name)
    kubectl(*where, "delete", "pod", name, "--wait=false")
