"""The front: the listening address, and the bounds of all its connections. ``connection`` has the code of one connection.

Why not uvicorn: docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from percore.errors import CallError, StartError
from percore.http.connection import Connection
from percore.http.request import Request
from percore.sockets import Option, keepalive, set_options

HEAD_SECONDS = 10.0
UNSENT_BYTES = 128 * 1024
"""Unsent bytes of an answer that the kernel may hold. Without this bound each client that does not read would cost megabytes,
and a slow client would show no progress for minutes."""
BACKLOG = 4096
Handler = Callable[[Request], Awaitable[None]]
OPTIONS: tuple[Option, ...] = (
    (socket.SOL_SOCKET, "SO_REUSEADDR", 1),
    *keepalive(idle=30, interval=10, count=3),
    (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", UNSENT_BYTES),
)
"""Accepted sockets inherit these. If a client is lost without closing its connection, this is noticed after a minute."""


@dataclass(slots=True)
class FrontLimits:
    """The bounds of the front."""

    connections: int
    """How many connections may be open. At the bound, the connection that has been idle longest is closed. If none is idle, the
    connection whose head has been incomplete for longest is closed. If each has a complete head, no connection is accepted."""
    idle_seconds: float
    """How long a connection may be idle between requests, and before its first one."""
    answer_seconds: float
    """How long a client may read nothing while bytes of its answer wait."""
    head_seconds: float = HEAD_SECONDS


class Front:
    """A listening address and its connections."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        limits: FrontLimits,
        refused: Callable[[Request, CallError], None] = lambda _request, _error: None,
    ) -> None:
        """Serve each request by ``handler``. Call ``refused`` for each request that the front rejects itself."""
        self.loop = loop
        self.handler = handler
        self.limits = limits
        self.refused = refused
        self.stopping = False
        """Whether each answer closes its connection."""
        self._connections: set[Connection] = set()
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        self._heads: OrderedDict[Connection, None] = OrderedDict()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    # --- listening

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from a bound socket."""
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        await self._accept()
        self._sweep()

    async def _accept(self) -> None:
        listener = self._listener
        if self._server is None and listener is not None:
            self._server = await self.loop.create_server(lambda: Connection(self), sock=listener.dup(), backlog=BACKLOG)
            if self._closed:
                self._pause_accepting()

    def _pause_accepting(self) -> None:
        """Leave new connections in the kernel's queue, because without free descriptors they would be closed at once."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _resume_accepting(self) -> None:
        if self._server is None and not self._closed and self._listener is not None and not self._tasks:
            task = self.loop.create_task(self._accept())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close_listener(self) -> None:
        """Accept no more connections, and close those that are idle: their next request would be refused."""
        self._closed = True
        self._pause_accepting()
        for connection in list(self._idle):
            connection.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- events of connections

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def joined(self, connection: Connection) -> None:
        """Add a new connection. At the bound, close another one or accept no more."""
        self._connections.add(connection)
        self.idle(connection)
        if len(self._connections) >= self.limits.connections:
            oldest = next(iter(self._idle))
            if oldest is connection and self._heads:
                oldest = next(iter(self._heads))
            if oldest is not connection:
                oldest.abort()
            else:
                self._pause_accepting()

    def left(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._heads.pop(connection, None)
        if self._server is None and len(self._connections) < self.limits.connections:
            self._resume_accepting()

    def idle(self, connection: Connection) -> None:
        """Record that a connection waits for a request."""
        self._idle[connection] = self.loop.time()
        if self._server is None:
            self._resume_accepting()

    def head_begins(self, connection: Connection) -> None:
        """Record that a connection has sent the first bytes of a request."""
        self._idle.pop(connection, None)
        self._heads[connection] = None

    def head_ends(self, connection: Connection) -> None:
        """Record that the head of a request is complete, or that the request is rejected."""
        self._heads.pop(connection, None)

    def _sweep(self) -> None:
        """Close connections that have been idle for too long; ``_idle`` is in the order of time."""
        latest = self.loop.time() - self.limits.idle_seconds
        while self._idle and next(iter(self._idle.values())) < latest:
            connection, _ = self._idle.popitem(last=False)
            connection.abort()
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    # --- the end

    @property
    def busy(self) -> int:
        """How many connections have a request that is not answered yet."""
        return sum(connection.busy for connection in self._connections)

    def close_connections(self) -> None:
        """Close every connection, also those with a request."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()


def bind(host: str, port: int, key: str) -> socket.socket:
    """Return a socket that is bound to the address; raise StartError, which names the setting, if the address cannot be bound.

    The options are set here: connections that wait before a ``Front`` listens have them too.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    set_options(listener, OPTIONS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(f"PERCORE_HOST={host!r} {key}={port}: cannot listen there: {error.strerror}") from error
    return listener
