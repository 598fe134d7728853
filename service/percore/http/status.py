"""The status server: probes, metrics and documents on asyncio, so that an idle connection occupies no thread.

It runs on an event loop of its own. In the gateway's process this loop has its own thread, so that a probe is answered while
the gateway's loop is busy. In a pod it has its own process. Metrics are rendered a few times a second at most.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from percore.errors import MethodNotAllowed, NotFound
from percore.http.front import Front, FrontLimits
from percore.http.request import JSON, Answer, Request
from percore.threads import start_vital

KEPT_SECONDS = 0.2
"""Metrics are rendered at most five times a second."""
LIMITS = FrontLimits(connections=1000, idle_seconds=30.0, answer_seconds=10.0, head_seconds=5.0)
Probe = Callable[[], str]
"""Returns why the probe fails; empty if it succeeds."""


class StatusServer:
    """Serves probes by their paths, ``/metrics``, and documents."""

    def __init__(
        self,
        registry: CollectorRegistry,
        set_gauges: Callable[[], None],
        probes: Mapping[str, Probe],
        documents: Callable[[str], Answer] | None = None,
        lists: Mapping[str, Callable[[str], Answer]] | None = None,
    ) -> None:
        """``set_gauges`` sets the gauges before they are rendered; ``documents`` answers every other path.

        ``lists`` has a function for each path that lists objects. It gets the query and runs in a thread, because it may take
        long.
        """
        self._registry = registry
        self._set_gauges = set_gauges
        self._probes = probes
        self._documents = documents
        self._lists = lists or {}
        self._rendered_at, self._rendered = -KEPT_SECONDS, b""

    def run(self, listener: socket.socket) -> None:
        """Serve for ever, on a loop of this thread's own."""
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        front = Front(loop, self.serve, LIMITS)
        loop.run_until_complete(front.listen(listener))
        loop.run_forever()

    def start(self, listener: socket.socket) -> None:
        """Serve in a thread. If the thread fails, the process ends, because without probes the failure would not be seen."""
        start_vital("status-server", self.run, listener)

    async def serve(self, request: Request) -> None:
        """Answer one request."""
        if request.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(request.method.decode("latin-1"), "this port", "GET, HEAD")
        path = request.path
        if probe := self._probes.get(path):
            trouble = probe()
            request.respond(503 if trouble else 200, JSON, b'{"status":"%s"}' % (trouble or "ok").encode())
        elif path == "/metrics":
            request.respond(200, [(b"Content-Type", CONTENT_TYPE_LATEST.encode())], self._metrics())
        elif path in self._lists:
            query = request.target.partition(b"?")[2].decode("latin-1")
            answer = asyncio.get_running_loop().run_in_executor(None, self._lists[path], query)
            request.respond(*await answer)
        elif self._documents is not None:
            request.respond(*self._documents(path))
        else:
            raise NotFound(f"no route {path[:100]!r}; this port has {', '.join(self._probes)} and /metrics")

    def _metrics(self) -> bytes:
        if time.monotonic() - self._rendered_at > KEPT_SECONDS:
            self._set_gauges()
            self._rendered = generate_latest(self._registry)
            self._rendered_at = time.monotonic()
        return self._rendered
