"""PostgreSQL in a pod, for releases whose gateways share a database. Its data is as durable as the pod."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.e2e.harness import eventually, images, kubectl

NAME = "database"
"""The name of the pod, its container, its Service, and the Secret with its URL."""
PASSWORD = "of-tests"
DATA = "/data/calls"
# A process in a container cannot kill process 1. So process 1 is a shell here, and the shell starts the server again at once.
# Kubernetes would wait longer each time. Until the last process of the old server has ended, the new one refuses to start.
SERVE = f"""
echo {PASSWORD} >/tmp/password
initdb --pgdata={DATA} --username=percore --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C
echo host all all all scram-sha-256 >>{DATA}/pg_hba.conf
while :; do
  postgres -D {DATA} -c 'listen_addresses=*' -c unix_socket_directories=
  sleep 1
done
"""
KILL = f"kill -9 $(head -n 1 {DATA}/postmaster.pid)"
"""Ends the server like a loss of power, except that the kernel still writes its buffers. The server recovers from its log."""
CALLS = {"gateway": {"replicas": 2}, "calls": {"enabled": True, "database": {"existingSecret": NAME}}}
"""What a release needs to store its calls there."""


@contextlib.contextmanager
def postgresql(namespace: str) -> Iterator[None]:
    """Run the server, with its Service and its Secret."""
    where = ("-n", namespace)
    kubectl(*where, "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": _objects(namespace)}))
    try:
        eventually(lambda: "ready to accept connections" in _said(namespace))
        yield
    finally:
        kubectl(*where, "delete", f"pod/{NAME}", f"service/{NAME}", f"secret/{NAME}", "--grace-period=0", "--force")


def _said(namespace: str) -> str:
    return kubectl("-n", namespace, "logs", NAME, "--ignore-errors") if _phase(namespace) == "Running" else ""


def _phase(namespace: str) -> str:
    return kubectl("-n", namespace, "get", "pod", NAME, "-o", "jsonpath={.status.phase}")


def _objects(namespace: str) -> list[dict[str, Any]]:
    url = f"postgresql://percore:{PASSWORD}@{NAME}.{namespace}.svc/postgres"
    meta = {"name": NAME, "labels": {"app": NAME}}
    tag = images()["gateway"]["image"]["tag"]
    container = {
        "name": NAME,
        "image": f"localhost/percore/postgresql:{tag}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", SERVE],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    spec = {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes}
    service = {"selector": {"app": NAME}, "ports": [{"port": 5432}]}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"url": url}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec},
    ]
