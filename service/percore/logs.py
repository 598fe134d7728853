"""Logs: one JSON object a line, on standard error, in one format for every process.

Imports orjson and the standard library only, so that arbiter, status server and supervisor stay small.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}
log = logging.getLogger("percore")

FD_STANDARD_ERROR = 2
PATIENCE_SECONDS = 1.0
"""How long a line waits for the reader of the log. After a line was dropped, no line waits until one has been written again."""
FLUSH_SECONDS = 0.2
SHORTEST_CUT = 64
"""Shorter texts are not cut."""
BATCH_SECONDS = 0.01
"""How long a background writer sleeps after a line. A thread that woke for each line would delay the calls."""


def timestamp(seconds: float) -> str:
    """Return ``seconds`` since the epoch as RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_whole_seconds(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _whole_seconds(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _fields(seconds: float, level: str, logger: str, message: str) -> dict[str, Any]:
    return {"time": timestamp(seconds), "level": level, "logger": logger, "message": message, "pid": os.getpid()}


def _line(fields: dict[str, Any]) -> bytes:
    """Return one line without its end.

    It is so short that a pipe takes it in one piece, and does not mix it with other lines.
    """
    line = orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
    while len(line) >= select.PIPE_BUF:
        texts = {key: value if isinstance(value, str) else str(value) for key, value in fields.items()}
        longest = max(texts, key=lambda key: len(texts[key]))
        text = texts[longest]
        if len(text) < SHORTEST_CUT:
            break
        # In a trace the end says most, and in all other texts the beginning does. So these parts are kept.
        fields = {**fields, longest: f"...{text[len(text) // 2 :]}" if longest == "trace" else f"{text[: len(text) // 2]}..."}
        line = orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
    return line


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; the entries of ``extra`` become its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields = _fields(record.created, record.levelname.lower(), record.name, record.getMessage())
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info and record.exc_info[0] is not None:
            fields["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return _line(fields).decode()


class LineHandler(logging.Handler):
    """A logging handler that turns records and calls into lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())

    def write_line(self, line: bytes) -> None:
        """Take in one line."""
        raise NotImplementedError

    def count_lost(self) -> None:
        """Count a line that is lost."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one record of the logging module. One that cannot be formatted must not fail the code that logs it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - whatever it is, the log is no reason to fail
            self.count_lost()
        else:
            self.write_line(line)

    def write_call(self, fields: dict[str, Any]) -> None:
        """Take in the line of one call. It bypasses the logging module, which costs more than the rest of the bookkeeping."""
        self.write_line(_line({**_fields(time.time(), "info", "percore.call", "call"), **fields}) + b"\n")


class StandardError(LineHandler):
    """Writes lines to standard error. It waits at most one second if the reader of the log stalls.

    Then it drops the lines that find no room. Once there is room again, one line says how many. So a worker, its watchdog and
    the arbiter continue when nothing reads their log. There is no thread, because the arbiter forks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def count_lost(self) -> None:
        """Count a line that is lost; the next line that is written says so."""
        self._lost += 1

    def write_line(self, line: bytes) -> None:
        """Write one line, or drop it."""
        with self.lock or contextlib.nullcontext():
            if self._lost:
                self._write_after_loss(line)
            elif not self._put(line, PATIENCE_SECONDS):
                self.count_lost()

    def _write_after_loss(self, line: bytes) -> None:
        """Write the number of lost lines, and then this line. Do not wait."""
        lost = self._lost
        fields = _fields(
            time.time(), "warning", "percore.logs", f"lines of the log that were lost because it was read too slowly: {lost}"
        )
        if not self._put(_line(fields) + b"\n", 0):
            self.count_lost()
            return
        self._lost = 0
        if not self._put(line, 0):
            self._lost = 1

    def _put(self, line: bytes, seconds: float) -> bool:
        """Write a line in one piece; return False if there is no room for it in time."""
        writable = select.poll()
        writable.register(FD_STANDARD_ERROR, select.POLLOUT)
        try:
            # A pipe that can be written to has room for PIPE_BUF bytes, and a line is no longer.
            return bool(writable.poll(1000 * seconds)) and os.write(FD_STANDARD_ERROR, line) == len(line)
        except OSError:
            return False


_standard_error = StandardError()


def configure(level: str) -> None:
    """Send every log record at or above ``level`` to standard error as JSON."""
    _configure(level, _standard_error)


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
    """Log an uncaught exception. Python would print it in many lines that are not JSON."""
    if kind is not SystemExit:  # only its own thread ends, which is right
        log.error(what, exc_info=(kind, error, trace))


def write_call(fields: dict[str, Any]) -> None:
    """Write the line of one call to standard error."""
    _standard_error.write_call(fields)


class BackgroundWriter(LineHandler):
    """Writes lines to standard error in a thread of its own, so that no call waits when the reader of the log stalls.

    At most ``most`` lines wait for the reader. Further ones are dropped, and counted by ``lost``.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None, most: int = 10_000) -> None:
        super().__init__()
        self._lost = lost
        self._most = most
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write the remaining lines, for a second at most."""
        self._lines.put(None)
        self._thread.join(1.0)
        super().close()

    def count_lost(self) -> None:
        """Count a line that is lost."""
        self._lost()

    def write_line(self, line: bytes) -> None:
        """Take in one line, which the thread writes."""
        if self._lines.qsize() >= self._most:
            self.count_lost()
        else:
            self._lines.put(line)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)
            # Other lines come in this time, and are then written without a wait. Calls do not wait for this thread.
            time.sleep(BATCH_SECONDS)
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
        except Exception:  # noqa: BLE001 - whatever it is, the thread goes on with the next line
            self.count_lost()


def configure_background(level: str, lost: Callable[[], None]) -> BackgroundWriter:
    """Send every log record at or above ``level`` to standard error as JSON, from a thread of its own."""
    writer = BackgroundWriter(lost)
    _configure(level, writer)
    return writer


def end_process(status: int) -> None:
    """End the process from any thread, after a moment in which the last log lines are written."""
    time.sleep(FLUSH_SECONDS)
    os._exit(status)
