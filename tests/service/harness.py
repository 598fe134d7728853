"""Starts the real service on free ports and talks to it as a client, an operator and a fault would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import requests
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "models"
FAULTY = "percore.handlers.faults:Faulty"
READY_SECONDS = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def eventually(look: Callable[[], T], seconds: float = 10.0) -> T:
    """Return the first truthy value of ``look``; fail with what it last said when ``seconds`` are over."""
    ends = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > ends:
            raise AssertionError(f"still {seen!r} after {seconds} s")
        time.sleep(0.02)
    return seen


def processes_in(group: int) -> dict[int, str]:
    """Return pid and command line of every process that descends from ``group``, by its environment's mark."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"HARNESS={group}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


class Service:
    """One running service. ``pod`` runs the pod's two processes instead of the supervisor."""

    def __init__(self, *, pod: bool = False, **settings: str | float | Path) -> None:
        self.port, self.exporter_port = free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="percore-test-")
        self.log_path = Path(self.folder.name) / "log"
        self.mark = self.port
        given = {f"PERCORE_{name.upper()}": str(value) for name, value in settings.items()}
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PERCORE_")},
            "PERCORE_PORT": str(self.port),
            "PERCORE_EXPORTER_PORT": str(self.exporter_port),
            "PERCORE_RUN_DIR": str(Path(self.folder.name) / "run"),
            "HARNESS": str(self.mark),
            **given,
        }
        self.commands = [["exporter"], ["worker"]] if pod else [["run"]]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if not self.processes:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.folder.cleanup()

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            for command in self.commands:
                arguments = [sys.executable, "-m", "percore", *command]
                self.processes.append(subprocess.Popen(arguments, cwd=ROOT, env=self.environ, stderr=log, stdout=log))

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        for pid in processes_in(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(5)

    def ready(self, workers: int = 1) -> Self:
        """Start it, and wait until so many workers are free."""
        if not self.processes:
            self.start()
        try:
            eventually(lambda: self._ended() or self.metric("percore_workers", state="free") >= workers, READY_SECONDS)
            assert not self._ended(), "it ended"
        except AssertionError as error:
            log = self.log_path.read_text()
            self.__exit__()
            raise AssertionError(f"{error}; its log:\n{log}") from None
        return self

    def _ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    # --- as a client ---------------------------------------------------------------------------------------------------------

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def post(self, path: str, body: Any = None, timeout: float = 60.0, **more: Any) -> requests.Response:
        if body is not None:
            more["json"] = body
        return requests.post(self.url(path), timeout=timeout, **more)

    def call(self, timeout: float = 60.0, **inputs: Any) -> requests.Response:
        """Call the handler ``Faulty`` with single values."""
        return self.post("/v1/models/default:predict", {"inputs": inputs}, timeout)

    def connect(self, timeout: float = 30.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def raw(self, body: bytes, path: str = "/v1/models/default:predict", *headers: str) -> bytes:
        """Return a request as bytes."""
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + body

    def ask(self, **inputs: Any) -> socket.socket:
        """Send a call and return the connection, without waiting for the answer."""
        connection = self.connect()
        connection.sendall(self.raw(json.dumps({"inputs": inputs}).encode()))
        return connection

    # --- as an operator ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.exporter_port}{path}", timeout=5, **more)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of ``name`` that carry ``labels``; zero where there is none or no exporter."""
        try:
            text = self.get("/metrics").text
        except requests.ConnectionError:
            return 0.0
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log(self, message: str = "") -> list[dict[str, Any]]:
        """Return the log's lines, those whose message begins with ``message``."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"].startswith(message)]

    # --- as a fault ----------------------------------------------------------------------------------------------------------

    def pids(self, command: str) -> list[int]:
        """Return the processes of ``command``: ``exporter``, or ``worker``, the arbiter first and then its workers."""
        found = [pid for pid, line in processes_in(self.mark).items() if f"-m percore {command}" in line]
        return sorted(found, key=lambda pid: (_parent(pid) in found, pid))

    @property
    def arbiter(self) -> int:
        return self.pids("worker")[0]

    @property
    def workers(self) -> list[int]:
        return self.pids("worker")[1:]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read an answer to the end of the connection: status, headers in lower case, body."""
    with connection:
        data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return int(status.split()[1]), headers, body
