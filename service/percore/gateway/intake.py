"""The states of a call in the gateway, from its head to the end of its answer. Start reading here.

``Router`` answers all requests that are not calls. ``Intake`` receives the calls.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

from percore.api.reads import Reads
from percore.errors import (
    BodyTooLarge,
    CallError,
    NotReady,
    PodLost,
    QueueFull,
    QueueTimeout,
    RunTimeout,
)
from percore.gateway.call import Call, CallState
from percore.gateway.dispatch import Dispatcher
from percore.gateway.gateway_metrics import DISCONNECTED, REJECTION_REASONS, GatewayMetrics, label_of, queue_label_of
from percore.gateway.queue import CallQueue
from percore.gateway.spool import Body, Spool
from percore.gateway.store.documents import Preferences, preferences
from percore.http import own_paths
from percore.http.request import Answer, Disconnected, Request

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
MOST_CALLER_BYTES = 256
STATE_LABELS = {CallState.QUEUED: "queued", CallState.SENDING: "queued", CallState.RUNNING: "executing"}


class StoredRoutes(Protocol):
    """The methods of the store of calls that the gateway uses, if it has a store."""

    def takes(self, request: Request) -> bool:
        """Tell whether a request is about a stored call."""

    async def answer(self, request: Request) -> None:
        """Answer a request about a stored call."""

    async def submit(self, request: Request, request_id: str, wanted: Preferences) -> int:
        """Receive a call, store it and answer; return the status."""


class Router:
    """Answers probes and reads. Every other request is a call, and goes to the intake."""

    def __init__(
        self,
        intake: Intake,
        why_not_ready: Callable[[], str],
        health_paths: Collection[str],
        reads: Reads | None,
    ) -> None:
        """``why_not_ready`` returns the reason why the gateway is not ready. Without ``reads``, GET and HEAD are calls too."""
        self._intake = intake
        self._why_not_ready = why_not_ready
        self._health_paths = health_paths
        self._reads = reads
        self.stored: StoredRoutes | None = None
        """Answers requests about stored calls; None if calls are not stored."""

    async def serve(self, request: Request) -> None:
        """Answer a request, or pass it to the intake as a call."""
        stored = self.stored
        if stored is not None and stored.takes(request):
            await stored.answer(request)
        elif (answer := self._probe(request)) is not None:
            request.respond(*answer)
        elif self._reads is not None and request.method in (b"GET", b"HEAD"):
            request.respond(*self._reads.answer(request.path))
        elif stored is not None and (wanted := _preferences_of_stored_call(request)) is not None:
            await self._intake.serve_stored(request, partial(stored.submit, wanted=wanted))
        else:
            await self._intake.serve(request)

    def _probe(self, request: Request) -> Answer | None:
        """Return the answer if the gateway itself has the path; None for every other path."""
        if request.decoded_path.startswith(own_paths.PREFIX):
            return own_paths.answer(request.method.decode("latin-1"), request.path, self._why_not_ready())
        if request.decoded_path in self._health_paths:
            return own_paths.ready(self._why_not_ready())
        return None


def _preferences_of_stored_call(request: Request) -> Preferences | None:
    """Return the options of a request that asks to be stored; None if it does not ask for that."""
    if request.header(b"prefer") is None:
        return None
    found = preferences(request)
    return found if found.respond_async else None


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds of the queue, and the headers that decide the place of a call in it."""

    queue_length: int
    queue_seconds: float
    priority_header: bytes = b""
    caller_header: bytes = b""

    def priority(self, request: Request) -> int:
        """Return the priority that the caller asks for: 1 to 9, or 0."""
        value = (request.header(self.priority_header) or b"") if self.priority_header else b""
        return int(value) if len(value) == 1 and b"1" <= value <= b"9" else 0

    def caller(self, request: Request) -> bytes | None:
        """Return the caller's name from the header; None if callers are not distinguished."""
        return (request.header(self.caller_header) or b"")[:MOST_CALLER_BYTES] if self.caller_header else None


