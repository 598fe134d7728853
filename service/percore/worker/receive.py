"""One HTTP request in, under one deadline for the whole of it.

Gunicorn parses the head. The body is received here, straight into one buffer, because a body of many megabytes must not be
copied, a trickled one must not outlive the body clock, and one that is too large must be refused before it is read.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Protocol, cast

from gunicorn import http
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException

from percore.errors import BadRequest, BodyTimeout, BodyTooLarge

READ_STEP = 1 << 20
HEAD_SECONDS = 5.0
Buffer = bytes | bytearray | memoryview
Address = tuple[Any, ...]


class Head(Protocol):
    """What Gunicorn's parser knows of a request once its head is read."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    version: tuple[int, int]
    body: Any
    _expected_100_continue: bool


class Deadline:
    """A socket whose every read ends by one moment, however little each of them moves.

    The head has a moment of its own, as it is small and sent at once by every client that means well.
    """

    def __init__(self, client: socket.socket, seconds: float) -> None:
        self._client = client
        self._began = time.monotonic()
        self._whole = seconds
        self._seconds = min(seconds, HEAD_SECONDS)
        self._is_first = True

    def head_is_read(self) -> None:
        """From now on the body's moment counts."""
        self._seconds = self._whole

    def _before(self) -> None:
        left = self._began + self._seconds - time.monotonic()
        if left <= 0:
            raise self._timeout()
        self._client.settimeout(left)

    def _timeout(self) -> BodyTimeout:
        what = "request" if self._seconds == self._whole else "head of the request"
        return BodyTimeout(f"the {what} was not complete within {self._seconds:g} s")

    def recv(self, size: int) -> bytes:
        """Receive up to ``size`` bytes; raise BodyTimeout when the moment has come, BadRequest for what cannot be HTTP."""
        self._before()
        try:
            data = self._client.recv(size)
        except TimeoutError:
            raise self._timeout() from None
        if self._is_first and data[:1] and not data[:1].isalpha() and data[:1] != b"\r":
            raise BadRequest(f"expected HTTP, got the byte {data[0]:#04x} first; there is no TLS on this port")
        self._is_first = False
        return data

    def recv_into(self, view: memoryview) -> int:
        """Receive into ``view``; raise BodyTimeout when the moment has come."""
        self._before()
        try:
            return self._client.recv_into(view)
        except TimeoutError:
            raise self._timeout() from None


class WholeBody:
    """A body that is here already, as WSGI's input: ``read()`` hands out the buffer itself, uncopied."""

    def __init__(self, data: Buffer) -> None:
        self.data = data

    def read(self, size: int = -1) -> Buffer:
        """Return the next ``size`` bytes, or all that are left."""
        if size is None or size < 0 or size >= len(self.data):
            data, self.data = self.data, b""
            return data
        data, self.data = self.data[:size], self.data[size:]
        return data


def read_head(config: Any, source: Deadline, address: Address) -> Head | None:
    """Read one request's head; return None where the client left without a word, or in the middle of one.

    Raises BadRequest for what is not HTTP, BodyTimeout for a slow client, OSError for one that reset the connection.
    """
    try:
        head = cast("Head", next(http.get_parser(config, source, address)))
    except (StopIteration, NoMoreData):
        return None
    except (LimitRequestLine, LimitRequestHeaders) as error:
        raise BadRequest(f"the request line or the headers are over their limits: {error}") from None
    except ParseException as error:
        raise BadRequest(f"not a well-formed HTTP/1.1 request: {error}") from None
    source.head_is_read()
    return head


def read_body(head: Head, client: socket.socket, source: Deadline, largest: int) -> Buffer:
    """Receive the whole body, read-only; raise BodyTooLarge over ``largest`` bytes, BadRequest where it ends early."""
    reader = head.body.reader
    if not isinstance(reader, LengthReader):
        codings = ", ".join(value for name, value in head.headers if name == "TRANSFER-ENCODING").lower()
        if codings != "chunked":
            raise BadRequest(f"Transfer-Encoding: expected chunked, got {codings!r}; send the body as it is")
        _continue(head, client)
        return _read_chunked(head, largest)
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


def _read_sized(reader: LengthReader, source: Deadline) -> Buffer:
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
            raise BadRequest(f"the body ended after {received} of {length} bytes")
        received += count
    return view.toreadonly()


def _read_chunked(head: Head, largest: int) -> Buffer:
    body = bytearray()
    try:
        while data := head.body.read(READ_STEP):
            body += data
            if len(body) > largest:
                raise BodyTooLarge(f"the body must be at most {largest} bytes, and more than that came in chunks")
    except (ParseException, NoMoreData) as error:
        raise BadRequest(f"the chunked body is malformed or ends early: {error}") from None
    return memoryview(body).toreadonly()
