"""A call: one inference request from its last byte to its answer, and the states it goes through.

::

    queued -> sending -> running -> answering -> ended
       ^         |
       +---------+   the worker was lost before the call's last byte was written

``running`` begins when the last byte of the call is written to the worker: from here on the run counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from percore.errors import CallError
from percore.gateway.spool import Backlog
from percore.http.request import Disconnected

if TYPE_CHECKING:
    from percore.gateway.upstream import WorkerConnection


class CallState(StrEnum):
    """Where a call is."""

    QUEUED = "queued"
    SENDING = "sending"
    RUNNING = "running"
    ANSWERING = "answering"
    ENDED = "ended"


class CallHead(Protocol):
    """The parts of a request that a worker gets besides the body."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    client: str

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the first header of that name (in lower case)."""


class CallBody(Protocol):
    """The body of a call: it can be read as often as the call is sent."""

    size: int

    @property
    def in_memory(self) -> Sequence[bytes] | None:
        """All pieces; None if they are on a disk. A read from a disk may take longer than a reserved worker waits for bytes."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body, piece by piece."""

    def discard(self) -> None:
        """Free its memory or its file: the call is not sent again."""


class Call:
    """One call. ``done`` is resolved when no worker works on it any more."""

    is_stored = False
    """Whether it outlives its connection: see ``store``."""

    __slots__ = (
        "_loop",
        "arrived",
        "backlog",
        "begun",
        "body",
        "broken_sends",
        "caller",
        "connection",
        "delivery",
        "done",
        "is_cancelling",
        "number",
        "overdue",
        "overrun",
        "pod",
        "position",
        "priority",
        "request",
        "request_id",
        "requeues",
        "round",
        "run_seconds",
        "sent_all",
        "state",
        "status",
    )

    def __init__(self, request: Any, body: CallBody, number: int, priority: int, request_id: str) -> None:
        """``request`` is the client's ``Request``; for a stored call it is only a ``CallHead``."""
        self._loop = asyncio.get_running_loop()
        self.request = request
        self.body = body
        self.number = number
        self.priority = priority
        self.caller: bytes | None = None
        """The caller in whose turn it runs; None if callers are not distinguished."""
        self.round = -1
        self.request_id = request_id
        self.state = CallState.QUEUED
        self.arrived = time.monotonic()
        """When its last byte arrived."""
        self.begun: float | None = None
        """When its last byte was written to a worker."""
        self.run_seconds: float | None = None
        self.overdue = False
        """Whether its queue timeout is over. Then it is not queued again."""
        self.position = 0
        """How many calls were queued before it when it was queued."""
        self.overrun = False
        """Whether it ran for longer than the gateway's bound for runs."""
        self.is_cancelling = False
        """Whether its run is being cancelled, so that its worker ends."""
        self.requeues = 0
        self.broken_sends = 0
        """How many workers ended after they had got some of this call and before they had got its last byte."""
        self.pod = ""
        self.status = 0
        """The answer's status; 0 while there is none."""
        self.connection: WorkerConnection | None = None
        self.backlog: Backlog | None = None
        self.delivery: asyncio.Task[None] | None = None
        """The task that sends the spooled part of the answer, if the client reads slowly."""
        self.sent_all = False
        """Whether the worker has sent its whole answer."""
        self.done: asyncio.Future[None] = self._loop.create_future()

    @property
    def queue_seconds(self) -> float:
        """How long it was, or has been, queued."""
        return (time.monotonic() if self.begun is None else self.begun) - self.arrived

    @property
    def ended(self) -> bool:
        """Whether its caller left or has an answer. Then the call must not be sent or queued any more."""
        return self.state is CallState.ENDED

    @property
    def is_delivering(self) -> bool:
        """Whether spooled bytes of its answer are being sent. New bytes must not overtake them."""
        return self.delivery is not None and not self.delivery.done()

    def extra_headers(self) -> list[tuple[bytes, bytes]]:
        """Return headers of ours for the worker."""
        return []

    async def begin(self) -> None:
        """Prepare the run.

        Called when all bytes but the last one are on their way to a worker. Raises ConnectionError to stop the run.
        """

    def put_back(self) -> None:
        """Take note that it is queued again, because its worker was lost before the last byte."""

    async def record(self, worker: WorkerConnection) -> None:
        """Store the worker's answer. Only for a stored call: the dispatcher passes all other answers on to their clients."""
        raise NotImplementedError

    def finish(self) -> None:
        """Take note that no worker works on it any more."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: CallError | Disconnected) -> None:
        """End it with an error, unless its caller left."""
        if self.done.done():
            return
        if self.ended:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def end_without_answer(self) -> None:
        """End it because its caller left: a worker that has it sees its connection close."""
        self.state = CallState.ENDED
        if self.connection is not None:
            self.connection.abort()
