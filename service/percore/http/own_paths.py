"""Paths under ``/-/``. percore answers them itself, even if a user's app has every other path.

With them a load balancer or a person finds out whether the service accepts calls. Such a request is never a call: it waits for
no worker, and if the release is scaled to zero, it starts no pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import orjson

from percore.errors import CallError, MethodNotAllowed, NotFound, NotReady

if TYPE_CHECKING:  # not at run time, because a worker imports this module and must not import asyncio
    from percore.http.request import Answer, Header

PREFIX = "/-/"
JSON: Header = (b"Content-Type", b"application/json")
READY, LIVE = "/-/ready", "/-/live"
OK: Answer = (200, [JSON], b'{"status":"ok"}')


def decoded(path: str) -> str:
    """Return a percent-encoded path as an app sees it, so that every spelling of a path compares equal."""
    return unquote(path, "latin-1") if "%" in path else path


def is_reserved(path: str) -> bool:
    """Tell whether a percent-encoded path is percore's own."""
    return decoded(path).startswith(PREFIX)


def answer(method: str, path: str, reason: str) -> Answer:
    """Answer a request of a path under ``/-/``. ``reason`` says why no calls are accepted; empty if calls are accepted."""
    name = decoded(path)
    if name not in (READY, LIVE):
        return _error(NotFound(f"no route {name[:100]!r}; under {PREFIX} there are {READY} and {LIVE}"))
    if method not in ("GET", "HEAD"):
        return _error(MethodNotAllowed(method, name, "GET, HEAD"), (b"Allow", b"GET, HEAD"))
    return OK if name == LIVE else ready(reason)


def ready(reason: str) -> Answer:
    """Return 200, or 503 with the reason why no calls are accepted."""
    return _error(NotReady(reason)) if reason else OK


def _error(error: CallError, *headers: Header) -> Answer:
    fields = [JSON, *headers]
    if error.retry_after is not None:
        fields.append((b"Retry-After", b"%d" % error.retry_after))
    return error.status, fields, orjson.dumps(error.document())
