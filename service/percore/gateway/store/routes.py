"""The HTTP of stored calls: ``Prefer: respond-async`` on the usual routes, and the requests about a stored call."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import orjson

from percore.errors import BadInput, Gone, MethodNotAllowed, NotFinished, NotFound, RangeNotSatisfiable
from percore.gateway.store import records
from percore.gateway.store.database import StoreFailed
from percore.gateway.store.documents import (
    Preferences,
    byte_range,
    decoded_headers,
    listed,
    preferences,
    status_document,
)
from percore.gateway.store.records import Row
from percore.gateway.store.schema import FINAL, OPEN, State
from percore.gateway.store.stored_calls import StoredCalls
from percore.http.own_paths import decoded
from percore.http.request import JSON, Answer, Header, Request

ROUTE = re.compile(r"/([0-9a-f]{32})(/result|/cancel)?")
POLL_SECONDS = 1
"""``Retry-After`` of a call that has not ended. Long polling is better: ``Prefer: wait=60``."""
MOST_LISTED = 1000
SEND_BYTES = 64 * 1024
"""How many bytes of a result are read at a time. For each slow client the gateway keeps one such part in memory."""


class Routes:
    """Answers requests about stored calls, and calls that ask to be stored."""

    def __init__(self, stored: StoredCalls, base: str, answer_seconds: float, check_webhook: Callable[[str], None]) -> None:
        """Take ``base``, the path of all stored calls: ``/v1/calls``, or ``/-/calls`` beside an app."""
        self._stored = stored
        self._base = base
        self._answer_seconds = answer_seconds
        self._check_webhook = check_webhook

    def takes(self, request: Request) -> bool:
        """Tell whether a request is about a stored call."""
        path = request.path
        if "%" in path:
            path = decoded(path)
        return path == self._base or path.startswith(self._base + "/")

    async def submit(self, request: Request, request_id: str, wanted: Preferences) -> int:
        """Store a call. Answer with its result if it ends in time, otherwise with its receipt. Return the status."""
        webhook = request.header(b"percore-webhook")
        if webhook is not None:
            self._check_webhook(webhook.decode("latin-1"))
        row = await self._stored.accept(request, request_id)
        headers: list[Header] = [
            (b"Location", f"{self._base}/{row.id}".encode()),
            (b"Preference-Applied", wanted.applied()),
            (b"X-Request-ID", request_id.encode("latin-1")),
        ]
        try:
            if wanted.wait_seconds:
                row = self._known(await self._stored.wait_for_end(row.id, wanted.wait_seconds))
                if row.status is not None:
                    await self._send_result(request, row, headers)
                    return int(row.status)
            await self._send_status(request, row, 202, headers)
        except StoreFailed:  # the call is stored, so its caller must get the receipt
            if request.head_sent:
                raise
            self._send_document(request, row, [], None, 202, headers)
        return 202

    async def answer(self, request: Request) -> None:
        """Answer a request about a stored call."""
        await self._stored.wait_until_ready()
        found = ROUTE.fullmatch(decoded(request.path)[len(self._base) :])
        if found is None:
            raise NotFound(f"no route {request.path[:100]!r}; there are {self._base}/ID, its /result and its /cancel")
        call_id, rest = found[1], found[2] or ""
        method = request.method.decode("latin-1")
        allowed = {"": "GET, HEAD, DELETE", "/result": "GET, HEAD", "/cancel": "POST"}[rest]
        if method not in allowed.split(", "):
            raise MethodNotAllowed(method, f"{self._base}/ID{rest}", allowed)
        if rest == "/cancel":
            await self._send_status(request, self._known(await self._stored.cancel(call_id)), 200, [])
        elif method == "DELETE":
            await self._erase(request, call_id)
        elif rest == "/result":
            await self._result(request, call_id)
        else:
            await self._status(request, call_id)

    @staticmethod
    def _known(row: Row | None) -> Row:
        if row is None:
            raise NotFound("no such call: it never existed, or it was erased long ago")
        if row.erased:
            raise Gone("the call was erased: its retention was over, or it was deleted")
        return row

    async def _wait_for_end(self, request: Request, call_id: str) -> tuple[Row, list[Header]]:
        """Wait for the end of a call as ``Prefer`` asks. Return the call, and the header ``Preference-Applied``."""
        wait = preferences(request).wait_seconds
        row = self._known(await self._stored.wait_for_end(call_id, wait or 0.0))
        return row, [] if wait is None else [(b"Preference-Applied", b"wait=%d" % wait)]

    async def _status(self, request: Request, call_id: str) -> None:
        row, headers = await self._wait_for_end(request, call_id)
        await self._send_status(request, row, 200, headers)

    async def _send_status(self, request: Request, row: Row, status: int, headers: list[Header]) -> None:
        read = self._stored.database.read
        runs = await read(partial(records.runs_of, sequence=row.sequence)) if row.run else []
        position = self._stored.position(row) if row.state == State.QUEUED else None
        if position is None and row.state == State.QUEUED:
            position = await self._stored.database.read(partial(records.ahead, row=row))
        self._send_document(request, row, runs, position, status, headers)

    def _send_document(
        self, request: Request, row: Row, runs: list[Row], position: int | None, status: int, headers: list[Header]
    ) -> None:
        if row.state in OPEN:
            headers = [*headers, (b"Retry-After", b"%d" % POLL_SECONDS)]
        document = status_document(row, runs, position)
        document["links"] = {"self": f"{self._base}/{row.id}", "result": f"{self._base}/{row.id}/result"}
        request.respond(status, [*JSON, (b"Cache-Control", b"no-store"), *headers], orjson.dumps(document))

    async def _result(self, request: Request, call_id: str) -> None:
        row, headers = await self._wait_for_end(request, call_id)
        if row.state in OPEN:
            raise NotFinished(f"the call is {row.state}: it has no result yet")
        if row.status is None:
            raise NotFinished(f"the call was {row.state}: it has no result")
        await self._send_result(request, row, headers)

    async def _send_result(self, request: Request, row: Row, more: list[Header]) -> None:
        """Send the worker's answer unchanged, or a part of its body."""
        size = row.result_bytes
        theirs = decoded_headers(orjson.loads(row.headers))
        names = {name.lower() for name, _ in theirs}
        headers = [*theirs, *(header for header in more if header[0].lower() not in names)]  # a redirect has its own Location
        is_whole = row.status == 200 and request.method in (b"GET", b"HEAD")
        if b"x-request-id" not in {name.lower() for name, _ in headers}:
            headers.append((b"X-Request-ID", row.request_id.encode("latin-1")))
        try:
            asked = request.header(b"range") if is_whole and request.method == b"GET" and _is_current(request, theirs) else None
            part = byte_range(asked, size)
        except ValueError:
            error = RangeNotSatisfiable(f"Range: the result has {size} bytes")
            request.reject(error, [(b"Content-Range", b"bytes */%d" % size)])
            return
        if is_whole and b"accept-ranges" not in names:
            headers.append((b"Accept-Ranges", b"bytes"))
        # Read the first piece before the head is made. If that fails, the client still gets an error of percore.
        pieces = self._pieces(row, *(part or (0, 0 if request.bodyless(row.status) else size)))
        first = await anext(pieces, b"")
        if part is None:
            head = request.head(row.status, headers, size, row.phrase or b"")
        else:
            headers.append((b"Content-Range", b"bytes %d-%d/%d" % (part[0], part[1] - 1, size)))
            head = request.head(206, headers, part[1] - part[0])
        request.write(head + first)
        async for piece in pieces:
            await request.drained(self._answer_seconds)
            request.write(piece)
        request.finish()
        await request.flushed()

    async def _pieces(self, row: Row, begin: int, end: int) -> AsyncIterator[bytes]:
        """Yield a part of a result."""
        while begin < end:
            most = min(SEND_BYTES, end - begin)
            which = partial(records.result_bytes, sequence=row.sequence, run=row.run, begin=begin, most=most)
            data = await self._stored.database.read(which)
            if not data:  # it was erased meanwhile: the client must see that the answer is not complete
                raise Gone("the call was erased")
            begin += len(data)
            yield data

    async def _erase(self, request: Request, call_id: str) -> None:
        row = self._known(await self._stored.find(call_id))
        if row.state not in FINAL:
            raise NotFinished(f"the call is {row.state}: cancel it first")
        await self._stored.erase(call_id)
        request.respond(204, [], b"")

    def listing(self, query: str) -> Answer:
        """Answer with the operators' list of calls. May be called from any thread."""
        try:
            given = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=10)
        except ValueError:
            raise BadInput("query: must be of the form name=value&name=value") from None
        unknown = given.keys() - {"state", "model", "limit", "after"}
        if unknown:
            raise BadInput(f"query: {min(unknown)[:40]!r} is not known; there are state, model, limit and after")
        states = [state for value in given.get("state", []) for state in value.split(",") if state]
        known = [state.value for state in (*OPEN, *FINAL)]
        for state in states:
            if state not in known:
                raise BadInput(f"state: must be one of {', '.join(known)}, got {state[:40]!r}")
        model = given.get("model", [""])[0]
        if not model.isprintable():
            raise BadInput(f"model: must be printable, got {model[:40]!r}")
        limit = _whole(given, "limit", 100, 1, MOST_LISTED)
        after = _whole(given, "after", 0, 0, 2**62)
        self._stored.check_ready()
        work = partial(records.listing, states=states, model=model, after=after, limit=limit)
        rows = self._stored.database.read_blocking(work)
        document: dict[str, Any] = {"calls": [listed(row) for row in rows]}
        document["next"] = rows[-1].sequence if len(rows) == limit else None
        return 200, JSON, orjson.dumps(document)


def _is_current(request: Request, headers: list[Header]) -> bool:
    """Tell whether a range is of the result that the client knows. Source: RFC 9110, section 13.1.5 (``If-Range``)."""
    known = request.header(b"if-range")
    return known is None or known in [value for name, value in headers if name.lower() in (b"etag", b"last-modified")]


def _whole(given: dict[str, list[str]], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name, [str(default)])[0]
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise BadInput(f"{name}: must be a whole number from {low} to {high}, got {text[:40]!r}")
    return int(text)
