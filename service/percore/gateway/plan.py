"""What to tell HAProxy, decided from what is known. Pure: no sockets, no clock, nothing remembered.

HAProxy itself remembers which pod has which slot. So whoever asks anew, after a restart of either side, decides the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from percore.gateway.endpoints import Endpoint, State


class Admin(StrEnum):
    """What HAProxy was told to do with a server."""

    FREE = "free"
    """The slot belongs to no pod: HAProxy's maintenance."""
    READY = "ready"
    DRAIN = "drain"
    """It gets no new calls."""


class Health(StrEnum):
    """What HAProxy's own checks say of a server."""

    UP = "up"
    TAKEN = "taken"
    """It computes for another gateway."""
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Server:
    """One of HAProxy's slots for pods."""

    slot: int
    address: str = "0.0.0.0"  # noqa: S104 - HAProxy's word for none
    port: int = 0
    admin: Admin = Admin.FREE
    health: Health = Health.UP
    sessions: int = 0

    @property
    def place(self) -> tuple[str, int]:
        """Where it sends calls."""
        return self.address, self.port


@dataclass(frozen=True, slots=True)
class Snapshot:
    """HAProxy at one moment."""

    servers: tuple[Server, ...]
    executing: int
    waiting: int
    held: bool
    """Whether the server that makes calls wait at zero pods is occupied, as it must be."""

    @property
    def calls(self) -> int:
        """How many calls are on their way."""
        return self.executing + self.waiting


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a free slot to a pod."""

    slot: int
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Ready:
    """Send calls again to the pod that has the slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Send no more calls to the pod that has the slot; the one that runs there goes on."""

    slot: int


@dataclass(frozen=True, slots=True)
class Release:
    """Take the slot from a pod that is gone."""

    slot: int


Command = Assign | Ready | Drain | Release
_PREFERENCE = {State.READY: 0, State.NOT_READY: 1, State.TERMINATING: 2}


def plan(endpoints: Iterable[Endpoint], servers: Iterable[Server]) -> list[Command]:
    """Return what makes HAProxy's slots equal to the endpoints: slots are given up first, then given out."""
    known = by_place(endpoints)
    servers = sorted(servers, key=lambda server: server.slot)
    used = [server for server in servers if server.admin is not Admin.FREE]
    changes = [command for server in used for command in _tend(server, known.get(server.place))]
    served = {server.place for server in used}
    homeless = [each for each in known.values() if each.state is State.READY and each.place not in served]
    # A slot may have been freed by hand while a call still ran there.
    free = [server.slot for server in servers if server.admin is Admin.FREE and not server.sessions]
    return changes + [Assign(slot, endpoint) for slot, endpoint in zip(free, homeless, strict=False)]


def by_place(endpoints: Iterable[Endpoint]) -> dict[tuple[str, int], Endpoint]:
    """Return the endpoints by place; of two at one place, a pod and its successor, the one that takes calls."""
    found: dict[tuple[str, int], Endpoint] = {}
    for each in endpoints:
        known = found.get(each.place)
        if known is None or _PREFERENCE[each.state] < _PREFERENCE[known.state]:
            found[each.place] = each
    return found


def _tend(server: Server, endpoint: Endpoint | None) -> Iterator[Command]:
    """Yield what a slot in use needs now."""
    if endpoint is None and not server.sessions:
        yield Release(server.slot)
    elif endpoint is not None and endpoint.state is State.READY:
        if server.admin is Admin.DRAIN:
            yield Ready(server.slot)
    elif server.admin is Admin.READY:
        yield Drain(server.slot)


def unplaced(endpoints: Iterable[Endpoint], servers: Iterable[Server]) -> int:
    """Return how many ready endpoints have no slot."""
    served = {server.place for server in servers if server.admin is not Admin.FREE}
    return sum(1 for each in by_place(endpoints).values() if each.state is State.READY and each.place not in served)


def busy(server: Server) -> bool:
    """Tell whether a pod computes: for us, or, as its exporter says, for another gateway."""
    return server.sessions > 0 or server.health is Health.TAKEN


def pods_by_state(servers: Iterable[Server]) -> Counter[str]:
    """Return how many pods are ``idle``, ``busy``, ``taken`` (by another gateway), ``down`` or ``draining``."""
    return Counter(_pod_state(server) for server in servers if server.admin is not Admin.FREE)


def _pod_state(server: Server) -> str:
    if server.admin is Admin.DRAIN:
        return "draining"
    if server.sessions:
        return "busy"
    return {Health.UP: "idle", Health.TAKEN: "taken", Health.DOWN: "down"}[server.health]


POD_STATES = ("idle", "busy", "taken", "down", "draining")
