"""A real event loop with a fake clock: timers run in their order and at their time, without real waiting."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait. If no socket is ready, the clock jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            # A real loop would hang here, and the test with it.
            assert timeout is not None, "the test awaits what can no longer happen"
            self.now += timeout
        return found


class FakeClockLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on a fake clock. It has sockets, but threads cannot wake it."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def stand_still(self, seconds: float) -> None:
        """Move the clock on, as if a callback computed for ``seconds``."""
        self._clock.now += seconds


def on_fake_clock(work: Callable[[FakeClockLoop], Awaitable[None]]) -> None:
    """Run a test on such a loop."""

    async def work_on_loop() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeClockLoop)
        await work(loop)

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(work_on_loop())
