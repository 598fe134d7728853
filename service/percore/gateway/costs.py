"""Which pods get a deletion cost (``controller.kubernetes.io/pod-deletion-cost``), so that scaling in takes idle ones.

A deletion cost only says which pods go first: a pod that computes and goes anyway finishes its call. So costs may come a
little late, and a pod that computes for a moment gets none; each one is a write to the API server. What the API server
holds is read back from time to time: a cost that another gateway set, and left behind, is seen and removed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BUSY_COST, IDLE_COST = 1000, 0
SETTLE_SECONDS = 3.0
"""How long a pod must compute, or not compute, before its cost is changed."""
UPDATES_A_SECOND = 20.0
BURST = 100.0


@dataclass(slots=True)
class DeletionCosts:
    """What each pod's cost is, and since when it should be another."""

    costs: dict[str, int] = field(default_factory=dict)
    """The cost of each pod that has one, as last read or written."""
    _since: dict[str, float] = field(default_factory=dict)
    """Since when a pod's cost has been wrong."""
    _allowance: float = BURST
    _last: float | None = None

    def read(self, costs: Mapping[str, int]) -> None:
        """Take in what the API server holds."""
        self.costs = dict(costs)

    def due(self, now: float, running: Iterable[str]) -> list[tuple[str, int]]:
        """Return (pod, cost) to write now, given the pods that this gateway's calls run on; costs of busy pods first.

        Before a cost is taken back, ask the pod whether it still computes for somebody else.
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
        """Take note of a write."""
        self._allowance -= 1
        self.costs[name] = cost
        self._since.pop(name, None)

    def postponed(self, name: str, now: float) -> None:
        """Take note that a pod still computes for somebody else: it is asked again after a while."""
        self._since[name] = now

    def gone(self, name: str) -> None:
        """Forget a pod that is no more."""
        self.costs.pop(name, None)

    def failed(self) -> None:
        """Take note that a write failed: none is due again before the allowance has grown."""
        self._allowance = 0.0

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._last is None else now - self._last
        self._allowance = min(BURST, self._allowance + elapsed * UPDATES_A_SECOND)
        self._last = now
