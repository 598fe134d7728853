"""The time that the gateway adds to a call, and the throughput of the gateway alone.

First it sends empty calls and large tensors, through the gateway and to the pod directly, in turns. The pod has one core, and
gateway and client share another. Then it counts calls per second with workers that answer at once. Here the gateway has a core
of its own. There is no network between the processes, as there would be in a cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from percore.gateway.endpoints import Endpoint

from bench import bulk, client, servers
from bench.calls import quantile
from bench.empty import BODY
from bench.machine import cores, cpu_seconds, pinned
from harness.gateway import PREDICT, Gateway
from harness.service import ROOT, Service, eventually, free_port

TURNS = 5
QUANTILES = (0.1, 0.5, 0.9, 0.99)
"""Quantiles of both ways, shown side by side. Their differences are not shown, because a difference of two quantiles has no
meaning."""
DIRECTLY, THROUGH = "the pod directly", "through the gateway"
INSTANT_WORKERS = 8
INSTANT_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Way:
    """One row."""

    name: str
    quantiles: list[float]
    """Seconds of a call, one at a time, at each of ``QUANTILES``."""
    calls: int
    tensor: float
    """Seconds for 16 MB of float32 there and back, binary: the best of some."""

    @property
    def median(self) -> float:
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True, slots=True)
class GatewayCosts:
    """Both ways, and the gateway alone."""

    ways: list[Way]
    rate: float
    """Calls a second with workers that answer at once, several at once."""
    cpu: float
    """Seconds of CPU that the gateway takes for one of those calls."""
    first_call: float
    """Seconds from a worker that has loaded to the end of its first call, which was queued before."""


def measure(seconds: float) -> GatewayCosts:
    """Measure each way for ``seconds``."""
    core, other = cores()[0], cores()[-1]
    took: dict[str, list[float]] = {DIRECTLY: [], THROUGH: []}
    tensors: dict[str, list[float]] = {DIRECTLY: [], THROUGH: []}
    with _both(core, other) as ports:
        message = client.request(PREDICT, BODY)
        tensor = next(bulk.ways(np.ones(bulk.MEGABYTES << 18, np.float32))).message
        for _ in range(TURNS):
            for name, port in ports.items():
                took[name] += client.one_by_one(port, message, seconds / TURNS)
                tensors[name].append(bulk.timed(port, tensor)[0])
    ways = [
        Way(name, [quantile(each, share) for share in QUANTILES], len(each), min(tensors[name])) for name, each in took.items()
    ]
    rate, cpu = _alone(core, other, seconds)
    return GatewayCosts(ways, rate, cpu, _first_call())


@contextmanager
def _both(core: int, other: int) -> Iterator[dict[str, int]]:
    limits = {"handler": "percore.handlers.echo:Echo", "max_body_bytes": 1 << 30}
    with pinned([core]), servers.percore(1, pod=True, **limits) as pod, pinned([other]):
        for pid in pod.pids("status-server"):
            for task in (Path("/proc") / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(task.name), [other])
        with Gateway(Endpoint("127.0.0.1", pod.port, pod.status_port)) as gateway:
            yield {DIRECTLY: pod.port, THROUGH: gateway.port}


def _alone(core: int, other: int, seconds: float) -> tuple[float, float]:
    """Return calls a second and the gateway's CPU time for one, with workers that answer at once on the client's core."""
    ports = [free_port() for _ in range(INSTANT_WORKERS)]
    command = [sys.executable, "-m", "bench.instant", *map(str, ports)]
    with pinned([other]), subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as workers:
        try:
            if workers.stdout is None or workers.stdout.readline() != b"ready\n":
                raise RuntimeError("the workers that answer at once did not start")
            endpoints = [Endpoint("127.0.0.1", port, free_port()) for port in ports]
            with Gateway(*endpoints) as gateway:
                for task in Path(f"/proc/{gateway.pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), [core])
                before = cpu_seconds(gateway.pid)
                rate, calls = client.throughput_keep_alive(
                    gateway.port, client.request(PREDICT, BODY, Connection="keep-alive"), INSTANT_AT_ONCE, seconds
                )
                return rate, (cpu_seconds(gateway.pid) - before) / calls
        finally:
            workers.kill()


def _first_call() -> float:
    """Queue a call at a gateway whose only pod does not listen yet; then start the pod."""
    pod = Service(pod=True, handler="percore.handlers.echo:Echo")
    with Gateway(Endpoint("127.0.0.1", pod.port, pod.status_port)) as gateway:
        caller = threading.Thread(target=client.ask, args=(gateway.port, client.request(PREDICT, BODY)))
        caller.start()
        with pod:
            caller.join()
            loaded, answered = (eventually(partial(pod.log, message))[0]["time"] for message in ("ready after", "call"))
    return (datetime.fromisoformat(answered) - datetime.fromisoformat(loaded)).total_seconds()
