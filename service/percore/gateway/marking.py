"""The thread that marks pods for scaling in. It is apart from the loop, which must not wait for the API server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from percore.gateway.costs import Marks
from percore.gateway.telemetry import FAILED, GONE, MADE, GatewayTelemetry

log = logging.getLogger("percore.gateway")
STEP_SECONDS = 1.0
BusyPods = Callable[[], list[tuple[str, bool]] | None]
"""None while nobody knows yet: the first look counts, for a pod that it finds may bear a mark of an earlier life."""


class Marker(Protocol):
    """Whoever can mark a pod."""

    def mark(self, pod: str, cost: int) -> None:
        """Set a pod's deletion cost; raise OSError where that fails, and KeyError where there is no such pod any more."""


class Marking:
    """Marks pods as ``busy_pods`` and ``Marks`` have it."""

    def __init__(self, marker: Marker, busy_pods: BusyPods, telemetry: GatewayTelemetry) -> None:
        self._marker = marker
        self._busy_pods = busy_pods
        self._telemetry = telemetry
        self._marks = Marks()

    def run(self) -> None:
        """Mark what is due, for ever; for a thread of its own."""
        while True:
            self.step(time.monotonic())
            time.sleep(STEP_SECONDS)

    def step(self, now: float) -> None:
        """Mark what is due now; a failure ends the step, and the next one tries again."""
        pods = self._busy_pods()
        if pods is None:
            return
        for pod, cost in self._marks.due(now, pods):
            try:
                self._marker.mark(pod, cost)
            except KeyError:
                self._count(GONE)
            except OSError as error:
                log.warning("pod %s: its deletion cost cannot be set: %s", pod, error)
                self._marks.failed()
                self._count(FAILED)
                return
            else:
                self._count(MADE)
            self._marks.made(pod, cost)

    def _count(self, result: str) -> None:
        self._telemetry.marks.labels(result).inc()
