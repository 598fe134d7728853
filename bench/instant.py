"""Workers that answer at once: ``python -m bench.instant PORT...``.

With them, nearly all of a call's cost is the gateway's. They have the protocol of a worker (a reservation, then one call on the
same connection) and compute nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from bench import client

RESERVED = b"HTTP/1.1 200 OK\r\nPercore-Worker: free\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Instant(asyncio.Protocol):
    """One connection. The bench's calls are small: each comes in one piece."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport for answers."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a reservation or a call."""
        if data.startswith(b"OPTIONS "):
            self._transport.write(RESERVED)
        else:
            self._transport.write(ANSWER)
            self._transport.close()


async def _serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Instant, client.HOST, port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve([int(each) for each in sys.argv[1:]]))
