"""One HTTP answer out, and the end of a connection; also the helper threads that end those which will not be served."""

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

from percore.errors import CallError
from percore.worker.receive import Buffer

LINGER_SECONDS = 2.0
MOST_HELPERS = 64
MOST_PIECES = 64
_helpers: list[threading.Thread] = []


def head_of(status: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return an answer's status line and headers."""
    lines = [f"HTTP/1.1 {status}", f"Date: {util.http_date()}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def error_answer(error: CallError, headers: Iterable[tuple[str, str]] = ()) -> list[Buffer]:
    """Return a whole answer, head and JSON body, for an error that the application never saw."""
    body = orjson.dumps(error.document())
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    if error.retry_after is not None:
        fields.append(("Retry-After", str(error.retry_after)))
    return [head_of(f"{error.status} {HTTPStatus(error.status).phrase}", fields) + body]


class Undelivered(OSError):
    """The client took too long to read its answer, or has gone; ``sent`` bytes of it went out."""

    def __init__(self, sent: int) -> None:
        super().__init__("the answer was not read")
        self.sent = sent


def send(client: socket.socket, chunks: Sequence[Buffer], seconds: float) -> int:
    """Send ``chunks`` with as few copies and packets as can be; return how many bytes went out.

    Raises Undelivered where the client takes longer than ``seconds`` for it, or has gone.
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


def _has_unread(client: socket.socket) -> bool:
    count = bytearray(4)
    try:
        ioctl(client, FIONREAD, count)
    except OSError:  # a kernel that does not tell
        return True
    return any(count)


def close(client: socket.socket, *, unread: bool) -> None:
    """Close a connection that was answered.

    Where something of the client's is ``unread``, closing at once would reset the connection and lose the answer on its way.
    So a helper thread takes in what still comes, for two seconds at most; the worker does not wait for it.
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
    """Let the helper threads finish what they say, before the process ends."""
    ends = time.monotonic() + seconds
    for thread in _helpers:
        thread.join(max(0.0, ends - time.monotonic()))


def discard_unread(client: socket.socket) -> None:
    """Take in what is there, without waiting: the process is about to end and must not reset the connection by that."""
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
