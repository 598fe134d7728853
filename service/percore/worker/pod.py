"""The worker of a pod: a plain Gunicorn sync worker, whose accept is what says that it is free.

Its listening socket belongs to the arbiter and stays open while the worker computes, loads or is replaced. Connections wait in
the kernel's accept queue, first come, first served. So nobody needs to ask whether the worker is free, and nobody is refused.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from percore.worker.base import CallWorker


def shut_down(listener: socket.socket) -> None:
    """Stop listening in every process that has the socket, which ``close`` does not; connections not yet accepted are reset."""
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.shutdown(socket.SHUT_RD)


class PodWorker(CallWorker):
    """Serves one connection after the other."""

    def accept(self, listener: Any) -> None:
        """Serve the connection that has waited longest. End where the arbiter has shut the listener down."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.alive = False
            return
        self.handle(listener, client, address)

    def tick(self) -> None:
        """Give the port up as soon as the arbiter has died, also while a call computes: nobody would serve who waits there."""
        super().tick()
        if os.getppid() != self.ppid:
            for listener in self.sockets:
                shut_down(listener.sock)
