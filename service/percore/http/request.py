"""One HTTP request of a client: its head, its body as it arrives, and the methods that answer it.

The front creates the request and adds its body; the gateway reads and answers it. This module knows no calls, pods or queues.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import orjson

from percore.errors import BadRequest, CallError, MethodNotAllowed

if TYPE_CHECKING:
    from percore.http.connection import Connection

Header = tuple[bytes, bytes]
"""Name and value, as they came."""
Answer = tuple[int, list[Header], bytes]
"""Status, headers without framing, and body: what ``Request.respond`` takes."""
JSON: list[Header] = [(b"Content-Type", b"application/json")]

OWN_PREFIX = b"percore-"
"""Gateway and worker use headers with this prefix. If a client sends such headers, they are dropped."""
MOST_HEADERS = 90
"""Gunicorn takes 100; the gateway adds some."""
MOST_FIELD_BYTES = 8000
"""Gunicorn takes 8,190 for a header's line."""
MOST_HEAD_BYTES = 32 * 1024
"""For all headers together, and for trailers and the framing of chunks."""
MOST_TARGET_BYTES = 4000
"""Gunicorn takes 4,094 for the request line."""
NO_BODY_STATUSES = frozenset((204, 304))
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
LAST_CHUNK = b"0\r\n\r\n"


class Disconnected(ConnectionError):
    """The client closed its connection."""


