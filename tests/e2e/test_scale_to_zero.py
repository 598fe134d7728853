"""The HPA alone, with prometheus-adapter, down to no pods; and the buffer. Needs the feature gate HPAScaleToZero."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import releases
from tests.e2e.harness import CALL, Call, Release, eventually, run, sleeping

STABILIZATION_SECONDS = 10
TO_ZERO = {
    "monitoring": {"enabled": True},
    "autoscaling": {
        "enabled": True,
        "minReplicas": 0,
        "spareReplicas": 2,
        "maxReplicas": 4,
        "scaleDownStabilizationSeconds": STABILIZATION_SECONDS,
    },
}


def allowed(namespace: str) -> bool:
    """Return whether the API server accepts an HPA with zero pods."""
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "zero", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "zero"},
            "minReplicas": 0,
            "maxReplicas": 1,
            "metrics": [{"type": "External", "external": {"metric": {"name": "a"}, "target": {"type": "Value", "value": "1"}}}],
        },
    }
    command = ["kubectl", "create", "--dry-run=server", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(hpa), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or "minReplicas" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.fixture(scope="module")
def scaled(namespace: str, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose metrics the HPA can read. The operator's Prometheus needs up to three minutes for a new target."""
    if not allowed(namespace):
        pytest.skip("needs the feature gate HPAScaleToZero, on by default in Kubernetes 1.37")
    with releases(namespace, request.session) as install:
        release = install("zero", **TO_ZERO)
        eventually(lambda: value(release, "percore_desired_replicas") == "2", seconds=300, every=1)
        yield release


def value(release: Release, metric: str) -> str:
    """Return the metric's value that prometheus-adapter gives to the HPA; empty if it has none."""
    path = f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{release.namespace}/services/{release.full_name}-gateway/{metric}"
    said = run("sh", "-c", f"kubectl get --raw {path} 2>/dev/null || true")
    return str(json.loads(said)["items"][0]["value"]) if said else ""


def test_the_buffer_is_there_before_the_first_call_and_a_missing_metric_changes_nothing(scaled: Release) -> None:
    eventually(lambda: scaled.replicas() == 2, seconds=60, every=1)
    scaled.wait(2)
    with scaled.forwarded() as gateway:
        call = Call(gateway + CALL, sleeping(40), seconds=100).start()
        eventually(lambda: scaled.replicas() == 3, seconds=60)
        with scaled.unscraped():
            eventually(lambda: value(scaled, "percore_desired_replicas") == "", seconds=60)
            assert call.done().status == 200
            assert scaled.replicas() == 3
    assert call.timing("queue") < 1
    eventually(lambda: scaled.replicas() == 2, seconds=90, every=1)


def test_the_first_call_wakes_a_pod_and_afterwards_there_is_none_again(scaled: Release) -> None:
    scaled.upgrade({"autoscaling": {"spareReplicas": 0}})
    eventually(lambda: scaled.replicas() == 0 and not scaled.pods("inference"), every=1)
    with scaled.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(5), seconds=150).start() for _ in range(2)]
        assert [call.done().status for call in calls] == [200, 200]
    print(f"queue times {sorted(call.timing('queue') for call in calls)}")
    assert max(call.timing("queue") for call in calls) < 45
    eventually(lambda: scaled.replicas() == 0, seconds=90, every=1)
