"""Pods that refuse, turn away, die and leave: what becomes of their calls, and of everyone else's."""

import contextlib
import json
import socket
import threading
import time

import pytest
from percore.gateway.endpoints import State

from tests.gateway.harness import Gateway, Pod, needs_haproxy, outcome, outcomes, received, request
from tests.service.harness import answer_of, eventually

pytestmark = needs_haproxy


class TurnsAway(Pod):
    """Answers the first so many calls as a worker does that computes for another."""

    def __init__(self, times: int) -> None:
        self.times = times
        super().__init__()

    def answer(self, connection: socket.socket, data: bytes) -> None:
        if len(self.calls) > self.times:
            super().answer(connection, data)
            return
        body = b'{"error":"busy","code":"busy"}'
        connection.sendall(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Dies(Pod):
    """Closes the connection of a call that it has taken in."""

    def answer(self, connection: socket.socket, data: bytes) -> None:
        pass


def test_a_refused_call_goes_to_another_pod() -> None:
    with Gateway() as gateway, Pod(listening=False) as deaf, Pod() as pod:
        gateway.know(deaf.endpoint(), pod.endpoint())
        eventually(lambda: gateway.pods("idle") == 2)
        for _ in range(4):
            assert gateway.call().status_code == 200
        assert len(pod.calls) == 4


def test_a_call_that_every_pod_refuses_waits_until_one_of_them_takes_it() -> None:
    with Gateway() as gateway, Pod(listening=False) as pod:
        pod.slot_status = 404
        gateway.know(pod.endpoint())
        call = gateway.ask()
        eventually(lambda: gateway.waiting() == 1)
        time.sleep(1)
        pod.open()
        pod.slot_status = 200
        assert outcome(call) == (200, "")
        assert len(pod.calls) == 1


def test_a_call_that_is_turned_away_is_sent_again() -> None:
    with Gateway() as gateway, TurnsAway(times=5) as pod:
        gateway.know(pod.endpoint())
        assert gateway.call().status_code == 200
        assert len(pod.calls) == 6
        eventually(lambda: gateway.metric("percore_gateway_retries_total") == 5)


def test_a_call_whose_pod_dies_is_told_so_at_once_and_runs_nowhere_else() -> None:
    with Gateway() as gateway, Pod() as dying, Pod() as other:
        gateway.know(dying.endpoint())
        call = gateway.ask(seconds=30)
        eventually(lambda: dying.calls)
        gateway.know(dying.endpoint(), other.endpoint())
        eventually(lambda: gateway.pods("idle") == 1)
        began = time.monotonic()
        dying.die()
        assert outcome(call) == (502, "pod-lost")
        assert time.monotonic() - began < 0.5
        assert not other.calls
        assert gateway.call().status_code == 200


def test_a_pod_that_loses_every_call_ends_none_but_those_it_took() -> None:
    with Gateway() as gateway, Dies() as pod:
        gateway.know(pod.endpoint())
        assert outcomes([gateway.ask() for _ in range(5)]) == [(502, "pod-lost")] * 5
        assert len(pod.calls) == 5


def test_a_call_that_a_pod_answers_with_an_error_is_not_sent_again() -> None:
    class Fails(Pod):
        def answer(self, connection: socket.socket, data: bytes) -> None:
            connection.sendall(b"HTTP/1.1 500 x\r\nContent-Length: 2\r\n\r\n{}")

    with Gateway() as gateway, Fails() as pod:
        gateway.know(pod.endpoint())
        assert gateway.call().status_code == 500
        assert len(pod.calls) == 1


@pytest.mark.parametrize("state", [State.TERMINATING, State.NOT_READY, None])
def test_a_pod_that_leaves_finishes_its_call_and_gets_no_other(state: State | None) -> None:
    with Gateway() as gateway, Pod() as leaving, Pod() as other:
        gateway.know(leaving.endpoint())
        call = gateway.ask(seconds=2)
        eventually(lambda: leaving.calls)
        gateway.know(*([leaving.endpoint(state)] if state else []), other.endpoint())
        eventually(lambda: gateway.pods("draining") == 1)
        for _ in range(3):
            assert gateway.call().status_code == 200
        assert outcome(call) == (200, "")
        assert (len(leaving.calls), len(other.calls)) == (1, 3)
        assert gateway.call().status_code == 200
        assert len(leaving.calls) == 1
        if state is None:
            eventually(lambda: gateway.pods("draining") == 0)


def test_a_pod_that_is_ready_again_gets_calls_again() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        assert gateway.call().status_code == 200
        gateway.know(pod.endpoint(State.NOT_READY))
        eventually(lambda: gateway.pods("draining") == 1)
        call = gateway.ask()
        eventually(lambda: gateway.waiting() == 1)
        gateway.know(pod.endpoint())
        assert outcome(call) == (200, "")


def test_a_pod_that_computes_for_another_gateway_gets_no_call_until_it_is_free() -> None:
    with Gateway() as gateway, Pod() as pod:
        pod.slot_status = 404
        gateway.know(pod.endpoint())
        eventually(lambda: gateway.pods("taken") == 1)
        call = gateway.ask()
        eventually(lambda: gateway.waiting() == 1)
        time.sleep(0.5)
        assert not pod.calls
        pod.slot_status = 200
        assert outcome(call) == (200, "")


def test_a_pod_whose_exporter_is_gone_gets_no_call_and_finishes_the_one_it_has() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        call = gateway.ask(seconds=2)
        eventually(lambda: pod.calls)
        pod.close_exporter()
        eventually(lambda: gateway.haproxy_says("pods/pod1 is DOWN"))
        other = gateway.ask()
        eventually(lambda: gateway.waiting() == 1)
        assert outcome(call) == (200, "")
        time.sleep(0.5)
        assert len(pod.calls) == 1
        pod.open_exporter()
        assert outcome(other) == (200, "")


def test_a_pod_that_answers_before_it_has_read_the_whole_call_is_heard() -> None:
    class Refuses(Pod):
        def _answer(self, connection: socket.socket) -> None:
            connection.recv(1000)
            body = b'{"error":"x","code":"body-too-large"}'
            connection.sendall(b"HTTP/1.1 413 x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    with Gateway() as gateway, Refuses() as pod:
        gateway.know(pod.endpoint())
        assert outcome(gateway.ask(text="x" * 5_000_000)) == (413, "body-too-large")


def test_a_client_that_leaves_while_it_waits_costs_nothing() -> None:
    with Gateway() as gateway, Pod() as pod:
        leaving = [gateway.ask(number=1) for _ in range(10)]
        staying = gateway.ask(number=2)
        eventually(lambda: gateway.waiting() == 11)
        for connection in leaving:
            connection.close()
        eventually(lambda: gateway.waiting() == 1)
        gateway.know(pod.endpoint())
        assert outcome(staying) == (200, "")
        assert len(pod.calls) == 1
        eventually(lambda: gateway.metric("percore_gateway_abandoned_calls_total", state="waiting") == 10)


def test_a_client_that_leaves_while_its_call_runs_ends_the_pod_s_connection() -> None:
    gone = threading.Event()

    class Watches(Pod):
        def answer(self, connection: socket.socket, data: bytes) -> None:
            with contextlib.suppress(ConnectionError):
                received(connection)
            gone.set()

    with Gateway() as gateway, Watches() as pod:
        gateway.know(pod.endpoint())
        call = gateway.ask()
        eventually(lambda: pod.calls)
        call.close()
        assert gone.wait(1)
        eventually(lambda: gateway.metric("percore_gateway_abandoned_calls_total", state="executing") == 1)


def test_a_pod_that_stays_silent_beyond_every_other_clock_is_ended_by_the_gateway_s() -> None:
    with Gateway(run_limit=0.5, body_limit=0.5) as gateway, Pod() as pod:
        gateway.restart_haproxy_with("timeout server 61500ms", "timeout server 500ms")
        gateway.ready()
        gateway.know(pod.endpoint())
        status, _, body = answer_of(gateway.ask(seconds=5))
        assert (status, json.loads(body)["code"]) == (504, "run-timeout")


@pytest.mark.parametrize("header", ["no colon here", f"X-Large: {'x' * 20000}"])
def test_a_request_that_is_not_http_or_has_too_large_headers_is_refused(header: str) -> None:
    with Gateway() as gateway:
        connection = gateway.connect()
        connection.sendall(request(b"{}", header))
        assert answer_of(connection)[0] == 400
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="bad-request") == 1)


def test_headers_that_do_not_arrive_in_time_are_refused() -> None:
    with Gateway(body_limit=0.5) as gateway:
        connection = gateway.connect()
        connection.sendall(request(b"{}")[:50])
        assert answer_of(connection)[0] == 408
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="body-timeout") == 1)


def test_a_body_that_does_not_arrive_in_time_is_told_so_and_runs_nowhere() -> None:
    with Gateway(body_limit=0.5) as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        connection = gateway.connect()
        connection.sendall(request(b"{}" * 50)[:-10])
        began = time.monotonic()
        assert outcome(connection) == (408, "body-timeout")
        assert 0.4 < time.monotonic() - began < 1.5
        assert not pod.calls
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="body-timeout") == 1)


def test_a_body_that_says_it_is_too_large_is_refused_at_once() -> None:
    with Gateway(max_body_bytes=1000) as gateway:
        connection = gateway.connect()
        connection.sendall(request(b"x" * 1001)[:-900])
        assert outcome(connection) == (413, "body-too-large")
        assert gateway.call(text="x" * 3_000_000).json()["code"] == "body-too-large"
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="body-too-large") == 2)
