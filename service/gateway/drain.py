"""What a pod's ``preStop`` runs: wait until the gateway has answered everyone, and only then let it end.

SIGTERM ends HAProxy and every call with it; SIGUSR1 closes its sockets at once, so that no pod could be added any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from service.gateway.plan import Snapshot

QUIET_SECONDS = 5.0
"""How long no call may have been there: it takes a cluster that long to send callers elsewhere."""
LOOK_SECONDS = 0.5


class Drained(Protocol):
    """What draining needs of HAProxy; both raise OSError where it is gone."""

    def snapshot(self) -> Snapshot:
        """Return what it does now."""

    def drain(self) -> None:
        """Have callers close their connections once they are answered."""


def drain(haproxy: Drained, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when no call has been there for a while, or when HAProxy is gone."""
    try:
        haproxy.drain()
        quiet_since = clock()
        while clock() - quiet_since < QUIET_SECONDS:
            sleep(LOOK_SECONDS)
            if haproxy.snapshot().calls:
                quiet_since = clock()
    except OSError:  # it ended: there is nothing left to wait for
        return
