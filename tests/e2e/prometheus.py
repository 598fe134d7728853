"""Asks the cluster's Prometheus, through the API server."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from tests.e2e.harness import documents, eventually, kubectl

SERVICE = os.environ.get("PERCORE_E2E_PROMETHEUS", "monitoring/prometheus:9090")
"""NAMESPACE/SERVICE:PORT."""


def get(path: str, **parameters: str) -> Any:
    """Return the data of Prometheus' answer; fail with its error if it answers with one."""
    namespace, service = SERVICE.split("/")
    url = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/api/v1/{path}"
    document = json.loads(kubectl("get", "--raw", f"{url}?{urlencode(parameters)}"))
    assert document["status"] == "success", document
    return document["data"]


def query(text: str) -> list[float]:
    """Return the present values of a query, without those that are not a number."""
    found = [float(each["value"][1]) for each in get("query", query=text)["result"]]
    return [value for value in found if not math.isnan(value)]


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """Stop Prometheus for a while: the operator removes its pods, and creates them again."""
    namespace = SERVICE.split("/")[0]
    [resource] = documents("-n", namespace, "prometheuses.monitoring.coreos.com")
    name, before = resource["metadata"]["name"], resource["spec"].get("replicas", 1)

    def scale(replicas: int) -> None:
        patch = json.dumps({"spec": {"replicas": replicas}})
        kubectl("-n", namespace, "patch", "prometheuses.monitoring.coreos.com", name, "--type=merge", "-p", patch)

    try:
        scale(0)
        eventually(lambda: not documents("-n", namespace, "pods", "-l", f"prometheus={name}"))
        yield
    finally:
        scale(before)
