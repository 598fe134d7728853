"""Calls while pods and gateways start and end. The handler sleeps; it needs neither TensorFlow nor a core."""

from __future__ import annotations

import subprocess
import time

import pytest
import requests

from tests.e2e.conftest import Install
from tests.e2e.harness import CALL, SECONDS, Call, Release, eventually, kubectl, metric, overlaps, sleeping


def test_a_rolling_update_of_the_pods_lets_every_call_finish(install: Install) -> None:
    release = install("roll", replicas=2)
    before = set(release.wait(2))
    with release.forwarded() as gateway:
        running = [Call(gateway + CALL, sleeping(40), seconds=150).start() for _ in range(2)]
        time.sleep(2)
        queued = Call(gateway + CALL, sleeping(1), seconds=150).start()
        release.upgrade({"podAnnotations": {"changed": "yes"}})
        assert queued.done().status == 200
        assert all(call.running for call in running), "the queued call ran on a pod of the old revision"
        assert [call.done().status for call in running] == [200, 200]
    after = set(release.wait(2))
    assert before.isdisjoint(after)


def test_a_rolling_update_of_the_gateway_lets_running_and_queued_calls_finish(install: Install) -> None:
    release = install("gates")
    release.wait(1)
    [old] = release.wait(1, "gateway")
    with release.forwarded(f"pod/{old}") as gateway:
        running = Call(gateway + CALL, sleeping(20), seconds=150).start()
        time.sleep(1)
        queued = Call(gateway + CALL, sleeping(10), seconds=150).start()
        time.sleep(1)
        release.upgrade({"gateway": {"podAnnotations": {"changed": "yes"}}})
        new = eventually(lambda: [pod for pod in release.ready("gateway") if pod != old])
        with release.forwarded(f"pod/{new[0]}") as successor:
            meanwhile = Call(successor + CALL, sleeping(1), seconds=150).start()
            assert running.done().status == 200
            assert queued.done().status == 200
            assert meanwhile.done().status == 200
    eventually(lambda: len(release.pods("gateway")) == 1)
    runs = release.calls(release.ready())
    assert len(runs) == 3
    assert overlaps(runs) == []


def test_kubectl_drain_lets_every_call_finish(install: Install) -> None:
    """The node is cordoned only for a moment: if it is the only node, the new pods must run on it."""
    release = install("drained", replicas=2)
    before = set(release.wait(2))
    [node] = {pod["spec"]["nodeName"] for pod in release.pods("inference")}
    with release.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(20), seconds=150).start() for _ in range(2)]
        time.sleep(2)
        selector = f"--pod-selector={release.labels},app.kubernetes.io/component=inference"
        command = ["kubectl", "drain", node, selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=150s"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as drain:
            try:
                eventually(lambda: any("deletionTimestamp" in pod["metadata"] for pod in release.pods("inference")))
            finally:
                kubectl("uncordon", node)
            assert [call.done().status for call in calls] == [200, 200]
            _, said = drain.communicate(timeout=SECONDS)
        assert drain.returncode == 0, said
    assert before.isdisjoint(release.wait(2))


def test_a_pod_deleted_without_grace_costs_its_caller_502_at_once_and_no_other_caller(install: Install) -> None:
    release = install("lost", replicas=2)
    release.wait(2)
    with release.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(25), seconds=150).start() for _ in range(2)]
        time.sleep(2)
        queued = Call(gateway + CALL, sleeping(1), seconds=150).start()
        killed = release.ready()[0]
        at = time.time()
        kubectl("-n", release.namespace, "delete", "pod", killed, "--grace-period=0", "--force")
        lost, kept = sorted((call.done() for call in calls), key=lambda call: call.ended)
        assert (lost.status, lost.answer["code"]) == (502, "pod-lost")
        assert lost.ended - at < 10
        assert kept.status == 200
        assert queued.done().status == 200


def test_a_client_that_disconnects_frees_the_pod_and_the_next_call_waits_for_it(install: Install) -> None:
    release = install("gone")
    [pod] = release.wait(1)
    with release.forwarded() as gateway:
        with pytest.raises(requests.ReadTimeout):
            requests.post(gateway + CALL, json=sleeping(100), timeout=3)
        at = time.time()
        answer = requests.post(gateway + CALL, json=sleeping(0.5), timeout=60)
        assert answer.status_code == 200
        assert time.time() - at < 15
    assert release.pods("inference")[0]["status"]["containerStatuses"][0]["restartCount"] == 0
    ended = [line for line in release.lines(pod) if line.get("message") == "call" and line.get("status") != "200"]
    assert len(ended) == 1


def test_a_gateway_that_is_killed_serves_again_and_no_pod_gets_a_second_call(install: Install) -> None:
    """Its callers, queued and running, see a closed connection, never a wrong answer."""
    release = install("killed", replicas=2)
    release.wait(2)
    [pod] = release.wait(1, "gateway")
    with release.forwarded() as gateway:
        cut = [Call(gateway + CALL, sleeping(30), seconds=150).start() for _ in range(22)]
        with release.forwarded(f"pod/{pod}", 9090) as status:
            eventually(lambda: metric(status, "percore_in_flight_requests", state="queued") == 20, every=0.2)
        release.kill(pod, "gateway", "kill -9 $(cat /proc/1/task/1/children)")
        at = time.time()
        assert all(call.done().failure for call in cut), [(call.status, call.answer) for call in cut]
    answered = eventually(lambda: release.ready("gateway") == [pod] and _answered(release), seconds=60, every=0.1)
    print(f"ready and serving again {answered - at:.1f} s after the gateway was killed")
    with release.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(1), seconds=60).start() for _ in range(6)]
        assert [call.done().status for call in calls] == [200] * 6
    assert overlaps(release.calls(release.ready())) == []


def _answered(release: Release) -> float:
    """Return when a call was answered; 0 if it was not."""
    with release.forwarded() as gateway:
        call = Call(gateway + CALL, sleeping(0), seconds=30).start().done()
        return call.ended if call.status == 200 else 0.0