class Request:
    """One request. ``target`` is in origin form: a path that begins with ``/`` and an optional query."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_connection",
        "_framed",
        "_head_sent",
        "_waiter",
        "answered_bytes",
        "buffered",
        "client",
        "close",
        "complete",
        "content_length",
        "decoded_path",
        "delivered",
        "expects_continue",
        "failed",
        "headers",
        "method",
        "received",
        "target",
        "version",
    )

    def __init__(self, connection: Connection, client: str) -> None:
        self._connection = connection
        self.client = client
        self.method = b""
        self.target = b""
        self.decoded_path = ""
        """The path as an app sees it, so that every spelling of a path compares equal."""
        self.version = "1.1"
        self.headers: list[Header] = []
        self.content_length: int | None = None
        """The body's size in bytes; None for a chunked body. 0 without a body."""
        self.expects_continue = False
        self.close = False
        """Whether the connection closes after the answer."""
        self.complete = False
        """Whether the last byte of the body has arrived."""
        self.received = 0
        """Bytes of the body so far."""
        self.buffered = 0
        """Bytes of the body that have arrived and were not read yet."""
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._head_sent = False
        self._chunked = False
        self._framed = True
        self.answered_bytes = 0
        self.failed: CallError | None = None
        """The reason why the rest of the request cannot be received."""
        self.delivered = False
        """Whether the kernel has the whole answer."""

    # --- the head

    def finish_head(self) -> None:
        """Check the head and set the fields that depend on it; raise BadRequest if HTTP/1.1 does not allow it."""
        self.target = _origin_form(self.target)
        self.decoded_path = unquote(self.path, "latin-1")
        if self.version not in ("1.1", "1.0"):
            raise BadRequest(f"HTTP version: expected 1.1 or 1.0, got {self.version}")
        hosts, size, self.content_length = 0, 0, 0
        for name, value in self.headers:
            field_size = len(name) + len(value)
            size += field_size
            if field_size > MOST_FIELD_BYTES:
                raise BadRequest(f"header {name[:60].decode('latin-1')!r}: expected at most {MOST_FIELD_BYTES} bytes")
            lowered = name.lower()
            if lowered == b"host":
                hosts += 1
            else:
                self._note(lowered, value)
        if size > MOST_HEAD_BYTES:
            raise BadRequest(f"headers: expected at most {MOST_HEAD_BYTES} bytes together, got {size}")
        if hosts > 1 or (hosts == 0 and self.version == "1.1"):
            raise BadRequest(f"Host: expected exactly one such header, got {hosts}")

    def _note(self, name: bytes, value: bytes) -> None:
        """Set ``content_length`` or ``expects_continue`` from a header about the body."""
        if name == b"content-length":
            self.content_length = int(value)
        elif name == b"transfer-encoding":
            self._check_coding(value)
            self.content_length = None
        elif name == b"expect" and self.version == "1.1":
            self.expects_continue = value.strip().lower() == b"100-continue"

    def _check_coding(self, value: bytes) -> None:
        if self.version == "1.0":
            raise BadRequest("Transfer-Encoding: HTTP/1.0 does not have it")
        if value.strip().lower() != b"chunked":
            raise BadRequest(f"Transfer-Encoding: expected chunked, got {value[:100].decode('latin-1')!r}")

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the first header of that name (in lower case); None without one."""
        for each, value in self.headers:
            if each.lower() == name:
                return value
        return None

    @property
    def path(self) -> str:
        """The path without the query, percent-encoded as it came."""
        return self.target.partition(b"?")[0].decode("latin-1")

    # --- the body

    def feed(self, data: bytes) -> None:
        """Add a piece of the body. Called by the connection."""
        self._chunks.append(data)
        self.received += len(data)
        self.buffered += len(data)
        self._wake()

    def feed_end(self) -> None:
        """Record that the body is complete. Called by the connection."""
        self.complete = True
        self._wake()

    def fail(self, error: CallError) -> None:
        """Record that the rest cannot be received. Then ``read`` raises the error."""
        self.failed = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> list[bytes]:
        """Return the pieces of the body that have arrived and were not read yet; an empty list at the end of the body.

        Raises the error of ``fail``.
        """
        if self.expects_continue and not self.complete and not self.received:
            self._connection.send_continue()
        self.expects_continue = False
        while self.failed is not None or not self._chunks:
            if self.failed is not None:
                raise self.failed
            if self.complete:
                return []
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        pieces, self._chunks = self._chunks, []
        self.buffered = 0
        self._connection.resume_reading()
        return pieces

    # --- the answer

    @property
    def head_sent(self) -> bool:
        """Whether the answer's head has been sent, so that no other answer can be given."""
        return self._head_sent

    def bodyless(self, status: int) -> bool:
        """Tell whether an answer with this status ends at its head."""
        return self.method == b"HEAD" or status in NO_BODY_STATUSES or status < 200

    def head(self, status: int, headers: Iterable[Header], length: int | None, phrase: bytes = b"") -> bytes:
        """Return the answer's head and remember how its body is framed. ``length`` is None for a body of unknown length.

        ``headers`` have neither framing nor connection headers. ``phrase`` is the status's reason phrase; empty: the usual one.
        """
        lines = [b"HTTP/1.1 %d %s" % (status, phrase or REASONS.get(status, b"Unknown"))]
        lines += [b"%s: %s" % header for header in headers]
        if length is not None:
            if status != 204 and status >= 200:
                lines.append(b"Content-Length: %d" % length)
        elif not self.bodyless(status):
            if self.version == "1.1":
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked")
            else:
                self._framed, self.close = False, True  # HTTP/1.0 knows no chunks: the connection's end is the body's end
        if self._connection.must_close(self):
            self.close = True
            lines.append(b"Connection: close")
        elif self.version == "1.0":
            lines.append(b"Connection: keep-alive")
        self._head_sent = True
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def frame(self, data: bytes) -> bytes:
        """Return a piece of the body in its framing: as a chunk, or unchanged."""
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked and data else data

    def write(self, data: bytes) -> bool:
        """Send framed bytes; return False if the client reads too slowly."""
        self.answered_bytes += len(data)
        return self._connection.write(data)

    @property
    def writable(self) -> bool:
        """Whether the kernel has all bytes that were sent."""
        return self._connection.writable

    async def drained(self, seconds: float) -> None:
        """Wait until the kernel has all bytes that were sent; raise Disconnected if it accepts none for ``seconds``."""
        await self._connection.drained(seconds)

    def finish(self) -> None:
        """End the answer: write the last chunk if the body is chunked."""
        if self._chunked:
            self._connection.write(LAST_CHUNK)
        self._connection.answered(self)

    def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a whole answer."""
        head = self.head(status, headers, len(body))
        self.write(head if self.bodyless(status) else head + body)
        self._connection.answered(self)

    def reject(self, error: CallError, headers: Iterable[Header] = ()) -> None:
        """Answer with an error. If the body is not complete yet, the connection closes after the answer."""
        fields = [*JSON, *headers]
        if error.retry_after is not None:
            fields.append((b"Retry-After", b"%d" % error.retry_after))
        if isinstance(error, MethodNotAllowed):
            fields.append((b"Allow", error.allowed.encode()))
        if not self.complete:
            self.close = True
        self.respond(error.status, fields, orjson.dumps(error.document()))

    def deliver(self) -> None:
        """Record that the kernel has the whole answer. Called by the connection."""
        self.delivered = True
        self._wake()

    async def flushed(self) -> None:
        """Wait until the kernel has the whole answer. If the client does not read it, the connection and its task end."""
        while not self.delivered:
            self._waiter = self._connection.loop.create_future()
            await self._waiter

    def interrupt(self) -> None:
        """Close the connection in the middle of an answer. The client sees that the answer is not complete, because the last
        chunk or byte is missing.

        An answer without length and chunks (HTTP/1.0) ends with its connection. So here the client gets a reset.
        """
        if self._head_sent and not self._framed:
            self._connection.reset()
        else:
            self._connection.abort()


def _origin_form(target: bytes) -> bytes:
    """Return a target's path and query; raise BadRequest if it is neither in origin form nor in absolute form."""
    if len(target) > MOST_TARGET_BYTES:
        raise BadRequest(f"request target: expected at most {MOST_TARGET_BYTES} bytes, got {len(target)}")
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        authority = re.match(rb"[^/?#]*", rest)
        path = rest[authority.end() :] if authority else b""
        target = path if path[:1] == b"/" else b"/" + path
    target = target.partition(b"#")[0]
    if target[:1] != b"/" and target != b"*":
        raise BadRequest(f"request target: expected a path, got {target[:100].decode('latin-1')!r}")
    return target
