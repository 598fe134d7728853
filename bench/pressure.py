"""``python -m bench.pressure``: what the gateway needs when many calls, uploads or reads come at once.

It takes two minutes and 8 GB of disk.

With ``--write-docs`` it writes the page of the docs. The clients are processes of their own, which share the cores with the
gateway.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from percore.gateway.endpoints import Endpoint

from bench import client, servers
from bench.calls import quantile
from bench.machine import cores, cpu_seconds, described, memory
from bench.report import DOCS, OUTPUT, table
from harness.gateway import PREDICT, Gateway
from harness.service import ROOT, eventually

IDLE_SECONDS = 10.0
PROBES, PAUSE_SECONDS = 200, 0.02
READY = client.request("/readyz")
QUEUED = ((9_000, 1_000), (9_000, 60_000), (1_000, 8_000_000))
"""How many calls are queued, and the bytes of each body."""
OPEN_FILES = 20_000


def main() -> None:
    """Measure, print a row for each case, and write the page."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    rows = []
    cases: list[Callable[[], tuple[str, str]]] = [
        partial(_endpoints, 1_000),
        *(partial(_queued, *each) for each in QUEUED),
        partial(_uploads, 60, 8_000_000),
        _status_server,
    ]
    for case in cases:
        rows.append(case())
        print(*rows[-1], sep=": ", flush=True)
    folder = DOCS if sys.argv[1:] == ["--write-docs"] else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    where = (
        "How much memory, disk and time the gateway needs when many calls, uploads or reads come at once. "
        f"On {described()}. `python -m bench.pressure` repeats it."
    )
    how = "Gateway and clients share the cores. The memory is the resident memory of the gateway."
    (folder / "pressure.md").write_text(
        "\n\n".join(["# Under pressure, measured", where, how, table(["case", "measured"], rows)]) + "\n"
    )


def _endpoints(count: int) -> tuple[str, str]:
    pods = [Endpoint(f"127.0.{number >> 8}.{number & 255}", 8080, 9090) for number in range(256, 256 + count)]
    with Gateway(*pods) as gateway:
        time.sleep(2)  # until it has read the list
        before = cpu_seconds(gateway.pid)
        time.sleep(IDLE_SECONDS)
        used = (cpu_seconds(gateway.pid) - before) / IDLE_SECONDS
    return f"{count:,} endpoints and no call", f"{used:.3f} of a core"


def _queued(count: int, size: int) -> tuple[str, str]:
    # These limits need few descriptors. A process may have only 20,000 on some machines.
    with Gateway(queue_length=count, gateway_spool_bytes=12 << 30, gateway_uploads=64, gateway_connections=500) as gateway:
        with _load("hold", gateway.port, count, size):
            eventually(lambda: gateway.queued() == count, 280)
            resident = memory(gateway.pid)["Rss"]
            disk = gateway.metric("percore_gateway_spool_bytes", place="disk")
            began = time.monotonic()
        eventually(lambda: gateway.queued() == 0 and gateway.spooled() == 0, 60)
        empty = time.monotonic() - began
    found = f"{resident:.0f} MB of memory, {disk / 1e6:,.0f} MB on disk; all gone {empty:.1f} s after their callers left"
    return f"{count:,} queued calls of {size:,} bytes", found


def _uploads(count: int, size: int) -> tuple[str, str]:
    with Gateway(gateway_uploads=count, gateway_spool_bytes=12 << 30) as gateway, _load("upload", gateway.port, count, size):
        found = _probed(gateway.status_port)
    return f"{count} uploads of {size:,} bytes at once, again and again", f"`/readyz` {found}"


def _status_server() -> tuple[str, str]:
    with servers.repository("digits", "burn") as folder, servers.percore(len(cores()), model_repository=folder) as service:
        long = client.request("/v1/models/burn:predict", json.dumps({"inputs": [2**30]}).encode())
        callers = [service.connect() for _ in cores()]
        for caller in callers:
            caller.sendall(long)
        eventually(lambda: service.in_flight("executing") == len(callers))
        with (
            _load("idle", service.status_port, 1_100, 0),
            _load("scrape", service.status_port, 300, 0),
            _load("read", service.port, 500, 0),
        ):
            found = _probed(service.status_port)
        for caller in callers:
            caller.close()
    return "every core computes, 1,100 idle connections, each second 300 scrapes and 500 reads at once", f"`/readyz` {found}"


def _probed(port: int) -> str:
    took = []
    for _ in range(PROBES):
        began = time.perf_counter()
        assert client.ask(port, READY).status == 200
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE_SECONDS)
    return f"p50 {quantile(took, 0.5) * 1e3:.1f} ms, p99 {quantile(took, 0.99) * 1e3:.1f} ms"


# --- the client, in a process of its own


@contextlib.contextmanager
def _load(kind: str, port: int, count: int, size: int) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.pressure", kind, str(port), str(count), str(size)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n", f"the client {kind!r} did not start"
            yield
        finally:
            process.kill()


def _client(kind: str, port: int, count: int, size: int) -> None:
    """Do as ``kind`` says until the standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    message = client.request(PREDICT, b"x" * size, Connection="keep-alive")
    if kind in ("hold", "idle"):
        kept = []
        for _ in range(count):
            kept.append(socket.create_connection((client.HOST, port), timeout=120))
            if kind == "hold":
                kept[-1].sendall(message)
    else:
        path = {"scrape": "/metrics", "read": "/v1/models/digits"}.get(kind, "")
        for _ in range(count):
            again = message if kind == "upload" else client.request(path)
            threading.Thread(target=_again_and_again, args=(port, again), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def _again_and_again(port: int, message: bytes) -> None:
    """Send the same request on a new connection each time. Do not wait for the answer to an upload: no pod computes it."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection((client.HOST, port), timeout=30) as connection:
            connection.sendall(message)
            if len(message) < 1 << 16:
                connection.recv(1 << 16)
                time.sleep(1)  # the connection stays open


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _client(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
