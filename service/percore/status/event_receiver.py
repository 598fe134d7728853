"""The unix socket that workers report to: one thread, lines in, events out."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from percore import state_dir
from percore.errors import StartError
from percore.status.workers import Workers
from percore.threads import start_vital

log = logging.getLogger("percore.status")
LARGEST_LINE = 1 << 24
CHECK_SECONDS = 1.0
"""How often the file of the socket is checked."""
REST_SECONDS = 0.1


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    partial: bytearray = field(default_factory=bytearray)


class EventReceiver:
    """Listens for workers and hands their events to ``Workers``."""

    def __init__(self, path: Path, workers: Workers) -> None:
        self._path = path
        self._workers = workers
        self._selector = selectors.DefaultSelector()
        self._listener = self._bind(path)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @staticmethod
    def _bind(path: Path) -> socket.socket:
        state_dir.ensure_owned(path.parent)
        state_dir.clear_socket(path)  # a killed status server leaves its socket's file
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with state_dir.os_errors_as_start_errors(path):
            listener.bind(str(path))
            path.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        return listener

    def start(self) -> None:
        """Start the thread; a daemon."""
        start_vital("receiver", self._run)

    def _run(self) -> None:
        while True:
            self.receive(CHECK_SECONDS)
            self.keep_socket()

    def keep_socket(self) -> None:
        """Touch the socket's file, so that no cleaner removes it. If it is gone, create it again; workers stay connected."""
        if state_dir.touch(self._path):
            return
        try:
            listener = self._bind(self._path)
        except StartError as error:
            log.warning("workers cannot connect to report their state: %s", error)
            return
        log.warning("%s was removed: it is created again", self._path)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, None)

    def receive(self, seconds: float | None = None) -> None:
        """Read all events that are there; wait up to ``seconds`` for the first one."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept()
            else:
                self._read(key.fd, key.data)

    def close(self) -> None:
        """Close the listening socket and every connection."""
        for key in list(self._selector.get_map().values()):
            (self._listener if key.data is None else key.data.socket).close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # for example no free descriptor: the connection waits, and is accepted later
            log.exception("a worker's connection could not be accepted; it is tried again")
            time.sleep(REST_SECONDS)
            return
        connection.setblocking(False)
        self._workers.connected(connection.fileno())
        self._selector.register(connection, selectors.EVENT_READ, _Connection(connection))

    def _read(self, fd: int, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(fd, connection)
            return
        connection.partial += data
        *lines, rest = connection.partial.split(b"\n")
        connection.partial = rest
        try:
            for line in lines:
                self._workers.handle(fd, orjson.loads(line))
            if len(rest) > LARGEST_LINE:
                raise ValueError(f"a line of more than {LARGEST_LINE} bytes")
        except Exception:
            log.exception("a worker's report cannot be parsed; its connection is closed")
            self._close(fd, connection)

    def _close(self, fd: int, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        self._workers.disconnected(fd)
        connection.socket.close()
