"""The events that a worker sends to the status server: one JSON object for each line, over a unix socket.

The connection ends with the worker. So the status server sees end-of-file when a worker dies, and keeps no state of it.
Reporting never blocks, and never fails a call. Without a status server, events are dropped. When it comes back, ``hello`` tells
it the present state.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import orjson

from percore.worker.receive import peer_is_gone

MOST_UNSENT_BYTES = 1 << 20


class Reporter:
    """The worker's end of the socket; safe to use from the main thread and from the watchdog."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._lock = threading.RLock()  # a signal handler may report while the main thread does
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._state_is_due = False
        self._hello: dict[str, Any] = {"event": "hello", "worker": os.getpid()}
        self._started: dict[str, Any] | None = None

    def reconnect(self) -> None:
        """Connect if there is no connection, and send events that a slow status server has not taken yet."""
        with self._lock:
            if self._socket is not None and peer_is_gone(self._socket):
                self._drop()
            if self._socket is None:
                self._connect()
            self._flush()

    def loaded(self, catalog: dict[str, Any]) -> None:
        """Report that the models are loaded, and which."""
        self._hello["catalog"] = catalog
        self._send(self._hello)

    def started(self) -> None:
        """Report that a request holds this worker now."""
        self._started = {"event": "started"}
        self._send(self._started)

    def finished(self, model: str, code: str, run: float | None) -> None:
        """Report that the call ended, with its run time in seconds if it ran."""
        self._started = None
        self._send({"event": "finished", "model": model, "code": code, "run": run})

    def released(self) -> None:
        """Report that the request ended and is not counted: a read, or a call that its client did not send completely."""
        self._started = None
        self._send({"event": "released"})

    def count_event(self, event: str, **fields: Any) -> None:
        """Report an event that is only counted: ``client-disconnect``, or ``ending`` with its reason."""
        self._send({"event": event, **fields})

    def close(self) -> None:
        """Close the connection, as the end of the process does."""
        self._drop()

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError:  # no status server at present
            connection.close()
            return
        self._socket = connection
        self._unsent = self._state()

    def _state(self) -> bytearray:
        events = [self._hello] if self._started is None else [self._hello, self._started]
        return bytearray(b"".join(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events))

    def _send(self, event: dict[str, Any]) -> None:
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            if self._socket is None:
                return
            if len(self._unsent) < MOST_UNSENT_BYTES:
                self._unsent += line
            else:  # the status server does not read now: it gets the present state later
                self._state_is_due = True
            self._flush()

    def _flush(self) -> None:
        """Send as many bytes as the socket takes. Forget the connection if the status server has closed it."""
        if self._socket is None or not self._unsent:
            return
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._drop()
            return
        if self._state_is_due and not self._unsent:
            self._state_is_due = False
            self._unsent = self._state()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
