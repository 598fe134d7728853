"""Thousands of calls. The handler sleeps: a call needs neither TensorFlow nor a core, so small machines show the same."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import requests

from tests.e2e.conftest import Install
from tests.e2e.crowd import Crowd
from tests.e2e.harness import CALL, SECONDS, Call, Release, Run, eventually, kubectl, metric, overlaps, sleeping

QUEUED = int(os.environ.get("PERCORE_E2E_QUEUED", "9000"))
"""Set the variable to a smaller number if the limit of open files is too low: the gateway would not start."""
MOST_MEMORY = 400 * 2**20
"""The largest memory of a gateway with 9,000 queued calls of 1 KB, in bytes."""
SIZES = ((0.5, 1_000), (0.48, 100_000), (0.02, 8_000_000))
KILL_THE_WORKER = """
for arbiter in $(cat /proc/1/task/1/children); do kill -9 $(cat /proc/$arbiter/task/$arbiter/children); done
"""


@pytest.mark.proof
@pytest.mark.parametrize("gateways", [1, 2])
def test_of_ten_thousand_calls_no_two_share_a_pod_and_only_killed_pods_cost_answers(install: Install, gateways: int) -> None:
    """Three of a hundred callers disconnect, some in the middle of their body.

    Meanwhile three workers and three pods are killed.
    """
    release = install(f"storm-{gateways}", replicas=6, gateway={"replicas": gateways})
    release.wait(6)
    release.wait(gateways, "gateway")
    crowd = Crowd(
        release, f"storm-{gateways}", count=10_000, at_once=24, seconds=0.02, sizes=SIZES, leaving=0.03, patience=0.1
    ).start()
    runs: list[Run] = []
    killed: list[str] = []
    for ended in (300, 1_000, 2_000):
        _wait_for_calls(release, ended)
        pod, *_, other = release.ready()
        release.kill(other, "inference", KILL_THE_WORKER)
        runs += release.calls([pod])
        kubectl("-n", release.namespace, "delete", "pod", pod, "--grace-period=0", "--force")
        killed += [other, pod]
    summary = crowd.done()
    lines = _calls(release)
    ran = {line["request_id"]: line["pod"] for line in lines}
    runs += release.calls(release.wait(6))
    assert len(runs) > 5_000
    assert overlaps(runs) == []
    assert [request for request, count in Counter(run.request for run in runs).items() if count > 1] == [], "ran twice"
    odd = summary["odd"]
    assert {(each["status"], each.get("code")) for each in odd} <= {("502", "pod-lost")}, odd[:5]
    assert {ran.get(each["id"]) for each in odd} <= set(killed)
    assert len(odd) <= len(killed), "each killed worker or pod computes at most one call"
    assert summary["outcomes"]["200"] >= 10_000 - summary["left"] - len(killed)
    assert summary["left"] > 200
    assert sum(line["status"] == "disconnected" for line in lines) <= summary["left"]


def _wait_for_calls(release: Release, count: int) -> None:
    eventually(lambda: len(_calls(release)) >= count, every=1)


def _calls(release: Release) -> list[dict[str, Any]]:
    """Return the lines that gateways have logged for calls."""
    lines = [line for pod in release.ready("gateway") for line in release.lines(pod, "gateway")]
    return [line for line in lines if line["logger"] == "percore.gateway.call"]


@pytest.mark.disruptive
def test_thousands_of_calls_are_queued_at_once_and_served_exactly_in_the_order_of_their_arrival(install: Install) -> None:
    # Each connection beyond those of the queue may need an open file, too.
    release = install("queue", replicas=0, queue={"length": QUEUED}, timeouts={"queue": 1800}, gateway={"connections": 1000})
    [gateway] = release.wait(1, "gateway")
    crowd = Crowd(release, "queue", count=QUEUED, at_once=QUEUED, every=0.0005, sizes=((1.0, 1_000),)).start()
    with release.forwarded(f"pod/{gateway}", 9090) as status, release.forwarded() as calls:
        eventually(lambda: metric(status, "percore_in_flight_requests", state="queued") == QUEUED, every=1)
        one_too_many = requests.post(calls + CALL, json=sleeping(0), timeout=SECONDS)
        assert (one_too_many.status_code, one_too_many.json()["code"]) == (429, "queue-full")
        assert int(one_too_many.headers["Retry-After"]) > 0
        assert one_too_many.elapsed.total_seconds() < 1
        memory = _memory(release, gateway)
    print(f"{QUEUED} calls are queued, and the gateway's container takes {memory / 2**20:.0f} MiB")
    release.upgrade({"replicas": 1})
    summary = crowd.done()
    assert summary["outcomes"] == {"200": QUEUED}
    assert memory < MOST_MEMORY
    # There was no pod while they arrived. So a call's position is how many had arrived before it.
    arrived = {line["request_id"]: line["queue_position"] for line in _calls(release) if line["status"] == 200}
    assert sorted(arrived.values()) == list(range(QUEUED))
    [pod] = release.ready()
    served = [run.request for run in release.calls([pod])]
    assert [arrived[request] for request in served] == list(range(QUEUED))


def _memory(release: Release, gateway: str) -> int:
    """Return the memory of the gateway's container in bytes, as it counts for the limit."""
    files = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || true"
    return int(kubectl("-n", release.namespace, "exec", gateway, "-c", "gateway", "--", "sh", "-c", files).split()[0])


