"""Eleven calls at once on one ready pod. The handler sleeps (`percore.handlers.echo:Sleep`): it needs neither TensorFlow
nor a core, so a machine with fewer real cores than calls shows the same. Needs the Prometheus operator and prometheus-adapter.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import requests

from tests.e2e import prometheus
from tests.e2e.conftest import Install, releases
from tests.e2e.harness import CALL, DISRUPTIVE, Call, Release, Run, eventually, overlaps, ready_since, run, sleeping
from tools.burst_picture import drawn

CALLS = 11
RUN_SECONDS = 60.0
"""Longer than pods take to become ready on a busy machine. If a pod were ready later, another pod would have served its
call."""
AUTOSCALED = {"monitoring": {"enabled": True}, "autoscaling": {"enabled": True, "maxReplicas": CALLS}}
Step = tuple[float, int]
METRIC = "percore_in_flight_requests"
BURSTS = int(os.environ.get("PERCORE_E2E_BURSTS", "3"))
REPORT = Path(__file__).resolve().parent.parent.parent / "build/e2e"


@pytest.fixture(scope="module")
def scaled(namespace: str, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose metric the HPA has read. The operator's Prometheus needs up to three minutes for a new target."""
    with releases(namespace, request.session) as install:
        release = install("burst", **AUTOSCALED)
        path = f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}/services/{release.full_name}-gateway/{METRIC}"
        eventually(lambda: "value" in run("sh", "-c", f"kubectl get --raw {path} || true"), seconds=300, every=1)
        yield release


@pytest.fixture
def autoscaled(scaled: Release) -> Release:
    """One ready pod. It has been the only pod for so long that earlier tests have no effect."""
    set_stabilization(scaled, 10)
    eventually(lambda: scaled.wanted() == 1, every=1)
    scaled.wait(1)
    set_stabilization(scaled, 60)
    return scaled


def set_stabilization(release: Release, seconds: int) -> None:
    release.upgrade({"autoscaling": {"scaleDownStabilizationSeconds": seconds}})


@pytest.mark.parametrize("burst", range(BURSTS))
def test_eleven_calls_on_one_ready_pod_get_eleven_pods_in_one_step_and_none_shares_one(autoscaled: Release, burst: int) -> None:
    with autoscaled.forwarded() as gateway:
        began = time.time()
        calls = [Call(gateway + CALL, sleeping(RUN_SECONDS), seconds=200).start() for _ in range(CALLS)]
        steps = [(0.0, 1)]
        ready: dict[str, float] = {}
        while any(call.running for call in calls):
            now = time.time() - began
            if (wanted := autoscaled.wanted()) != steps[-1][1]:
                steps.append((now, wanted))
            if len(ready) < CALLS:
                ready |= {pod: now for pod in autoscaled.ready() if pod not in ready}
            time.sleep(0.2)
            assert now < 200
        for call in calls:
            call.done()
    runs = [each for each in autoscaled.calls(autoscaled.ready()) if each.ended > began]
    _report(burst, began, calls, steps, ready, runs)
    print("seconds from loaded to the first call:", first_calls(autoscaled, runs))

    assert [(call.status, call.failure) for call in calls] == [(200, "")] * CALLS
    assert [wanted for _, wanted in steps[:2]] == [1, CALLS], steps
    assert len(runs) == CALLS
    assert overlaps(runs) == []
    assert len({each.pod for each in runs}) == CALLS, "a call waited behind another call, although there was a pod for it"
    # If a call waited at a busy pod, this time would be in neither `queue` of the gateway nor `run` of the pod.
    assert max(call.ended - call.began - call.timing("queue") - call.timing("run") for call in calls) < RUN_SECONDS / 2
    # The times are measured and drawn, but do not make the test fail, because they depend on the load of the machine.


def first_calls(release: Release, runs: list[Run]) -> list[float]:
    """Return the seconds from the end of each worker's load to the begin of its first call, if that was queued."""
    found = []
    for each in runs:
        [ready] = [line["time"] for line in release.lines(each.pod) if line["message"].startswith("ready after")]
        found.append(round(each.began - datetime.fromisoformat(ready).timestamp(), 3))
    # The first pod of a burst was ready long before.
    return sorted(seconds for seconds in found if seconds < 10)


