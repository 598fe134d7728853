"""Endpoints from EndpointSlices, as the API server's JSON has them. Pure.

Source: https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from percore.gateway.endpoints import Endpoint, Endpoints, State

FAMILIES = ("IPv4", "IPv6")
"""In this order: if a pod has addresses of both families, the first one is used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One endpoint of a slice."""

    address: str
    pod: str
    """The pod's name; empty if the endpoint is not a pod."""
    state: State


@dataclass(frozen=True, slots=True)
class Slice:
    """The parts of an EndpointSlice that the gateway needs."""

    family: str
    entries: tuple[Entry, ...]


def parse(document: Any) -> Slice:
    """Read an EndpointSlice; raise ValueError if it does not have the documented form."""
    try:
        family = _text(document["addressType"])
        entries = document.get("endpoints") or () if family in FAMILIES else ()
        return Slice(family, tuple(_entry(each) for each in entries))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def endpoints_of(slices: Iterable[Slice], port: int, status_port: int) -> Endpoints:
    """Return the endpoints of every slice, one for each pod. While a pod moves from one slice to another it is in both."""
    by_pod: dict[str, Endpoint] = {}
    known_families = [each for each in slices if each.family in FAMILIES]
    for slice_ in sorted(known_families, key=lambda each: FAMILIES.index(each.family)):
        for entry in slice_.entries:
            key = entry.pod or f"{slice_.family} {entry.address}"
            known = by_pod.get(key)
            # The same address twice: READY wins, because the slice that says so is not older than the other.
            if known is None or (known.address == entry.address and entry.state is State.READY):
                by_pod[key] = Endpoint(entry.address, port, status_port, entry.state, entry.pod)
    return tuple(by_pod.values())


def _entry(document: Any) -> Entry:
    # Every address of an endpoint leads to the same pod.
    address = _text(document["addresses"][0])
    ipaddress.ip_address(address)
    return Entry(address, _text((document.get("targetRef") or {}).get("name", "")), _state(document.get("conditions") or {}))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _state(conditions: Any) -> State:
    """Read conditions. A missing condition is unknown: then ``ready`` counts as true, and ``terminating`` as false."""
    if conditions.get("terminating"):
        return State.TERMINATING
    return State.NOT_READY if conditions.get("ready") is False else State.READY
