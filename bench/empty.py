"""Table 2: a call that computes nothing, so that all of its time is the server's.

One worker on one core, the client on another. The gateway may use any idle core. So percore is measured twice: with the gateway
on the client's core, and with the gateway on the worker's core.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import client, costs, servers
from bench.calls import quantile
from bench.machine import cores, pinned
from bench.setups import Setup

AT_ONCE = 4
WARM_UP_SECONDS = 0.5
BODY = json.dumps({"inputs": [1.0]}).encode()


@dataclass(frozen=True, slots=True)
class EmptyCallRow:
    """One row."""

    name: str
    p50: float
    """Seconds, one call at a time."""
    p99: float
    rate: float
    """Calls a second, four at once."""
    calls: int


@dataclass(frozen=True, slots=True)
class EmptyCall:
    """The rows, and where percore's time goes."""

    rows: list[EmptyCallRow]
    costs: costs.Costs


def measure(seconds: float, logs: Path) -> EmptyCall:
    """Measure both servers, each for ``seconds`` with one call at a time and then with several."""
    core, other = cores()[0], cores()[-1]
    rows = []
    with pinned([core]), _bare(logs) as port, pinned([other]):
        rows.append(_row("Flask and Gunicorn, bare", port, "/predict", seconds))
    for name, gateway_core in {"percore": other, "percore, gateway on the same core": core}.items():
        with pinned([core]), _percore(gateway_core) as port, pinned([other]):
            rows.append(_row(name, port, "/v1/models/default:predict", seconds))
    return EmptyCall(rows, costs.measure(core))


def _bare(logs: Path) -> contextlib.AbstractContextManager[int]:
    return servers.gunicorn(Setup("bare", "sync", 1), "echo", logs / "echo.log")


@contextlib.contextmanager
def _percore(gateway_core: int) -> Iterator[int]:
    with servers.percore(1, handler="percore.handlers.echo:Echo") as service:
        for task in Path(f"/proc/{service.gateway}/task").iterdir():
            os.sched_setaffinity(int(task.name), [gateway_core])
        yield service.port


def _row(name: str, port: int, path: str, seconds: float) -> EmptyCallRow:
    message = client.request(path, BODY)
    client.one_by_one(port, message, WARM_UP_SECONDS)
    took = client.one_by_one(port, message, seconds)
    rate = client.side_by_side(port, message, AT_ONCE, seconds)
    return EmptyCallRow(name, quantile(took, 0.5), quantile(took, 0.99), rate, len(took))
