"""The front: HTTP/1.1 in. It accepts connections, parses requests with llhttp, and bounds what a client may do.

One connection serves one request at a time. While a request is answered the connection is never paused for reading once the
body is complete: only so the gateway sees at once that the client left. Bytes that come meanwhile (a pipelined request) are
dropped, and the connection closes after the answer. Why not uvicorn: docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httptools

from percore.errors import BadRequest, BodyTimeout, CallError, Overloaded
from percore.gateway.request import Disconnected, Request

log = logging.getLogger("percore.gateway")

HEAD_SECONDS = 10.0
MOST_HEAD_BYTES = 32 * 1024
HIGH_WATER_BYTES = 64 * 1024
"""Body bytes that wait to be read before the connection is paused, and answer bytes that wait to be sent."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20
"""After an early error the client may still send: so long and so much is read and dropped, so that it sees the answer."""
FLUSH_SECONDS = 60.0
"""How long the last bytes of an answer may stand still before the connection is cut."""
BACKLOG = 4096
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Handler = Callable[[Request], Awaitable[None]]
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A client that vanished without a word is noticed after a minute; accepted sockets inherit these from the listener."""


@dataclass(slots=True)
class FrontLimits:
    """What the front bounds."""

    connections: int
    """Connections at once. At the bound the one that has been idle longest is closed; without one, no more is accepted."""
    idle_seconds: float
    """How long a connection may be idle between requests, and before its first one."""
    head_seconds: float = HEAD_SECONDS


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_discarded",
        "_drain_waiter",
        "_flush_timer",
        "_front",
        "_head_bytes",
        "_head_timer",
        "_in_head",
        "_linger_timer",
        "_lingering",
        "_parser",
        "_paused",
        "_peer",
        "_request",
        "_task",
        "_transport",
        "_upgrade",
        "loop",
        "writable",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self.loop = front.loop
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._head_bytes = 0
        self._in_head = False
        self._discarded = 0
        self._lingering = False
        self._paused = False
        self._upgrade = False
        self._peer = ""
        self.writable = True

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Take in a connection: it is idle until its first byte."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else "unix"
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=0)
        self._front.joined(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """End whatever the client no longer waits for."""
        self._front.left(self)
        self._stop_timers()
        self._transport = None
        self.writable = False
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def eof_received(self) -> bool:
        """Close: a client that half-closes counts as gone, because TCP cannot tell it from one that closed."""
        return False

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP is answered and ends the connection."""
        if self._lingering:
            self._discard(len(data))
            return
        if self._request is not None and self._request.complete:
            self._request.close = True  # a pipelined request: it is dropped, and the client sends it again elsewhere
            return
        if self._request is None:
            self._front.active(self)
            if not self._in_head:
                self._in_head = True
                self._head_timer = self.loop.call_later(self._front.limits.head_seconds, self._head_expired)
        try:
            self._parse(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            self._refuse(self._reason(error))

    def pause_writing(self) -> None:
        """Take note that the client reads too slowly."""
        self.writable = False

    def resume_writing(self) -> None:
        """Take note that the client has taken all that was sent."""
        self.writable = True
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    # --- parsing

    def _parse(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(BadRequest(f"head of the request: expected at most {MOST_HEAD_BYTES} bytes"))

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Parse the body of a request that asks for another protocol, which is ignored.

        llhttp takes the head of such a request for its end. So a fresh parser gets a head without ``Upgrade``.
        """
        request = self._request
        if request is None or not self._upgrade:
            return
        self._parser = httptools.HttpRequestParser(self)
        length = request.content_length
        framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
        try:
            self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % framing)
            self._upgrade = False
            if length == 0:
                self._complete()
            elif rest:
                self._parser.feed_data(rest)
        except httptools.HttpParserError as error:
            self._refuse(self._reason(error))

    @staticmethod
    def _reason(error: Exception) -> CallError:
        cause = error.__context__
        if isinstance(cause, CallError):
            return cause
        return BadRequest(f"not a well-formed HTTP/1.1 request: {error}")

    def on_message_begin(self) -> None:
        """Start a request; of a pipelined one, nothing is kept."""
        if self._request is None:
            self._request = Request(self, self._peer)
        elif self._request.complete:
            self._request.close = True

    def on_url(self, url: bytes) -> None:
        """Take in a piece of the target."""
        if self._in_head and self._request is not None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header. After the head it is a trailer, and dropped."""
        if self._in_head and self._request is not None:
            self._request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head and hand the request over."""
        request = self._request
        if request is None or not self._in_head:
            return
        self._in_head, self._head_bytes = False, 0
        self._stop_head_timer()
        request.method = self._parser.get_method()
        request.version = self._parser.get_http_version()
        request.finish_head()
        self._upgrade = self._parser.should_upgrade()
        if request.method == b"CONNECT":
            raise BadRequest("CONNECT: this is no proxy")
        if not self._parser.should_keep_alive():
            request.close = True
        self._task = self.loop.create_task(self._front.serve(request))

    def on_body(self, data: bytes) -> None:
        """Take in a piece of the body; pause if it is read too slowly."""
        request = self._request
        if request is None or request.complete or self._in_head:
            return
        request.feed(data)
        if request.buffered > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Take note that the request is complete."""
        if not self._upgrade:
            self._complete()

    def _complete(self) -> None:
        if self._request is not None and not self._request.complete:
            self._request.feed_end()
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # --- answering

    def must_close(self, request: Request) -> bool:
        """Tell whether the connection closes after the answer that begins now."""
        return request.close or self._front.stopping

    def send_continue(self) -> None:
        """Ask the client for the body it announced."""
        self.write(CONTINUE)

    def write(self, data: bytes) -> bool:
        """Send; return whether the client keeps up."""
        if self._transport is not None:
            self._transport.write(data)
        return self.writable

    async def drained(self, seconds: float) -> None:
        """Wait until everything sent was taken; raise Disconnected when nothing was taken for ``seconds``."""
        while not self.writable:
            if self._transport is None:
                raise Disconnected
            before = self._transport.get_write_buffer_size()
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            done, _ = await asyncio.wait((self._drain_waiter,), timeout=seconds)
            if not done and self._transport is not None and self._transport.get_write_buffer_size() >= before:
                self.abort()
                raise Disconnected

    def answered(self, request: Request) -> None:
        """End a request: wait for the next one, or close. What its client does from now on is no matter of this request."""
        if self._request is not request or self._transport is None:
            return
        self._task = None
        self._watch_flush(self._transport.get_write_buffer_size())
        if request.close or self._front.stopping:
            if request.complete:
                self._transport.close()
            else:
                self._linger()
            return
        self._request = None
        self._front.idle(self)

    def _watch_flush(self, left: int) -> None:
        """Cut the connection if the client does not take the last bytes of an answer."""
        if left:
            self._flush_timer = self.loop.call_later(FLUSH_SECONDS, self._check_flush, left)

    def _check_flush(self, before: int) -> None:
        left = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if left and left >= before:
            self.abort()
        else:
            self._watch_flush(left)

    def _linger(self) -> None:
        self._lingering = True
        self.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.abort)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.abort()

    def _refuse(self, error: CallError) -> None:
        """Answer a request that cannot be parsed. After the first byte of an answer there is nothing left to say."""
        request = self._request = self._request or Request(self, self._peer)
        self._stop_head_timer()
        if self._transport is None or self._lingering:
            return
        if request.head_sent:
            self.abort()
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()  # it reads a body that never becomes complete
        request.close = True
        self._in_head = False
        self._front.refused(request, error)
        request.reject(error)

    def _head_expired(self) -> None:
        self._refuse(BodyTimeout(f"the head of the request was not complete within {self._front.limits.head_seconds:g} s"))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        for timer in (self._linger_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self._request is not None or self._in_head


class Front:
    """A listening address and its connections."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        limits: FrontLimits,
        refused: Callable[[Request, CallError], None] = lambda _request, _error: None,
    ) -> None:
        """Take the ``handler`` of each request, and ``refused``, called for those that the front answers itself."""
        self.loop = loop
        self.limits = limits
        self.refused = refused
        self.stopping = False
        """Whether each answer closes its connection."""
        self._handler = handler
        self._connections: set[Connection] = set()
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    # --- listening

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from a bound socket."""
        for level, option, value in KEEPALIVE:
            with suppress(OSError):
                listener.setsockopt(level, option, value)
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
        """Leave further connections in the kernel's queue: a descriptor too many would be accepted and closed at once."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _resume_accepting(self) -> None:
        if self._server is None and not self._closed and self._listener is not None and not self._tasks:
            task = self.loop.create_task(self._accept())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close_listener(self) -> None:
        """Accept no more connections."""
        self._closed = True
        self._pause_accepting()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- what connections report

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def joined(self, connection: Connection) -> None:
        """Take in a connection."""
        self._connections.add(connection)
        self.idle(connection)
        if len(self._connections) >= self.limits.connections:
            oldest = next(iter(self._idle))
            if oldest is not connection:
                oldest.abort()
            else:
                self._pause_accepting()

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if self._server is None and len(self._connections) < self.limits.connections:
            self._resume_accepting()

    def idle(self, connection: Connection) -> None:
        """Take note that a connection waits for a request."""
        self._idle[connection] = self.loop.time()
        if self._server is None:
            self._resume_accepting()

    def active(self, connection: Connection) -> None:
        """Take note that a connection has begun a request."""
        self._idle.pop(connection, None)

    def _sweep(self) -> None:
        """Close what has been idle for too long; the order of ``_idle`` is that of time."""
        latest = self.loop.time() - self.limits.idle_seconds
        while self._idle and next(iter(self._idle.values())) < latest:
            connection, _ = self._idle.popitem(last=False)
            connection.abort()
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    async def serve(self, request: Request) -> None:
        """Run the handler; a fault of ours is answered and logged, and ends nothing else."""
        try:
            await self._handler(request)
        except asyncio.CancelledError:
            raise
        except Disconnected:
            request.interrupt()
        except CallError as error:
            self.refused(request, error)
            if request.head_sent:
                request.interrupt()
            else:
                request.reject(error)
        except OSError as error:
            log.error("a request could not be served: %s", error)  # noqa: TRY400 - the reason is the whole story
            self._fail(request)
        except Exception:
            log.exception("a request could not be served")
            self._fail(request)

    @staticmethod
    def _fail(request: Request) -> None:
        if request.head_sent:
            request.interrupt()
        else:
            request.reject(Overloaded("the gateway could not serve the request; its log has the reason"))

    # --- the end

    @property
    def busy(self) -> int:
        """How many connections have a request that is not answered yet."""
        return sum(connection.busy for connection in self._connections)

    def close_connections(self) -> None:
        """Close every connection, whatever it does."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; raise OSError if the address cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
