"""Reservations: how a worker tells a gateway that it is free.

A gateway connects and sends ``OPTIONS *``. The worker answers once it has accepted the connection, that is, when it is free.
Then the gateway sends the call on the same connection. A reservation is no call: it is neither counted nor logged.
"""

from __future__ import annotations

import socket
from typing import Any

from percore.worker import receive

RESERVED = b"HTTP/1.1 200 OK\r\nPercore-Worker: free\r\nContent-Length: 0\r\n\r\n"
CALL_SECONDS = 0.1
"""How long a reserved worker waits for the first byte of the call."""
HEAD_STEP = 8192
MOST_KNOWN = 16
END = b"\r\n\r\n"


class Reservations:
    """Reads the head of a connection's call, and before it a reservation if the client sends one.

    Parsing a reservation takes as long as everything else in it, and a gateway sends the same bytes each time. So the worker
    keeps the bytes of reservations that it has parsed, and does not parse the same bytes again.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._known: dict[bytes, str] = {}

    def read(
        self, client: socket.socket, source: receive.TimedSource, address: receive.Address
    ) -> tuple[receive.Head | None, str]:
        """Return the call's head, or None if no call comes; and the name of the gateway that reserved the worker, or "".

        Raises what ``receive.read_head`` raises.
        """
        data = source.recv(HEAD_STEP)
        if not data:
            return None, ""
        requests = receive.parser(self._config, source, address)
        gateway = self._known.get(data)
        if gateway is None:
            source.unread(data)
            head = receive.read_head(requests, source)
            if head is None or not receive.is_reservation(head):
                return head, ""
            gateway = self._learn(data, head)
        client.sendall(RESERVED)
        source.expect(CALL_SECONDS)
        head = receive.read_head(requests, source)
        return None if head is not None and receive.is_reservation(head) else head, gateway

    def _learn(self, data: bytes, head: receive.Head) -> str:
        gateway = dict(head.headers).get("PERCORE-GATEWAY", "")[:128]
        if data.find(END) == len(data) - len(END) and not head.should_close():  # all of it was the head, and more may follow
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[data] = gateway
        return gateway
