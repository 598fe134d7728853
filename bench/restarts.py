"""``python -m bench.restarts``: how soon a worker that ended is replaced. 15 minutes; ``--write-docs`` writes the page.

It measures percore with the import before the fork and without it, and beside it what most people run: Flask and
Gunicorn's sync workers. Every worker is ended at the same moment, so the next call cannot go to another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import alone, client, machine, servers
from bench.calls import quantile
from bench.report import DOCS, OUTPUT, table
from bench.setups import Setup
from harness.service import Service, eventually, processes_below, processes_in

PRETEND = Path(__file__).parent / "pretend_cores"
WORKERS = (1, 2, 8)
SLOW_DIVISOR = 5
"""The number of rounds is divided by this if one round takes seconds."""
RUN_TIMEOUT_SECONDS = 3
LONG_STEPS = 2**30
"""A call of the model ``burn`` with so many steps computes for hours."""
PLAIN_TIMEOUT_SECONDS = 30
"""Gunicorn's default. It must be longer than a worker loads, because Gunicorn ends a worker that loads for longer too."""
LEFT_SECONDS = 20.0
"""With Gunicorn alone: the run time of a call whose client leaves. Nothing ends the call earlier."""
DIGITS = client.request("/v1/models/digits:predict", json.dumps({"instances": [[0.0] * 64]}).encode())
BURN = client.request("/v1/models/burn:predict", json.dumps({"inputs": [LONG_STEPS]}).encode())


class Server(Protocol):
    """A server that is measured: how it is asked, and how its workers end."""

    def ask(self) -> None:
        """Send a short call and wait for its answer."""

    def kill(self) -> None:
        """End all workers by SIGKILL."""

    def disconnect_clients(self) -> None:
        """Give each worker a long call; then close the connections of all callers."""

    def time_out(self) -> None:
        """Give each worker a long call; return when the first of them has run too long."""

    def memory(self) -> float:
        """Return the memory of all processes in MB; a page that processes share counts once."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one server showed. The lists have the seconds from the end of all workers to the next answer."""

    name: str
    workers: int
    start: float
    """Seconds until all workers are free."""
    killed: list[float]
    left: list[float]
    timed_out: list[float]
    memory: float


class Percore:
    """percore on this machine."""

    def __init__(self, service: Service, workers: int) -> None:
        self._service, self._workers = service, workers

    def ask(self) -> None:
        """Send a call of ``digits``."""
        assert client.ask(self._service.port, DIGITS).status == 200

    def kill(self) -> None:
        """End all workers when they are free."""
        self._service.ready(self._workers)
        for pid in self._service.workers:
            os.kill(pid, signal.SIGKILL)

    def disconnect_clients(self) -> None:
        """Leave as soon as all workers compute."""
        with self._computing():
            pass

    def time_out(self) -> None:
        """Return when the first caller has its answer, 504."""
        with self._computing() as callers:
            callers[0].settimeout(60)
            assert b" 504 " in callers[0].recv(64)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[list[socket.socket]]:
        self._service.ready(self._workers)
        callers = [self._service.connect() for _ in range(self._workers)]
        try:
            for caller in callers:
                caller.sendall(BURN)
            eventually(lambda: self._service.in_flight("executing") == self._workers)
            yield callers
        finally:
            for caller in callers:
                caller.close()

    def memory(self) -> float:
        """Return the proportional share of all processes."""
        return sum(machine.memory(pid)["Pss"] for pid in processes_in(self._service.environ_mark))


class Plain:
    """Flask and Gunicorn, with a model that its workers load."""

    def __init__(self, port: int, arbiter: int, workers: int, steps_per_second: float) -> None:
        self._port, self._arbiter, self._workers, self._steps_per_second = port, arbiter, workers, steps_per_second

    def ask(self) -> None:
        """Send a call of one step."""
        message = client.request("/predict", json.dumps({"inputs": [1]}).encode())
        assert client.ask(self._port, message, timeout=120).status == 200

    def kill(self) -> None:
        """End all workers."""
        for pid in processes_below(self._arbiter):
            os.kill(pid, signal.SIGKILL)

    def disconnect_clients(self) -> None:
        """Leave half a second after the calls were sent: a sync worker that is free takes one at once."""
        with self._computing(LEFT_SECONDS):
            pass

    def time_out(self) -> None:
        """Return when Gunicorn has ended the first worker, which closes the connection of its caller."""
        with self._computing(4 * PLAIN_TIMEOUT_SECONDS) as callers:
            callers[0].settimeout(2 * PLAIN_TIMEOUT_SECONDS)
            with contextlib.suppress(ConnectionResetError):
                assert not callers[0].recv(64)

    @contextlib.contextmanager
    def _computing(self, seconds: float) -> Iterator[list[socket.socket]]:
        steps = round(self._steps_per_second * seconds)
        callers = [socket.create_connection((client.HOST, self._port)) for _ in range(self._workers)]
        try:
            for caller in callers:
                caller.sendall(client.request("/predict", json.dumps({"inputs": [steps]}).encode()))
            time.sleep(0.5)
            yield callers
        finally:
            for caller in callers:
                caller.close()

    def memory(self) -> float:
        """Return the proportional share of the arbiter and its workers."""
        return sum(machine.memory(pid)["Pss"] for pid in (self._arbiter, *processes_below(self._arbiter)))


