"""The gateway's port for operators: probes and metrics, in a thread with an event loop of its own.

So a probe is answered while the main loop is busy, and a slow scraper holds up no call.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from percore import logs
from percore.errors import MethodNotAllowed, NotFound
from percore.gateway.front import Front, FrontLimits
from percore.gateway.request import Request
from percore.gateway.telemetry import GatewayTelemetry

log = logging.getLogger("percore.gateway")

STUCK_SECONDS = 60.0
"""A restart costs the queue, so the gateway is alive until its loop has stood still this long."""
KEPT_SECONDS = 0.2
"""Metrics are rendered at most five times a second, however many ask."""
LIMITS = FrontLimits(connections=1000, idle_seconds=30.0, answer_seconds=10.0, head_seconds=5.0)
JSON = [(b"Content-Type", b"application/json")]


class Admin:
    """Serves ``/livez``, ``/readyz`` and ``/metrics``."""

    def __init__(
        self,
        telemetry: GatewayTelemetry,
        observe: Callable[[], None],
        not_ready: Callable[[], str],
        ticked: Callable[[], float],
    ) -> None:
        """``observe`` sets the gauges; ``not_ready`` says why no calls are taken, or nothing; ``ticked``: when the loop ran."""
        self._telemetry = telemetry
        self._observe = observe
        self._not_ready = not_ready
        self._ticked = ticked
        self._rendered = (0.0, b"")

    def start(self, listener: socket.socket) -> None:
        """Serve in a thread from now on."""
        threading.Thread(target=self._run, args=(listener,), name="admin", daemon=True).start()

    def _run(self, listener: socket.socket) -> None:
        try:
            loop = uvloop.new_event_loop()
            asyncio.set_event_loop(loop)
            front = Front(loop, self.serve, LIMITS)
            loop.run_until_complete(front.listen(listener))
            loop.run_forever()
        except BaseException:
            log.exception("the port of probes and metrics failed; the gateway ends")
            logs.end_process(1)

    async def serve(self, request: Request) -> None:
        """Answer one request."""
        if request.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(f"{request.method.decode('latin-1')} is not allowed on this port; allowed: GET, HEAD")
        match request.path:
            case "/livez":
                stuck = time.monotonic() - self._ticked() > STUCK_SECONDS
                self._probe(request, f"the event loop has not run for {STUCK_SECONDS:g} s" if stuck else "")
            case "/readyz":
                self._probe(request, self._not_ready())
            case "/metrics":
                request.respond(200, [(b"Content-Type", CONTENT_TYPE_LATEST.encode())], self._metrics())
            case path:
                raise NotFound(f"no route {path[:100]!r}; this port has /livez, /readyz and /metrics")

    @staticmethod
    def _probe(request: Request, trouble: str) -> None:
        request.respond(503 if trouble else 200, JSON, b'{"status":"%s"}' % (trouble or "ok").encode())

    def _metrics(self) -> bytes:
        when, text = self._rendered
        if time.monotonic() - when > KEPT_SECONDS:
            self._observe()
            text = generate_latest(self._telemetry.registry)
            self._rendered = (time.monotonic(), text)
        return text
