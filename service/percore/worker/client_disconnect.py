"""Whether the client of a call went away, and whether its worker should end for that."""

from __future__ import annotations

import select
import socket

GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


def peer_is_gone(client: socket.socket) -> bool:
    """Tell whether the peer closed, half-closed or reset the connection; nothing is read and nothing blocks.

    A client that half-closes while it waits counts as gone: TCP cannot tell it from one that closed.
    """
    watched = select.poll()
    watched.register(client, select.POLLRDHUP)
    return any(events & GONE for _, events in watched.poll(0))


def should_end(policy: str, run_seconds_left: float, load_seconds: float) -> bool:
    """Decide whether to end a worker that computes for nobody, by ``PERCORE_ON_CLIENT_DISCONNECT``.

    Ending it costs a load, finishing costs what is left of the call, and nobody knows more of that than the run timeout says.
    """
    if policy == "end-if-worthwhile":
        return run_seconds_left > load_seconds
    return policy == "end"
