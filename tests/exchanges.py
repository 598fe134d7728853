"""Serves one connection as a worker does, over a pair of real sockets, with an application that the test chooses."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

from gunicorn.config import Config
from percore import settings
from percore.worker.exchange import Application, Exchange, WorkerContext
from percore.worker.receive import Reservations
from percore.worker.report import Reporter
from percore.worker.user_app import UserApp
from percore.worker.watchdog import Watchdog

from harness.gateway import RESERVED

OPTIONS = b"OPTIONS * HTTP/1.1\r\nHost: x\r\nPercore-Gateway: one\r\n\r\n"
LIMITS = settings.load({"PERCORE_BODY_TIMEOUT": "2", "PERCORE_ANSWER_TIMEOUT": "2", "PERCORE_MAX_BODY_BYTES": "1000000"}).limits
CONFIG = Config()
for _name, _value in {"forwarder_headers": "", "forwarded_allow_ips": ""}.items():
    CONFIG.set(_name, _value)


class Reports:
    """Receives a worker's events instead of a status server."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.models: list[str] = []

    def started(self) -> None:
        self.events.append("started")

    def released(self) -> None:
        self.events.append("released")

    def finished(self, model: str, code: str, _run: float | None) -> None:
        self.models.append(model)
        self.events.append(f"finished {code}")

    def count_event(self, event: str, **fields: Any) -> None:
        self.events.append(" ".join([event, *fields.values()]))


class Served:
    """One connection, served in a thread of its own while the context lasts."""

    def __init__(
        self, application: Application, known: Reservations | None = None, user_app: UserApp | None = None, **limits: Any
    ) -> None:
        self.client, served = socket.socketpair()
        self.client.settimeout(5)
        self.reports = Reports()
        self.watchdog = Watchdog()
        around = WorkerContext(
            application=application,
            config=CONFIG,
            limits=replace(LIMITS, **limits),
            watchdog=self.watchdog,
            reporter=cast("Reporter", self.reports),
            server=("127.0.0.1", 8080),
            load_seconds=0.0,
            user_app=user_app,
        )
        around.reservations = known or around.reservations
        exchange = Exchange(around, served, ("127.0.0.1", 1))
        self._thread = threading.Thread(target=exchange.serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.client.close()
        self.join()

    def join(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive()

    def receive(self, size: int) -> bytes:
        """Return exactly so many bytes, or fewer at the end of the connection."""
        data = b""
        while len(data) < size and (more := self.client.recv(size - len(data))):
            data += more
        return data

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while more := self.client.recv(65536):
                data += more
        return data

    def reserve(self) -> None:
        self.client.sendall(OPTIONS)
        assert self.receive(len(RESERVED)) == RESERVED


def request(method: str = "POST", *lines: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """Return a request as bytes."""
    sized = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} /path?q=1 HTTP/{version}", "Host: x", *sized, *lines, "", ""]).encode() + body


def parts(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    """Return an answer's status line, its headers in lower case, and the unparsed rest."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}, body


def unchunked(body: bytes) -> Iterator[bytes]:
    """Yield the chunks of a body; fail if the last one is missing."""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        if length == 0:
            assert body == b"\r\n"
            return
        yield body[:length]
        body = body[length + 2 :]


def until(look: Callable[[], object], seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < ends
        time.sleep(0.005)
