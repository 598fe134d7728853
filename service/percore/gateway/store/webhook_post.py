"""One POST to an untrusted receiver: by the standard library's HTTP client, with bounds that this client does not have.

One timeout bounds the whole attempt. A timeout for each read would not bound a receiver that sends slowly.
The name is resolved once, and the
connection goes to the address that was checked. The answer is read up to a bound. No redirect is followed, no proxy is used.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

ANSWER_BYTES = 64 * 1024
"""How many bytes are read from a receiver: status, headers and body."""
BODY_BYTES = 16 * 1024
"""How many bytes of the body are read. So the connection does not close while a receiver sends a short body."""

Allows = Callable[[str, int], bool]
"""Tells whether a connection may be made to an address and port."""


class AddressRefused(OSError):
    """Webhooks may not be sent to any address of the host."""


class AnswerTooLarge(http.client.HTTPException):
    """The status and the headers of the answer are over the bound."""


@dataclass(frozen=True, slots=True)
class Target:
    """The receiver of one webhook: the parts of its URL."""

    tls: bool
    host: str
    port: int
    path: str
    """Path and query."""


class _Socket(socket.socket):
    """A socket with one deadline for all its operations, and a bound for the bytes that it receives."""

    ends = math.inf
    room = ANSWER_BYTES

    def arm(self, share: int = 1) -> None:
        """Set the timeout of the next operation: the time that is left, divided by ``share``."""
        left = (self.ends - time.monotonic()) / share
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        """Receive within the deadline and the bound."""
        self.arm()
        received = super().recv_into(*arguments, **options)
        self.room -= received
        if self.room < 0:
            raise AnswerTooLarge
        return received

    def send(self, data: Any, flags: int = 0) -> int:
        """Send within the deadline. TLS sends all bytes by this method."""
        self.arm()
        return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all bytes within the deadline. Without TLS, the socket's timeout already covers all of them."""
        self.arm()
        super().sendall(data, flags)


class _TLSSocket(_Socket, ssl.SSLSocket):
    """The same over TLS."""


@cache
def _tls() -> ssl.SSLContext:
    """Return one context for all connections, because reading the system's certificates takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TLSSocket
    return context


class _Connection(http.client.HTTPConnection):
    def __init__(self, target: Target, allows: Allows, ends: float) -> None:
        super().__init__(target.host, target.port)
        # With it the client leaves the port out of the Host header.
        self.default_port = http.client.HTTPS_PORT if target.tls else http.client.HTTP_PORT
        self._target = target
        self._allows = allows
        self._ends = ends

    def connect(self) -> None:
        """Connect to the first allowed address that answers."""
        connected = self._reach()
        self.sock = connected
        if self._target.tls:
            # The handshake comes later, when the socket has its bounds.
            wrapped = _tls().wrap_socket(connected, server_hostname=self._target.host, do_handshake_on_connect=False)
            secured = cast("_TLSSocket", wrapped)
            self.sock = secured
            secured.ends = self._ends
            secured.arm()
            secured.do_handshake()

    def _reach(self) -> _Socket:
        found = socket.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
        allowed = [(family, address) for family, _, _, _, address in found if self._allows(str(address[0]), self._target.port)]
        failure: OSError = AddressRefused()
        for tried, (family, address) in enumerate(allowed):
            connection = _Socket(family, socket.SOCK_STREAM)
            connection.ends = self._ends
            try:
                connection.arm(len(allowed) - tried)  # an address that does not answer leaves time for the next one
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure


def post(target: Target, allows: Allows, body: bytes, headers: Mapping[str, str], ends: float) -> tuple[int, str | None]:
    """Send one POST, and return the status of the answer and its ``Retry-After``.

    ``ends``: the deadline, by ``time.monotonic``. It does not bound the resolving of the name; the system bounds that.
    Raises OSError or HTTPException if there is no answer.
    """
    connection = _Connection(target, allows, ends)
    try:
        connection.request("POST", target.path, body, dict(headers))
        answer = connection.getresponse()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # the status is enough
            answer.read(BODY_BYTES)
        return answer.status, answer.headers.get("Retry-After")
    finally:
        connection.close()
