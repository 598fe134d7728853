"""What a WSGI application answers, framed for HTTP/1.1.

An answer whose size is known leaves whole, head and body in one piece, once it is computed. Any other leaves chunk by chunk, as
the application produces it. There is always a length or a last chunk, so that the reader can tell the end from a loss.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.http import wsgi

from percore.worker import answer
from percore.worker.receive import Buffer, Head

log = logging.getLogger("percore.worker")
LAST_CHUNK = b"0\r\n\r\n"
Headers = list[tuple[str, str]]
OnStream = Callable[[], Headers]


class Reply(wsgi.Response):  # type: ignore[misc]
    """Gunicorn's response, which checks status and headers, with another way out of the process."""

    status: str | None
    headers: Headers
    headers_sent: bool
    response_length: int | None
    chunked: bool
    sent: int
    sock: socket.socket
    _omits_body: bool

    def __init__(self, head: Head, client: socket.socket, config: Any, on_stream: OnStream, seconds: float) -> None:
        """``on_stream`` is called before a first chunk leaves, and returns further headers; each may take ``seconds``."""
        super().__init__(head, client, config)
        self.wire_bytes = 0
        self._on_stream = on_stream
        self._seconds = seconds

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """Take the status and the headers, as PEP 3333 says."""
        if exc_info and not self.headers_sent:  # these replace what was said before
            self.status, self.headers, self.response_length = None, [], None
        for name, value in headers:
            if name.lower() == "content-length" and not (value.isascii() and value.isdigit()):
                raise ValueError(f"Content-Length must be a number of bytes; the application said {value!r}")
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        return write

    def produce(self, result: Iterable[Buffer]) -> list[Buffer] | None:
        """Take the body in. Return all of it where its size is known; else send it as it comes, and return None."""
        if isinstance(result, list | tuple) and not self.headers_sent:
            return self._whole(result)
        pieces = iter(result)
        first = next(filter(len, pieces), b"")  # by now the application must have called start_response
        if not self.headers_sent:
            if self._omits_body or not first or self._is_all(first):
                return self._whole([first])
            if self.response_length is None and not self.chunked:  # HTTP/1.0 knows no chunks
                return self._whole([first, *pieces])
        self.write(first)
        for piece in pieces:
            self.write(piece)
        self._finish()
        return None

    def _is_all(self, first: Buffer) -> bool:
        return self.response_length is not None and len(first) >= self.response_length

    def _whole(self, pieces: Iterable[Buffer]) -> list[Buffer]:
        if self.status is None:
            raise AssertionError("the application did not call start_response")
        if self._omits_body:
            return []
        chunks = list(pieces)
        for chunk in chunks:
            _check(chunk)
        size = sum(map(len, chunks))
        if self.response_length is None:
            self.response_length = size
            self.headers.append(("Content-Length", str(size)))
        elif size > self.response_length:
            chunks = [b"".join(chunks)[: self.response_length]]
        elif size < self.response_length:
            raise ValueError(f"the application said Content-Length: {self.response_length}, and produced {size} bytes")
        return chunks

    def head(self, more: Headers) -> bytes:
        """Return the status line and the headers, with ``more`` of them. A call has one id, so an app's own is left out."""
        passed = [header for header in self.headers if header[0].lower() != "x-request-id"]
        return answer.head_of(str(self.status), [*passed, *more])

    def write(self, data: Buffer) -> None:
        """Send a piece of the body at once; an empty one sends nothing. Raises Undelivered where the client does not read."""
        _check(data)
        if self._omits_body or not len(data):
            return
        if self.response_length is not None:
            data = data[: self.response_length - self.sent]
        self.sent += len(data)
        framed: list[Buffer] = [b"%x\r\n" % len(data), data, b"\r\n"] if self.chunked else [data]
        if not self.headers_sent:
            self.headers_sent = True
            coding = [("Transfer-Encoding", "chunked")] if self.chunked else []
            framed.insert(0, self.head([*coding, *self._on_stream()]))
        self._send(framed)

    def _send(self, framed: list[Buffer]) -> None:
        try:
            self.wire_bytes += answer.send(self.sock, framed, self._seconds)
        except answer.Undelivered as error:
            self.wire_bytes += error.sent
            raise

    def _finish(self) -> None:
        if self.chunked:
            self._send([LAST_CHUNK])
        elif self.response_length is not None and self.sent < self.response_length:
            raise ValueError(f"the application said Content-Length: {self.response_length}, and produced {self.sent} bytes")


def _check(chunk: object) -> None:
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise TypeError(f"an application's body must be bytes; it has a {type(chunk).__name__}")
