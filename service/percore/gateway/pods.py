"""Pods as the gateway sees them: their endpoints, and the state of each in this gateway.

::

    unknown -> waiting -> reserved -> running -> unknown
                  (any of them) -> ending -> gone

``unknown``: no connection is open, so only the pod knows whether it is free. ``waiting``: a reservation is sent, not answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from percore.gateway.endpoints import Endpoint, State

FIRST_BACKOFF_SECONDS = 0.02
SHORT_BACKOFF_SECONDS = 0.05
"""The longest backoff if there are few pods. A starting pod refuses connections until it listens. Then it should get the next
call soon."""
LONGEST_BACKOFF_SECONDS = 1.0
MOST_TRIES_PER_SECOND = 400
"""How often all pods together are tried, if all of them fail. So the backoff is longer if there are many pods."""
Key = tuple[str, str, int]


class PodState(StrEnum):
    """State of a pod in this gateway."""

    UNKNOWN = "unknown"
    WAITING = "waiting"
    RESERVED = "reserved"
    RUNNING = "running"
    ENDING = "ending"


@dataclass(slots=True, eq=False)
class Pod:
    """One pod. Not compared by value: a pod and a later pod at the same address are two pods."""

    endpoint: Endpoint
    state: PodState = PodState.UNKNOWN
    usable: bool = True
    """Whether it may get calls: it is listed and not terminating. It need not be ready, because a pod answers a reservation
    only when it is free."""
    failures: int = 0
    """Connections in a row that did not lead to a run."""
    reservation_pending: bool = False
    """Whether a reservation is sent and not answered; counted by the dispatcher."""
    task: asyncio.Task[float] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The pod's name, or its address if it has none."""
        return self.endpoint.pod or f"{self.endpoint.address}:{self.endpoint.port}"


def key_of(endpoint: Endpoint) -> Key:
    """Return a key that is unique for a pod, even if an earlier pod had the same address."""
    return endpoint.pod, endpoint.address, endpoint.port


def is_usable(endpoint: Endpoint) -> bool:
    """Tell whether a pod may get calls."""
    return endpoint.state is not State.TERMINATING


class Pods:
    """The pods of this gateway, and the list of pods to try. Used only from the event loop."""

    def __init__(self) -> None:
        self.known: dict[Key, Pod] = {}
        """Every pod that is listed, or that still has a run."""
        self.to_try: dict[Key, Pod] = {}
        """Pods to try. The pod that was freed last is at the end, because it is the most likely to be free."""
        self.listed: frozenset[Key] = frozenset()
        self.are_known = asyncio.Event()
        """Set when the first complete list of pods has come."""

    def publish(self, endpoints: Iterable[Endpoint]) -> None:
        """Replace the list of pods."""
        listed = {key_of(endpoint): endpoint for endpoint in endpoints}
        for key, endpoint in listed.items():
            pod = self.known.get(key)
            if pod is None:
                self.known[key] = pod = Pod(endpoint, usable=False)
            pod.endpoint = endpoint
            if is_usable(endpoint):
                if not pod.usable:
                    pod.usable = True
                    self.offer(pod)
            else:
                self._retire(pod)
        for key in self.known.keys() - listed.keys():
            self._retire(self.known[key])
            if self.known[key].task is None:
                del self.known[key]
        self.listed = frozenset(listed)
        self.are_known.set()

    def _retire(self, pod: Pod) -> None:
        """Give a pod no new calls. Its run goes on."""
        pod.usable = False
        self.to_try.pop(key_of(pod.endpoint), None)
        if pod.state is PodState.WAITING and pod.task is not None:
            pod.task.cancel()
        elif pod.state in (PodState.RESERVED, PodState.RUNNING) or pod.task is None:
            pod.state = PodState.ENDING

    def offer(self, pod: Pod) -> None:
        """Put a pod on the list of pods to try."""
        key = key_of(pod.endpoint)
        if not pod.usable:
            pod.state = PodState.ENDING
            if key not in self.listed:
                self.known.pop(key, None)
            return
        if self.known.get(key) is pod and pod.task is None:
            pod.state = PodState.UNKNOWN
            self.to_try[key] = pod

    def back_off(self, pod: Pod) -> float:
        """Count a connection without a run; return the delay before the next attempt, in seconds."""
        longest = min(max(SHORT_BACKOFF_SECONDS, len(self.known) / MOST_TRIES_PER_SECOND), LONGEST_BACKOFF_SECONDS)
        delay = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(pod.failures, 10), longest)
        pod.failures += 1
        return delay

    def find(self, name: str) -> Key | None:
        """Return the key of a listed pod; None if it is not listed."""
        return next((key for key in self.listed if self.known[key].name == name), None)
