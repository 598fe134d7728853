"""Pods as the gateway sees them: their endpoints, and the state of each in this gateway.

::

    unknown -> waiting -> reserved -> running -> unknown
                  (any of them) -> ending -> gone

``unknown``: no connection is open; only the pod knows whether it is free. ``waiting``: a reservation is sent and not answered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from percore.gateway.endpoints import Endpoint, State

FIRST_BACKOFF_SECONDS = 0.02
LONGEST_BACKOFF_SECONDS = 1.0
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
    """Whether it may get calls: it is listed and not terminating. A pod that is not ready yet may: it answers a reservation
    only when it is free."""
    failures: int = 0
    """Connections in a row that did not lead to a run."""
    waits: bool = False
    """Whether a reservation is sent and not answered; counted by the dispatcher."""
    task: asyncio.Task[float] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The pod's name, or its address where it has none."""
        return self.endpoint.pod or f"{self.endpoint.address}:{self.endpoint.port}"

    def fail(self) -> float:
        """Count a connection that led to nothing; return how long not to try again, in seconds."""
        delay = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(self.failures, 10), LONGEST_BACKOFF_SECONDS)
        self.failures += 1
        return delay


def key_of(endpoint: Endpoint) -> Key:
    """Return a key that is unique for a pod, even if an earlier pod had the same address."""
    return endpoint.pod, endpoint.address, endpoint.port


def is_usable(endpoint: Endpoint) -> bool:
    """Tell whether a pod may get calls."""
    return endpoint.state is not State.TERMINATING
