"""Logs: one JSON object a line, on standard error, in one format for every process.

Imports orjson and the standard library only, so that arbiter, exporter and supervisor stay small.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}
FD_STANDARD_ERROR = 2


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
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


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
