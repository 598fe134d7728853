"""``python -m bench.stored_calls``, which ``make bench`` runs too: what stored calls cost. It takes a minute.

``--write-docs`` writes the page of the docs. It measures the intake, and to compare, the flush rate of the disk. With 10,000
queued calls it measures the status and the gateway's memory. It also measures the time from the receipt to the begin. With
``--queues PYTHON REDIS_SERVER`` it also measures the same work by Celery and RQ. They must be installed in that Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
from percore.gateway.endpoints import Endpoint

from bench import client, machine, servers
from bench.calls import quantile
from bench.report import DOCS, OUTPUT, table
from harness.gateway import PREDICT, Gateway
from harness.service import ROOT, eventually, free_port

AT_ONCE = 16
INTAKE_SECONDS = 10.0
STORED = 10_000
STATUS_SECONDS = 5.0
TURNS = 200
WARM = 5
TASKS = 3000
BODY = json.dumps({"inputs": {"x": "x" * 1000}}).encode()
ASYNC = {"Prefer": "respond-async"}


@dataclass(slots=True)
class Stored:
    """The results. Times are in seconds, rates are per second."""

    flushes: list[float] = field(default_factory=list)
    """How many small writes, each followed by a flush, the disk takes per second: before the intake and after it."""
    intake: float = 0.0
    memory: float = 0.0
    status_p50: float = 0.0
    status_p99: float = 0.0
    receipt_to_begin: list[float] = field(default_factory=list)
    begin: list[float] = field(default_factory=list)
    result: list[float] = field(default_factory=list)


def flushes(folder: Path, seconds: float) -> float:
    """Return how many times per second 4 KB can be appended to a file and flushed."""
    count, ends = 0, time.perf_counter() + seconds
    with (folder / "flushed").open("wb", buffering=0) as file:
        while time.perf_counter() < ends:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            count += 1
    return count / seconds


def measure() -> Stored:
    """Measure percore."""
    found = Stored()
    with tempfile.TemporaryDirectory(prefix="percore-bench-") as name:
        _with_queued_calls(found, Path(name))
    _with_free_workers(found)
    return found


def _with_queued_calls(found: Stored, folder: Path) -> None:
    """Store calls at a gateway whose only pod does not exist."""
    core, other = machine.cores()[0], machine.cores()[-1]
    nothing = Endpoint("127.0.0.1", free_port(), free_port())
    settings: dict[str, Any] = {"gateway_calls_dir": folder / "calls", "gateway_calls_limit": 100_000}
    found.flushes.append(flushes(folder, 2.0))
    with Gateway(nothing, **settings) as gateway, machine.pinned([other]):
        for task in Path(f"/proc/{gateway.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), [core])
        first = requests.post(gateway.url(PREDICT), data=BODY, headers=ASYNC, timeout=30)
        assert first.status_code == 202, first.text
        message = client.request(PREDICT, BODY, Prefer="respond-async", Connection="keep-alive")
        expected = b"HTTP/1.1 202 "
        found.intake, stored = client.throughput_keep_alive(gateway.port, message, AT_ONCE, INTAKE_SECONDS, expected)
        found.flushes.append(flushes(folder, 2.0))
        while stored < STORED:
            stored += client.throughput_keep_alive(gateway.port, message, AT_ONCE, 1.0, expected)[1]
        ids = [each["id"] for each in gateway.get_status("/v1/calls?limit=1000").json()["calls"]]
        found.memory = machine.memory(gateway.pid)["Rss"]
        took, ends = [], time.perf_counter() + STATUS_SECONDS
        chance = random.Random(1)
        while time.perf_counter() < ends:
            began = time.perf_counter()
            reply = client.ask(gateway.port, client.request(f"/v1/calls/{chance.choice(ids)}"))
            took.append(time.perf_counter() - began)
            assert reply.status == 200
        found.status_p50, found.status_p99 = quantile(took, 0.5), quantile(took, 0.99)


def _with_free_workers(found: Stored) -> None:
    """Store calls one at a time, while the workers are free, and wait for each result."""
    with servers.percore(len(machine.cores()), handler="percore.handlers.echo:Echo") as service, requests.Session() as session:
        for turn in range(TURNS + WARM):
            sent = time.time()
            receipt = session.post(service.url(PREDICT), data=BODY, headers=ASYNC, timeout=30)
            path = receipt.headers["Location"]
            result = session.get(service.url(f"{path}/result"), headers={"Prefer": "wait=30"}, timeout=60)
            took = time.time() - sent
            assert result.status_code == 200, result.text
            status = session.get(service.url(path), timeout=30).json()
            began, created = (datetime.fromisoformat(status[name]).timestamp() for name in ("started", "created"))
            if turn >= WARM:
                found.receipt_to_begin.append(began - created)
                found.begin.append(began - sent)
                found.result.append(took)


@contextlib.contextmanager
def redis(server: str, folder: Path) -> Iterator[int]:
    """Run Redis, which flushes its log to the disk before it answers, as SQLite does here."""
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--dir",
        str(folder),
    ]
    with subprocess.Popen([server, *options], stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _connects(port))
            yield port
        finally:
            process.terminate()


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((client.HOST, port)).close()
        return True
    return False


def task_queue(kind: str, python: str, server: str) -> dict[str, float]:
    """Measure Celery or RQ."""
    with tempfile.TemporaryDirectory(prefix="percore-bench-") as name, redis(server, Path(name)) as port:
        command = [python, str(ROOT / "bench/task_queues.py"), kind, str(port), name, str(TASKS)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=name)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def document(found: Stored, queues: dict[str, dict[str, float]], described: str) -> str:
    """Return the page."""

    def milliseconds(value: float) -> str:
        return f"{value * 1000:.1f} ms"

    low, high = min(found.flushes), max(found.flushes)
    rows = [
        [f"receipts a second, bodies of 1 KB, {AT_ONCE} connections", f"{found.intake:.0f}", "300, or what the disk allows"],
        ["flushes of the disk a second, one after the other, in the same run", f"{low:.0f} to {high:.0f}", ""],
        [f"status with {STORED:,} queued calls, p50", milliseconds(found.status_p50), ""],
        [f"status with {STORED:,} queued calls, p99", milliseconds(found.status_p99), "20 ms"],
        [f"memory of the gateway with {STORED:,} queued calls", f"{found.memory:.0f} MB", "400 MB"],
        [
            "from the receipt to the begin of the run, with a free worker, p50",
            milliseconds(quantile(found.receipt_to_begin, 0.5)),
            "15 ms",
        ],
        ["the same, p99", milliseconds(quantile(found.receipt_to_begin, 0.99)), ""],
    ]
    beside = [
        ["**percore**, SQLite with `synchronous=FULL`", f"{found.intake:.0f}"]
        + [milliseconds(quantile(each, 0.5)) for each in (found.begin, found.result)]
    ]
    for name, each in queues.items():
        beside.append([name, f"{each['rate']:.0f}", milliseconds(each["begin"]), milliseconds(each["result"])])
    introduction = (
        f"What a stored call costs, and what a task queue costs for the same work. On {described}. Writes are flushed to the "
        "disk before a call is receipted. `make bench` repeats the first table. With "
        '`QUEUES="PYTHON REDIS_SERVER"` it repeats the second one too. `PYTHON` is a Python that has `celery[redis]` and `rq`, '
        "and `REDIS_SERVER` is the program `redis-server`."
    )
    together = "One flush of the disk serves all calls that wait for it."
    how = (
        f"The first column is with {AT_ONCE} senders at once, the others with one task at a time and a free worker. Redis ran "
        "with `appendonly yes` and `appendfsync always`, so it loses as little as percore. Celery acknowledges a task at its "
        "end. RQ forks a process for each task."
    )
    again = (
        "Each of these task queues has one of two problems: a task that takes longer than a configured time is "
        "delivered again, or a task is lost with its worker. See "
        "[decision 18](../decisions/0018-the-queue-is-not-a-task-queue.md)."
    )
    heads = ["", "sent, a second", "from sending to the begin, p50", "from sending to the result, p50"]
    parts = ["# Stored calls, measured", introduction, table(["", "measured", "goal"], rows), together]
    parts += ["## Beside task queues", how, table(heads, beside), again]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.stored_calls", description="Measure stored calls.")
    parser.add_argument("--queues", nargs=2, metavar=("PYTHON", "REDIS_SERVER"), help="measure Celery and RQ too")
    parser.add_argument("--write-docs", action="store_true", help="write docs/bench/stored-calls.md")
    arguments = parser.parse_args()
    found = measure()
    print(document(found, {}, machine.described()), flush=True)
    kinds = {"Celery": "celery", "RQ": "rq"} if arguments.queues else {}
    queues = {f"{name}, Redis": task_queue(kind, *arguments.queues) for name, kind in kinds.items()}
    folder = DOCS if arguments.write_docs else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stored-calls.md").write_text(document(found, queues, machine.described()))
    print(queues)
    return 0


if __name__ == "__main__":
    sys.exit(main())
