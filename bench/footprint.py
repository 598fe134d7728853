"""Table 4: how soon percore is ready, how much memory its processes take, and how fast probes answer while it computes."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass

from bench import client, servers
from bench.calls import quantile
from bench.machine import cores, memory
from harness.service import Service

PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Start:
    """How soon it is ready."""

    models: str
    seconds: float
    """Until every worker is free."""


@dataclass(frozen=True, slots=True)
class Process:
    """The memory of a process, in MB."""

    name: str
    rss: float
    pss: float


@dataclass(frozen=True, slots=True)
class Probe:
    """How long a route of the status server takes while every core computes, in seconds."""

    path: str
    p50: float
    p99: float
    slowest: float
    answers: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """The table."""

    starts: list[Start]
    processes: list[Process]
    workers: list[Process]
    probes: list[Probe]


def measure(steps_per_second: float, seconds: float) -> Footprint:
    """Start it with one demo model and with both models. Then measure memory and probes while it computes for ``seconds``."""
    starts = []
    for models in (("digits",), ("digits", "burn")):
        with servers.repository(*models) as folder:
            began = time.monotonic()
            with servers.percore(len(cores()), model_repository=folder) as service:
                starts.append(Start(" and ".join(models), time.monotonic() - began))
                if "burn" in models:
                    return Footprint(starts, *_resident(service), _probes(service, steps_per_second, seconds))
    raise AssertionError


def _resident(service: Service) -> tuple[list[Process], list[Process]]:
    named = {
        "supervisor": service.processes[0].pid,
        "arbiter": service.arbiter,
        "gateway": service.gateway,
    }
    processes = [_process(name, pid) for name, pid in named.items()]
    return processes, [_process(f"worker {index}", pid) for index, pid in enumerate(service.workers)]


def _process(name: str, pid: int) -> Process:
    found = memory(pid)
    return Process(name, found["Rss"], found["Pss"])


def _probes(service: Service, steps_per_second: float, seconds: float) -> list[Probe]:
    """Keep every core busy with a call that runs longer than the probes. Send probes as a kubelet and Prometheus do."""
    steps = round(steps_per_second * (2 * seconds + 1))
    message = client.request("/v1/models/burn:predict", json.dumps({"inputs": [steps]}).encode())
    busy = threading.Thread(target=client.burst, args=(service.port, [message] * len(cores()), 60 + 10 * seconds))
    busy.start()
    time.sleep(0.5)
    found = [_probe(service.status_port, path, seconds) for path in ("/readyz", "/metrics")]
    assert busy.is_alive(), "the calls ended before the probes did"
    busy.join()
    return found


def _probe(port: int, path: str, seconds: float) -> Probe:
    took: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        assert client.ask(port, client.request(path)).status == 200
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE_SECONDS)
    return Probe(path, quantile(took, 0.5), quantile(took, 0.99), max(took), len(took))
