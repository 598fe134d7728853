"""What an empty call takes through the gateway and to the pod directly, in turns, on the same machine.

The worker has one core; gateway and client share another. In a cluster there is a network between them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from percore.gateway.endpoints import Endpoint

from tests.bench import client, servers
from tests.bench.calls import quantile
from tests.bench.empty import AT_ONCE, BODY
from tests.bench.machine import cores, pinned
from tests.gateway.harness import PREDICT, Gateway
from tests.service.harness import Service

TURNS = 5


@dataclass(frozen=True, slots=True)
class Way:
    """One row."""

    name: str
    p50: float
    """Seconds, one call at a time."""
    p99: float
    calls: int


@dataclass(frozen=True, slots=True)
class Added:
    """Both ways, and what only the gateway can do."""

    ways: list[Way]
    rate: float
    """Calls a second through the gateway to one pod, several at once."""


def measure(seconds: float) -> Added:
    """Measure each way for so long."""
    with _both() as (pod, gateway):
        message = client.request(PREDICT, BODY)
        took: dict[str, list[float]] = {"the pod directly": [], "through the gateway": []}
        for _ in range(TURNS):
            took["the pod directly"] += client.one_by_one(pod.port, message, seconds / TURNS)
            took["through the gateway"] += client.one_by_one(gateway.port, message, seconds / TURNS)
        rate = client.side_by_side(gateway.port, message, AT_ONCE, seconds)
    ways = [Way(name, quantile(times, 0.5), quantile(times, 0.99), len(times)) for name, times in took.items()]
    return Added(ways, rate)


@contextmanager
def _both() -> Iterator[tuple[Service, Gateway]]:
    core, other = cores()[0], cores()[-1]
    with pinned([core]), servers.percore(1, pod=True, handler="percore.handlers.echo:Echo") as pod, pinned([other]):
        for pid in pod.pids("exporter"):
            for task in (Path("/proc") / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(task.name), [other])
        with Gateway(Endpoint("127.0.0.1", pod.port, pod.exporter_port)) as gateway:
            yield pod, gateway
