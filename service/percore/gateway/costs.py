"""Which pods to mark with ``controller.kubernetes.io/pod-deletion-cost``, so that scaling in takes idle ones.

A mark only says which pods go first: a busy pod that goes anyway finishes its call. So marks may come a little late, and a
pod that is busy for a moment gets none; each mark is a write to the API server, and there may be a thousand pods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

BUSY_COST, IDLE_COST = 1000, 0
SETTLE_SECONDS = 3.0
"""How long a pod must be busy, or idle, before it is marked so."""
MARKS_A_SECOND = 20.0
BURST = 100.0


@dataclass(slots=True)
class _Pod:
    busy: bool
    since: float
    marked: bool | None
    """What the API server was last told; None where that was another life of the controller, and nobody knows."""


@dataclass(slots=True)
class Marks:
    """What each pod was last marked with, and how many more marks may be made now."""

    _pods: dict[str, _Pod] = field(default_factory=dict)
    _allowance: float = BURST
    _last: float | None = None

    def due(self, now: float, pods: Iterable[tuple[str, bool]]) -> list[tuple[str, int]]:
        """Return (pod, cost) for marks to make now, given every pod's name and whether it is busy; busy ones first.

        A pod that was there at the first look may bear a mark of an earlier life; one that came later bears none.
        """
        first = self._last is None
        self._refill(now)
        self._look(now, dict(pods), first=first)
        wanted = [(name, pod) for name, pod in self._pods.items() if pod.marked is not pod.busy and self._settled(pod, now)]
        wanted.sort(key=lambda each: not each[1].busy)
        return [(name, BUSY_COST if pod.busy else IDLE_COST) for name, pod in wanted[: int(self._allowance)]]

    def made(self, name: str, cost: int) -> None:
        """Take note that a mark was made."""
        self._allowance -= 1
        if name in self._pods:
            self._pods[name].marked = cost == BUSY_COST

    def failed(self) -> None:
        """Take note that a mark could not be made: none is due again before the allowance has grown."""
        self._allowance = 0.0

    def _refill(self, now: float) -> None:
        elapsed = 0.0 if self._last is None else now - self._last
        self._allowance = min(BURST, self._allowance + elapsed * MARKS_A_SECOND)
        self._last = now

    def _look(self, now: float, pods: dict[str, bool], *, first: bool) -> None:
        for name in self._pods.keys() - pods.keys():
            del self._pods[name]
        for name, busy in pods.items():
            pod = self._pods.setdefault(name, _Pod(busy, now, None if first else False))
            if pod.busy is not busy:
                pod.busy, pod.since = busy, now

    def _settled(self, pod: _Pod, now: float) -> bool:
        return now - pod.since >= SETTLE_SECONDS
