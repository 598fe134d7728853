"""The queue: which call is next. Pure: no sockets, no clock.

Order: higher priority first, then arrival. It is exact, whatever the length and the age. A call that comes back (its worker was
lost before it began) takes its old place again.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What the queue needs of a call."""

    number: int
    """Order of arrival; unique."""
    priority: int
    """Higher is sooner."""


T = TypeVar("T", bound=Queued)
Key = tuple[int, int]


class CallQueue(Generic[T]):
    """Calls in the order in which they run.

    A call that is removed leaves its key in the heap until it comes to the top, or until such keys are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[Key] = []
        self._calls: dict[Key, T] = {}
        self._by_priority: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: T) -> bool:
        return _key(call) in self._calls

    def push(self, call: T) -> None:
        """Add a call, or put one back into its place."""
        key = _key(call)
        if key in self._calls:
            raise ValueError(f"call {call.number} is queued already")
        self._calls[key] = call
        self._by_priority[call.priority] += 1
        heapq.heappush(self._heap, key)

    def pop(self) -> T | None:
        """Take out the call that is next; None if there is none."""
        while self._heap:
            call = self._calls.pop(heapq.heappop(self._heap), None)
            if call is not None:
                self._by_priority[call.priority] -= 1
                return call
        return None

    def remove(self, call: T) -> bool:
        """Take a call out, wherever it is; return False if it is not queued."""
        if self._calls.pop(_key(call), None) is None:
            return False
        self._by_priority[call.priority] -= 1
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._calls):
            self._heap = list(self._calls)
            heapq.heapify(self._heap)
        return True

    def ahead(self, priority: int) -> int:
        """Return how many queued calls run before one that arrives now with this priority."""
        return sum(count for each, count in self._by_priority.items() if each >= priority)


def _key(call: Queued) -> Key:
    return -call.priority, call.number