def test_two_thousand_callers_that_leave_while_queued_leave_nothing_behind(install: Install) -> None:
    """There is no pod, so no call is served.

    Bodies are larger than the buffers of sockets, so some callers disconnect in the middle of a body.
    """
    release = install("leavers", replicas=0, queue={"length": 2_000})
    [gateway] = release.wait(1, "gateway")
    sizes = ((0.6, 20_000), (0.35, 100_000), (0.05, 5_000_000))
    with release.forwarded(f"pod/{gateway}", 9090) as status:
        crowd = Crowd(
            release, "leavers", count=2_000, at_once=1_000, every=0.002, sizes=sizes, leaving=1.0, patience=5.0
        ).start()
        eventually(lambda: metric(status, "percore_in_flight_requests", state="queued") > 200)
        summary = crowd.done()
        eventually(lambda: metric(status, "percore_in_flight_requests", state="queued") == 0, seconds=2)
        left = {name: metric(status, f"percore_gateway_{name}") for name in ("spool_bytes", "uploads", "connections")}
        gone = metric(status, "percore_gateway_client_disconnects_total")
    assert summary["outcomes"] == {"left": 2_000}
    assert left == {"spool_bytes": 0, "uploads": 0, "connections": 0}
    assert gone > 1_900, "some may have left before their head had arrived"


def test_a_call_at_another_gateway_is_not_behind_the_queue_of_the_first(install: Install) -> None:
    """Each pod answers reservations in the order in which gateways sent them."""
    release = install("twins", replicas=4, gateway={"replicas": 2})
    release.wait(4)
    release.wait(2, "gateway")
    first, second = release.pods("gateway")
    crowd = Crowd(
        release, "twins", count=240, at_once=240, seconds=1.0, same_seconds=True, host=first["status"]["podIP"]
    ).start()
    name = second["metadata"]["name"]
    with release.forwarded(f"pod/{name}") as gateway:
        eventually(lambda: len({run.pod for run in release.calls(release.ready())}) == 4, every=1)
        calls = [Call(gateway + CALL, sleeping(1.0), seconds=100).start().done() for _ in range(5)]
    summary = crowd.done()
    assert summary["outcomes"] == {"200": 240}
    assert [call.status for call in calls] == [200] * 5
    assert max(call.timing("queue") for call in calls) < 2, "a call of the second gateway is to begin within two run times"
    assert overlaps(release.calls(release.ready())) == []
