"""How soon a worker that ended is replaced, with the import before the fork and without: ``python -m bench.restarts``.

Prints the table of decision 13. Every worker is ended at the same moment, so the next call cannot go to another one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

from bench import client, servers
from bench.calls import quantile
from bench.machine import cores, memory
from harness.service import Service, eventually, processes_in

DIGITS = client.request("/v1/models/digits:predict", json.dumps({"instances": [[0.0] * 64]}).encode())
BURN = json.dumps({"inputs": [2**30]}).encode()
"""Computes for hours."""
SLOWER = 5
"""How many times fewer rounds are measured without the import before the fork, which take longer."""


def main(rounds: int) -> None:
    """Measure one worker and as many as there are cores, each with and without the import before the fork."""
    print("| workers | import before the fork | start | killed: p50, p99 | client left: p50, p99 | PSS |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for workers in sorted({1, len(cores())}):
        for setting in ("no", ""):
            print(_row(workers, setting, rounds // SLOWER if setting else rounds), flush=True)


def _row(workers: int, setting: str, rounds: int) -> str:
    with servers.repository("digits", "burn") as folder:
        began = time.monotonic()
        per_call = len(cores()) // workers
        with Service(model_repository=folder, cores_per_call=per_call, import_before_fork=setting).ready(workers) as service:
            start = time.monotonic() - began
            shares = sum(memory(pid)["Pss"] for pid in processes_in(service.mark))
            killed = _told(_until_answered(service, workers, _kill) for _ in range(rounds))
            left = _told(_until_answered(service, workers, _leave) for _ in range(rounds))
    return f"| {workers} | {'no' if setting else 'yes'} | {start:.1f} s | {killed} | {left} | {shares:.0f} MB |"


def _told(seconds: Iterable[float]) -> str:
    found = list(seconds)
    return f"{quantile(found, 0.5):.2f} s, {quantile(found, 0.99):.2f} s"


def _until_answered(service: Service, workers: int, end: Callable[[Service, int], None]) -> float:
    """End all workers; return the seconds from then to the answer of the next call."""
    service.ready(workers)
    end(service, workers)
    began = time.monotonic()
    assert client.ask(service.port, DIGITS).status == 200
    return time.monotonic() - began


def _kill(service: Service, _workers: int) -> None:
    for pid in service.workers:
        os.kill(pid, signal.SIGKILL)


def _leave(service: Service, workers: int) -> None:
    callers = [service.connect() for _ in range(workers)]
    for caller in callers:
        caller.sendall(service.raw(BURN, "/v1/models/burn:predict"))
    eventually(lambda: service.in_flight("executing") == workers)
    for caller in callers:
        caller.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
