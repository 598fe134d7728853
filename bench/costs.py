"""Where the time of an empty call goes in percore's worker: ``python -m bench.costs``.

The worker's own code runs here over a real connection, in a process pinned to one core. First each step is timed by a wrapper
around its function, which is nearly exact. Then cProfile shows the functions inside. It slows them down, small ones most.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gunicorn.config import Config
from gunicorn.http import wsgi
from percore import settings
from percore.api.app import create_app
from percore.handlers import custom
from percore.model_metadata import Catalog
from percore.worker import answer, exchange, receive
from percore.worker.report import Reporter
from percore.worker.watchdog import Watchdog

from bench import client
from bench.machine import pinned
from harness.service import ROOT

ServeOne = Callable[[exchange.WorkerContext, socket.socket], None]

CALLS = 3000
TOP = 25
MESSAGE = client.request("/v1/models/default:predict", json.dumps({"inputs": [1.0]}).encode())


@dataclass(frozen=True, slots=True)
class Cost:
    """One step, or one function."""

    name: str
    microseconds: float
    """Microseconds for one call."""
    calls: float = 1.0
    """How often it is called for one call."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one empty call."""

    whole: float
    """Microseconds from accept to the next accept, without wrappers: the median."""
    steps: list[Cost]
    """The time of the parts of ``Exchange.serve``. The part of the application includes Flask and the handler."""
    functions: list[Cost]
    """The functions with the largest own time, as cProfile measures it."""


def measure(core: int) -> Costs:
    """Measure on ``core``, in a process of its own; its log goes nowhere."""
    with pinned([core]):
        command = [sys.executable, "-m", "bench.costs"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found = json.loads(done.stdout)
    return Costs(found["whole"], *([Cost(**each) for each in found[name]] for name in ("steps", "functions")))


@contextmanager
def _ignored_reports(folder: Path) -> Iterator[None]:
    """Replace the status server by a process that reads the worker's reports and ignores them."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "events.sock"))
    listener.listen()
    if os.fork() == 0:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # it may use any core
        connection, _ = listener.accept()
        while connection.recv(1 << 16):
            pass
        os._exit(0)
    with listener:
        yield


def _context(reporter: Reporter, listener: socket.socket) -> exchange.WorkerContext:
    read = settings.load({"PERCORE_HANDLER": "percore.handlers.echo:Echo"})
    model = custom.load("percore.handlers.echo:Echo", "default")
    app = create_app([model], Catalog((model.info,)), max_body_bytes=read.limits.max_body_bytes)
    watchdog = Watchdog(on_tick=reporter.reconnect)
    watchdog.start()
    return exchange.WorkerContext(app.wsgi_app, Config(), read.limits, watchdog, reporter, listener.getsockname(), 1.0)


def _serve(worker: exchange.WorkerContext, listener: socket.socket, calls: int, one: ServeOne | None = None) -> list[float]:
    """Serve ``calls`` calls that this process sends; return the seconds of each, from accept to the end of serving."""
    spent = []
    for _ in range(calls):
        caller = socket.create_connection(listener.getsockname())
        caller.sendall(MESSAGE)
        began = time.perf_counter()
        (one or _serve_one)(worker, listener)
        spent.append(time.perf_counter() - began)
        caller.close()
    return spent


def _serve_one(worker: exchange.WorkerContext, listener: socket.socket) -> None:
    """Serve one connection as percore's worker does."""
    connection, address = listener.accept()
    connection.setblocking(True)
    exchange.Exchange(worker, connection, address).serve()


STEPS: dict[str, tuple[Any, str]] = {
    "is the client still there?": (receive, "peer_is_gone"),
    "parse the head (Gunicorn)": (receive, "read_head"),
    "report that it starts": (Reporter, "started"),
    "read the body": (receive, "read_body"),
    "make the WSGI environment (Gunicorn)": (wsgi, "create"),
    "format the answer's head": (answer, "head_of"),
    "send the answer": (answer, "send"),
    "close the connection": (answer, "close"),
    "report that it ended": (Reporter, "finished"),
    "write the log line": (exchange, "write_call"),
}
APPLICATION = "the application: Flask, JSON, handler"


def _timed(work: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*arguments, **named)
        finally:
            spent.append(time.perf_counter() - began)

    return wrapper


def _steps(worker: exchange.WorkerContext, listener: socket.socket) -> list[Cost]:
    """Time each step of ``CALLS`` calls by wrapping its function. Uses medians, because another process may run in between."""
    spent: dict[str, list[float]] = {name: [] for name in (*STEPS, APPLICATION)}
    originals = {name: getattr(*place) for name, place in STEPS.items()}
    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, _timed(originals[name], spent[name]))
    plain, worker.application = worker.application, _timed(worker.application, spent[APPLICATION])
    whole = _serve(worker, listener, CALLS)
    worker.application = plain
    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, originals[name])
    found = {name: statistics.median(each) for name, each in spent.items()}
    found["everything between"] = statistics.median(whole) - sum(found.values())
    return [Cost(name, seconds * 1e6) for name, seconds in sorted(found.items(), key=lambda each: -each[1])]


def _functions(worker: exchange.WorkerContext, listener: socket.socket) -> list[Cost]:
    profile = cProfile.Profile()
    # The server's side alone: the client is in this process too.
    _serve(worker, listener, CALLS, one=lambda worker, listener: profile.runcall(_serve_one, worker, listener))
    found = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    own = sorted(((own, calls, *place) for place, (_, calls, own, _, _) in found), reverse=True)
    return [Cost(_place(*place), seconds / CALLS * 1e6, calls / CALLS) for seconds, calls, *place in own[:TOP]]


def _place(path: str, line: int, name: str) -> str:
    """Return ``module/file.py:line function``, without the folders of this machine."""
    if path == "~":
        return re.sub(r" at 0x[0-9a-f]+", "", name)
    return f"{'/'.join(Path(path).parts[-2:])}:{line} {name}"


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server((client.HOST, 0)) as listener,
        _ignored_reports(Path(folder)),
    ):
        reporter = Reporter(Path(folder) / "events.sock")
        reporter.reconnect()
        worker = _context(reporter, listener)
        _serve(worker, listener, CALLS // 10)
        whole = statistics.median(_serve(worker, listener, CALLS)) * 1e6
        steps, functions = _steps(worker, listener), _functions(worker, listener)
        print(json.dumps(asdict(Costs(whole, steps, functions))))
        reporter.close()


if __name__ == "__main__":
    main()
