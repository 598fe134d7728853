"""How many calls wait in the kernel's accept queue, asked of the kernel: no process needs to hold the socket for it.

By netlink's ``sock_diag`` and not from ``/proc/net/tcp``, which lists every connection there is and was: with 26,000 of them
that takes 60 ms, and this some microseconds. Source: Linux's uapi/linux/inet_diag.h; no privilege is needed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_LISTEN = 10

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states as bits
ANSWER = struct.Struct("=4xH50xI")  # the port, in network order, and the receive queue


def _ask(netlink: socket.socket, family: int) -> Iterator[bytes]:
    """Yield what the kernel says of each listening socket of a family."""
    request = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << TCP_LISTEN)
    netlink.send(HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request)
    while True:
        data, start = netlink.recv(1 << 16), 0
        while start < len(data):
            length, kind, *_ = HEADER.unpack_from(data, start)
            if kind in (NLMSG_ERROR, NLMSG_DONE):  # an error: this family is not there
                return
            yield data[start + HEADER.size : start + length]
            start += (length + 3) & ~3


def waiting(port: int) -> int:
    """Return how many connections wait to be accepted on ``port`` in this network namespace."""
    total = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in _ask(netlink, family):
                found, queued = ANSWER.unpack_from(message)
                total += queued if socket.ntohs(found) == port else 0
    return total
