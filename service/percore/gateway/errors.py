"""What only a gateway tells a caller. Part of the tree of ``percore.errors``, where statuses have their one place.

::

    CallError
    ├── QueueFull  429 queue-full: as many calls wait as may wait
    ├── PodLost    502 pod-lost: the pod went away while it computed the call
    └── NoPod      503 no-pod: the call was sent to pods again and again, and none took it
"""

from __future__ import annotations

from percore.errors import CallError


class QueueFull(CallError):
    """As many calls wait as may wait; this one never ran."""

    status = 429
    code = "queue-full"
    retry_after = 10


class PodLost(CallError):
    """The pod went away while it computed the call. It is not sent to another: it may be what ended the pod."""

    status = 502
    code = "pod-lost"


class NoPod(CallError):
    """Every pod the call was sent to refused it, and it never ran."""

    status = 503
    code = "no-pod"
    retry_after = 5