class Intake:
    """Receives calls, and follows each call to the end of its answer."""

    def __init__(
        self,
        limits: IntakeLimits,
        spool: Spool,
        queue: CallQueue[Call],
        dispatcher: Dispatcher,
        metrics: GatewayMetrics,
        write_line: Callable[[dict[str, Any]], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._spool = spool
        self._queue = queue
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._total = cache(metrics.total.labels)
        """Keeps the series of each label, because the library needs longer to look a series up than to observe a value."""
        self._queue_time = cache(metrics.queue.labels)
        self._write_line = write_line
        self.open_calls = 0
        """Calls that are received, queued, running or answered."""
        self.stopping = False

    async def serve(self, request: Request) -> None:
        """Receive a call, queue it, and wait until it has run and its answer is delivered."""
        began = time.monotonic()
        request_id = request_id_of(request)
        call: Call | None = None
        body: Body | None = None
        self.open_calls += 1
        try:
            self.admit(request)
            body = await self._spool.receive(request)
            self._check_queue()
            call = self._enqueue(request, body, request_id)
            await self._run(call)
            self._end(request, request_id, began, call, str(call.status))
        except asyncio.CancelledError:
            self._client_left(call)
            self._end(request, request_id, began, call, DISCONNECTED)
            raise
        except Disconnected:
            self._client_left(call)
            request.interrupt()
            self._end(request, request_id, began, call, DISCONNECTED)
        except CallError as error:
            self._refuse(request, request_id, call, error)
            self._end(request, request_id, began, call, str(error.status))
        finally:
            self.open_calls -= 1
            if body is not None:
                body.discard()
            if call is not None and call.delivery is not None:
                call.delivery.cancel()
            if call is not None and call.backlog is not None:
                call.backlog.discard()

    async def serve_stored(self, request: Request, submit: Callable[[Request, str], Awaitable[int]]) -> None:
        """Store a call by ``submit``, which receives it, answers, and returns the status.

        Later, when the stored call runs, it is another ``Call``.
        """
        began = time.monotonic()
        request_id = request_id_of(request)
        code = DISCONNECTED
        self.open_calls += 1
        try:
            self.admit(request, stored=True)
            code = str(await submit(request, request_id))
            await request.flushed()
        except asyncio.CancelledError:
            self._client_left(None)
            raise
        except Disconnected:
            self._client_left(None)
            request.interrupt()
        except CallError as error:
            self._refuse(request, request_id, None, error)
            code = str(error.status)
        finally:
            self.open_calls -= 1
            self._end(request, request_id, began, None, code)

    # --- steps

    def admit(self, request: Request, *, stored: bool = False) -> None:
        """Reject a call before its body is read, if its head shows that it cannot be accepted."""
        if self.stopping:
            raise NotReady("the gateway is stopping; send the call again")
        length = request.content_length
        most = self._spool.limits.body_bytes
        if length is not None and length > most:
            raise BodyTooLarge(f"the body must be at most {most} bytes, and Content-Length is {length}")
        if not stored:
            self._check_queue()

    def _check_queue(self) -> None:
        if self._queue.unstored >= self._limits.queue_length:
            raise QueueFull(f"the queue is full ({self._limits.queue_length} calls); send the call again later")

    def _enqueue(self, request: Request, body: Body, request_id: str) -> Call:
        limits = self._limits
        call = Call(request, body, self._queue.next_number(), limits.priority(request), request_id)
        call.caller = limits.caller(request)
        self._queue.push(call)
        call.position = self._queue.ahead(call)
        self._dispatcher.match()
        return call

    async def _run(self, call: Call) -> None:
        """Wait until the call has run and the client has the answer."""
        timer = self._loop.call_later(self._limits.queue_seconds, self._queue_expired, call)
        try:
            await call.done
        finally:
            timer.cancel()
        if call.delivery is not None:
            await call.delivery
        await call.request.flushed()

    def _queue_expired(self, call: Call) -> None:
        call.overdue = True
        if self._queue.remove(call):
            self._dispatcher.queue_shrank()
            call.fail(
                QueueTimeout(f"the call was queued for {self._limits.queue_seconds:g} s, the queue timeout; it never ran")
            )

    # --- the end

    def _client_left(self, call: Call | None) -> None:
        state = "receiving" if call is None else STATE_LABELS.get(call.state, "answering")
        self._metrics.disconnects.labels(state).inc()
        if call is None:
            return
        queued = self._queue.remove(call)
        call.end_without_answer()
        if queued:
            self._dispatcher.queue_shrank()

    def _refuse(self, request: Request, request_id: str, call: Call | None, error: CallError) -> None:
        if error.code in REJECTION_REASONS:
            self._metrics.rejected.labels(error.code).inc()
        if call is not None:
            call.state = CallState.ENDED
        if request.head_sent:
            self._metrics.interrupted.inc()
            request.interrupt()
            return
        headers = [(b"X-Request-ID", request_id.encode("latin-1"))]
        if isinstance(error, (QueueTimeout, PodLost, RunTimeout)) and call is not None:
            headers.append((b"Server-Timing", b"queue;dur=%.3f" % (call.queue_seconds * 1000)))
        request.reject(error, headers)

    def _end(self, request: Request, request_id: str, began: float, call: Call | None, code: str) -> None:
        total = time.monotonic() - began
        self._total(label_of(code)).observe(total)
        queue_seconds = None
        if call is not None:
            queue_seconds = call.queue_seconds if call.begun is not None or call.state is CallState.ENDED else total
            self._queue_time(queue_label_of(code)).observe(queue_seconds)
        self._write_line(
            {
                "logger": "percore.gateway.call",
                "request_id": request_id,
                "method": request.method.decode("latin-1"),
                "path": request.path,
                "status": int(code) if code.isdigit() else code,
                "queue_position": call.position if call is not None else None,
                "queue_seconds": _rounded(queue_seconds),
                "run_seconds": _rounded(call.run_seconds) if call is not None else None,
                "total_seconds": _rounded(total),
                "request_bytes": request.received,
                "response_bytes": request.answered_bytes,
                "requeues": call.requeues if call is not None else 0,
                "pod": (call.pod or None) if call is not None else None,
                "client": request.client,
            }
        )

    def refused(self, request: Request, error: CallError) -> None:
        """Count and log a request that the front rejected, because it is not HTTP or came too slowly."""
        if error.code in REJECTION_REASONS:
            self._metrics.rejected.labels(error.code).inc()
        self._end(request, secrets.token_hex(16), time.monotonic(), None, str(error.status))


def request_id_of(request: Request) -> str:
    """Return the client's ``X-Request-ID``, or a new one."""
    given = request.header(b"x-request-id") or b""
    return given.decode("latin-1") if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
