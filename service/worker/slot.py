"""The worker of a pod: its listening socket is the slot.

The socket listens only while the worker is free. From accept until it is free again the kernel itself refuses every other
connection, whoever dispatches it, also while the worker is replaced. So two calls never share the pod's core.

Closing a listening socket resets whoever is in its queue or about to enter it, and a caller cannot tell such a reset from a
pod lost while it computed. So before the socket closes, a packet filter keeps new connections out, and those that were on
their way in are let in and told that the worker is busy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
from typing import Any

from service.errors import Busy
from service.worker.answer import turn_away
from service.worker.base import CallWorker

BACKLOG = 64
"""Room for everyone who knocks in the same instant: without it the kernel would drop their handshakes, or break them off."""
ARRIVAL_MILLISECONDS = 1
"""How long a handshake that has begun may take to end: a round trip within a cluster, and to spare."""

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
# Classic BPF, of (code, jump if true, jump if false, operand): drop segments that carry SYN, let the others through.
NO_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of TCP's flags
        (0x45, 0, 1, 0x02),  # is SYN among them?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # keep
    )
)
_instructions = ctypes.create_string_buffer(NO_SYN, len(NO_SYN))
FILTER = struct.pack("HL", len(NO_SYN) // 8, ctypes.addressof(_instructions))


def open_slot(listener: socket.socket) -> None:
    """Let one call come in."""
    with contextlib.suppress(OSError):  # no filter is attached
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    listener.listen(BACKLOG)


def keep_out(listener: socket.socket) -> None:
    """Ignore whoever begins to connect from now on; a connection that has begun may still complete."""
    with contextlib.suppress(OSError):  # a sandbox without packet filters: a rare caller will see a reset
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, FILTER)


def close_slot(listener: socket.socket) -> None:
    """Let the kernel refuse whoever connects from now on; the address stays bound.

    Only where it listens: of a socket that does not, a shutdown is remembered, and the first connection after the next
    ``listen`` looks half-closed.
    """
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.shutdown(socket.SHUT_RD)


class SlotWorker(CallWorker):
    """Serves one call at a time and listens for none meanwhile."""

    def serve_calls(self) -> None:
        """Open the slot, take one call, close the slot, serve; and again, until told to stop."""
        listener = self.sockets[0]
        listener.setblocking(False)
        while self.alive:
            open_slot(listener)
            taken = self._next(listener)
            keep_out(listener)
            self._turn_others_away(listener)
            close_slot(listener)
            if taken is not None:
                client, address = taken
                self.handle(listener, client, address)

    def _next(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        while self.alive and self.is_parent_alive():
            try:
                return listener.accept()
            except (BlockingIOError, ConnectionError):
                self.wait(self.timeout)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return None  # the arbiter closed the slot for a worker that died: open it again
        return None

    def _turn_others_away(self, listener: socket.socket) -> None:
        """Refuse who came in the same instant: such a call never ran, and whoever sent it may send it elsewhere."""
        arriving = select.poll()
        arriving.register(listener, select.POLLIN)
        while arriving.poll(ARRIVAL_MILLISECONDS):
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.reporter.counted("turned-away")
            turn_away(client, Busy("the worker computes for another caller; send the call again"))
