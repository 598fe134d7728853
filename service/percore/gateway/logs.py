"""HAProxy's log, a line for each call: into histograms, and into access lines.

HAProxy itself has no histograms, and its log is the only place where a call's own times, bytes and end can be seen. It keeps
the lines in a ring of its own and sends them over a unix socket: what happens while nobody reads is read later.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from percore.gateway.lines import Line, parse
from percore.gateway.telemetry import EXECUTING, SENDING, WAITING, GatewayTelemetry
from percore.logs import write_call

log = logging.getLogger("percore.gateway")
SOCKET_NAME = "log.sock"
PHASES = {"Q": WAITING, "C": WAITING, "H": EXECUTING, "D": EXECUTING, "L": EXECUTING}


class Journal:
    """What becomes of lines: numbers, and access lines."""

    def __init__(
        self,
        telemetry: GatewayTelemetry,
        pod_at: Callable[[tuple[str, int]], str] = lambda _place: "",
        write: Callable[[dict[str, Any]], None] = write_call,
    ) -> None:
        """``pod_at`` names the pod at an address and port."""
        self._telemetry = telemetry
        self._pod_at = pod_at
        self._write = write
        self._life = ""
        self._number = 0

    def take(self, text: bytes) -> None:
        """Take in one line."""
        try:
            line = parse(text)
        except ValueError as error:
            log.warning("HAProxy's log has a line that makes no sense: %s", error)
            return
        self._count_lost(line)
        self._count(line)
        self._write(self._access_line(line))

    def _count_lost(self, line: Line) -> None:
        """Lines are numbered without gaps. What was lost before the first one seen of a life, nobody knows."""
        if line.life == self._life and line.number > self._number + 1:
            self._telemetry.lines_lost.inc(line.number - self._number - 1)
        self._life, self._number = line.life, line.number

    def _count(self, line: Line) -> None:
        to = self._telemetry
        to.total.labels(line.code).observe(line.total)
        if line.waited is not None:
            to.wait.labels(line.code).observe(line.waited)
        if line.retries:
            to.retries.inc(line.retries)
        if line.abandoned:
            to.abandoned.labels(PHASES.get(line.end[1:], SENDING)).inc()
        elif line.rejected:
            to.rejected.labels(line.rejected).inc()

    def _access_line(self, line: Line) -> dict[str, Any]:
        fields = line.fields
        return {
            "logger": "percore.gateway.call",
            "request_id": fields["id"],
            "path": fields["path"],
            "status": line.code,
            "end": line.end,
            "ahead": line.ahead,
            "wait_seconds": line.waited,
            "run_seconds": line.run,
            "total_seconds": line.total,
            "request_bytes": fields["received"],
            "response_bytes": fields["sent"],
            "retries": line.retries,
            "pod": (self._pod_at(line.place) or f"{line.place[0]}:{line.place[1]}") if line.place else None,
            "client": fields["client"],
        }


def listen(path: Path) -> socket.socket:
    """Return the socket at which HAProxy delivers its log; HAProxy tries again until it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen()
    return listener


def follow(listener: socket.socket, journal: Journal) -> None:
    """Take in lines for ever, of one life of HAProxy after the other; for a thread of its own."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"{"):  # between them HAProxy says how many were dropped; their numbers say it too
                    journal.take(line)
