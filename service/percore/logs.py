"""Logs: one JSON object a line, on standard error, in one format for every process.

Imports orjson and the standard library only, so that arbiter, exporter and supervisor stay small.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}
FD_STANDARD_ERROR = 2
GOODBYE_SECONDS = 0.2
GATHER_SECONDS = 0.01
"""How long a background writer rests after a line: one that wakes for each line delays the calls."""


def timestamp(seconds: float) -> str:
    """Return ``seconds`` since the epoch as RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what was given as ``extra`` becomes fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info and record.exc_info[0] is not None:
            fields["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(level: str) -> None:
    """Send every log record at or above ``level`` to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    _configure(level, handler)


def _configure(level: str, handler: logging.Handler) -> None:
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = partial(_log_uncaught, "the process failed")
    threading.excepthook = lambda of: _log_uncaught(
        f"thread {of.thread.name if of.thread else ''} failed", of.exc_type, of.exc_value, of.exc_traceback
    )
    sys.unraisablehook = lambda of: _log_uncaught(
        f"ignored an exception in {getattr(of.object, '__qualname__', '?')}", of.exc_type, of.exc_value, of.exc_traceback
    )


def _log_uncaught(what: str, kind: Any, error: Any, trace: Any) -> None:
    """Log what nobody catches: Python would print it, in many lines that are no JSON."""
    if kind is not SystemExit:  # that of a thread ends this thread alone, as it should
        logging.getLogger("percore").error(what, exc_info=(kind, error, trace))


def write_call(fields: dict[str, Any]) -> None:
    """Write the line of one call.

    It bypasses the logging module, which costs more than the rest of a short call's bookkeeping; a line up to 4 KiB is
    written to a pipe in one piece. A log that cannot be written must not fail a call.
    """
    line = {"time": timestamp(time.time()), "level": "info", "logger": "percore.call", "message": "call", "pid": os.getpid()}
    try:
        os.write(FD_STANDARD_ERROR, orjson.dumps({**line, **fields}, option=orjson.OPT_APPEND_NEWLINE))
    except OSError:
        return


class BackgroundWriter(logging.Handler):
    """Writes lines to standard error in a thread of its own, so that a reader of the log that stalls holds up no call.

    Lines beyond ``most`` that nobody has read yet are dropped and counted by ``lost``.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None, most: int = 10_000) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._lost = lost
        self._most = most
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one record of the logging module; one that cannot be formatted must not fail whoever logs."""
        try:
            self._put(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:  # noqa: BLE001 - whatever it is, the log is no reason to fail
            self._lost()

    def write_call(self, fields: dict[str, Any]) -> None:
        """Take in the line of one call."""
        line = {
            "time": timestamp(time.time()),
            "level": "info",
            "logger": "percore.call",
            "message": "call",
            "pid": os.getpid(),
        }
        self._put(orjson.dumps({**line, **fields}, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Write what is left, for a second at most."""
        self._lines.put(None)
        self._thread.join(1.0)
        super().close()

    def _put(self, line: bytes) -> None:
        if self._lines.qsize() >= self._most:
            self._lost()
        else:
            self._lines.put(line)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)
            # Others come meanwhile, and are written without a wait; calls go on without this thread.
            time.sleep(GATHER_SECONDS)
            for _ in range(self._lines.qsize()):
                line = self._lines.get()
                if line is None:
                    return
                self._write(line)

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(FD_STANDARD_ERROR, view) :]
        except OSError:
            self._lost()


def configure_background(level: str, lost: Callable[[], None]) -> BackgroundWriter:
    """Send every log record at or above ``level`` to standard error as JSON, from a thread of its own."""
    writer = BackgroundWriter(lost)
    _configure(level, writer)
    return writer


def end_process(status: int) -> None:
    """End the process at once, from any thread; what was logged just before has a moment to be written."""
    time.sleep(GOODBYE_SECONDS)
    os._exit(status)
