"""Callers that disconnect while their calls are received or queued leave nothing behind."""

import socket
import threading
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from percore.gateway.spool import SMALL_BYTES

from harness.gateway import PREDICT, Exchange, Gateway, Worker, call, chunked, holding, outcome, read_answer, reset, serve
from harness.service import eventually

CALLERS = 200
SIZES = (20_000, 60_000, 70_000, 300_000, 20_000, 1_000_000, 20_000, 64_000, 100_000, 5_000_000)


def whole(size: int) -> tuple[bytes, bool]:
    return call(bytes(size)), True


def half(size: int) -> tuple[bytes, bool]:
    return call(bytes(size))[: -size // 2], False


def in_chunks(size: int) -> tuple[bytes, bool]:
    return chunked(bytes(size // 2), bytes(size - size // 2)), True


def half_in_chunks(size: int) -> tuple[bytes, bool]:
    return chunked(bytes(size))[: -size // 2], False


def with_a_second_request(size: int) -> tuple[bytes, bool]:
    return call(bytes(size)) + call(b"second"), True


def with_half_a_second_request(size: int) -> tuple[bytes, bool]:
    return call(bytes(size)) + f"POST {PREDICT} HTTP/1.1\r\nHo".encode(), True


SENT = (whole, half, in_chunks, half_in_chunks, with_a_second_request, with_half_a_second_request)
LEAVES: tuple[Callable[[socket.socket], None], ...] = (socket.socket.close, reset)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def crowd(gateway: Gateway) -> tuple[list[socket.socket], int, int]:
    """Send every kind of call in every size; return the connections, how many calls are whole, and how many are uploads."""
    connections, queued, uploads = [], 0, 0
    for number, size in zip(range(CALLERS), cycle(SIZES)):
        kind = SENT[number // 2 % len(SENT)]
        data, is_whole = kind(size)
        connections.append(gateway.send(data))
        queued += is_whole
        uploads += not is_whole and (size > SMALL_BYTES or kind is half_in_chunks)
    return connections, queued, uploads


def leave(connections: list[socket.socket]) -> None:
    for number, connection in enumerate(connections):
        LEAVES[number % len(LEAVES)](connection)


def test_callers_that_leave_while_there_is_no_pod_leave_nothing_behind() -> None:
    with Gateway() as gateway:
        before = gateway.descriptors()
        connections, queued, uploads = crowd(gateway)
        eventually(lambda: gateway.queued() == queued)
        eventually(lambda: gateway.metric("percore_gateway_uploads") == uploads, 2)
        eventually(lambda: gateway.spooled() > 10_000_000, 2)
        leave(connections)
        eventually(lambda: gateway.queued() == 0, 2)
        eventually(lambda: gateway.spooled() == 0, 2)
        eventually(lambda: gateway.metric("percore_gateway_uploads") == 0, 2)
        eventually(lambda: gateway.descriptors() <= before, 2)
        eventually(lambda: gateway.metric("percore_gateway_client_disconnects_total", state="queued") == queued, 2)
        eventually(lambda: gateway.metric("percore_gateway_client_disconnects_total", state="receiving") == CALLERS - queued, 2)
        eventually(lambda: len(gateway.call_log()) == CALLERS)
        assert {line["status"] for line in gateway.call_log()} == {"disconnected"}


def test_callers_that_leave_while_a_pod_is_busy_never_run(release: threading.Event) -> None:
    with Worker(holding(release)) as worker, Gateway(worker.endpoint) as gateway:
        first = gateway.send_call(b"first")
        eventually(gateway.executing)
        before = gateway.descriptors()
        connections, queued, _ = crowd(gateway)
        eventually(lambda: gateway.queued() == queued)
        leave(connections)
        eventually(lambda: gateway.queued() == 0, 2)
        eventually(lambda: gateway.spooled() == 0, 2)
        eventually(lambda: gateway.descriptors() <= before, 2)
        last = gateway.send_call(b"last")
        release.set()
        assert [outcome(each)[0] for each in (first, last)] == [200, 200]
        assert worker.bodies == [b"first", b"last"]
        eventually(lambda: gateway.spooled() == 0, 2)


def test_remaining_callers_are_served_in_their_order_while_others_leave(release: threading.Event) -> None:
    with Worker(holding(release)) as worker, Gateway(worker.endpoint) as gateway:
        first = gateway.send_call(b"first")
        eventually(gateway.executing)
        calls = gateway.send_calls_in_order(*((b"%d" % number * 10_000, "") for number in range(60)))
        eventually(lambda: gateway.queued() == 60)
        staying = [each for number, each in enumerate(calls) if number % 3 == 0]
        leave([each for number, each in enumerate(calls) if number % 3])
        eventually(lambda: gateway.queued() == len(staying), 2)
        release.set()
        assert [outcome(each)[0] for each in (first, *staying)] == [200] * 21
        assert worker.bodies == [b"first", *(b"%d" % number * 10_000 for number in range(0, 60, 3))]


def test_a_pod_that_computes_gets_one_connection_however_many_callers_come_and_leave() -> None:
    """Each dead connection would stay in the pod's accept queue until the run ends, and take the place of other gateways'
    connections.
    """
    begun, release = threading.Event(), threading.Event()

    def behave(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        begun.set()
        release.wait(30)
        exchange.answer()

    with Worker(behave, serve) as worker, Gateway(worker.endpoint) as gateway:
        first = gateway.send_call(b"first")
        assert begun.wait(30)
        for _ in range(50):
            with gateway.send_call():
                eventually(gateway.queued)
            eventually(lambda: gateway.queued() == 0)
        release.set()
        assert outcome(first)[0] == 200
        with gateway.send_call(b"last") as last:
            assert read_answer(last)[2] == b"last"
        assert worker.connections <= 3
