"""Stored calls on a cluster: gateways, pods and the database are killed at random, and pods come and go with the calls."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e import postgresql
from tests.e2e.conftest import Install, releases
from tests.e2e.crowd import Crowd
from tests.e2e.harness import Release, eventually, kubectl, merged, name
from tests.e2e.test_crowds import KILL_THE_WORKER
from tests.e2e.test_scale_to_zero import TO_ZERO, allowed, value
from tests.e2e.volumes import STORED_CALLS, volume

CALLER = Path(__file__).with_name("stored_caller.py")
SIZES = ((0.75, 1_000), (0.23, 100_000), (0.02, 8_000_000))
THOROUGH = "PERCORE_E2E_STORED" in os.environ
STORED = int(os.environ.get("PERCORE_E2E_STORED", "300"))
"""How many calls are stored while gateways and pods are killed."""
KILLED_BY = {
    "gateway": "kill -9 $(cat /proc/1/task/1/children)",
    "inference": KILL_THE_WORKER,
    postgresql.NAME: postgresql.KILL,
}
DELETED = {"gateway": 0.5, "inference": 0.3}
"""The share of kills that delete the pod, and not a process in it."""
DELETED_BESIDE_POSTGRESQL = {**DELETED, "gateway": 0.5 if THOROUGH else 0.0, postgresql.NAME: 0.0}
"""With PostgreSQL the calls of a gateway whose pod was deleted wait for its lease, two minutes."""
KILLS, EVERY = 30 if THOROUGH else 10, 4.0
"""The most kills, and the mean of the seconds between two kills."""


class Callers(Crowd):
    """Callers that store calls. ``stored_caller.py`` describes the plan."""

    def _pod(self) -> dict[str, Any]:
        pod = super()._pod()
        plan = {
            "url": f"http://{self.release.full_name}.{self.release.namespace}.svc:8080",
            "path": "/v1/models/default:predict",
            "prefix": self.name,
            "count": self.count,
            "at_once": self.at_once,
            "seconds": self.seconds,
            "sizes": self.sizes,
        }
        pod["spec"]["containers"][0]["command"] = ["python", "-c", CALLER.read_text(), json.dumps(plan)]
        return pod


class Logs:
    """The logs of all inference pods of the test. They are read at once, because Kubernetes removes logs with their pod."""

    def __init__(self, release: Release, folder: Path) -> None:
        self._release = release
        self._folder = folder
        self._followed: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self) -> None:
        """Start to read the logs of new pods."""
        for pod in self._release.ready():
            if pod not in self._followed:
                command = ["kubectl", "-n", self._release.namespace, "logs", "--follow", pod, "-c", "inference"]
                with (self._folder / pod).open("wb") as to:
                    self._followed[pod] = subprocess.Popen(command, stdout=to, stderr=subprocess.DEVNULL)

    def follow_until(self, over: threading.Event) -> None:
        """Read the logs of new pods until ``over`` is set."""
        while not over.wait(1):
            self.follow()

    def stop(self) -> None:
        for each in self._followed.values():
            each.kill()
            each.wait()

    def runs(self) -> dict[str, list[tuple[float, float, str]]]:
        """Return begin, end and number of each logged run, by its call."""
        found: dict[str, list[tuple[float, float, str]]] = {}
        for path in self._folder.iterdir():
            for text in path.read_text().rpartition("\n")[0].splitlines():
                line = json.loads(text) if text.startswith("{") else {}
                if line.get("call_id") and line.get("run_seconds") is not None:
                    ended = datetime.fromisoformat(line["time"]).timestamp()
                    found.setdefault(line["call_id"], []).append((ended - line["run_seconds"], ended, line["run"]))
        return found


def _kill_something(release: Release, component: str, deleted: float, dice: random.Random) -> str:
    """Kill a process or a whole pod of a component. Return the kind of kill; empty if the target was already gone.

    If a container ends again and again, Kubernetes waits longer each time before it restarts the container. A new pod starts at
    once. So some kills delete pods; ``deleted`` is their share.
    """
    pods = [postgresql.NAME] if component == postgresql.NAME else [name(pod) for pod in release.pods(component)]
    if not pods:
        return ""
    pod = dice.choice(pods)
    where = ["kubectl", "-n", release.namespace]
    if dice.random() < deleted:
        what = ["delete", "pod", pod, "--grace-period=0", "--force", "--wait=false"]
    else:
        what = ["exec", pod, "-c", component, "--", "sh", "-c", KILLED_BY[component]]
    done = subprocess.run([*where, *what], capture_output=True, timeout=60, check=False)
    # 137: all processes of the container were killed, also the shell.
    return f"{component} {what[0]}" if done.returncode in (0, 137) else ""


def _kill_until(over: threading.Event, release: Release, deleted: dict[str, float], killed: list[str]) -> None:
    """Kill a process or a pod of each component in turn until ``over`` is set, and record the kills."""
    dice = random.Random(18)
    for component in itertools.islice(itertools.cycle(deleted), KILLS):
        if over.wait(EVERY * dice.uniform(0.5, 1.5)):
            return
        if what := _kill_something(release, component, deleted[component], dice):
            killed.append(what)


def _storm(release: Release, folder: Path, deleted: dict[str, float]) -> None:
    """Store calls while components are killed. Each call ends once, with the right result, and its runs do not overlap."""
    logs, over = Logs(release, folder), threading.Event()
    killed: list[str] = []
    callers = Callers(release, f"{release.name}-callers", count=STORED, at_once=48, seconds=0.2, sizes=SIZES).start()
    threads = [
        threading.Thread(target=logs.follow_until, args=(over,), daemon=True),
        threading.Thread(target=_kill_until, args=(over, release, deleted, killed), daemon=True),
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        summary = callers.done(1500)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        logs.stop()
    print(f"{STORED} calls in {time.monotonic() - began:.0f} s; killed: {Counter(killed)}")
    assert summary["states"] == {"succeeded": STORED}, summary["odd"][:5]
    assert summary["odd"] == []
    assert summary["ids"] == STORED, "one Idempotency-Key, one call"
    assert {what.split()[0] for what in killed} == set(deleted), killed
    assert summary["ends"]["answered"] == STORED
    assert len(summary["ends"]) > 1, "no kill hit a run, so this has shown nothing"
    assert Counter(_listed(release)) == {"succeeded": STORED}, "a call has not ended, or is stored twice"
    assert len(logs.runs()) > STORED / 2, "too few runs were read from logs, so overlaps could not be seen"
    for call, runs in logs.runs().items():
        ordered = sorted(runs)
        assert len({number for _, _, number in runs}) == len(runs), (call, runs)
        for (_, ended, _), (began, _, _) in itertools.pairwise(ordered):
            assert began > ended - 0.002, (call, ordered)


def _listed(release: Release) -> list[str]:
    """Return the state of each call in the operators' list."""
    [gateway, *_] = eventually(lambda: release.ready("gateway"))
    states: list[str] = []
    with release.forwarded(f"pod/{gateway}", 9090) as operators:
        page = requests.get(f"{operators}/v1/calls?limit=1000", timeout=60).json()
        states += [call["state"] for call in page["calls"]]
        while page["next"] is not None:
            page = requests.get(f"{operators}/v1/calls?limit=1000&after={page['next']}", timeout=60).json()
            states += [call["state"] for call in page["calls"]]
    return states


