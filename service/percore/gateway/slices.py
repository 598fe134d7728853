"""Endpoints from EndpointSlices, as the API server's JSON has them. Pure.

Source: https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from percore.gateway.endpoints import Endpoint, Endpoints, State

Document = Mapping[str, Any]
FAMILIES = ("IPv4", "IPv6")
"""In this order: a pod with addresses of both is one pod, and gets one slot."""


def endpoints_of(slices: Iterable[Document], port: int, exporter_port: int) -> Endpoints:
    """Return the endpoints of every slice, one for each pod. While a pod moves from one slice to another it is in both."""
    by_pod: dict[str, Endpoint] = {}
    for family, document in _of_known_families(slices):
        for address, pod, state in _entries(document):
            found = Endpoint(address, port, exporter_port, state, pod)
            key = pod or f"{family} {address}"
            known = by_pod.get(key)
            # The same address twice: the slice that says it may get calls is no older than the other.
            if known is None or (known.address == address and state is State.READY):
                by_pod[key] = found
    return tuple(by_pod.values())


def _of_known_families(slices: Iterable[Document]) -> list[tuple[str, Document]]:
    known = [(each["addressType"], each) for each in slices if each["addressType"] in FAMILIES]
    return sorted(known, key=lambda each: FAMILIES.index(each[0]))


def _entries(document: Document) -> Iterator[tuple[str, str, State]]:
    for entry in document.get("endpoints") or ():
        # Every address of an entry leads to the same pod.
        yield entry["addresses"][0], (entry.get("targetRef") or {}).get("name", ""), _state(entry.get("conditions") or {})


def _state(conditions: Document) -> State:
    """Read conditions; one that is absent is unknown, and then ready counts as true, terminating as false."""
    if conditions.get("terminating"):
        return State.TERMINATING
    return State.NOT_READY if conditions.get("ready") is False else State.READY
