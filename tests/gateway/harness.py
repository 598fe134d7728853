"""Runs the real gateway, HAProxy and controller, in front of pods: real ones, or small ones that do as they are told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from percore.gateway.endpoints import Endpoint, State
from percore.gateway.runtime import HAProxy
from prometheus_client.parser import text_string_to_metric_families

from tests.service.harness import ROOT, answer_of, eventually, free_port

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy")
PREDICT = "/v1/models/default:predict"


class Gateway:
    """HAProxy and its controller, with endpoints from a file."""

    def __init__(self, **settings: str | float) -> None:
        self.port, self.exporter_port = free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="percore-gateway-")
        self.run_dir = Path(self.folder.name) / "run"
        self.run_dir.mkdir(mode=0o700)
        self.endpoints_file = Path(self.folder.name) / "endpoints"
        self.endpoints_file.touch()
        given = {f"PERCORE_{name.upper()}": str(value) for name, value in settings.items()}
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PERCORE_")},
            "PERCORE_PORT": str(self.port),
            "PERCORE_EXPORTER_PORT": str(self.exporter_port),
            "PERCORE_RUN_DIR": str(self.run_dir),
            "PERCORE_GATEWAY_ENDPOINTS_FILE": str(self.endpoints_file),
            "PERCORE_GATEWAY_SLOTS": "20",
            "PERCORE_GATEWAY_INTERVAL": "0.5",
            "PERCORE_GATEWAY_CHECK_INTERVAL": "0.5",
            **given,
        }
        self.haproxy: subprocess.Popen[bytes] | None = None
        self.controller: subprocess.Popen[bytes] | None = None
        self.runtime = HAProxy(self.run_dir / "admin.sock")

    def __enter__(self) -> Self:
        self.start_controller()
        self.start_haproxy()
        return self.ready()

    def __exit__(self, *_: object) -> None:
        for process in (self.controller, self.haproxy):
            if process is not None:
                process.kill()
                process.wait(5)
        self.folder.cleanup()

    def ready(self) -> Self:
        """Wait until calls would wait."""
        try:
            eventually(lambda: self.status_of_readyz() == 200)
        except AssertionError as error:
            raise AssertionError(f"{error}; its logs:\n{self.log_of('haproxy')}\n{self.log_of('controller')}") from None
        return self

    def start_haproxy(self) -> None:
        self.haproxy = self._start("haproxy")

    def restart_haproxy_with(self, text: str, instead: str) -> None:
        """Start HAProxy anew, with one thing in its configuration changed."""
        self.kill("haproxy")
        config = self.run_dir / "haproxy.cfg"
        before = config.read_text()
        assert text in before
        config.write_text(before.replace(text, instead))
        with (Path(self.folder.name) / "haproxy").open("ab") as log:
            self.haproxy = subprocess.Popen(["haproxy", "-db", "-f", self.run_dir / "haproxy.cfg"], stderr=log, stdout=log)

    def start_controller(self) -> None:
        self.controller = self._start("controller")

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        with (Path(self.folder.name) / command).open("ab") as log:
            arguments = [sys.executable, "-m", "percore.gateway", command]
            return subprocess.Popen(arguments, cwd=ROOT, env=self.environ, stderr=log, stdout=log)

    def run(self, *command: str) -> str:
        """Run a command to its end and return what it printed."""
        arguments = [sys.executable, "-m", "percore.gateway", *command]
        ended = subprocess.run(arguments, cwd=ROOT, env=self.environ, timeout=20, check=True, capture_output=True, text=True)
        return ended.stdout

    def kill(self, command: str) -> None:
        """End a process as a crash does."""
        process = self.haproxy if command == "haproxy" else self.controller
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait(5)

    def know(self, *endpoints: Endpoint) -> None:
        """Say which pods there are."""
        new = self.endpoints_file.with_suffix(".new")
        new.write_text("\n".join(f"{each.address}:{each.port}/{each.exporter_port}={each.state}" for each in endpoints))
        new.rename(self.endpoints_file)

    # --- as a client ---------------------------------------------------------------------------------------------------------

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def call(self, timeout: float = 60.0, headers: dict[str, str] | None = None, **inputs: Any) -> requests.Response:
        return requests.post(self.url(PREDICT), json={"inputs": inputs}, timeout=timeout, headers=headers)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url(path), timeout=10)

    def connect(self, timeout: float = 60.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask(self, *headers: str, timeout: float = 60.0, **inputs: Any) -> socket.socket:
        """Send a call and return the connection, without waiting for the answer."""
        connection = self.connect(timeout)
        connection.sendall(request(json.dumps({"inputs": inputs}).encode(), *headers))
        return connection

    def ask_when_it_listens(self) -> socket.socket:
        """Send a call as soon as anybody listens."""
        ends = time.monotonic() + 10
        while True:
            try:
                return self.ask()
            except ConnectionRefusedError:
                assert time.monotonic() < ends, "nobody listens"

    def answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return self.call(timeout=5).status_code == 200
        return False

    # --- as an operator ------------------------------------------------------------------------------------------------------

    def status_of_readyz(self) -> int:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{self.exporter_port}/readyz", timeout=5).status_code
        return 0

    def metrics(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.exporter_port}/metrics", timeout=5).text

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of ``name`` that carry ``labels``."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def waiting(self) -> int:
        return self.runtime.snapshot().waiting

    def executing(self) -> int:
        return self.runtime.snapshot().executing

    def pods(self, state: str) -> int:
        return int(self.metric("percore_gateway_pods", state=state))

    def log_of(self, command: str) -> str:
        return (Path(self.folder.name) / command).read_text()

    def haproxy_says(self, text: str) -> bool:
        return text in self.log_of("haproxy")

    def access_log(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_of("controller").splitlines() if line.startswith("{")]
        return [line for line in lines if line["logger"] == "percore.gateway.call"]


def request(body: bytes, *headers: str, path: str = PREDICT) -> bytes:
    """Return a call as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def outcome(connection: socket.socket) -> tuple[int, str]:
    """Return an answer's status and its error code, empty where there is none."""
    status, _, body = answer_of(connection)
    document = json.loads(body)
    return status, document.get("code", "")


