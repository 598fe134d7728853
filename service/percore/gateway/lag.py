"""Measures how late the event loop runs: the longest delay of a timer in the last minute."""

from __future__ import annotations

import asyncio
import time

TICK_SECONDS = 0.1
SPAN_SECONDS = 5.0
SPANS = 12


class LoopLag:
    """Measures on the event loop; any thread may read the result."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spans = [0.0] * SPANS
        self._span_ends = 0.0
        self.ticked = time.monotonic()
        """When the loop last ran."""

    def start(self) -> None:
        """Start the timer."""
        self._expected = self._loop.time() + TICK_SECONDS
        self._loop.call_at(self._expected, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self.ticked = time.monotonic()
        if now >= self._span_ends:
            self._spans = [0.0, *self._spans[:-1]]
            self._span_ends = now + SPAN_SECONDS
        self._spans[0] = max(self._spans[0], now - self._expected)
        self._expected = now + TICK_SECONDS
        self._loop.call_at(self._expected, self._tick)

    def longest(self) -> float:
        """Return the longest delay of the last minute, in seconds. It includes the delay of a loop that hangs now."""
        return max(*self._spans, time.monotonic() - self.ticked - TICK_SECONDS, 0.0)
