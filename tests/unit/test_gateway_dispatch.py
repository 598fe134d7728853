"""The dispatcher: which pods it tries for queued calls, when, and how their reservations end."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from percore.errors import GatewayFailed, PodLost, QueueTimeout, RunTimeout
from percore.gateway import dispatch, upstream
from percore.gateway.call import Call, CallState
from percore.gateway.dispatch import Dispatcher
from percore.gateway.endpoints import Endpoint
from percore.gateway.pods import Pod, key_of
from percore.gateway.queue import CallQueue
from percore.gateway.spool import Body, Spool, SpoolLimits
from percore.gateway.upstream import WorkerConnection
from percore.http.connection import Connection
from percore.http.request import Request

from harness.gateway import RESERVED
from tests.unit.fake_clock import FakeClockLoop, on_fake_clock

LONG = 1.0
"""Seconds after which all timers of the dispatcher are over."""


class Rig:
    """A dispatcher, its queue, and the workers' ends of its connections. A pod is known by its port."""

    def __init__(self, folder: Path, loop: FakeClockLoop) -> None:
        self.loop = loop
        self.spool = Spool(folder, SpoolLimits(memory=0, disk=0))
        self.queue: CallQueue[Call] = CallQueue()
        self.dispatcher = Dispatcher(self.queue, self.spool, "here", run_seconds=100.0, answer_seconds=10.0)
        self.tried: list[tuple[float, int]] = []
        """The time of each attempt, and the pod."""
        self.ends: dict[int, socket.socket] = {}
        """The worker's end of the last connection to each pod."""
        self.refusing: set[int] = set()
        self._number = 0

    async def connect(self, host: str, port: int) -> WorkerConnection:
        """Connect as ``upstream.connect`` does, but over a pair of sockets."""
        self.tried.append((self.loop.time(), port))
        if port in self.refusing:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.close(port)
        self.ends[port] = theirs
        _, connection = await self.loop.create_connection(lambda: WorkerConnection(self.loop), sock=ours)
        return connection

    def know(self, count: int) -> list[Pod]:
        """Have the dispatcher know pods 1 to ``count``."""
        endpoints = [Endpoint("10.0.0.1", port, 9090) for port in range(1, count + 1)]
        self.dispatcher.publish(endpoints)
        return [self.dispatcher.pods[key_of(endpoint)] for endpoint in endpoints]

    def enqueue(self) -> Call:
        """Queue a call, as ``intake`` does."""
        call = self.prepare()
        self.push(call)
        return call

    def prepare(self) -> Call:
        """Return a call without a body."""
        request = Request(cast("Connection", None), "client")
        request.method, request.target, request.version, request.headers = b"POST", b"/", "1.1", [(b"Host", b"a")]
        request.finish_head()
        self._number += 1
        return Call(request, self.spool.body(None), self._number, 0, str(self._number))

    def push(self, call: Call) -> None:
        self.queue.push(call)
        self.dispatcher.match()

    def end_without_answer(self, *calls: Call) -> None:
        """Take queued calls away, as ``intake`` does for clients that disconnect."""
        for call in calls:
            assert self.queue.remove(call)
            call.end_without_answer()
            self.dispatcher.queue_shrank()

    def free(self, port: int) -> None:
        """Have a worker say that it is free."""
        self.ends[port].send(RESERVED)

    def close(self, port: int) -> None:
        """Have a worker close its connection."""
        if port in self.ends:
            self.ends.pop(port).close()

    async def stop(self) -> None:
        """Close every connection while the loop still runs, so that none is left to the garbage collector."""
        while self.queue.pop() is not None:
            self.dispatcher.queue_shrank()
        for port in list(self.ends):
            self.close(port)
        await asyncio.sleep(LONG)

    def received(self, port: int) -> bytes:
        """Return the bytes that a worker has got, with ``<end>`` at the end if the dispatcher has closed the connection."""
        found = b""
        try:
            while data := self.ends[port].recv(65536):
                found += data
        except BlockingIOError:
            return found
        return found + b"<end>"

    def tried_since(self, moment: float) -> list[tuple[float, int]]:
        """Return the attempts since a moment: seconds after it, and the port of the pod."""
        return [(round(when - moment, 4), port) for when, port in self.tried if when >= moment]

    def sizes(self, moment: float = 0.0) -> dict[float, int]:
        """Return the times of attempts after a moment, each with the number of pods."""
        return Counter(when for when, _ in self.tried_since(moment))

    def assert_none_unanswered(self) -> None:
        """Check that no reservation counts as unanswered. If one did, one pod fewer would be tried for each later call."""
        assert self.dispatcher._waiting == 0
        assert not [pod for pod in self.dispatcher.pods.values() if pod.reservation_pending]