def measure(rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """Measure all servers; give each row to ``say`` as soon as it is there."""
    rows = []
    calibrated = alone.measure(machine.cores()[0], 1.0, repeats=1)
    for workers in WORKERS:
        servers_measured: list[tuple[str, int, Any]] = [
            ("percore", rounds, _percore(workers)),
            ("percore, import in the workers", _few(rounds), _percore(workers, import_before_fork="no")),
        ]
        if workers <= len(machine.cores()):
            plain = _plain(workers, calibrated.steps / calibrated.seconds)
            servers_measured.append(("Flask and Gunicorn", _few(rounds), plain))
        for name, times, server in servers_measured:
            rows.append(_row(name, workers, times, server))
            say(rows[-1])
    return rows


@contextlib.contextmanager
def _percore(workers: int, import_before_fork: str = "") -> Iterator[Server]:
    with servers.repository("digits", "burn") as folder:
        service = Service(model_repository=folder, run_timeout=RUN_TIMEOUT_SECONDS, import_before_fork=import_before_fork)
        service.environ |= {"PYTHONPATH": f"{PRETEND}:{os.environ.get('PYTHONPATH', '')}", "PRETENDED_CORES": str(workers)}
        with service.ready(workers):
            yield Percore(service, workers)


@contextlib.contextmanager
def _plain(workers: int, steps_per_second: float) -> Iterator[Server]:
    setup = Setup("Flask and Gunicorn", "sync", workers, one_thread=True, timeout=PLAIN_TIMEOUT_SECONDS)
    with servers.gunicorn_process(setup, "burn", OUTPUT / "logs" / "restarts.log") as (port, arbiter):
        yield Plain(port, arbiter, workers, steps_per_second)


def _row(name: str, workers: int, rounds: int, server: contextlib.AbstractContextManager[Server]) -> Row:
    began = time.monotonic()
    with server as started:
        start, memory = time.monotonic() - began, started.memory()
        ends = (started.kill, started.disconnect_clients, started.time_out)
        killed, left, timed_out = ([_until_answered(started, end) for _ in range(rounds)] for end in ends)
    return Row(name, workers, start, killed, left, timed_out, memory)


def _until_answered(server: Server, end: Callable[[], None]) -> float:
    server.ask()
    end()
    began = time.monotonic()
    server.ask()
    return time.monotonic() - began


def _few(rounds: int) -> int:
    return max(1, rounds // SLOW_DIVISOR)


def line(row: Row) -> list[str]:
    """Return the cells of a row."""
    ends = (f"{quantile(each, 0.5):.2f} s, {quantile(each, 0.99):.2f} s" for each in (row.killed, row.left, row.timed_out))
    name = f"**{row.name}**" if row.name == "percore" else row.name
    return [name, str(row.workers), f"{row.start:.1f} s", *ends, f"{row.memory:.0f} MB"]


def document(rows: list[Row], rounds: int, where: str) -> str:
    """Return the page of the docs."""
    heads = ["", "workers", "start", "killed: p50, p99", "client left: p50, p99", "ran too long: p50, p99", "memory"]
    introduction = (
        f"How soon a core computes again after its worker has ended. On {where}. `python -m bench.restarts` repeats it."
    )
    how = (
        "All workers end at the same moment: by `kill -9`, because their clients left, or because their calls ran too "
        "long. The time is from then to the answer of the next call. *Start* is from the command until all workers are "
        "free. *Memory* is that of all processes before the first call; a page that processes share counts once. Each "
        f"was measured {rounds} times for percore, and {_few(rounds)} times if one measurement takes seconds. percore "
        "served the models `digits` and `burn`, Flask and Gunicorn `burn` alone."
    )
    few = (
        f"{WORKERS[-1]} workers take turns on the {len(machine.cores())} cores here, so their times are longer than on "
        f"{WORKERS[-1]} cores."
    )
    plain = (
        f"Gunicorn goes on with the call of a client that left: here {LEFT_SECONDS:.0f} s. It ends a worker that is silent for "
        f"its `--timeout`, {PLAIN_TIMEOUT_SECONDS} s here, also one that still loads."
    )
    parts = ["# Restarts, measured", introduction, how, table(heads, [line(row) for row in rows]), few, plain]
    why = "[Decision 13](../decisions/0013-import-before-fork.md) says why modules are imported before the fork."
    return "\n\n".join([*parts, why]) + "\n"


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description="Measure how soon workers are replaced.")
    parser.add_argument("rounds", type=int, nargs="?", default=40, help="how often all workers end in each way")
    parser.add_argument("--write-docs", action="store_true", help="write docs/bench/restarts.md")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds, lambda row: print(*line(row), sep=" | ", flush=True))
    folder = DOCS if arguments.write_docs else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "restarts.md").write_text(document(rows, arguments.rounds, machine.described()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
