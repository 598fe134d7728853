"""Starts the real service on free ports. Has methods for what clients do, for what operators see, and for faults."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
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
from percore.http.status import KEPT_SECONDS
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
FAULTY = "percore.handlers.faults:Faulty"
READY_SECONDS = 120.0


def free_port() -> int:
    """Return a port that is free. The kernel gives clients higher ones, so no client takes it a moment later."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def eventually(look: Callable[[], T], seconds: float = 10.0) -> T:
    """Return the first truthy value of ``look``. When ``seconds`` are over, fail and show its last value."""
    ends = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > ends:
            raise AssertionError(f"still {seen!r} after {seconds} s")
        time.sleep(0.02)
    return seen


def processes_in(group: int) -> dict[int, str]:
    """Return pid and command line of every process of a service.

    Each of them has the variable ``HARNESS`` with the value ``group`` in its environment.
    """
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"HARNESS={group}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def processes_below(parent: int) -> list[int]:
    """Return the running children of a process."""
    return [
        int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit() and _parent(int(folder.name)) == parent
    ]


class Service:
    """One running service: ``percore serve`` on one machine, or, with ``pod``, the two processes of a pod."""

    def __init__(self, *, pod: bool = False, **settings: str | float | Path) -> None:
        self.port, self.status_port = free_port(), free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="percore-test-")
        self.log_path = Path(self.folder.name) / "log"
        self.environ_mark = self.port
        given = {f"PERCORE_{name.upper()}": str(value) for name, value in settings.items()}
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PERCORE_")},
            "PERCORE_PORT": str(self.port),
            "PERCORE_STATUS_PORT": str(self.status_port),
            "PERCORE_STATE_DIR": str(Path(self.folder.name) / "run"),
            "XDG_STATE_HOME": str(Path(self.folder.name) / "state"),
            "HARNESS": str(self.environ_mark),
            **given,
        }
        self.commands = [["status-server"], ["worker"]] if pod else [["serve"]]
        self.program, self.cwd = [sys.executable, "-P", "-m", "percore"], ROOT
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if not self.processes:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.folder.cleanup()

    def start(self, log_fd: int | None = None) -> None:
        """Start it; its log goes to a file, or to an open file descriptor."""
        with self.log_path.open("ab") if log_fd is None else os.fdopen(os.dup(log_fd), "wb") as log:
            for command in self.commands:
                line = [*self.program, *command]
                self.processes.append(subprocess.Popen(line, cwd=self.cwd, env=self.environ, stderr=log, stdout=log))

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        for pid in processes_in(self.environ_mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(30)

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
        except BaseException:
            self.__exit__()  # `with` has not begun, so nothing else ends the processes
            raise
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
        return self.connect_to(self.port, timeout)

    def connect_to(self, port: int, timeout: float = 30.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=timeout)

    def is_refused(self) -> bool:
        """Whether no process listens on the port for calls."""
        try:
            self.connect(timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    def raw(self, body: bytes, path: str = "/v1/models/default:predict", *headers: str) -> bytes:
        """Return a request as bytes."""
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + body

    def send_call(self, **inputs: Any) -> socket.socket:
        """Send a call and return the connection, without waiting for the answer."""
        connection = self.connect()
        connection.sendall(self.raw(json.dumps({"inputs": inputs}).encode()))
        return connection

    def send_call_and_find_worker(self, **inputs: Any) -> tuple[socket.socket, int]:
        """Send a call that runs at once while no other call runs. Return its connection and the worker that computes it."""
        connection = self.send_call(**inputs)
        eventually(lambda: self.in_flight("executing") == 1)
        return connection, eventually(self._computing)[0]

    def _computing(self) -> list[int]:
        """Return the workers that a gateway is connected to, once there is exactly one."""
        folder = self.environ["PERCORE_STATE_DIR"] + "/worker-"
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        accepted = {f"socket:[{row[6]}]" for row in rows if row[5] == "03" and row[-1].startswith(folder)}
        found = [pid for pid in self.workers if accepted & {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}]
        return found if len(found) == 1 else []

    # --- as an operator ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.status_port}{path}", timeout=5, **more)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of ``name`` that carry ``labels``. Zero if there are none, or no status server yet."""
        time.sleep(KEPT_SECONDS)  # a scrape may show values of this age
        try:
            text = self.get("/metrics").text
        except (requests.ConnectionError, requests.Timeout):  # on a busy machine a gateway takes seconds to start
            return 0.0
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log(self, message: str = "", logger: str = "") -> list[dict[str, Any]]:
        """Return the lines of the log whose message begins with ``message``, and only those of ``logger`` if it is given."""
        whole, _, _ = self.log_path.read_text().rpartition("\n")  # the last line may be half written
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"].startswith(message) and logger in ("", line["logger"])]

    def runs(self) -> list[dict[str, Any]]:
        """Return the workers' lines: one for each call that reached a worker."""
        return self.log(logger="percore.call")

    def calls(self) -> list[dict[str, Any]]:
        """Return the gateway's lines: one for each call that a client made."""
        return self.log(logger="percore.gateway.call")

    def in_flight(self, state: str) -> int:
        """Return how many calls are ``executing`` or ``queued`` in the gateway."""
        return int(self.metric("percore_in_flight_requests", state=state))

    def until(self, **calls: int) -> None:
        """Wait until exactly so many calls are ``executing`` or ``queued`` in the gateway."""
        eventually(lambda: {state: self.in_flight(state) for state in calls} == calls)

    # --- faults ----------------------------------------------------------------------------------------------------------

    def pids(self, command: str) -> list[int]:
        """Return the processes of ``command``, the oldest first. Those of ``worker`` are the arbiter, and then its workers."""
        found = [pid for pid, line in processes_in(self.environ_mark).items() if re.search(rf"(-m |/)percore {command}", line)]
        return sorted(found, key=lambda pid: (_parent(pid) in found, pid))

    @property
    def gateway(self) -> int:
        return self.pids("gateway")[0]

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
    """Read an answer and close the connection: status, headers in lower case, body."""
    with connection:
        data = b""
        while b"\r\n\r\n" not in data:
            data += _more(connection)
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += _more(connection)
    return int(status.split()[1]), headers, body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionResetError("the connection ended before the answer did")
    return data


def is_lost(connection: socket.socket) -> bool:
    """Wait for the end of a connection and close it. Return whether it ended without an answer."""
    with connection, contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True
