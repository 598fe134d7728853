"""Peers that die without a word: a host that lost its power, or a network that drops everything."""

from __future__ import annotations

import contextlib
import socket

OPTIONS = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 3),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
"""A probe after 5 s of silence, then one every 3 s; after three without an answer the connection ends: 14 s in all.

There is no ``TCP_USER_TIMEOUT`` among them. Linux applies it to a peer that lives but does not read as well, so that it would
cut off the slow reader of a large answer. The time that an answer may take has its own limit.
"""


def keep_alive(listener: socket.socket) -> None:
    """Have the kernel probe the peer of each connection that is accepted from ``listener``: Linux passes the options on.

    An option that the platform, or a unix socket, does not have is left out.
    """
    for level, name, value in OPTIONS:
        with contextlib.suppress(OSError, AttributeError):
            listener.setsockopt(level, getattr(socket, name), value)
