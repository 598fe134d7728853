"""Runs the real gateway in front of pods.

The pods are real, or they are workers in this process whose behaviour a test chooses.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import requests
from percore.gateway.endpoints import Endpoint
from prometheus_client.parser import text_string_to_metric_families

from harness.service import ROOT, Service, eventually, free_port

PREDICT = "/v1/models/default:predict"
RESERVED = b"HTTP/1.1 200 OK\r\nPercore-Worker: free\r\nContent-Length: 0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
MOST_IN_BUFFERS = 8 << 20
"""If a worker reads nothing of a call, the kernel buffers fewer bytes than this."""
BIG = 12 << 20
"""The size of a body that does not fit into the kernel's buffers, so that a worker can be lost in the middle of the body."""


class Gateway:
    """The gateway's process, with endpoints from a file. Without ``known`` the file is missing at first."""

    def __init__(self, *endpoints: Endpoint, known: bool = True, **settings: str | float) -> None:
        self.port, self.status_port = free_port(), free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="percore-gateway-")
        folder = Path(self._folder.name)
        self.log_path, self.endpoints_file = folder / "log", folder / "endpoints"
        if known:
            self.set_endpoints(*endpoints)
        given = {f"PERCORE_{name.upper()}": str(value) for name, value in settings.items()}
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PERCORE_")},
            "PERCORE_PORT": str(self.port),
            "PERCORE_STATUS_PORT": str(self.status_port),
            "PERCORE_STATE_DIR": str(folder / "run"),
            "PERCORE_GATEWAY_ENDPOINTS_FILE": str(self.endpoints_file),
            **given,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        arguments = [sys.executable, "-P", "-m", "percore", "gateway"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=self.environ, stderr=log, stdout=log)
        try:
            eventually(lambda: self._ended() or self.is_live(), 30)
            assert not self._ended(), "it ended"
        except AssertionError as error:
            text = self.log_path.read_text()
            self.__exit__()
            raise AssertionError(f"{error}; its log:\n{text}") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
        self._folder.cleanup()

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def set_endpoints(self, *endpoints: Endpoint) -> None:
        """Replace the list of pods."""
        lines = [f"{each.address}:{each.port}/{each.status_port}={each.state}\n" for each in endpoints]
        new = self.endpoints_file.with_suffix(".new")
        new.write_text("".join(lines))
        new.rename(self.endpoints_file)

    # --- as a client

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url(path), timeout=10, **more)

    def post(self, body: bytes = b"{}", path: str = PREDICT, **more: Any) -> requests.Response:
        return requests.post(self.url(path), data=body, timeout=30, **more)

    def connect(self, timeout: float = 30.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def send(self, data: bytes) -> socket.socket:
        """Open a connection, send bytes on it, and return it."""
        connection = self.connect()
        try:
            connection.sendall(data)
        except OSError:
            connection.close()
            raise
        return connection

    def send_call(self, body: bytes = b"{}", *headers: str) -> socket.socket:
        """Open a connection, send a call on it, and return the connection without waiting for the answer."""
        return self.send(call(body, *headers))

    def send_calls_in_order(self, *calls: tuple[bytes, str]) -> list[socket.socket]:
        """Send calls so that their last bytes arrive in this order. Each call is a body, and one more header or none."""
        connections = []
        for body, header in calls:
            lines = [header] if header else []
            connections.append(self.send(call(body, "Expect: 100-continue", *lines)[: -len(body)]))
        for connection, (body, _) in zip(connections, calls, strict=True):
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it has been accepted
            connection.sendall(body)
            time.sleep(0.002)
        return connections

    # --- as an operator

    def is_live(self) -> bool:
        """Whether the gateway accepts calls and serves its metrics."""
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return self.get_status("/livez").status_code == 200
        return False

    def get_status(self, path: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.status_port}{path}", timeout=5)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of ``name`` that carry ``labels``."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get_status("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def queued(self) -> int:
        return int(self.metric("percore_in_flight_requests", state="queued"))

    def executing(self) -> int:
        return int(self.metric("percore_in_flight_requests", state="executing"))

    def spooled(self) -> int:
        return int(self.metric("percore_gateway_spool_bytes"))

    def descriptors(self) -> int:
        """Return how many files and sockets the gateway has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Return the exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def log(self) -> list[dict[str, Any]]:
        """Return every line of the log. Fails if a line is not JSON."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines()]

    def call_log(self) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["logger"] == "percore.gateway.call"]


# --- a client's bytes


def call(body: bytes = b"{}", *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    """Return a call as bytes."""
    lines = [f"{method} {PREDICT} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*pieces: bytes, trailer: str = "", headers: Iterable[str] = ()) -> bytes:
    """Return a call whose body comes in chunks."""
    lines = [f"POST {PREDICT} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers, "", ""]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(lines).encode() + chunks + b"0\r\n" + (trailer + "\r\n" if trailer else "").encode() + b"\r\n"


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side gets RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def read_to_end(connection: socket.socket) -> bytes:
    """Read to the end of the connection, also if it ends by an error; close it, and return the bytes."""
    data = bytearray()
    with connection, contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 20):
            data += more
    return bytes(data)


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return an answer's status, its headers in lower case, and the unparsed rest."""
    head, end, body = data.partition(b"\r\n\r\n")
    assert end, data
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return int(first.split()[1]), headers, body


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer with a Content-Length; the connection stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(1 << 16)
        assert more, data
        data += more
    status, headers, body = parsed(data)
    while len(body) < int(headers.get("content-length", "0")):
        more = connection.recv(1 << 20)
        assert more, "the answer is cut"
        body += more
    return status, headers, body


def outcome(connection: socket.socket) -> tuple[int, str]:
    """Read an answer and close the connection. Return the status, and the code of percore's error or an empty string."""
    with connection:
        status, headers, body = read_answer(connection)
    if status == 200:
        return status, ""
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert set(document) == {"error", "code"}, document
    return status, document["code"]


# --- a worker that misbehaves


class Exchange:
    """One connection of a gateway to a worker, from the worker's side."""

    def __init__(self, worker: Worker, connection: socket.socket) -> None:
        self.worker = worker
        self.connection = connection
        self.head = b""
        self._data = bytearray()

    def _fill(self) -> None:
        more = self.connection.recv(1 << 18)
        if not more:
            raise EOFError
        self._data += more

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._data:
            self._fill()
        return self.take(self._data.index(mark) + len(mark))

    def wait_for(self, size: int) -> None:
        """Read until so many bytes have come that were not taken; raise EOFError at the end of the connection."""
        while len(self._data) < size:
            self._fill()

    def take(self, size: int) -> bytes:
        """Read exactly so many bytes; raise EOFError at the end of the connection."""
        self.wait_for(size)
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def read_reservation(self) -> None:
        head = self._until(b"\r\n\r\n")
        assert head.startswith(b"OPTIONS * HTTP/1.1\r\n"), head
        self.worker.reservations.append(head)

    def reserve(self) -> None:
        """Read the reservation and say that the worker is free."""
        self.read_reservation()
        self.connection.sendall(RESERVED)

    def read_head(self) -> bytes:
        self.head = self._until(b"\r\n\r\n")
        return self.head

    def receive(self) -> bytes:
        """Read the call to its last byte, and count it as a run."""
        lines = self.read_head().lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        body = self.take(lengths[0]) if lengths else b"".join(self._chunks())
        self.worker.runs.append((self.head, body))
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._until(b"\r\n"), 16):
            yield self.take(size)
            self.take(2)
        assert self._until(b"\r\n") == b"\r\n", "a trailer came"

    def answer(self, body: bytes = b"{}", status: str = "200 OK", *headers: str, length: bool = True) -> None:
        """Send an answer as a worker does: it closes afterwards."""
        lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
        if length:
            lines.append(f"Content-Length: {len(body)}")
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def finish(self) -> None:
        """End the answer, and read until the gateway closes."""
        self.connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while self.connection.recv(1 << 18):
                pass

    def reset(self) -> None:
        reset(self.connection)


Behaviour = Callable[[Exchange], None]


def serve(exchange: Exchange) -> None:
    """Behave as a healthy worker that answers with the call's body."""
    exchange.reserve()
    exchange.answer(exchange.receive())


class Worker:
    """A worker with one thread, which takes one connection at a time.

    Each connection gets the next behaviour. When the behaviours are used up, each later connection gets the last one. ``runs``
    has head and body of every call that was received to its last byte.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = deque(behaviours or (serve,))
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(512)
        self.port = self._listener.getsockname()[1]
        self.reservations: list[bytes] = []
        self.runs: list[tuple[bytes, bytes]] = []
        self.faults: list[BaseException] = []
        self.connections = 0
        self._current: socket.socket | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.faults, self.faults

    def close(self) -> None:
        """Stop listening and close all connections, as a pod that ends does."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, 1)

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.runs]

    def _work(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(30)
            self._current = connection
            behaviour = self._behaviours.popleft() if len(self._behaviours) > 1 else self._behaviours[0]
            try:
                behaviour(Exchange(self, connection))
            except (EOFError, OSError):
                pass  # the gateway closed a reservation that it no longer needs, or a call whose caller left
            except BaseException as error:  # noqa: BLE001 - the test fails with it
                self.faults.append(error)
            finally:
                connection.close()


def holding(release: threading.Event, seconds: float = 30.0) -> Behaviour:
    """Return a healthy worker's behaviour whose run lasts until ``release`` is set."""

    def behave(exchange: Exchange) -> None:
        exchange.reserve()
        body = exchange.receive()
        release.wait(seconds)
        exchange.answer(body)

    return behave


def running(seconds: float) -> Behaviour:
    """Return a healthy worker's behaviour whose run lasts so long."""
    return holding(threading.Event(), seconds)


def endpoint_of(pod: Service) -> Endpoint:
    """Return the endpoint of a real pod."""
    return Endpoint("127.0.0.1", pod.port, pod.status_port)
