"""One connection to a worker: reserve, send one call, receive its answer. ``dispatch`` makes all decisions.

If the connection is lost, the method that waits raises ConnectionError.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import socket
import time
from collections import deque
from typing import Any

import httptools

from percore.http.request import Header
from percore.sockets import Option, keepalive, set_options

log = logging.getLogger("percore.gateway")

CONNECT_SECONDS = 3.0
HIGH_WATER_BYTES = 256 * 1024
SILENCE_MILLISECONDS = 30_000
MOST_HEAD_BYTES = 256 * 1024
STALE_SECONDS = 0.05
"""A worker closes a reservation without a call after 0.1 s. A reservation that is older than this may be closing, so it is not
used."""
OPTIONS: tuple[Option, ...] = (
    *keepalive(idle=10, interval=5, count=4),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", SILENCE_MILLISECONDS),
)
"""If a worker is lost without closing its connection, this is noticed within 30 s, even if nothing was sent to it. The event
loop itself sets TCP_NODELAY."""


RESERVED = (b"Percore-Worker", b"free")
"""A worker answers a reservation with this header. If the header is missing, another server has the pod's old address."""


class BrokenAnswer(ConnectionError):
    """The worker's answer is not HTTP, or it ended in the middle."""


class TooLate(ConnectionError):
    """The gateway itself was too slow: the worker is closing the reservation, or will close it soon."""


