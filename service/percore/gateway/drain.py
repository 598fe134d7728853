"""What a pod's ``preStop`` runs: wait until the gateway has answered everyone, and only then let it end.

SIGTERM ends HAProxy and every call with it; SIGUSR1 closes its sockets at once, so that no pod could be added any more.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Protocol

from percore.gateway.plan import Snapshot

QUIET_SECONDS = 5.0
"""How long no call may have been there: it takes a cluster that long to send callers elsewhere."""
LOOK_SECONDS = 0.5
GONE = (errno.ECONNREFUSED, errno.ENOENT)
"""What the kernel says where nobody listens; anything else may be a HAProxy that has no time to answer."""


class Drained(Protocol):
    """What draining needs of HAProxy; both raise OSError where it does not answer."""

    def snapshot(self) -> Snapshot:
        """Return what it does now."""

    def drain(self) -> None:
        """Have callers close their connections once they are answered."""


def drain(haproxy: Drained, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when no call has been there for a while, or when HAProxy is gone."""
    told, quiet_since = False, clock()
    while clock() - quiet_since < QUIET_SECONDS:
        try:
            if not told:
                haproxy.drain()
                told = True
            if haproxy.snapshot().calls:
                quiet_since = clock()
        except OSError as error:
            if error.errno in GONE:  # it ended: there is nothing left to wait for
                return
            quiet_since = clock()  # nobody knows; whoever ends it now might cut a call
        sleep(LOOK_SECONDS)