Work = Callable[[Rig], Awaitable[None]]
OnBench = Callable[[Work], None]


@pytest.fixture
def on_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnBench:
    """Return a function that runs a test on a bench."""

    def run(work: Work) -> None:
        async def on_loop(loop: FakeClockLoop) -> None:
            rig = Rig(tmp_path, loop)
            monkeypatch.setattr(dispatch, "connect", rig.connect)
            try:
                await work(rig)
            finally:
                await rig.stop()

        on_fake_clock(on_loop)

    return run


# --- how many


@pytest.mark.parametrize(
    ("calls", "pods", "expected"),
    [
        (1, 20, {0.0: 1, 0.002: 1, 0.004: 2, 0.006: 4, 0.008: 8, 0.01: 4}),
        (3, 20, {0.0: 3, 0.002: 3, 0.004: 6, 0.006: 8}),
        (5, 3, {0.0: 3}),
        (4, 4, {0.0: 4}),
    ],
)
def test_as_many_pods_are_tried_as_calls_are_queued_and_twice_as_many_after_each_2_ms_without_an_answer(
    on_bench: OnBench, calls: int, pods: int, expected: dict[float, int]
) -> None:
    async def work(rig: Rig) -> None:
        rig.know(pods)
        for _ in range(calls):
            rig.enqueue()
        await asyncio.sleep(LONG)
        assert rig.sizes() == expected
        assert len({port for _, port in rig.tried}) == pods, "each pod is tried once"

    on_bench(work)