@pytest.mark.proof
def test_every_receipted_call_ends_once_and_right_while_gateways_and_pods_are_killed(
    install: Install, namespace: str, tmp_path: Path
) -> None:
    with volume(namespace, "stored-percore-gateway-calls"):
        release = install("stored", replicas=4, **STORED_CALLS)
        release.wait(4)
        _storm(release, tmp_path, DELETED)
        release.uninstall()
        kept = kubectl("-n", namespace, "get", "persistentvolumeclaim", "stored-percore-gateway-calls", "-o", "name")
        assert kept, "helm uninstall removed the callers' data"


@pytest.mark.proof
def test_every_receipted_call_ends_once_and_right_with_two_gateways_while_postgresql_is_killed_too(
    install: Install, namespace: str, tmp_path: Path
) -> None:
    with postgresql.postgresql(namespace):
        release = install("shared", replicas=4, **postgresql.CALLS)
        release.wait(4)
        release.wait(2, "gateway")
        _storm(release, tmp_path, DELETED_BESIDE_POSTGRESQL)


@pytest.fixture(scope="module")
def scaled(namespace: str, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release with metrics that the HPA can read."""
    if not allowed(namespace):
        pytest.skip("needs the feature gate HPAScaleToZero, on by default in Kubernetes 1.37")
    with volume(namespace, "later-percore-gateway-calls"), releases(namespace, request.session) as install:
        release = install("later", **merged(merged(TO_ZERO, STORED_CALLS), {"autoscaling": {"spareReplicas": 0}}))
        eventually(lambda: value(release, "percore_in_flight_requests") == "0", seconds=300, every=1)
        yield release


def test_stored_calls_wake_as_many_pods_as_there_may_be_and_afterwards_there_is_none(scaled: Release) -> None:
    eventually(lambda: scaled.replicas() == 0 and not scaled.pods("inference"), every=1)
    callers = Callers(scaled, "later-callers", count=200, at_once=200, seconds=0.5).start()
    eventually(lambda: scaled.replicas() == 4, seconds=120, every=1)
    summary = callers.done()
    assert summary["states"] == {"succeeded": 200}, summary["odd"][:5]
    eventually(lambda: scaled.replicas() == 0, seconds=120, every=1)
