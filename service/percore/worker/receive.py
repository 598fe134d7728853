"""Receives the request of a connection, within one deadline: a reservation if the client sends one, the head, the body.

By a reservation a gateway learns that a worker is free. The gateway connects and sends ``OPTIONS *``. The worker answers once
it has accepted the connection, that is, when it is free. Then the gateway sends the call on the same connection. A reservation
is no call: it is neither counted nor logged.

Gunicorn parses the head. The body is received here, straight into one buffer, because a large body must not be copied, a slow
body must end at the body timeout, and a body that is too large must be rejected before it is read.
"""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol, cast

from gunicorn import http
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException

from percore.errors import BadRequest, BodyTimeout, BodyTooLarge

READ_STEP = 1 << 20
HEAD_SECONDS = 5.0
SILENT_SECONDS = 2.0
"""How long a connection may send nothing. A normal client sends its request at once."""
RESERVED = b"HTTP/1.1 200 OK\r\nPercore-Worker: free\r\nContent-Length: 0\r\n\r\n"
CALL_SECONDS = 0.1
"""How long a reserved worker waits for the first byte of the call."""
HEAD_STEP = 8192
MOST_KNOWN = 16
END = b"\r\n\r\n"
DISCONNECTED = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
Buffer = bytes | bytearray | memoryview
Address = tuple[Any, ...]
Parser = Iterator[Any]


class Head(Protocol):
    """The parts of Gunicorn's parsed request that are known after its head."""

    method: str
    uri: str
    path: str
    headers: list[tuple[str, str]]
    version: tuple[int, int]
    body: Any
    _expected_100_continue: bool

    def should_close(self) -> bool:
        """Return whether the client said that no more requests follow on the connection."""


class EndedEarly(ConnectionError):
    """The client left before the last byte of its request."""


class TimedSource:
    """A socket with one deadline for all reads of a request, so that a client cannot extend it by sending slowly.

    The head has an earlier deadline, because it is small and a normal client sends it at once. Both deadlines count from the
    request's first byte. A client that sends no byte for too long counts as one that closed.
    """

    def __init__(self, client: socket.socket, seconds: float) -> None:
        self.ended = False
        """Whether the client has closed its side: it sends nothing more."""
        self._client = client
        self._whole = seconds
        self._unread = b""
        self.expect(SILENT_SECONDS)

    def expect(self, silence: float) -> None:
        """Expect one more request, whose first byte must come within ``silence`` seconds."""
        self._silence = min(silence, self._whole)
        self._seconds = min(self._whole, HEAD_SECONDS)
        self._began = 0.0
        self._is_first = True

    def head_is_read(self) -> None:
        """From now on the deadline of the body counts."""
        self._seconds = self._whole

    def _set_timeout(self) -> None:
        left = self._began + self._seconds - time.monotonic()
        if left <= 0:
            raise self._timeout()
        self._client.settimeout(left)

    def _timeout(self) -> BodyTimeout:
        what = "request" if self._seconds == self._whole else "head of the request"
        return BodyTimeout(f"the {what} was not complete within {self._seconds:g} s")

    def recv(self, size: int) -> bytes:
        """Receive up to ``size`` bytes; raise BodyTimeout after the deadline, BadRequest if this cannot be HTTP."""
        if self._is_first:
            return self._recv_first(size)
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        self._set_timeout()
        try:
            data = self._client.recv(size)
        except TimeoutError:
            raise self._timeout() from None
        self.ended = not data
        return data

    def unread(self, data: bytes) -> None:
        """Have the next ``recv`` return ``data``, whatever its size."""
        self._unread = data

    def _recv_first(self, size: int) -> bytes:
        self._client.settimeout(self._silence)
        try:
            data = self._client.recv(size)
        except TimeoutError:
            data = b""
        self.ended = not data
        if data and not data[:1].isalpha() and data[:1] != b"\r":
            raise BadRequest(f"expected HTTP, got the byte {data[0]:#04x} first; there is no TLS on this port")
        self._began = time.monotonic()
        self._is_first = False
        return data

    def recv_into(self, view: memoryview) -> int:
        """Receive into ``view``; raise BodyTimeout after the deadline."""
        self._set_timeout()
        try:
            return self._client.recv_into(view)
        except TimeoutError:
            raise self._timeout() from None


class WholeBody:
    """A body that was received completely, as WSGI's input. ``take`` returns the buffer without a copy, ``read`` bytes."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._file: io.BytesIO | None = None

    def take(self) -> Buffer:
        """Return all that was not read yet."""
        if self._file is not None:
            return self._file.read()
        data, self._data = self._data, b""
        return data

    def _opened(self) -> io.BytesIO:
        if self._file is None:
            self._file, self._data = io.BytesIO(self._data), b""
        return self._file

    def read(self, size: int | None = -1) -> bytes:
        """Return the next ``size`` bytes, or all that are left."""
        return self._opened().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return the next line, at most ``size`` bytes of it."""
        return self._opened().readline(size)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines that are left."""
        return self._opened().readlines(hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._opened())


class Reservations:
    """Reads the head of a connection's call, and before it a reservation if the client sends one.

    Parsing would take half of the time of a reservation, and a gateway sends the same bytes each time. So the worker keeps the
    bytes of reservations that it has parsed, and does not parse the same bytes again.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._known: dict[bytes, str] = {}

    def read(self, client: socket.socket, source: TimedSource, address: Address) -> tuple[Head | None, str]:
        """Return the call's head, or None if no call comes; and the name of the gateway that reserved the worker, or "".

        Raises the same errors as ``read_head``.
        """
        data = source.recv(HEAD_STEP)
        if not data:
            return None, ""
        requests = parser(self._config, source, address)
        gateway = self._known.get(data)
        if gateway is None:
            source.unread(data)
            head = read_head(requests, source)
            if head is None or not is_reservation(head):
                return head, ""
            gateway = self._learn(data, head)
        client.sendall(RESERVED)
        source.expect(CALL_SECONDS)
        head = read_head(requests, source)
        return None if head is not None and is_reservation(head) else head, gateway

    def _learn(self, data: bytes, head: Head) -> str:
        gateway = dict(head.headers).get("PERCORE-GATEWAY", "")[:128]
        # Keep the data only if it is exactly one head, and if a call may follow on this connection.
        if data.find(END) == len(data) - len(END) and not head.should_close():
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[data] = gateway
        return gateway


