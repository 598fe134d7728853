"""Thousands of calls. The handler sleeps: a call needs neither TensorFlow nor a core, so small machines show the same."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.e2e.conftest import Install
from tests.e2e.crowd import Crowd
from tests.e2e.harness import CALL, SECONDS, Release, Run, eventually, kubectl, metric, overlaps, sleeping

WAITING = 9000


@pytest.mark.proof
@pytest.mark.parametrize("gateways", [1, 2])
def test_of_ten_thousand_calls_no_two_share_a_pod_and_only_killed_pods_cost_answers(install: Install, gateways: int) -> None:
    """One call in a hundred is abandoned, which ends its worker, and three pods are killed meanwhile."""
    release = install(f"storm-{gateways}", replicas=6, gateway={"replicas": gateways})
    release.wait(6)
    release.wait(gateways, "gateway")
    crowd = Crowd(release, f"storm-{gateways}", count=10_000, at_once=24, seconds=0.02, leaving=0.01).start()
    runs: list[Run] = []
    killed: list[str] = []
    for _ in range(3):
        eventually(lambda: len(_served(release)) > 100 * (len(killed) + 1))
        pod = release.ready()[0]
        runs += release.calls([pod])
        kubectl("-n", release.namespace, "delete", "pod", pod, "--grace-period=0", "--force")
        killed.append(pod)
    summary = crowd.done()
    ran = {line["request_id"]: line["pod"] for line in _served(release)}
    runs += release.calls(release.wait(6))
    assert len(runs) > 5_000
    assert overlaps(runs) == []
    assert [each for each in summary["odd"] if each["status"] != "502" or ran.get(each["id"]) not in killed] == []
    assert summary["outcomes"]["200"] >= 10_000 - summary["left"] - len(killed)
    assert summary["left"] > 50


def _served(release: Release) -> list[dict[str, Any]]:
    """Return the lines that gateways have logged for calls."""
    lines = [line for pod in release.ready("gateway") for line in release.lines(pod, "controller")]
    return [line for line in lines if line["logger"] == "percore.gateway.call"]


@pytest.mark.disruptive
def test_nine_thousand_calls_wait_at_once_and_are_served_in_the_order_of_their_arrival(install: Install) -> None:
    release = install("queue", replicas=0, queue={"max": WAITING}, limits={"wait": 1800})
    [gateway] = release.wait(1, "gateway")
    crowd = Crowd(release, "queue", count=WAITING, at_once=WAITING, every=0.0005).start()
    with release.forwarded(f"pod/{gateway}", 9090) as exporter, release.forwarded() as calls:
        eventually(lambda: metric(exporter, "percore_in_flight_requests", state="waiting") == WAITING, every=1)
        one_too_many = requests.post(calls + CALL, json=sleeping(0), timeout=SECONDS)
        assert (one_too_many.status_code, one_too_many.json()["code"]) == (429, "queue-full")
        assert int(one_too_many.headers["Retry-After"]) > 0
        assert one_too_many.elapsed.total_seconds() < 1
        memory = _memory(release, gateway)
    print(f"{WAITING} calls wait, and the gateway's container takes {memory / 2**20:.0f} MiB")
    release.upgrade({"replicas": 1})
    summary = crowd.done()
    assert summary["outcomes"] == {"200": WAITING}
    [pod] = release.ready()
    served = [int(run.request.rpartition("-")[2]) for run in sorted(release.calls([pod]), key=lambda run: run.ended)]
    assert len(served) == WAITING
    # Callers are not synchronized with the gateway: two that ask within a millisecond may arrive in either order.
    displaced = max(abs(place - number) for place, number in enumerate(served))
    print(f"none was served more than {displaced} places from its turn")
    assert displaced <= 10


def _memory(release: Release, gateway: str) -> int:
    """Return what HAProxy's container takes, in bytes: what its limit is held against."""
    files = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || true"
    return int(kubectl("-n", release.namespace, "exec", gateway, "-c", "haproxy", "--", "sh", "-c", files).split()[0])
