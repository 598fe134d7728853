"""The thread that writes deletion costs, because the event loop must not wait for the API server or for pods."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from percore.gateway.costs import IDLE_COST, DeletionCosts
from percore.gateway.endpoints import Endpoint
from percore.gateway.gateway_metrics import FAILED, GONE, SET, GatewayMetrics
from percore.gateway.slots import SLOT_REQUEST_SECONDS, SlotReader

log = logging.getLogger("percore.gateway")
RECONCILE_SECONDS = 1.0
"""The pause between two reconciles."""
BUDGET_SECONDS = 5.0
"""How long one reconcile may take. The next one does the rest."""
ASK_SECONDS = 3.0
"""How much of this time may be used to ask pods. The rest is for writes."""
READ_SECONDS = 20.0
"""How often costs are read from the API server. So a cost that an ended gateway left is removed within a minute."""
WARN_SECONDS = 60.0
"""The shortest time between two warnings."""


class PodCosts(Protocol):
    """The deletion costs of pods, as the API server has them."""

    def set_cost(self, pod: str, cost: int) -> None:
        """Set a pod's deletion cost; raise OSError if that fails, and KeyError if there is no such pod any more."""

    def read_costs(self) -> Mapping[str, int]:
        """Return the deletion cost of each pod that has one; raise OSError if that fails."""


class CostWriter:
    """Writes the costs that ``DeletionCosts`` decides."""

    def __init__(
        self,
        pods: PodCosts,
        running: Callable[[], Iterable[str]],
        endpoints: Callable[[], Mapping[str, Endpoint]],
        metrics: GatewayMetrics,
        ask: Callable[[Mapping[str, Endpoint], float], Mapping[str, bool]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take ``running``, which returns the pods with calls of this gateway, and ``endpoints``, every listed pod by name.

        ``ask`` asks pods whether they compute; see ``SlotReader.ask``.
        """
        self._pods = pods
        self._running = running
        self._endpoints = endpoints
        self._metrics = metrics
        self._ask = ask or SlotReader().ask
        self._clock = clock
        self._costs = DeletionCosts()
        self._read_at: float | None = None
        self._warned: float | None = None

    def reconcile_forever(self) -> None:
        """Reconcile for ever; for a thread of its own."""
        while True:
            try:
                self.reconcile()
            except Exception:
                log.exception("deletion costs could not be reconciled; the gateway tries again")
            time.sleep(RECONCILE_SECONDS)

    def reconcile(self) -> None:
        """Write the costs that are due, until the time is over. If a write fails, the next reconcile tries again."""
        began = self._clock()
        ends = began + BUDGET_SECONDS
        try:
            if self._read_at is None or began - self._read_at >= READ_SECONDS:
                self._costs.read(self._pods.read_costs())
                self._read_at = began
            due = self._costs.due(began, self._running())
            self._write([(pod, cost) for pod, cost in due if cost != IDLE_COST], ends)
            free = self._free([pod for pod, cost in due if cost == IDLE_COST], ends)
            self._write([(pod, IDLE_COST) for pod in free], ends)
        except OSError as error:
            self._costs.failed()
            self._count(FAILED)
            self._warn(began, error)

    def _write(self, costs: Iterable[tuple[str, int]], ends: float) -> None:
        for pod, cost in costs:
            if self._clock() >= ends:
                return
            try:
                self._pods.set_cost(pod, cost)
            except KeyError:
                self._costs.gone(pod)
                self._count(GONE)
                continue
            self._costs.written(pod, cost)
            self._count(SET)

    def _free(self, pods: list[str], ends: float) -> list[str]:
        """Return the pods that do not compute for another gateway. Pods that could not be asked in time are left out."""
        seconds = min(ASK_SECONDS, ends - self._clock())
        if seconds < SLOT_REQUEST_SECONDS:
            return []
        endpoints = self._endpoints()
        # A pod that is not listed gets no calls, so it is not asked.
        listed = {pod: endpoints[pod] for pod in pods if pod in endpoints}
        taken = self._ask(listed, seconds) if listed else {}
        for pod in listed:
            if taken.get(pod):
                self._costs.postponed(pod, self._clock())
        return [pod for pod in pods if pod not in listed or taken.get(pod) is False]

    def _warn(self, now: float, error: OSError) -> None:
        if self._warned is None or now - self._warned >= WARN_SECONDS:
            self._warned = now
            log.warning("deletion costs cannot be read or written; the gateway tries again: %s", error)

    def _count(self, result: str) -> None:
        self._metrics.costs.labels(result).inc()
