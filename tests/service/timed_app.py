"""The demo's Flask app, unchanged, in a wrapper that adds the process and the times of each call."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from demo.flask_app import app as unchanged


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer as the demo does, with process, beginning and end (seconds of the machine's monotonic clock) in headers."""
    began = time.monotonic()

    def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        span = [("X-Pid", str(os.getpid())), ("X-Began", repr(began)), ("X-Ended", repr(time.monotonic()))]
        return start_response(status, [*headers, *span], *more)

    return unchanged(environ, start)
