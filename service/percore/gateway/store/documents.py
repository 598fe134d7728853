"""JSON documents about stored calls, and the headers that control stored calls. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from percore.api.error_format import shorten
from percore.errors import BadInput
from percore.http.request import Header, Request

MOST_WAIT_SECONDS = 600.0
MOST_RUNS = 10
MOST_KEY_BYTES = 255
PREFERENCE = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
"""One preference with its parameters. A comma in a quoted string does not end it."""
NOT_STORED = frozenset((b"prefer", b"idempotency-key", b"expect"))


def rfc3339(seconds: float | None) -> str | None:
    """Return Unix seconds as ``2026-01-31T12:00:00.000Z``."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- a request's head, as it is stored


@dataclass(frozen=True, slots=True)
class StoredHead:
    """The parts of a request that the worker gets, without the body."""

    method: bytes
    target: bytes
    headers: Sequence[Header]
    client: str

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the first header of that name (in lower case); None without one."""
        return next((value for each, value in self.headers if each.lower() == name), None)

    @classmethod
    def decoded(cls, data: bytes, client: str) -> StoredHead:
        """Reverse ``encoded_head``."""
        method, target, headers = orjson.loads(data)
        return cls(method.encode("latin-1"), target.encode("latin-1"), decoded_headers(headers), client)


def encoded_head(request: Request) -> bytes:
    """Return the parts of a request's head that its worker gets."""
    kept = [header for header in request.headers if header[0].lower() not in NOT_STORED]
    return orjson.dumps([request.method.decode("latin-1"), request.target.decode("latin-1"), encoded_headers(kept)])


def encoded_headers(headers: Iterable[Header]) -> list[list[str]]:
    """Return headers in a form that JSON can hold."""
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def decoded_headers(headers: Iterable[Sequence[str]]) -> list[Header]:
    """Reverse ``encoded_headers``."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def model_of(path: str) -> str:
    """Return the model that a path of either protocol names; the path itself if it names none."""
    found = re.match(r"/v[12]/models/([^/:]+)", path)
    return (found[1] if found else path)[:256]


# --- the options of a request


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of RFC 7240's ``Prefer`` that percore uses."""

    respond_async: bool = False
    wait_seconds: float | None = None

    def applied(self) -> bytes:
        """Return the value of ``Preference-Applied``."""
        wait = [] if self.wait_seconds is None else [b"wait=%d" % self.wait_seconds]
        return b", ".join([b"respond-async", *wait] if self.respond_async else wait)


def preferences(request: Request) -> Preferences:
    """Return the preferences in ``Prefer``. Unknown preferences are ignored, as the RFC says."""
    respond_async, wait = False, None
    for name, value in request.headers:
        if name.lower() != b"prefer":
            continue
        for preference in PREFERENCE.findall(value):
            token, _, given = preference.partition(b";")[0].partition(b"=")
            token, given = token.strip().lower(), given.strip().strip(b'"')
            if token == b"respond-async":
                respond_async = True
            elif token == b"wait" and re.fullmatch(rb"[0-9]{1,9}", given) and wait is None:
                wait = min(float(given), MOST_WAIT_SECONDS)
    return Preferences(respond_async, wait)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one stored call, from its headers."""

    key: bytes | None
    webhook: str | None
    start_within: float | None
    max_runs: int


def options(request: Request, max_runs: int) -> Options:
    """Read the headers of a stored call. If a value breaks its rule, raise BadInput, which names the header."""
    key = request.header(b"idempotency-key")
    if key is not None and not re.fullmatch(rb"[\x21-\x7e][\x20-\x7e]{0,%d}" % (MOST_KEY_BYTES - 1), key):
        raise BadInput(f"Idempotency-Key: must be 1 to {MOST_KEY_BYTES} printable characters of ASCII, got {_shown(key)}")
    webhook = request.header(b"percore-webhook")
    return Options(
        key=key,
        webhook=None if webhook is None else webhook.decode("latin-1"),
        start_within=_number(request, b"Percore-Start-Within", 1, 30 * 24 * 3600, None),
        max_runs=_number(request, b"Percore-Max-Runs", 1, MOST_RUNS, max_runs) or max_runs,
    )


def _number(request: Request, name: bytes, low: int, high: int, default: int | None) -> int | None:
    given = request.header(name.lower())
    if given is None:
        return default
    if not re.fullmatch(rb"[0-9]{1,10}", given) or not low <= int(given) <= high:
        raise BadInput(f"{name.decode()}: must be a whole number from {low} to {high}, got {_shown(given)}")
    return int(given)


def _shown(value: bytes) -> str:
    return shorten(value.decode("latin-1"))


# --- answers


def status_document(row: Any, runs: Iterable[Any], position: int | None) -> dict[str, Any]:
    """Return the answer to ``GET /v1/calls/ID``."""
    head = StoredHead.decoded(row.head, row.client)
    found: dict[str, Any] = {
        "id": row.id,
        "state": row.state,
        "method": head.method.decode("latin-1"),
        "path": head.target.partition(b"?")[0].decode("latin-1"),
        "request_id": row.request_id,
        "priority": row.priority,
        "position": position,
        "created": rfc3339(row.created_at),
        "started": rfc3339(row.started_at),
        "finished": rfc3339(row.finished_at),
        "start_by": rfc3339(row.start_by),
        "kept_until": rfc3339(row.expires_at),
        "request_bytes": row.request_bytes,
        "max_runs": row.max_runs,
        "runs": [
            {
                "number": run.number,
                "pod": run.pod,
                "began": rfc3339(run.began_at),
                "ended": rfc3339(run.ended_at),
                "end": run.end,
            }
            for run in runs
        ],
    }
    if row.status is not None:
        found["result"] = {"status": row.status, "bytes": row.result_bytes}
    return found


def listed(row: Any) -> dict[str, Any]:
    """Return the entry of a call in the operators' list."""
    return {
        "id": row.id,
        "sequence": row.sequence,
        "state": row.state,
        "model": row.model,
        "priority": row.priority,
        "request_id": row.request_id,
        "created": rfc3339(row.created_at),
        "started": rfc3339(row.started_at),
        "finished": rfc3339(row.finished_at),
        "runs": row.run,
        "status": row.status,
    }


def byte_range(value: bytes | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the byte after the last byte of a ``Range``; None for the whole body.

    Raises ValueError for a range that begins after the end. Several ranges, or a malformed header, mean the whole body.
    Source: https://www.rfc-editor.org/rfc/rfc9110#section-14.2
    """
    found = re.fullmatch(rb"bytes=([0-9]{0,18})-([0-9]{0,18})", value.strip()) if value else None
    if found is None or found.group() == b"bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        count = int(last)
        if not count or not size:
            raise ValueError
        return max(0, size - count), size
    begin, end = int(first), min(int(last), size - 1) + 1 if last else size
    if last and int(last) < begin:
        return None
    if begin >= size:
        raise ValueError
    return begin, end
