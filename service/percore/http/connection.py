"""One client's connection: parses one request at a time, has it served, and sends its answer.

::

    idle -> head -> body -> answer -> flushing -> idle
                                               -> lingering -> closed
    (an early error goes from head or body to flushing)

``idle``: no request; the connection may be closed at any time. ``head``, ``body``: a request is received. ``answer``: the
request is complete and is being answered. ``flushing``: the answer is written, and the kernel does not have all of it yet.
``lingering``: the kernel has the answer, and the sending side is closed. Further bytes are read and dropped for a while.
Otherwise closing the socket with unread bytes would reset the connection, and the client might lose the answer.

When a request is complete, the connection is still read, so that the gateway sees a client disconnect at once. If bytes come
before the end of the answer (a pipelined request), they are dropped, and the connection closes after the answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import httptools

from percore.errors import BadRequest, BodyTimeout, CallError, GatewayFailed
from percore.http.request import MOST_HEAD_BYTES, MOST_HEADERS, Disconnected, Request
from percore.sockets import Option, set_options

if TYPE_CHECKING:
    from percore.http.front import Front

log = logging.getLogger("percore.gateway")

READ_AHEAD_BYTES = 512 * 1024
"""Body bytes that wait to be spooled before the connection is paused: enough to receive while a piece goes to the disk."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
RESET: tuple[Option, ...] = ((socket.SOL_SOCKET, "SO_LINGER", struct.pack("ii", 1, 0)),)


