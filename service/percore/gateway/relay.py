"""Passes an answer from the worker to the client.

The gateway takes the answer as fast as the worker sends it, so that the worker is free early. Bytes that the client has not
read yet go to the spool. If the spool is full, the worker must wait. A client that reads fast enough gets every piece at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from percore.errors import CallError
from percore.gateway.call import Call
from percore.gateway.spool import Backlog, Spool
from percore.gateway.upstream import WorkerConnection
from percore.http.request import HOP_BY_HOP, Header, connection_tokens

ROOM_SECONDS = 0.05
NOT_PASSED = HOP_BY_HOP | {b"content-length", b"x-request-id", b"server-timing"}


def answer_headers(headers: Sequence[Header], request_id: str, queue_seconds: float) -> tuple[list[Header], int | None]:
    """Return the headers for the client, and the body's length if the worker said it."""
    passed: list[Header] = []
    length: int | None = None
    timing = b"queue;dur=%.3f" % (queue_seconds * 1000)
    dropped = NOT_PASSED | connection_tokens(headers)
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            length = int(value)
        elif lowered == b"server-timing":
            timing += b", " + value
        elif lowered not in dropped:
            passed.append((name, value))
    passed += [(b"X-Request-ID", request_id.encode("latin-1")), (b"Server-Timing", timing)]
    return passed, length


async def relay(call: Call, worker: WorkerConnection, spool: Spool, answer_seconds: float) -> None:
    """Pass the worker's answer on. Returns when the worker has sent all of it; raises ConnectionError if it is lost."""
    await worker.answer()
    request = call.request
    headers, length = answer_headers(worker.headers, call.request_id, call.queue_seconds)
    call.status = worker.status
    head = request.head(worker.status, headers, length, worker.phrase)
    if request.bodyless(worker.status):
        request.write(head)
        request.finish()
        return
    first = worker.take() if worker.buffered else b""
    request.write(head + request.frame(first))
    while not worker.complete or worker.buffered:
        piece = await worker.piece()
        if piece:
            await _pass_on(call, request.frame(piece), spool, answer_seconds)
    call.sent_all = True
    if not _is_delivering(call):
        request.finish()  # in the step of the last byte: the client's next request may be on its way


async def _pass_on(call: Call, data: bytes, spool: Spool, answer_seconds: float) -> None:
    request = call.request
    if not _is_delivering(call) and request.writable:
        request.write(data)
        return
    call.backlog = call.backlog or Backlog(spool)
    await _put(call, call.backlog, data, answer_seconds)
    # While this piece went to the disk, the backlog was empty, and the delivery may have ended. Start it again.
    if call.backlog and not _is_delivering(call):
        call.delivery = asyncio.get_running_loop().create_task(_deliver(call, call.backlog, answer_seconds))
        call.delivery.add_done_callback(lambda task: task.cancelled() or task.exception())


def _is_delivering(call: Call) -> bool:
    return call.delivery is not None and not call.delivery.done()


async def _put(call: Call, backlog: Backlog, data: bytes, answer_seconds: float) -> None:
    """Spool a piece. Without room the worker is held back until the client has read on."""
    while not call.ended:
        if backlog.has_room(len(data)):
            try:
                await backlog.put(data)
            except CallError:  # the disk is full in spite of the bound
                pass
            else:
                return
        if call.delivery is not None and call.delivery.done() and call.delivery.exception():
            return
        if not backlog:
            await call.request.drained(answer_seconds)
            call.request.write(data)
            return
        await asyncio.sleep(ROOM_SECONDS)


async def _deliver(call: Call, backlog: Backlog, answer_seconds: float) -> None:
    """Send what is spooled as fast as the client reads."""
    while backlog:
        await call.request.drained(answer_seconds)
        call.request.write(await backlog.get())
    if call.sent_all:
        call.request.finish()
