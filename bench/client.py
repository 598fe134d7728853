"""A client that uses as little CPU as possible in Python: raw sockets, and one connection for each call, because sync workers
close connections anyway.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

HOST = "127.0.0.1"


class Reply(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes | bytearray | memoryview

    def json(self) -> Any:
        """Return the body's document."""
        return json.loads(bytes(self.body))


class Timed(NamedTuple):
    """An answer or an error, with its times by the monotonic clock, which all processes share."""

    sent: float
    ended: float
    reply: Reply | None
    failure: str


def request(path: str, body: bytes | None = None, **headers: str) -> bytes:
    """Return a request as bytes; with a body it is a POST."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: bench"]
    lines += [] if "Connection" in headers else ["Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += [] if "Content_Type" in headers else ["Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def ask(port: int, message: bytes, timeout: float = 60.0) -> Reply:
    """Send one request and return the whole answer."""
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.sendall(message)
        return parse(_drain(connection))


def _drain(connection: socket.socket) -> memoryview:
    """Receive until the end, into a buffer that grows by doubling, because an answer may have many megabytes."""
    buffer, used = bytearray(1 << 16), 0
    while count := connection.recv_into(memoryview(buffer)[used:]):
        used += count
        if used == len(buffer):
            buffer = buffer + bytearray(len(buffer))
    return memoryview(buffer)[:used]


def parse(data: memoryview) -> Reply:
    """Split an answer; raise ConnectionError if the server closed before the answer was complete."""
    start = bytes(data[:65536])
    head, separator, _ = start.partition(b"\r\n\r\n")
    if not separator:
        raise ConnectionResetError("socket hang up")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    body = data[len(head) + 4 :]
    if len(body) != int(headers.get("content-length", len(body))):
        raise ConnectionResetError("socket hang up")
    return Reply(int(status.split()[1]), headers, body)


def burst(port: int, messages: Sequence[bytes], timeout: float) -> list[Timed]:
    """Send every message at the same moment, each over its own connection; return the results in the order of the messages."""
    together = threading.Barrier(len(messages))
    results: dict[int, Timed] = {}

    def one(index: int) -> None:
        together.wait()
        results[index] = _timed(port, messages[index], timeout)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(messages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(messages))]


def _timed(port: int, message: bytes, timeout: float) -> Timed:
    sent, reply, failure = time.monotonic(), None, ""
    try:
        reply = ask(port, message, timeout)
        failure = "" if reply.status == 200 else f"status {reply.status}"
    except TimeoutError:
        failure = f"no answer in {timeout:.0f} s"
    except OSError:
        failure = "socket hang up"
    return Timed(sent, time.monotonic(), reply, failure)


def one_by_one(port: int, message: bytes, seconds: float) -> list[float]:
    """Send calls for ``seconds``, one at a time; return the seconds that each took."""
    took = []
    ends = time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        with socket.socket() as connection:
            connection.connect((HOST, port))
            connection.sendall(message)
            _expect(connection.recv(65536).startswith(b"HTTP/1.1 200 "))
            while connection.recv(65536):
                pass
        took.append(time.perf_counter() - began)
    return took


def side_by_side(port: int, message: bytes, at_once: int, seconds: float) -> float:
    """Keep ``at_once`` calls open for ``seconds``; return the answered calls per second."""
    poll, open_calls, done = select.epoll(), {}, 0

    def start() -> None:
        connection = socket.create_connection((HOST, port))
        connection.sendall(message)
        open_calls[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)

    for _ in range(at_once):
        start()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for fd, _ in poll.poll():
            if data := open_calls[fd].recv(65536):
                _expect(data.startswith(b"HTTP/1.1 200 ") or not data.startswith(b"HTTP/"))  # head and body may come separately
                continue
            open_calls.pop(fd).close()
            done += 1
            start()
    took = time.perf_counter() - began
    for connection in open_calls.values():  # read to the end: for a client that leaves early, percore ends a worker
        _drain(connection)
        connection.close()
    return done / took


def throughput_keep_alive(
    port: int, message: bytes, at_once: int, seconds: float, expected: bytes = b"HTTP/1.1 200 "
) -> tuple[float, int]:
    """Send calls for ``seconds`` over ``at_once`` connections that stay open; return the answered calls per second, and their
    number.

    Each answer is small, comes in one piece and begins as ``expected``.
    """
    poll, connections = select.epoll(), {}
    for _ in range(at_once):
        connection = socket.create_connection((HOST, port))
        connections[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        connection.sendall(message)
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        for fd, _ in poll.poll():
            _expect(connections[fd].recv(65536).startswith(expected))
            connections[fd].sendall(message)
            done += 1
    for connection in connections.values():
        _expect(connection.recv(65536).startswith(expected))
        connection.close()
    return done / took, done


def _expect(answered: object) -> None:
    if not answered:
        raise ConnectionResetError("a call failed")
