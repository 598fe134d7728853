"""The lag of the event loop, read during a delay, after it, and a minute later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import uvloop
from percore.gateway import lag
from percore.gateway.lag import LoopLag

from tests.unit.fake_clock import FakeClockLoop, on_fake_clock


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeClockLoop], LoopLag]:
    """Return a function that starts a LoopLag on the fake clock of the loop."""

    def start(loop: FakeClockLoop) -> LoopLag:
        monkeypatch.setattr(lag, "time", SimpleNamespace(monotonic=loop.time))
        found = LoopLag(loop)
        found.start()
        return found

    return start


Start = Callable[[FakeClockLoop], LoopLag]


def test_a_loop_that_is_on_time_has_no_lag(started: Start) -> None:
    async def work(loop: FakeClockLoop) -> None:
        measured = started(loop)
        for _ in range(1000):
            await asyncio.sleep(0.07)
            assert measured.longest() == pytest.approx(0.0, abs=1e-6)

    on_fake_clock(work)


def test_a_loop_that_stands_still_counts_as_late_now(started: Start) -> None:
    async def work(loop: FakeClockLoop) -> None:
        measured = started(loop)
        await asyncio.sleep(0.1)
        for so_far in (2.0, 4.0, 6.0):
            loop.stand_still(2.0)
            assert measured.longest() == pytest.approx(so_far - lag.TICK_SECONDS)

    on_fake_clock(work)


def test_the_longest_of_several_delays_is_returned(started: Start) -> None:
    async def work(loop: FakeClockLoop) -> None:
        measured = started(loop)
        for seconds in (0.5, 3.0, 1.0):
            await asyncio.sleep(1.05)
            loop.stand_still(seconds)
        await asyncio.sleep(0.1)
        assert measured.longest() == pytest.approx(3.0, abs=lag.TICK_SECONDS)

    on_fake_clock(work)


def test_a_delay_is_forgotten_after_a_minute_and_not_much_before(started: Start) -> None:
    async def work(loop: FakeClockLoop) -> None:
        measured = started(loop)
        await asyncio.sleep(12.05)
        loop.stand_still(3.0)
        await asyncio.sleep(54.0)
        assert measured.longest() == pytest.approx(3.0, abs=lag.TICK_SECONDS)
        await asyncio.sleep(7.0)
        assert measured.longest() == pytest.approx(0.0, abs=1e-6)

    on_fake_clock(work)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_callback_that_blocks_a_real_loop_is_seen_from_a_thread_and_afterwards(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        measured = LoopLag(loop)
        measured.start()
        with ThreadPoolExecutor(1) as reader:
            time.sleep(0.3)  # the delay itself
            assert reader.submit(measured.longest).result() > 0.15
        overtaken = loop.create_future()
        # The timer of LoopLag is due for longer, so it runs before this one.
        loop.call_at(loop.time(), overtaken.set_result, None)
        await overtaken
        assert measured.longest() > 0.15
        assert time.monotonic() - measured.ticked < 0.15, "the value must be a delay of the past"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())