def test_pods_that_become_known_while_a_call_is_queued_are_tried(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.enqueue()
        await asyncio.sleep(LONG)
        rig.know(3)
        await asyncio.sleep(LONG)
        assert rig.sizes(LONG) == {0.0: 1, 0.002: 1, 0.004: 1}

    on_bench(work)


def test_after_an_empty_queue_it_begins_again_with_as_many_pods_as_calls(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(20)
        rig.end_without_answer(await tried_by_all(rig))
        for port in rig.ends:
            rig.free(port)
        await asyncio.sleep(LONG)
        began = rig.loop.time()
        rig.enqueue()
        await asyncio.sleep(0.003)
        assert rig.sizes(began) == {0.0: 1, 0.002: 1}

    on_bench(work)


# --- which


def test_the_pod_that_was_freed_last_is_tried_first(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(3)
        calls = [rig.enqueue() for _ in range(3)]
        await asyncio.sleep(LONG)
        for port in (3, 1, 2):
            rig.free(port)
        await asyncio.sleep(LONG)
        for port in (1, 3, 2):  # each runs a call, and the loss of the worker ends it
            rig.close(port)
            await asyncio.sleep(LONG)
        for call in calls:
            assert isinstance(call.done.exception(), PodLost)
        began = rig.loop.time()
        rig.enqueue()
        await asyncio.sleep(LONG)
        assert rig.tried_since(began) == [(0.0, 2), (0.002, 3), (0.004, 1)]

    on_bench(work)


# --- when the queue becomes empty


async def tried_by_all(rig: Rig) -> Call:
    """Queue one call, and have every pod leave its reservation unanswered."""
    call = rig.enqueue()
    await asyncio.sleep(LONG)
    assert len(rig.tried) == len(rig.dispatcher.pods)
    return call


def test_when_the_last_call_leaves_reservations_stay_and_count_no_more(on_bench: OnBench) -> None:
    """Otherwise a pod that computes for minutes would get a dead connection for each call that leaves."""

    async def work(rig: Rig) -> None:
        rig.know(5)
        for _ in range(30):
            rig.end_without_answer(rig.enqueue())
            await asyncio.sleep(LONG)
        rig.end_without_answer(await tried_by_all(rig))
        rig.assert_none_unanswered()
        for port in rig.ends:
            assert rig.received(port).count(b"OPTIONS") == 1
            assert not rig.received(port).endswith(b"<end>")

    on_bench(work)


def test_a_reservation_that_stayed_takes_the_next_call_when_its_pod_is_free(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(3)
        rig.end_without_answer(await tried_by_all(rig))
        call = rig.enqueue()
        await asyncio.sleep(LONG)
        rig.free(2)
        await asyncio.sleep(0.1)
        assert b"POST / HTTP/1.1\r\n" in rig.received(2)
        assert len(rig.tried) == 3
        rig.close(2)
        with pytest.raises(PodLost):
            await call.done

    on_bench(work)


def test_reservations_that_stayed_do_not_delay_the_trial_of_a_free_pod(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(20)
        rig.end_without_answer(await tried_by_all(rig))
        rig.know(21)
        began = rig.loop.time()
        rig.enqueue()
        await asyncio.sleep(LONG)
        assert rig.tried_since(began) == [(0.0, 21)]

    on_bench(work)


def test_a_reservation_that_stayed_and_finds_no_call_ends_and_its_pod_is_tried_again(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(1)
        rig.end_without_answer(await tried_by_all(rig))
        rig.free(1)
        await asyncio.sleep(0.1)
        assert rig.received(1).endswith(b"<end>")
        began = rig.loop.time()
        rig.enqueue()
        await asyncio.sleep(LONG)
        assert rig.tried_since(began) == [(0.0, 1)]

    on_bench(work)


def test_a_call_that_leaves_ends_no_reservation_while_others_are_queued(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(5)
        first = rig.enqueue()
        await tried_by_all(rig)
        rig.end_without_answer(first)
        await asyncio.sleep(LONG)
        assert not [port for port in rig.ends if rig.received(port).endswith(b"<end>")]
        assert len(rig.tried) == 5, "no new reservation was begun"

    on_bench(work)


def test_a_reservation_that_is_cancelled_before_its_first_step_costs_nothing(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(2)
        rig.enqueue()
        rig.know(0)  # in one step of the loop, so no task has begun
        await asyncio.sleep(LONG)
        assert rig.tried == []
        rig.assert_none_unanswered()
        assert rig.dispatcher.pods == {}

    on_bench(work)


def test_a_call_that_arrives_in_the_step_in_which_the_queue_becomes_empty_is_served(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(3)
        rig.end_without_answer(rig.enqueue())
        rig.enqueue()
        await asyncio.sleep(LONG)
        assert len(rig.tried) == 3

    on_bench(work)


def test_the_pod_that_answers_gets_the_last_call_and_the_other_reservations_count_no_more(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(4)
        call = await tried_by_all(rig)
        rig.free(2)
        await asyncio.sleep(0.1)
        assert b"POST / HTTP/1.1\r\n" in rig.received(2)
        assert rig.dispatcher.running == 1
        rig.assert_none_unanswered()
        rig.close(2)
        with pytest.raises(PodLost):
            await call.done
        assert rig.dispatcher.running == 0

    on_bench(work)


def test_of_two_pods_that_answer_in_one_step_one_gets_the_call_and_the_other_is_tried_again(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        pods = rig.know(2)
        for pod in pods:
            pod.failures = 3
        call = await tried_by_all(rig)
        rig.free(1)
        rig.free(2)
        await asyncio.sleep(0.1)
        received = {port: rig.received(port) for port in (1, 2)}
        (winner,) = [port for port, data in received.items() if b"POST" in data]
        other = 3 - winner
        assert received[other].endswith(b"<end>")
        assert pods[winner - 1].failures == 0
        assert pods[other - 1].failures == 3, "only a run resets the count of failures"
        assert rig.dispatcher.running == 1
        rig.assert_none_unanswered()
        began = rig.loop.time()
        rig.enqueue()
        await asyncio.sleep(LONG)
        assert rig.tried_since(began) == [(0.0, other)]
        rig.close(winner)
        with pytest.raises(PodLost):
            await call.done

    on_bench(work)


def test_a_pod_that_is_no_longer_listed_ends_its_reservation_and_is_not_tried_again(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(2)
        await tried_by_all(rig)
        rig.know(1)
        await asyncio.sleep(LONG)
        assert rig.received(2).endswith(b"<end>")
        assert not rig.received(1).endswith(b"<end>")
        assert [port for _, port in rig.tried] == [2, 1]
        assert rig.dispatcher._waiting == 1

    on_bench(work)


# --- pods that fail


def test_a_pod_that_refuses_is_tried_again_after_its_backoff_until_it_takes_the_call(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        (pod,) = rig.know(1)
        rig.refusing = {1}
        call = rig.enqueue()
        await asyncio.sleep(0.28)
        assert [when for when, _ in rig.tried] == pytest.approx([0, 0.02, 0.06, 0.11, 0.16, 0.21, 0.26])
        rig.assert_none_unanswered()
        rig.refusing = set()
        await asyncio.sleep(LONG)
        rig.free(1)
        await asyncio.sleep(0.1)
        assert pod.failures == 0, "a run resets the count of failures"
        began = rig.loop.time()
        rig.refusing = {1}
        rig.close(1)
        with pytest.raises(PodLost):
            await call.done
        rig.enqueue()
        await asyncio.sleep(0.1)
        assert [when for when, _ in rig.tried_since(began)] == pytest.approx([0, 0.02, 0.06])

    on_bench(work)


def test_a_reservation_without_a_call_does_not_reset_the_count_of_failures(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.know(1)
        rig.refusing = {1}
        call = rig.enqueue()
        await asyncio.sleep(0.1)
        assert rig.sizes() == {0.0: 1, 0.02: 1, 0.06: 1}
        rig.refusing = set()
        await asyncio.sleep(0.1)
        rig.end_without_answer(call)
        rig.free(1)
        await asyncio.sleep(0.1)
        began = rig.loop.time()
        rig.refusing = {1}
        rig.enqueue()
        await asyncio.sleep(0.12)
        assert rig.sizes(began) == {0.0: 1, 0.05: 1, 0.1: 1}

    on_bench(work)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n", b""])
def test_a_worker_that_does_not_say_that_it_is_free_counts_as_a_failure(on_bench: OnBench, answer: bytes) -> None:
    async def work(rig: Rig) -> None:
        rig.know(1)
        rig.enqueue()
        await asyncio.sleep(0.1)
        began = rig.loop.time()
        rig.ends[1].send(answer)
        rig.close(1)
        await asyncio.sleep(0.1)
        assert rig.tried_since(began) == [(0.02, 1)]
        assert rig.dispatcher._waiting == 1

    on_bench(work)


def test_an_unexpected_error_is_logged_and_its_pod_is_tried_again(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(rig: Rig) -> None:
        async def broken(*_: Any) -> WorkerConnection:
            raise RuntimeError("unforeseen")

        monkeypatch.setattr(dispatch, "connect", broken)
        rig.know(1)
        rig.enqueue()
        await asyncio.sleep(0.001)
        rig.assert_none_unanswered()
        assert "unforeseen" in caplog.text
        monkeypatch.setattr(dispatch, "connect", rig.connect)
        await asyncio.sleep(LONG)
        assert rig.tried == [(0.02, 1)]

    on_bench(work)


# --- whose fault it is


async def pod_with_reservation(rig: Rig) -> tuple[Pod, Call]:
    """Return a pod whose reservation is unanswered, and the queued call that it gets when it says that it is free."""
    (pod,) = rig.know(1)
    call = await tried_by_all(rig)
    return pod, call


def test_a_reservation_that_the_gateway_used_too_late_is_neither_the_pods_fault_nor_the_calls(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(rig: Rig) -> None:
        pod, call = await pod_with_reservation(rig)
        monkeypatch.setattr(upstream, "STALE_SECONDS", -1.0)
        began = rig.loop.time()
        rig.free(1)
        await asyncio.sleep(0.1)
        assert (pod.failures, call.broken_sends, call.requeues) == (0, 0, 1)
        assert rig.tried_since(began) == [(0.0, 1)]
        monkeypatch.undo()

    on_bench(work)


def test_a_worker_that_ends_before_it_got_a_byte_of_the_call_did_not_end_because_of_it(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        _, call = await pod_with_reservation(rig)
        for _ in range(2 * dispatch.MOST_BROKEN_SENDS):
            rig.free(1)
            rig.close(1)
            await asyncio.sleep(2.0)
        assert call.broken_sends == 0
        assert call in rig.queue

    on_bench(work)


def test_a_client_that_leaves_while_its_call_is_sent_costs_the_pod_nothing(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        rig.spool = Spool(rig.spool.folder, SpoolLimits(memory=1 << 30, disk=0))
        (pod,) = rig.know(1)
        call = rig.prepare()
        await cast("Body", call.body).write(bytes(16 << 20))  # more than the kernel takes at once
        rig.push(call)
        await asyncio.sleep(LONG)
        rig.free(1)
        await asyncio.sleep(0.1)
        assert call.state is CallState.SENDING
        call.end_without_answer()
        await asyncio.sleep(0.1)
        assert pod.failures == 0
        assert rig.dispatcher.running == 0

    on_bench(work)


def test_a_fault_of_ours_ends_the_call_with_an_error_and_not_in_silence(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(rig: Rig) -> None:
        async def broken(*_: Any) -> None:
            raise RuntimeError("unforeseen")

        monkeypatch.setattr(rig.dispatcher, "_pass_on", broken)
        _, call = await pod_with_reservation(rig)
        rig.free(1)
        await asyncio.sleep(0.1)
        with pytest.raises(GatewayFailed):
            await call.done
        assert "unforeseen" in caplog.text
        assert rig.dispatcher.running == 0
        assert rig.received(1).endswith(b"<end>")

    on_bench(work)


def test_a_call_whose_queue_timeout_ends_while_it_is_sent_is_not_queued_again(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        _, call = await pod_with_reservation(rig)
        call.overdue = True
        rig.free(1)
        rig.close(1)
        await asyncio.sleep(0.1)
        with pytest.raises(QueueTimeout):
            await call.done

    on_bench(work)


def test_a_run_that_is_over_the_gateways_own_bound_ends_with_run_timeout(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        _, call = await pod_with_reservation(rig)
        rig.free(1)
        await asyncio.sleep(101.0)
        with pytest.raises(RunTimeout):
            await call.done

    on_bench(work)


def test_another_server_at_the_address_of_a_pod_gets_no_call(on_bench: OnBench) -> None:
    async def work(rig: Rig) -> None:
        pod, call = await pod_with_reservation(rig)
        rig.ends[1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.001)
        assert b"POST" not in rig.received(1)
        assert pod.failures == 1
        assert call in rig.queue

    on_bench(work)