def parser(config: Any, source: TimedSource, address: Address) -> Parser:
    """Return Gunicorn's parser of the requests that come over one connection."""
    return cast("Parser", http.get_parser(config, source, address))


def read_head(requests: Parser, source: TimedSource) -> Head | None:
    """Read one request's head; return None if the client left before the head was complete.

    Raises BadRequest if it is not HTTP, BodyTimeout if the client is slow, OSError if it reset the connection.
    """
    try:
        head = cast("Head", next(requests))
    except (StopIteration, NoMoreData):
        return None
    except (LimitRequestLine, LimitRequestHeaders) as error:
        raise BadRequest(f"the request line or the headers are over their limits: {error}") from None
    except ParseException as error:
        raise BadRequest(f"not a well-formed HTTP/1.1 request: {error}") from None
    if head.method == "CONNECT":
        raise BadRequest("CONNECT: this is no proxy")
    hosts = sum(name == "HOST" for name, _ in head.headers)
    if hosts > 1 or (hosts == 0 and head.version >= (1, 1)):
        raise BadRequest(f"Host: expected exactly one such header, got {hosts}")
    source.head_is_read()
    return head


def has_body(head: Head) -> bool:
    """Tell whether the head announces a body."""
    reader = head.body.reader
    return not isinstance(reader, LengthReader) or reader.length > 0


def is_reservation(head: Head) -> bool:
    """Return whether this is ``OPTIONS *`` without a body, by which a gateway asks for a reservation."""
    return head.uri == "*" and not has_body(head)


def read_rest(head: Head, client: socket.socket, source: TimedSource, largest: int | None) -> tuple[Buffer, bool]:
    """Return the body of a call, and whether the client has left since it sent the last byte. Raises the same errors as
    ``read_body``.

    If ``largest`` is None this is a read. Its body is not received, so a client that never sends it holds no worker.
    """
    body = b"" if largest is None else read_body(head, client, source, largest)
    return body, peer_is_gone(client)


def read_body(head: Head, client: socket.socket, source: TimedSource, largest: int) -> Buffer:
    """Receive the whole body.

    Raises EndedEarly if the client leaves before the last byte, BodyTooLarge over ``largest`` bytes, BadRequest if chunks are
    malformed.
    """
    reader = head.body.reader
    if not isinstance(reader, LengthReader):
        codings = ", ".join(value for name, value in head.headers if name == "TRANSFER-ENCODING").lower()
        if codings != "chunked":
            raise BadRequest(f"Transfer-Encoding: expected chunked, got {codings!r}; send the body as it is")
        _continue(head, client)
        return _read_chunked(head, source, largest)
    if reader.length > largest:
        raise BodyTooLarge(f"the body must be at most {largest} bytes, and Content-Length is {reader.length}")
    if reader.length == 0:
        return b""
    _continue(head, client)
    return _read_sized(reader, source)


def _continue(head: Head, client: socket.socket) -> None:
    if head._expected_100_continue:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head._expected_100_continue = False


def _read_sized(reader: LengthReader, source: TimedSource) -> Buffer:
    length = reader.length
    early = reader.unreader.take_buffered()[:length]
    if len(early) == length:
        return cast("bytes", early)
    body = bytearray(length)
    body[: len(early)] = early
    view, received = memoryview(body), len(early)
    while received < length:
        count = source.recv_into(view[received:])
        if not count:
            raise EndedEarly(f"the body ended after {received} of {length} bytes")
        received += count
    return view


def _read_chunked(head: Head, source: TimedSource, largest: int) -> Buffer:
    body = bytearray()
    try:
        while data := head.body.read(READ_STEP):
            body += data
            if len(body) > largest:
                raise BodyTooLarge(f"the body must be at most {largest} bytes, and more than that came in chunks")
    except (ParseException, NoMoreData) as error:
        if source.ended:
            raise EndedEarly("the body ended before its last chunk") from None
        raise BadRequest(f"the chunked body is malformed: {error}") from None
    return memoryview(body)


def peer_is_gone(client: socket.socket) -> bool:
    """Tell whether the peer closed, half-closed or reset the connection; nothing is read and nothing blocks.

    A client that half-closes while it waits counts as gone: TCP cannot tell it from one that closed.
    """
    watched = select.poll()
    watched.register(client, select.POLLRDHUP)
    return any(events & DISCONNECTED for _, events in watched.poll(0))