class Stage(Enum):
    """The state of a connection; see the module."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    FLUSHING = auto()
    LINGERING = auto()


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_discarded",
        "_drain_waiter",
        "_front",
        "_more_follows",
        "_non_body_bytes",
        "_parser",
        "_paused",
        "_peer",
        "_request",
        "_stage",
        "_task",
        "_timer",
        "_transport",
        "_upgrade",
        "loop",
        "writable",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self.loop = front.loop
        self._parser = httptools.HttpRequestParser(self)
        self._stage = Stage.IDLE
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        """Bounds the present stage."""
        self._drain_waiter: asyncio.Future[None] | None = None
        self._non_body_bytes = 0
        """Bytes that are not part of a body (head, trailers, framing of chunks), since the last byte of a body."""
        self._discarded = 0
        self._more_follows = False
        """Whether the client sent bytes after its request and before the end of the answer."""
        self._paused = False
        self._upgrade = False
        self._peer = ""
        self.writable = True
        """Whether the kernel has all bytes that were written."""

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self._stage is not Stage.IDLE

    def _enter(self, stage: Stage) -> None:
        """Go to another stage, and stop the timer, because it bounds only one stage."""
        self._stage = stage
        self._stop_timer()

    def _bound(self, seconds: float, expired: Callable[..., None], *arguments: object) -> None:
        """Call ``expired`` if the stage does not end within ``seconds``."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, expired, *arguments)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Report the new connection to the front. It is idle until its first byte."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else "unix"
        transport.set_write_buffer_limits(high=0, low=0)
        self._front.joined(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel the task that serves the request, because the client no longer waits."""
        self._front.left(self)
        self._stop_timer()
        self._transport = None
        self.writable = False
        self._wake_writer()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def eof_received(self) -> bool:
        """Close. A half-close counts as a client disconnect, because TCP shows no difference."""
        return False

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a request. Drop bytes that come while the request is answered."""
        if self._stage is Stage.LINGERING:
            self._discard(len(data))
        elif self._stage in (Stage.ANSWER, Stage.FLUSHING):
            self._more_follows = True
        elif self._request is None or not self._request.failed:
            self._parse(data)

    def pause_writing(self) -> None:
        """Record that the kernel accepts no more bytes now."""
        self.writable = False

    def resume_writing(self) -> None:
        """Record that the kernel has all bytes."""
        self.writable = True
        self._wake_writer()
        if self._stage is Stage.FLUSHING and self._request is not None:
            self._delivered(self._request)

    def _wake_writer(self) -> None:
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    # --- parsing

    def _parse(self, data: bytes) -> None:
        self._non_body_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserCallbackError) as error:
            if self._stage in (Stage.ANSWER, Stage.FLUSHING):
                self._more_follows = True  # the request itself was complete
            else:
                self._refuse(_reason(error))
            return
        if self._stage not in (Stage.HEAD, Stage.BODY):
            return
        if self._non_body_bytes > MOST_HEAD_BYTES:
            self._refuse(BadRequest(f"head or trailer of the request: expected at most {MOST_HEAD_BYTES} bytes"))
        elif self._stage is Stage.HEAD and self._timer is None:
            self._bound(self._front.limits.head_seconds, self._head_expired)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Ignore a request's wish for another protocol (``Upgrade``), and parse its body.

        llhttp treats such a request as complete after its head. So a new parser gets the head without ``Upgrade``.
        """
        request = self._request
        if request is None or not self._upgrade:
            return
        self._upgrade = False
        self._parser = httptools.HttpRequestParser(self)
        length = request.content_length
        if length == 0:
            self._more_follows = bool(rest)
            self._complete()
            return
        framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
        self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % framing)
        if rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        """Start a request; a pipelined one is dropped."""
        if self._stage is Stage.IDLE:
            self._enter(Stage.HEAD)
            self._front.head_begins(self)
            self._request = Request(self, self._peer)
        elif self._stage is not Stage.BODY:  # in BODY, the new parser after an upgrade calls this
            self._more_follows = True

    def on_url(self, url: bytes) -> None:
        """Add a piece of the target."""
        if self._stage is Stage.HEAD and self._request is not None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. After the head it is a trailer, and is dropped."""
        if self._stage is Stage.HEAD and self._request is not None:
            # Checked for each header, because thousands of short headers need much more memory than their bytes.
            if len(self._request.headers) == MOST_HEADERS:
                raise BadRequest(f"headers: expected at most {MOST_HEADERS}")
            self._request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head, and start to serve the request."""
        request = self._request
        if request is None or self._stage is not Stage.HEAD:
            return
        request.method = self._parser.get_method()
        request.version = self._parser.get_http_version()
        request.finish_head()
        if request.method == b"CONNECT":
            raise BadRequest("CONNECT: this is no proxy")
        if not self._parser.should_keep_alive():
            request.close = True
        self._enter(Stage.BODY)
        self._front.head_ends(self)
        self._non_body_bytes = 0
        self._upgrade = self._parser.should_upgrade()
        self._task = self.loop.create_task(self._serve(request))

    def on_body(self, data: bytes) -> None:
        """Add a piece of the body. Pause the connection if the body is spooled too slowly."""
        request = self._request
        if request is None or self._stage is not Stage.BODY:
            return
        self._non_body_bytes = 0
        request.feed(data)
        if request.buffered > READ_AHEAD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Record that the request is complete."""
        if not self._upgrade:
            self._complete()

    def _complete(self) -> None:
        if self._request is not None and self._stage is Stage.BODY:
            self._enter(Stage.ANSWER)
            self._non_body_bytes = 0
            self._request.feed_end()
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read again if the connection was paused."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _refuse(self, error: CallError) -> None:
        """Answer a request that cannot be parsed. If a task reads its body already, that task answers."""
        request = self._request = self._request or Request(self, self._peer)
        self._stop_timer()
        self._front.head_ends(self)
        if self._task is not None:
            request.fail(error)
        else:
            self._front.refused(request, error)
            request.reject(error)

    def _head_expired(self) -> None:
        self._refuse(BodyTimeout(f"the head of the request was not complete within {self._front.limits.head_seconds:g} s"))

    # --- serving

    async def _serve(self, request: Request) -> None:
        """Run the front's handler. A fault of percore is answered and logged, and other connections go on."""
        try:
            await self._front.handler(request)
        except asyncio.CancelledError:
            raise
        except Disconnected:
            request.interrupt()
        except CallError as error:
            self._front.refused(request, error)
            _give_up(request, error)
        except OSError as error:
            log.error("a request could not be served: %s", error)  # noqa: TRY400 - the message has the cause
            _give_up(request, GatewayFailed())
        except Exception:
            log.exception("a request could not be served")
            _give_up(request, GatewayFailed())

    # --- answering

    def must_close(self, request: Request) -> bool:
        """Return whether the connection must close after the answer.

        If bytes of this request may still come, it must close, because they would look like the next request.
        """
        return request.close or not request.complete or self._more_follows or self._front.stopping

    def send_continue(self) -> None:
        """Ask the client for the body it announced."""
        self.write(CONTINUE)

    def write(self, data: bytes) -> bool:
        """Send. Return False if the kernel does not have all bytes yet, because the client reads too slowly."""
        if self._transport is not None:
            self._transport.write(data)
        return self.writable

    async def drained(self, seconds: float) -> None:
        """Wait until the kernel has all bytes. If it accepts none for ``seconds``, abort and raise Disconnected."""
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
        """Record that an answer is written. It counts as delivered when the kernel has all of it."""
        if self._request is not request or self._transport is None or self._stage is Stage.FLUSHING:
            return
        if self.writable:
            self._delivered(request)
        else:
            self._enter(Stage.FLUSHING)
            self._watch_flush()

    def _watch_flush(self) -> None:
        """Abort the connection if the client does not read the last bytes of an answer."""
        left = self._transport.get_write_buffer_size()
        self._bound(self._front.limits.answer_seconds, self._check_flush, left)

    def _check_flush(self, before: int) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() >= before:
            self.abort()
        else:
            self._watch_flush()

    def _delivered(self, request: Request) -> None:
        """End a request: wait for the next one, or close. From now on a client disconnect does not cancel this request."""
        self._task = None
        request.deliver()
        if not self.must_close(request):
            self._request = None
            self._enter(Stage.IDLE)
            self._front.idle(self)
            return
        self._enter(Stage.LINGERING)
        if request.complete and not self._more_follows and not self._front.stopping:
            self._transport.close()  # the answer said that it is the last one, so no more bytes come
            return
        self.resume_reading()
        self._transport.write_eof()
        self._bound(LINGER_SECONDS, self.abort)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.abort()

    def close(self) -> None:
        """Close an idle connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Close at once by a reset, so that the client sees an error and not the end of the answer."""
        if self._transport is not None:
            set_options(self._transport.get_extra_info("socket"), RESET)
            self._transport.abort()


def _give_up(request: Request, error: CallError) -> None:
    """Answer with an error. If another answer has begun, close the connection in the middle of it."""
    if request.head_sent:
        request.interrupt()
    else:
        request.reject(error)


def _reason(error: Exception) -> CallError:
    cause = error.__context__
    if isinstance(cause, CallError):
        return cause
    return BadRequest(f"not a well-formed HTTP/1.1 request: {error}")
