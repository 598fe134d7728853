"""The worker of one machine without Kubernetes: one of many that accept from one socket, each pinned to cores of its own.

The socket stays open, and the kernel's accept queue is the queue of calls: first come, first served, bound to a worker only
when that worker is free.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

from percore.worker.base import CallWorker

LAST_DATA_RECEIVED = struct.Struct("=52xI")
"""``tcpi_last_data_recv`` of ``struct tcp_info`` in Linux's uapi/linux/tcp.h: 8 bytes, then the twelfth of its words."""


def seconds_since_data(client: socket.socket) -> float:
    """Return how long ago the connection last received data, in seconds, to the millisecond.

    Right after accept that is how long a call waited: its data came while it was in the accept queue.
    """
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_DATA_RECEIVED.size)
    milliseconds: int = LAST_DATA_RECEIVED.unpack(info)[0]
    return milliseconds / 1000


class SharedWorker(CallWorker):
    """Takes the call that has waited longest, whenever it is free."""

    pins = True

    def handle(self, listener: Any, client: socket.socket, address: Any) -> None:
        """Drop a connection that has said nothing all the time that the kernel held it back; serve any other."""
        arrived = select.poll()
        arrived.register(client, select.POLLIN)
        if arrived.poll(0):
            super().handle(listener, client, address)
        else:
            client.close()

    def waited(self, client: socket.socket) -> float | None:
        """Return the time in the accept queue."""
        return seconds_since_data(client)