def _report(burst: int, began: float, calls: list[Call], steps: list[Step], ready: dict[str, float], runs: list[Run]) -> None:
    """Write what was measured, in seconds since the burst."""
    REPORT.mkdir(parents=True, exist_ok=True)
    total = max(call.ended for call in calls) - began
    measured = {
        "calls": CALLS,
        "ideal": RUN_SECONDS,
        "total": round(total, 2),
        "wanted": [(round(at, 2), count) for at, count in steps],
        "ready": sorted(round(at, 2) for at in ready.values()),
        "runs": sorted((round(each.began - began, 2), round(each.ended - began, 2), each.pod) for each in runs),
        "waits": sorted(round(call.timing("queue"), 2) for call in calls if call.status == 200),
    }
    (REPORT / f"burst-{burst}.json").write_text(json.dumps(measured, indent=1) + "\n")
    (REPORT / f"burst-{burst}.svg").write_text(drawn(measured))
    print(json.dumps(measured))


def test_scaling_in_takes_idle_pods_and_the_calls_that_run_finish(autoscaled: Release) -> None:
    with autoscaled.forwarded() as gateway:
        # Three calls that go on when the other eight have ended.
        long = [Call(gateway + CALL, sleeping(100), seconds=200).start() for _ in range(3)]
        short = [Call(gateway + CALL, sleeping(10), seconds=200).start() for _ in range(CALLS - 3)]
        assert [call.done().status for call in short] == [200] * len(short)
        # On a busy machine the last pods are ready only after the short calls have ended. The HPA wants all pods until the
        # stabilization time is over.
        eventually(lambda: len(autoscaled.ready()) == CALLS, seconds=60)
        set_stabilization(autoscaled, 10)
        eventually(lambda: len(autoscaled.ready()) == 3, seconds=60)
        kept = set(autoscaled.ready())
        assert all(call.running for call in long)
        assert [call.done().status for call in long] == [200] * 3
    # From the gateway's log, because the pods may be gone.
    [gateway_pod] = autoscaled.ready("gateway")
    lines = [line for line in autoscaled.lines(gateway_pod, "gateway") if line["logger"] == "percore.gateway.call"]
    ran = {line["pod"] for line in lines if line["run_seconds"] and line["run_seconds"] > 95}
    assert ran == kept, "a busy pod was removed, although there were idle pods"


@pytest.mark.disruptive
def test_prometheus_gone_for_two_minutes_changes_nothing(autoscaled: Release) -> None:
    """If tests may not be disruptive, only the scrapes of the gateways stop."""
    with autoscaled.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(90), seconds=200).start() for _ in range(4)]
        eventually(lambda: len(autoscaled.ready()) == 4, seconds=60)
        set_stabilization(autoscaled, 10)
        with prometheus.gone() if DISRUPTIVE else autoscaled.unscraped():
            ends = time.monotonic() + 120
            while time.monotonic() < ends:
                assert len(autoscaled.ready()) == 4
                time.sleep(2)
        assert [call.done().status for call in calls] == [200] * 4
    eventually(lambda: len(autoscaled.ready()) == 1, seconds=300, every=1)


def test_queued_calls_run_on_pods_that_did_not_exist_when_they_came(install: Install) -> None:
    release = install("later", replicas=0)
    with release.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(3), seconds=120).start() for _ in range(3)]
        time.sleep(2)
        arrived = time.time()
        health = requests.get(gateway + "/v2/health/live", timeout=5)
        assert health.status_code == 200
        release.upgrade({"replicas": 3})
        assert [call.done().status for call in calls] == [200] * 3
    for pod in release.wait(3):
        [document] = [each for each in release.pods("inference") if each["metadata"]["name"] == pod]
        since = ready_since(document)
        assert since is not None
    runs = release.calls(release.ready())
    assert len({each.pod for each in runs}) == 3
    assert min(each.began for each in runs) > arrived
    print("seconds from loaded to the first call:", first_calls(release, runs))