class Pod:
    """A pod of threads: a slot, and an exporter. It computes as long as ``seconds`` in the call says, and keeps what came."""

    def __init__(self, *, listening: bool = True) -> None:
        self.port, self.exporter_port = free_port(), free_port()
        self.calls: list[bytes] = []
        self.slot_status = 200
        self.asked_by: list[str] = []
        self._listener: socket.socket | None = None
        self._running: set[socket.socket] = set()
        self.open_exporter()
        if listening:
            self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.close_exporter()

    def open_exporter(self) -> None:
        self._exporter = socket.create_server(("127.0.0.1", self.exporter_port))
        threading.Thread(target=self._serve_exporter, daemon=True).start()

    def close_exporter(self) -> None:
        shut(self._exporter)

    def endpoint(self, state: State = State.READY) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, self.exporter_port, state)

    def numbers(self) -> list[int]:
        """Return the calls' own numbers, in the order in which it took them."""
        return [json.loads(call.partition(b"\r\n\r\n")[2])["inputs"]["number"] for call in self.calls]

    def open(self) -> None:
        """Take calls, one at a time."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse calls."""
        if self._listener is not None:
            shut(self._listener)
            self._listener = None

    def die(self) -> None:
        """Refuse calls, and cut those that run."""
        self.close()
        for connection in list(self._running):
            shut(connection)

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._running.add(connection)
                with contextlib.suppress(OSError):
                    self._answer(connection)
                shut(connection)
                self._running.discard(connection)

    def _answer(self, connection: socket.socket) -> None:
        data = received(connection)
        if not data:
            return
        self.calls.append(data)
        seconds = re.search(rb'"seconds": ?([\d.]+)', data)
        time.sleep(float(seconds[1]) if seconds else 0)
        self.answer(connection, data)

    def answer(self, connection: socket.socket, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        answered = json.dumps({"head": head.decode(), "size": len(body)}).encode()
        timing = "Server-Timing: run;dur=1.500"
        connection.sendall(
            f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n{timing}\r\n"
            f"Content-Length: {len(answered)}\r\n\r\n".encode()
            + answered
        )

    def _serve_exporter(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._exporter.accept()
                threading.Thread(target=self._answer_exporter, args=(connection,), daemon=True).start()

    def _answer_exporter(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = connection.recv(65536).decode()
            slot = head.startswith("GET /slot ")
            if slot:
                self.asked_by.append("".join(re.findall(r"(?i)x-percore-gateway: (\S+)", head)))
            status = self.slot_status if slot else 200
            body = json.dumps({"exporter": self.exporter_port, "line": head.splitlines()[0]})
            lines = [f"HTTP/1.1 {status} x", "Connection: close", f"Content-Length: {len(body)}", "", body]
            connection.sendall("\r\n".join(lines).encode())


def received(connection: socket.socket) -> bytes:
    """Return a whole request with a Content-Length, or what came of it."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            return data
        chunk = connection.recv(1 << 16)
        if not chunk:
            return data
        data += chunk


def shut(connection: socket.socket) -> None:
    """Close a socket that another thread may be reading."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def outcomes(connections: Iterable[socket.socket]) -> list[tuple[int, str]]:
    """Return the outcome of each, in turn."""
    return [outcome(connection) for connection in connections]
