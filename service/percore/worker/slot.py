"""The worker of a pod: its listening socket is the slot.

The socket listens only while the worker is free. From accept until it is free again the kernel itself refuses every other
connection, whoever dispatches it, also while the worker is replaced. So two calls never share the pod's core.

Closing a listening socket resets whoever is in its queue or about to enter it, and a caller cannot tell such a reset from a
pod lost while it computed. So before the socket closes, new connections are kept out, and those that were on their way in are
let in and told that the worker is busy.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import Any

from percore.errors import Busy
from percore.worker.answer import turn_away
from percore.worker.base import CallWorker

BACKLOG = 64
"""Room for everyone who knocks in the same instant: without it the kernel would drop their handshakes, or break them off."""
ARRIVAL_MILLISECONDS = 1
"""How long a handshake that has begun may take to end: a round trip within a cluster, and to spare."""

TTL_RULES = {
    socket.AF_INET: ((socket.IPPROTO_IP, 21),),  # IP_MINTTL
    socket.AF_INET6: ((socket.IPPROTO_IPV6, 73), (socket.IPPROTO_IP, 21)),  # IPV6_MINHOPCOUNT; and for IPv4 on the same socket
}
"""The lowest time to live that a segment must have. Linux drops a SYN that has less, and asks nothing of a handshake that has
begun. Source: ip(7), ipv6(7)."""
NONE_ARRIVES, ALL_ARRIVE = 255, 0
"""Nobody's segments start with 255; a packet filter could say it outright, but some kernels refuse one without privileges."""


def open_slot(listener: socket.socket) -> None:
    """Let one call come in."""
    _demand_ttl(listener, ALL_ARRIVE)
    listener.listen(BACKLOG)


def keep_out(listener: socket.socket) -> None:
    """Ignore whoever begins to connect from now on; a connection that has begun may still complete."""
    _demand_ttl(listener, NONE_ARRIVES)


def _demand_ttl(of: socket.socket, least: int) -> None:
    for level, option in TTL_RULES.get(of.family, ()):
        with contextlib.suppress(OSError):  # a sandbox that has no such option: a rare caller will see a reset
            of.setsockopt(level, option, least)


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
            self._shut(listener)
            if taken is not None:
                client, address = taken
                self.handle(listener, client, address)
        self._shut(listener)

    def freed(self) -> None:
        """Open the slot at once: whoever dispatches sees the answer end, and sends the next call some 100 us later."""
        if self.alive:
            open_slot(self.sockets[0])

    def _shut(self, listener: socket.socket) -> None:
        keep_out(listener)
        self._turn_others_away(listener)
        close_slot(listener)

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
            _demand_ttl(client, ALL_ARRIVE)  # it was born with what its listener demands
            self.reporter.counted("turned-away")
            turn_away(client, Busy("the worker computes for another caller; send the call again"))
