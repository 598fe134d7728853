"""Installs releases on the cluster of KUBECONFIG, and uses them as operators and callers do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/helm/percore"
HELM = str(Path(sys.executable).parent / "helm")
SLEEP = "percore.handlers.echo:Sleep"
CALL = "/v1/models/default:predict"
DISRUPTIVE = os.environ.get("PERCORE_E2E_DISRUPTIVE") == "1"
"""Whether tests may stop parts of the cluster that other users need."""
SECONDS = 180.0
"""How long every step but a call may take, on a machine whose cores are shared."""


def run(*command: str, seconds: float = SECONDS, given: str | None = None) -> str:
    """Run a command and return what it prints; fail with its error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, input=given, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def kubectl(*arguments: str, seconds: float = SECONDS, given: str | None = None) -> str:
    return run("kubectl", *arguments, seconds=seconds, given=given)


def documents(*arguments: str) -> list[dict[str, Any]]:
    """Return the objects that ``kubectl get`` finds."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "-o", "json"))["items"]
    return found


def eventually(look: Callable[[], T], seconds: float = SECONDS, every: float = 0.25) -> T:
    """Return the first truthy value of ``look``. When ``seconds`` are over, fail and show its last value."""
    ends = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < ends, f"still {seen!r} after {seconds} s"
        time.sleep(every)
    return seen


def age(moment: str, now: float) -> float:
    """Return the seconds from a timestamp of Kubernetes or of a log to ``now``."""
    return now - datetime.fromisoformat(moment).timestamp()


@dataclass(slots=True)
class Call:
    """One call in a thread of its own, and its result."""

    url: str
    body: Any
    seconds: float
    status: int = 0
    answer: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    began: float = 0.0
    ended: float = 0.0
    _thread: threading.Thread | None = None

    def start(self) -> Call:
        self._thread = threading.Thread(target=self._make, daemon=True)
        self.began = time.time()
        self._thread.start()
        return self

    def _make(self) -> None:
        try:
            response = requests.post(self.url, json=self.body, timeout=self.seconds)
            self.status, self.headers, self.answer = response.status_code, response.headers, response.json()
        except (OSError, ValueError) as error:
            self.failure = f"{type(error).__name__}: {error}"
        self.ended = time.time()

    def done(self) -> Call:
        """Wait for its end and return it."""
        assert self._thread is not None
        self._thread.join(self.seconds + 10)
        assert not self._thread.is_alive(), "the call never ended"
        return self

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def timing(self, name: str) -> float:
        """Return a part of ``Server-Timing``, in seconds."""
        found = re.search(rf"{name};dur=([\d.]+)", self.headers["Server-Timing"])
        assert found, self.headers
        return float(found[1]) / 1000


@dataclass(slots=True)
class Release:
    """One release of the chart. Its values are the defaults, with smaller timeouts and the values of the test."""

    name: str
    namespace: str
    values: dict[str, Any] = field(default_factory=dict)
    chart: str = str(CHART)

    def install(self, *more: str) -> str:
        """Install or upgrade it with the images under test, without waiting for pods; return Helm's output."""
        given = yaml.safe_dump(merged(images(), self.values))
        command = [HELM, "upgrade", "--install", self.name, self.chart, "-n", self.namespace, "--values", "-", *more]
        return run(*command, given=given)

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Change some values."""
        self.values = merged(self.values, values)
        self.install()

    def uninstall(self) -> None:
        run(HELM, "uninstall", self.name, "-n", self.namespace, "--wait=false", "--ignore-not-found")
        # Calls that still run there have no callers any more.
        kubectl("-n", self.namespace, "delete", "pods", "-l", self.labels, "--grace-period=0", "--force", "--wait=false")
        eventually(lambda: not self.pods())

    @property
    def full_name(self) -> str:
        return self.name if "percore" in self.name else f"{self.name}-percore"

    @property
    def labels(self) -> str:
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/name=percore"

    def pods(self, component: str = "") -> list[dict[str, Any]]:
        """Return its pods, oldest first."""
        selector = self.labels + (f",app.kubernetes.io/component={component}" if component else "")
        found = documents("-n", self.namespace, "pods", "-l", selector)
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def ready(self, component: str = "inference") -> list[str]:
        """Return the names of pods that are ready and not terminating."""
        return [name(pod) for pod in self.pods(component) if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    def wait(self, count: int, component: str = "inference", seconds: float = SECONDS) -> list[str]:
        """Wait until there are exactly ``count`` pods, and all are ready."""

        def look() -> list[str]:
            ready = self.ready(component)
            return ready if len(ready) == count == len(self.pods(component)) else []

        return eventually(look, seconds)

    def wanted(self) -> int:
        """Return how many pods the HPA wants."""
        document = json.loads(kubectl("-n", self.namespace, "get", "hpa", f"{self.full_name}-inference", "-o", "json"))
        return int(document.get("status", {}).get("desiredReplicas", 0))

    def replicas(self) -> int:
        """Return the Deployment's ``replicas``."""
        document = json.loads(kubectl("-n", self.namespace, "get", "deployment", f"{self.full_name}-inference", "-o", "json"))
        return int(document["spec"]["replicas"])

    @contextlib.contextmanager
    def unscraped(self) -> Iterator[None]:
        """Stop the scrapes of gateways for a while, as if Prometheus had lost them. Calls go on."""
        service = ("service", f"{self.full_name}-gateway", "--type=merge", "-p")
        try:
            kubectl("-n", self.namespace, "patch", *service, '{"spec":{"selector":{"scraped-by":"nobody"}}}')
            yield
        finally:
            kubectl("-n", self.namespace, "patch", *service, '{"spec":{"selector":{"scraped-by":null}}}')

    @contextlib.contextmanager
    def forwarded(self, target: str = "", port: int = 8080) -> Iterator[str]:
        """Forward a port of this machine to the gateway, or to another target; yield the address."""
        target = target or f"service/{self.full_name}"
        command = ["kubectl", "-n", self.namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as forwarding:
            try:
                assert forwarding.stdout is not None
                line = forwarding.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                assert found, f"port-forward says {line!r}"
                threading.Thread(target=forwarding.stdout.read, daemon=True).start()
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                forwarding.kill()

    def kill(self, pod: str, container: str, script: str) -> None:
        """Run a script that kills processes of a container. Process 1 is tini, and percore is its child."""
        kubectl("-n", self.namespace, "exec", pod, "-c", container, "--", "sh", "-c", script)

    def lines(self, pod: str, container: str = "inference") -> list[dict[str, Any]]:
        """Return the JSON lines of a container's log."""
        text = kubectl("-n", self.namespace, "logs", pod, "-c", container)
        whole, _, _ = text.rpartition("\n")  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def calls(self, pods: list[str]) -> list[Run]:
        """Return the calls that pods have logged."""
        found = []
        for pod in pods:
            for line in self.lines(pod):
                if line["logger"] == "percore.call" and line["run_seconds"] is not None:
                    ended = datetime.fromisoformat(line["time"]).timestamp()
                    found.append(Run(pod, line["request_id"], ended - line["run_seconds"], ended))
        return found


@dataclass(frozen=True, slots=True)
class Run:
    """A call as the pod that computed it logged it, in seconds since the epoch."""

    pod: str
    request: str
    began: float
    ended: float


def metric(url: str, name: str, **labels: str) -> float:
    """Return a sample of the status server at this address; 0 if it does not have it."""
    families = text_string_to_metric_families(requests.get(url + "/metrics", timeout=SECONDS).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def overlaps(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Return calls that one pod computed at the same time. The times of the log are exact to a millisecond."""
    ordered = sorted(runs, key=lambda each: (each.pod, each.began))
    pairs = itertools.pairwise(ordered)
    return [(first, second) for first, second in pairs if first.pod == second.pod and second.began < first.ended - 0.002]


def name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def is_ready(pod: Mapping[str, Any]) -> bool:
    return ready_since(pod) is not None


def ready_since(pod: Mapping[str, Any]) -> str | None:
    """Return since when a pod is ready, to the second."""
    conditions = {each["type"]: each for each in pod["status"].get("conditions", [])}
    ready = conditions.get("Ready", {"status": "False"})
    return str(ready["lastTransitionTime"]) if ready["status"] == "True" else None


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings as Helm merges values: the second one overrides the first."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def images(target: str = "inference") -> dict[str, Any]:
    """Return the values that name the images of ``tests/e2e/images``."""
    tag = os.environ.get("PERCORE_E2E_TAG")
    assert tag, 'no images: eval "$(tests/e2e/images)"'
    return {
        "image": {"repository": f"localhost/percore/{target}", "tag": tag},
        "gateway": {"image": {"repository": "localhost/percore/gateway", "tag": tag}},
    }


WITHOUT_AUTOSCALING = {"autoscaling": {"enabled": False}, "monitoring": {"enabled": False}}
SMALL = {"timeouts": {"load": 120, "body": 10, "queue": 300, "run": 120, "answer": 10}, "memory": "256Mi"}
"""Values for the sleeping handler: it needs so little that eleven pods fit on one node."""


def sleeping(seconds: float) -> dict[str, Any]:
    return {"inputs": {"seconds": [seconds]}}
