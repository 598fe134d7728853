"""Decides which pods get a deletion cost (``controller.kubernetes.io/pod-deletion-cost``), so that scaling in removes free
pods. Pure.

A deletion cost only decides the order in which pods are removed. A pod that is removed while it computes finishes its call. So
a cost may come a little late. A pod that computes only for a moment gets none, because each cost is a write to the API server.
Costs are read back from the API server from time to time, so that a cost which another gateway process left is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BUSY_COST, IDLE_COST = 1000, 0
SETTLE_SECONDS = 3.0
"""How long a pod must compute, or not compute, before its cost is changed."""
ASK_AGAIN_SECONDS = 20.0
"""How long a pod that computes for another gateway is not asked again. That gateway removes the cost itself."""
UPDATES_A_SECOND = 20.0
BURST = 100.0


@dataclass(slots=True)
class DeletionCosts:
    """The cost of each pod, and since when it has been wrong."""

    costs: dict[str, int] = field(default_factory=dict)
    """The cost of each pod that has one, as last read or written."""
    _since: dict[str, float] = field(default_factory=dict)
    """Since when a pod's cost has been wrong. The cost is due ``SETTLE_SECONDS`` later. ``postponed`` sets a time in the
    future."""
    _allowance: float = BURST
    _last: float | None = None

    def read(self, costs: Mapping[str, int]) -> None:
        """Take in the costs that the API server has."""
        self.costs = dict(costs)

    def due(self, now: float, running: Iterable[str]) -> list[tuple[str, int]]:
        """Return (pod, cost) to write now, given the pods on which calls of this gateway run; costs of busy pods first.

        Before you write ``IDLE_COST``, ask the pod whether it computes for another gateway.
        """
        self._refill(now)
        busy = set(running)
        wrong = {name: BUSY_COST for name in busy if self.costs.get(name, IDLE_COST) != BUSY_COST}
        wrong |= {name: IDLE_COST for name, cost in self.costs.items() if cost == BUSY_COST and name not in busy}
        self._since = {name: self._since.get(name, now) for name in wrong}
        settled = [(name, cost) for name, cost in wrong.items() if now - self._since[name] >= SETTLE_SECONDS]
        settled.sort(key=lambda each: -each[1])
        return settled[: int(self._allowance)]

    def written(self, name: str, cost: int) -> None:
        """Take note that a cost was written."""
        self._allowance -= 1
        self.costs[name] = cost
        self._since.pop(name, None)

    def postponed(self, name: str, now: float) -> None:
        """Take note that a pod computes for another gateway: it is not due for ``ASK_AGAIN_SECONDS``.

        This uses none of the allowance, which bounds writes only. The time of a reconcile bounds how many pods are asked.
        """
        self._since[name] = now + ASK_AGAIN_SECONDS - SETTLE_SECONDS

    def gone(self, name: str) -> None:
        """Forget a pod that does not exist any more."""
        self.costs.pop(name, None)

    def failed(self) -> None:
        """Take note that a write failed. No cost is due until the allowance has grown again."""
        self._allowance = 0.0

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._last is None else now - self._last
        self._allowance = min(BURST, self._allowance + elapsed * UPDATES_A_SECOND)
        self._last = now
