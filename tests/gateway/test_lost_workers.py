"""A worker is lost or misbehaves at each step between a reservation and the last byte of an answer."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from harness.gateway import (
    BIG,
    MOST_IN_BUFFERS,
    RESERVED,
    Behaviour,
    Exchange,
    Gateway,
    Worker,
    holding,
    outcome,
    parsed,
    read_answer,
    read_to_end,
    serve,
)
from harness.service import eventually

BODY = bytes(BIG)


def closes_before_the_reservation(exchange: Exchange) -> None:
    exchange.connection.close()


def resets_before_the_reservation(exchange: Exchange) -> None:
    exchange.read_reservation()
    exchange.reset()


def closes_after_the_reservation(exchange: Exchange) -> None:
    exchange.read_reservation()
    exchange.connection.send(RESERVED, socket.MSG_MORE)  # the end of the connection comes in the same segment
    exchange.connection.close()


def resets_after_the_reservation(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.reset()


def closes_in_the_head(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.take(20)
    exchange.connection.close()


def resets_in_the_body(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.read_head()
    exchange.take(100_000)
    exchange.reset()


def closes_late_in_the_body(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.read_head()
    exchange.take(BIG - MOST_IN_BUFFERS)
    exchange.connection.close()


def answers_garbage_to_the_reservation(exchange: Exchange) -> None:
    exchange.read_reservation()
    exchange.connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    exchange.finish()


def refuses_the_reservation(exchange: Exchange) -> None:
    exchange.read_reservation()
    exchange.answer(b"", "404 Not Found")


BEFORE_THE_LAST_BYTE = [
    closes_before_the_reservation,
    resets_before_the_reservation,
    closes_after_the_reservation,
    resets_after_the_reservation,
    closes_in_the_head,
    resets_in_the_body,
    closes_late_in_the_body,
    answers_garbage_to_the_reservation,
    refuses_the_reservation,
]


@pytest.mark.parametrize("breaks", BEFORE_THE_LAST_BYTE)
def test_a_call_whose_worker_is_lost_before_the_last_byte_keeps_its_place_and_runs_once(breaks: Behaviour) -> None:
    release = threading.Event()
    with Worker(holding(release), breaks, serve) as worker, Gateway(worker.endpoint) as gateway:
        bodies = [b"first", b"2" + BODY[1:], b"third", b"fourth"]
        calls = [gateway.send_call(bodies[0])]
        eventually(gateway.executing)
        calls.append(gateway.send_call(bodies[1]))
        eventually(gateway.queued)
        calls += gateway.send_calls_in_order((bodies[2], ""), (bodies[3], ""))
        eventually(lambda: gateway.queued() == 3)
        release.set()
        assert [outcome(each)[0] for each in calls] == [200] * 4
        assert worker.bodies == bodies


def test_a_small_call_is_not_sent_to_a_worker_that_has_closed_already() -> None:
    with Worker(closes_after_the_reservation, serve) as worker, Gateway(worker.endpoint) as gateway:
        assert gateway.post(b"small").content == b"small"
        assert worker.bodies == [b"small"]
        eventually(lambda: gateway.metric("percore_gateway_requeued_calls_total") == 1, 2)


def closes_after_the_last_byte(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.close()


def resets_after_the_last_byte(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.reset()


def answers_garbage(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    exchange.finish()


def answers_half_a_head(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def answers_an_endless_head(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000)


@pytest.mark.parametrize(
    "breaks",
    [
        closes_after_the_last_byte,
        resets_after_the_last_byte,
        answers_garbage,
        answers_half_a_head,
        answers_an_endless_head,
    ],
)
def test_a_call_that_may_have_run_is_never_run_again(breaks: Behaviour) -> None:
    with Worker(breaks, serve) as worker, Gateway(worker.endpoint) as gateway:
        answer = gateway.post(b"once")
        assert (answer.status_code, answer.json()["code"]) == (502, "pod-lost")
        assert answer.headers["Server-Timing"].startswith("queue;dur=")
        assert gateway.post(b"next").content == b"next"
        assert worker.bodies == [b"once", b"next"]
        assert [line["requeues"] for line in eventually(gateway.call_log)[:1]] == [0]


def cuts_a_sized_answer(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")


def cuts_a_chunked_answer(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")


@pytest.mark.parametrize("breaks", [cuts_a_sized_answer, cuts_a_chunked_answer])
def test_an_answer_that_breaks_off_is_seen_to_be_cut(breaks: Behaviour) -> None:
    with Worker(breaks, serve) as worker, Gateway(worker.endpoint) as gateway:
        status, headers, body = parsed(read_to_end(gateway.send_call(b"once")))
        assert status == 200
        assert b"begun" in body
        if "content-length" in headers:
            assert len(body) < int(headers["content-length"])
        else:
            assert not body.endswith(b"0\r\n\r\n")
        assert gateway.post(b"next").content == b"next"
        assert worker.bodies == [b"once", b"next"]
        eventually(lambda: gateway.metric("percore_gateway_interrupted_answers_total") == 1)


def test_a_call_is_answered_502_after_ten_workers_ended_while_they_received_it() -> None:
    workers = [Worker(closes_in_the_head) for _ in range(10)]
    with Gateway(*(worker.endpoint for worker in workers)) as gateway:
        assert outcome(gateway.send_call(BODY)) == (502, "pod-lost")
        [line] = eventually(gateway.call_log)
        assert (line["status"], line["requeues"]) == (502, 10)
    for worker in workers:
        worker.close()


def answers_early(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.read_head()
    exchange.answer(b'{"error":"early","code":"body-too-large"}', "413 Content Too Large", "Content-Type: application/json")
    exchange.finish()


def test_an_answer_before_the_body_was_read_is_passed_on() -> None:
    with Worker(answers_early, serve) as worker, Gateway(worker.endpoint) as gateway:
        answer = gateway.post(BODY)
        assert (answer.status_code, answer.json()) == (413, {"error": "early", "code": "body-too-large"})
        assert gateway.post(b"next").content == b"next"
        assert worker.bodies == [b"next"]


def notes_the_end(ended: threading.Event) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        if not exchange.connection.recv(1):
            ended.set()

    return behave


def test_a_caller_that_leaves_while_its_call_runs_closes_the_worker_s_connection() -> None:
    ended = threading.Event()
    with Worker(notes_the_end(ended), serve) as worker, Gateway(worker.endpoint) as gateway:
        with gateway.send_call(b"left"):
            eventually(gateway.executing)
        eventually(lambda: gateway.metric("percore_gateway_client_disconnects_total", state="executing") == 1, 2)
        eventually(lambda: gateway.executing() == 0, 2)
        assert gateway.post(b"next").content == b"next"
        assert worker.bodies == [b"left", b"next"]


def test_a_pod_that_does_not_answer_delays_no_call_for_another_pod() -> None:
    release = threading.Event()

    def never_answers(exchange: Exchange) -> None:
        release.wait(30)
        exchange.connection.close()

    with Worker(never_answers) as silent, Worker() as worker, Gateway(silent.endpoint, worker.endpoint) as gateway:
        for number in range(20):
            body = json.dumps(number).encode()
            assert gateway.post(body).content == body
        assert len(worker.runs) == 20
        release.set()


def test_a_gateway_that_stood_still_after_a_reservation_sends_the_call_on_the_next_reservation() -> None:
    """SIGSTOP has the effect of a frozen virtual machine or a suspended container."""
    gateways: list[Gateway] = []
    closed = threading.Event()

    def gives_up_once(exchange: Exchange) -> None:
        if closed.is_set():
            return serve(exchange)
        exchange.read_reservation()  # fails if the gateway, on a busy machine, has dropped this reservation
        gateways[0].signal(signal.SIGSTOP)
        exchange.connection.sendall(RESERVED)
        exchange.connection.settimeout(0.1)  # as a worker does
        try:
            exchange.receive()
        finally:
            exchange.connection.close()
            closed.set()

    with Worker(gives_up_once) as worker, Gateway(worker.endpoint) as gateway:
        gateways.append(gateway)
        with gateway.send_call(b"once") as connection:
            assert closed.wait(30)
            gateway.signal(signal.SIGCONT)
            assert read_answer(connection)[2] == b"once"
        assert worker.bodies == [b"once"]
        assert gateway.metric("percore_gateway_requeued_calls_total") == 1


RECEIVED = {"nothing": 0, "head": 20, "body": 100_000, "most of the body": BIG - MOST_IN_BUFFERS}
"""How many bytes of a call its worker has when the gateway stands still."""


@pytest.mark.parametrize("received", RECEIVED.values(), ids=RECEIVED)
@pytest.mark.parametrize("gives_up", [False, True], ids=["the worker waits", "the worker gives up"])
def test_a_call_runs_once_if_the_gateway_stood_still_while_it_sent_the_call(received: int, *, gives_up: bool) -> None:
    gateways: list[Gateway] = []
    closed = threading.Event()

    def stands_still(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.wait_for(received)
        gateways[0].signal(signal.SIGSTOP)
        time.sleep(0.3)
        if gives_up:
            exchange.connection.close()
            closed.set()
        else:
            closed.set()
            exchange.answer(exchange.receive())

    with Worker(stands_still, serve) as worker, Gateway(worker.endpoint) as gateway:
        gateways.append(gateway)
        with gateway.send_call(BODY) as connection:
            assert closed.wait(30)
            gateway.signal(signal.SIGCONT)
            status, _, body = read_answer(connection)
        assert (status, len(body)) == (200, BIG)
        assert [len(each) for each in worker.bodies] == [BIG]
        assert gateway.metric("percore_gateway_requeued_calls_total") == gives_up


def test_a_gateway_that_stood_still_while_its_worker_was_lost_does_not_repeat_the_run() -> None:
    release = threading.Event()

    def is_lost(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        release.wait(30)
        exchange.reset()

    with Worker(is_lost, serve) as worker, Gateway(worker.endpoint) as gateway, gateway.send_call(b"once") as connection:
        eventually(lambda: worker.bodies)
        gateway.signal(signal.SIGSTOP)
        release.set()
        time.sleep(0.3)
        gateway.signal(signal.SIGCONT)
        assert outcome(connection) == (502, "pod-lost")
        assert gateway.post(b"next").content == b"next"
        assert worker.bodies == [b"once", b"next"]


def test_a_gateway_that_stood_still_in_a_run_passes_its_answer_on() -> None:
    release = threading.Event()
    with Worker(holding(release)) as worker, Gateway(worker.endpoint) as gateway, gateway.send_call(b"once") as connection:
        eventually(gateway.executing)
        gateway.signal(signal.SIGSTOP)
        release.set()
        time.sleep(1)
        gateway.signal(signal.SIGCONT)
        assert read_answer(connection)[2] == b"once"
        assert worker.bodies == [b"once"]
