"""Sends the part of an answer that its client has not read yet.

The gateway takes an answer as fast as the worker sends it, so that the worker is free early. Bytes that the client has not
read yet go to the spool. If the spool is full, the worker must wait.
"""

from __future__ import annotations

import asyncio

from percore.errors import CallError
from percore.gateway.call import Call
from percore.gateway.spool import Backlog, Spool

ROOM_SECONDS = 0.05


async def deliver_later(call: Call, data: bytes, spool: Spool, answer_seconds: float) -> None:
    """Spool a piece of the answer. It is sent when the client reads more."""
    call.backlog = call.backlog or Backlog(spool)
    await _put(call, call.backlog, data, answer_seconds)
    # While this piece went to the disk, the backlog was empty, and the delivery may have ended. Start it again.
    if call.backlog and not call.is_delivering:
        call.delivery = asyncio.get_running_loop().create_task(_deliver(call, call.backlog, answer_seconds))
        call.delivery.add_done_callback(lambda task: task.cancelled() or task.exception())


async def _put(call: Call, backlog: Backlog, data: bytes, answer_seconds: float) -> None:
    """Spool a piece. If there is no room, wait: then nothing is read from the worker until the client has read more."""
    while not call.ended:
        if backlog.has_room(len(data)):
            try:
                await backlog.put(data)
            except CallError:  # the disk is full before the bound is reached
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
    """Send the spooled bytes as fast as the client reads."""
    while backlog:
        await call.request.drained(answer_seconds)
        call.request.write(await backlog.get())
    if call.sent_all:
        call.request.finish()