class WorkerConnection(asyncio.Protocol):
    """A connection to a worker. Its answer comes as a head, then pieces of a body."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: tuple[Option, ...] = ()) -> None:
        self._loop = loop
        self._options = options
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self.buffered = 0
        """Bytes of the answer's body that have arrived and were not taken yet."""
        self._reserved = math.inf
        self._close_poll = select.poll()
        self._non_body_bytes = 0
        """Bytes that are not part of a body (head, trailers, framing of chunks), since the last byte of a body."""
        self._paused = False
        self._writable = True
        self._failure: Exception | None = None
        self._in_head = True
        self._ends_at_head = False
        self.status = 0
        """The answer's status; 0 before its head is complete."""
        self.phrase = b""
        """Its reason phrase."""
        self.headers: list[Header] = []
        self.complete = False
        """Whether the answer's last byte has arrived."""
        self.used = False
        """Whether any byte of a call was written."""

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """Store the transport, and have it report its buffer as empty only when the kernel has all bytes."""
        self._transport = transport
        transport.set_write_buffer_limits(high=0, low=0)

    def connection_lost(self, error: Exception | None) -> None:
        """Record the loss, and wake the coroutine that waits."""
        self._transport = None
        if self._failure is None:
            self._failure = error if isinstance(error, ConnectionError) else ConnectionResetError(str(error or "closed"))
        self._wake()

    def pause_writing(self) -> None:
        """Record that the kernel accepts no more bytes now."""
        self._writable = False

    def resume_writing(self) -> None:
        """Record that the kernel has all bytes."""
        self._writable = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._failure is not None or self._has_ended():
            return
        self._non_body_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, httptools.HttpParserCallbackError) as error:
            if not self._has_ended():  # bytes after an answer do not matter
                self._fail(BrokenAnswer(f"the worker's answer is not well-formed HTTP: {error}"))
            return
        if self._non_body_bytes > MOST_HEAD_BYTES and not self._has_ended():
            self._fail(BrokenAnswer(f"the head or trailer of the worker's answer is over {MOST_HEAD_BYTES} bytes"))
        elif self.buffered > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _has_ended(self) -> bool:
        return self.complete and self.status != 0

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- httptools

    def on_message_begin(self) -> None:
        """Start an answer."""
        if not self._has_ended():
            self.headers, self._in_head, self.complete, self.phrase = [], True, False, b""

    def on_status(self, phrase: bytes) -> None:
        """Add a piece of the reason phrase."""
        if self._in_head:
            self.phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are dropped."""
        if self._in_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Record that the head is complete. An interim answer (1xx) is dropped."""
        if not self._in_head:
            return
        status = self._parser.get_status_code()
        self._in_head, self._non_body_bytes = False, 0
        if status >= 200:
            self.status = status
            if self._ends_at_head or status in (204, 304):
                self.complete = True
            self._wake()

    def on_body(self, data: bytes) -> None:
        """Add a piece of the body."""
        if not self.complete:
            self._non_body_bytes = 0
            self._chunks.append(data)
            self.buffered += len(data)
            self._wake()

    def on_message_complete(self) -> None:
        """Record that the answer is complete."""
        if self.status >= 200:
            self.complete = True
            self._wake()

    # --- a reservation

    async def reserve(self, message: bytes) -> None:
        """Send ``OPTIONS *``, and wait without a timeout until the worker says that it is free."""
        self._write(message)
        self._set_up()
        while not self.complete:
            self.check()
            await self._wait()
        if self.status != 200 or RESERVED not in self.headers:
            raise BrokenAnswer(f"this is no worker: it answers {self.status} to a reservation, without Percore-Worker: free")
        self._reserved = time.monotonic()
        self.status, self.complete = 0, False
        self._chunks.clear()
        self._non_body_bytes = 0

    def _set_up(self) -> None:
        """Set the socket's options. This is done after the first bytes are sent, so that it costs a call no time."""
        if self._transport is not None:
            end = self._transport.get_extra_info("socket")
            self._close_poll.register(end, select.POLLRDHUP)
            set_options(end, self._options)

    # --- a call

    def expect(self, *, head_only: bool) -> None:
        """Set whether the next answer ends at its head, as the answer to a HEAD request does."""
        self._ends_at_head = head_only

    async def send(self, data: bytes) -> bool:
        """Pass bytes to the kernel. Return False if the worker has answered already, because then it reads no more."""
        if not await self._hand_over(data):
            return False
        self.check()
        return True

    async def send_last(self, data: bytes) -> None:
        """Pass the piece with the last byte to the kernel. Raises ConnectionError if the kernel did not accept all of it.

        Also checks whether the worker has closed, even if the event loop has not seen it yet. Then the call does not count as
        a run.
        """
        if await self._hand_over(data) and (self._transport is None or self._transport.is_closing()):
            raise self._failure or ConnectionResetError("closed")

    async def _hand_over(self, data: bytes) -> bool:
        if self._has_answered():
            return False
        self._check_open()
        self._write(data)
        self.used = True
        while not self._writable and not self._has_answered():
            self.check()
            await self._wait()
        return not self._has_answered()  # if the worker has answered, it may have closed too, but its answer counts

    def _has_answered(self) -> bool:
        return self.status != 0

    def _check_open(self) -> None:
        self.check()
        if time.monotonic() - self._reserved > STALE_SECONDS:
            raise TooLate("the reservation was not used in time")
        if self._peer_closed():
            raise ConnectionResetError("the worker has closed")
        self._reserved = math.inf

    def _peer_closed(self) -> bool:
        """Return whether the worker has closed and nothing is left to read. Unread bytes would be an answer."""
        if not self._close_poll.poll(0):
            return False
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as look:
            try:
                return not look.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True

    async def answer(self) -> None:
        """Wait for the answer's head: ``status`` and ``headers``."""
        while not self.status:
            self.check()
            await self._wait()

    async def piece(self) -> bytes:
        """Return the next piece of the answer's body; ``b""`` at its end."""
        while not self._chunks:
            if self.complete:
                return b""
            self.check()
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """Return the bytes of the answer's body that have arrived."""
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def _write(self, data: bytes) -> None:
        self.check()
        if self._transport is None:
            raise ConnectionResetError("closed")
        self._transport.write(data)

    def check(self) -> None:
        """Raise ConnectionError if it is lost."""
        if self._failure is not None:
            raise self._failure

    # --- the end

    def close(self) -> None:
        """Close the connection. Bytes that were sent still arrive."""
        if self._transport is not None:
            self._transport.close()

    def half_close(self) -> None:
        """Close the sending side. The worker sees a client disconnect, ends its run, and closes too."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close at once, and wake the coroutine that waits."""
        if self._failure is None:
            self._failure = ConnectionAbortedError("the connection was closed here")
        if self._transport is not None:
            self._transport.abort()
        self._wake()


async def connect(address: str, port: int) -> WorkerConnection:
    """Connect to a worker at a host and port, or at the path of a unix socket.

    Raises OSError if that fails, TimeoutError if it takes longer than ``CONNECT_SECONDS``.
    """
    loop = asyncio.get_running_loop()
    if address.startswith("/"):
        return (await loop.create_unix_connection(lambda: WorkerConnection(loop), address))[1]
    async with asyncio.timeout(CONNECT_SECONDS):
        return (await loop.create_connection(lambda: WorkerConnection(loop, OPTIONS), address, port))[1]
