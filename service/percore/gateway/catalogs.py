"""The catalog: the models that the pods serve. It is fetched from a status server, and kept until it is replaced.

It is fetched from the ready pod that was listed last. In a rolling update that is a pod of the newest revision. The catalog is
kept, so reads are also answered when there are no pods.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import orjson

from percore.gateway.endpoints import Endpoint, State
from percore.gateway.pods import Key, key_of
from percore.gateway.upstream import connect
from percore.model_metadata import Catalog

log = logging.getLogger("percore.gateway")

ANSWER_SECONDS = 5.0
REFRESH_SECONDS = 30.0
RETRY_SECONDS = 0.5
MOST_CATALOG_BYTES = 16 << 20
GET_CATALOG = b"GET /catalog HTTP/1.1\r\nHost: status\r\nConnection: close\r\n\r\n"


class PodCatalogs:
    """The newest catalog."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._document = b""
        self._candidates: list[Endpoint] = []
        self._order: dict[Key, int] = {}
        self._source: Key | None = None
        self._changed = asyncio.Event()

    def current(self) -> Catalog | None:
        """Return the catalog, or None if none was fetched yet."""
        return self._catalog

    def publish(self, endpoints: Iterable[Endpoint]) -> None:
        """Take in the present pods; the pods that were listed last are asked first."""
        endpoints = list(endpoints)
        latest = max(self._order.values(), default=0)
        self._order = {key: self._order.get(key, latest + 1 + place) for place, key in enumerate(map(key_of, endpoints))}
        ready = [each for each in endpoints if each.state is State.READY]
        self._candidates = sorted(ready, key=lambda each: -self._order[key_of(each)])
        if self._candidates and key_of(self._candidates[0]) != self._source:
            self._changed.set()

    async def follow(self) -> None:
        """Fetch the catalog when the pods change, and regularly, for ever."""
        while True:
            self._changed.clear()
            known = await self._refresh()
            seconds = REFRESH_SECONDS if known or not self._candidates else RETRY_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _refresh(self) -> bool:
        for endpoint in self._candidates[:3]:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    document = await fetch_catalog(endpoint.address, endpoint.status_port)
                self._replace(document)
            except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
                log.debug("pod %s: no catalog: %s", endpoint.pod or endpoint.address, error)
                continue
            self._source = key_of(endpoint)
            return True
        return False

    def _replace(self, document: bytes) -> None:
        if document != self._document:
            self._catalog = Catalog.from_document(orjson.loads(document))
            self._document = document


async def fetch_catalog(host: str, port: int) -> bytes:
    """Return the catalog of a status server; raise OSError or ValueError if it sends none."""
    connection = await connect(host, port)
    try:
        await connection.send(GET_CATALOG)
        await connection.answer()
        if connection.status != 200:
            raise ValueError(f"the status server answers {connection.status}")
        document = bytearray()
        while piece := await connection.piece():
            document += piece
            if len(document) > MOST_CATALOG_BYTES:
                raise ValueError(f"the catalog is over {MOST_CATALOG_BYTES} bytes")
        return bytes(document)
    finally:
        connection.abort()
