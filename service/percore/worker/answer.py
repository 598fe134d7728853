"""The answer of a WSGI application, framed for HTTP/1.1 and sent, and the end of its connection.

If the size of an answer is known, head and body are sent together, when the application has finished. Otherwise the answer is
sent chunk by chunk, as the application produces it. It always has a length or a last chunk, so that the client can see whether
it is complete. Helper threads read the rest of a request before they close its connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from fcntl import ioctl
from http import HTTPStatus
from termios import FIONREAD
from typing import Any

import orjson
from gunicorn import util
from gunicorn.http import wsgi

from percore.errors import CallError
from percore.worker.receive import Buffer, Head

LINGER_SECONDS = 2.0
MOST_HELPERS = 64
MOST_PIECES = 64
LAST_CHUNK = b"0\r\n\r\n"
Headers = list[tuple[str, str]]
OnStream = Callable[[], Headers]
_helpers: list[threading.Thread] = []


def head_of(status: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return an answer's status line and headers."""
    lines = [f"HTTP/1.1 {status}", f"Date: {util.http_date()}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def error_answer(error: CallError, headers: Iterable[tuple[str, str]] = ()) -> list[Buffer]:
    """Return a whole answer, head and JSON body, for an error that happened outside of the application."""
    body = orjson.dumps(error.document())
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    if error.retry_after is not None:
        fields.append(("Retry-After", str(error.retry_after)))
    return [head_of(f"{error.status} {HTTPStatus(error.status).phrase}", fields) + body]


class Undelivered(OSError):
    """The client took too long to read its answer, or disconnected; ``sent`` bytes of the answer were sent."""

    def __init__(self, sent: int) -> None:
        super().__init__("the answer was not read")
        self.sent = sent


def send(client: socket.socket, chunks: Sequence[Buffer], seconds: float) -> int:
    """Send ``chunks`` with few copies and packets; return how many bytes were sent.

    Raises Undelivered if the client takes longer than ``seconds``, or has disconnected.
    """
    views = [memoryview(chunk).cast("B") for chunk in chunks if len(chunk)]
    ends, sent = time.monotonic() + seconds, 0
    client.settimeout(seconds)
    while views:
        try:
            count = client.sendmsg(views[:MOST_PIECES])
        except OSError as error:
            raise Undelivered(sent) from error
        sent += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
            client.settimeout(max(0.001, ends - time.monotonic()))
    return sent


def finish(client: socket.socket, chunks: Sequence[Buffer], seconds: float, *, unread: bool) -> int:
    """Send an answer as ``send`` does, and close the connection; return how many bytes were sent.

    Raises Undelivered as ``send`` does. Then the connection is closed at once.
    """
    try:
        sent = send(client, chunks, seconds)
    except Undelivered:
        client.close()
        raise
    _close(client, unread=unread)
    return sent


def _has_unread(client: socket.socket) -> bool:
    count = bytearray(4)
    try:
        ioctl(client, FIONREAD, count)
    except OSError:  # this kernel does not tell
        return True
    return any(count)


def _close(client: socket.socket, *, unread: bool) -> None:
    """Close a connection that was answered.

    If a part of the request is ``unread``, closing at once would reset the connection, and the client could lose its answer. So
    a helper thread reads the rest, for two seconds at most. The worker does not wait for it.
    """
    if not unread and not _has_unread(client):
        client.close()
        return
    _in_helper(_linger, client)


def _in_helper(work: Callable[..., None], client: socket.socket, *more: Any) -> None:
    _helpers[:] = [thread for thread in _helpers if thread.is_alive()]
    if len(_helpers) >= MOST_HELPERS:
        client.close()
        return
    thread = threading.Thread(target=work, args=(client, *more), name=work.__name__, daemon=True)
    _helpers.append(thread)
    thread.start()


def wait_for_helpers(seconds: float) -> None:
    """Wait until the helper threads have closed their connections, before the process ends."""
    ends = time.monotonic() + seconds
    for thread in _helpers:
        thread.join(max(0.0, ends - time.monotonic()))


def discard_unread(client: socket.socket) -> None:
    """Read the bytes that have arrived, without waiting.

    If bytes were unread, the end of the process would reset the connection.
    """
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        while client.recv(65536):
            pass


def _linger(client: socket.socket) -> None:
    with contextlib.suppress(OSError), client:
        client.shutdown(socket.SHUT_WR)
        ends, scratch = time.monotonic() + LINGER_SECONDS, bytearray(65536)
        while (left := ends - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv_into(scratch):
                return


class Reply(wsgi.Response):  # type: ignore[misc]
    """Gunicorn's response, which checks status and headers. It is sent by ``send`` instead of Gunicorn's code."""

    status: str | None
    headers: Headers
    headers_sent: bool
    response_length: int | None
    chunked: bool
    sent: int
    sock: socket.socket
    _omits_body: bool

    def __init__(self, head: Head, client: socket.socket, config: Any, on_stream: OnStream, seconds: float) -> None:
        """``on_stream`` is called before the first chunk is sent, and returns more headers. A chunk may take ``seconds``."""
        super().__init__(head, client, config)
        self.wire_bytes = 0
        self._on_stream = on_stream
        self._seconds = seconds

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """Take the status and the headers, as PEP 3333 says."""
        if exc_info and not self.headers_sent:  # these replace the earlier status and headers
            self.status, self.headers, self.response_length = None, [], None
        for name, value in headers:
            if name.lower() == "content-length" and not (value.isascii() and value.isdigit()):
                raise ValueError(f"Content-Length must be a number of bytes; the application said {value!r}")
        write: Callable[[bytes], None] = super().start_response(status, headers, exc_info)
        return write

    def produce(self, result: Iterable[Buffer]) -> list[Buffer] | None:
        """Take the application's body. If its size is known, return it; otherwise send it piece by piece, and return None."""
        if isinstance(result, list | tuple) and not self.headers_sent:
            return self._whole(result)
        pieces = iter(result)
        first = next(filter(len, pieces), b"")  # by now the application must have called start_response
        if not self.headers_sent:
            if self._omits_body or not first or self._is_all(first):
                return self._whole([first])
            if self.response_length is None and not self.chunked:  # HTTP/1.0 has no chunks
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
        """Return the status line and the headers, with ``more`` of them.

        A call has only one id, so the app's own header for it is left out.
        """
        passed = [header for header in self.headers if header[0].lower() != "x-request-id"]
        return head_of(str(self.status), [*passed, *more])

    def write(self, data: Buffer) -> None:
        """Send a piece of the body at once; an empty one sends nothing. Raises Undelivered if the client does not read."""
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
            self.wire_bytes += send(self.sock, framed, self._seconds)
        except Undelivered as error:
            self.wire_bytes += error.sent
            raise

    def _finish(self) -> None:
        if self.chunked:
            self._send([LAST_CHUNK])
        elif self.response_length is not None and self.sent < self.response_length:
            raise ValueError(f"the application said Content-Length: {self.response_length}, and produced {self.sent} bytes")


def _check(chunk: object) -> None:
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise TypeError(f"an application's body must be bytes; one part is a {type(chunk).__name__}")
