"""Clients that disconnect."""

import socket
import time

import pytest

from harness.service import FAULTY, Service, answer_of, eventually

RESET = b"\1\0\0\0\0\0\0\0"


def leave(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_within_a_second_after_a_client_disconnect_the_worker_ends_and_is_replaced(how: str) -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        connection = service.send_call(burn=60)
        service.until(executing=1)
        before = set(service.workers)
        leave(connection, how)
        left = time.monotonic()
        eventually(lambda: len(before & set(service.workers)) == 1)
        assert time.monotonic() - left < 1.0
        service.ready(workers=2)
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)
        eventually(lambda: service.metric("percore_calls_total", code="client-disconnect") == 1)
        assert [line["status"] for line in service.runs()] == ["client-disconnect"]
        assert [line["status"] for line in service.calls()] == ["disconnected"]
        assert service.metric("percore_gateway_client_disconnects_total", state="executing") == 1
        service.until(executing=0, queued=0)


def test_two_hundred_clients_that_leave_while_they_are_queued_cost_no_restart() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = [service.send_call(sleep=3) for _ in range(2)]
        service.until(executing=2)
        queued = [service.send_call(sleep=60) for _ in range(200)]
        service.until(queued=200)
        before = service.workers
        for number, connection in enumerate(queued):
            leave(connection, "reset" if number % 2 else "close")
        service.until(queued=0, executing=2)
        assert service.metric("percore_gateway_client_disconnects_total", state="queued") == 200
        assert [answer_of(connection)[0] for connection in running] == [200, 200]
        service.until(executing=0, queued=0)
        assert len(service.runs()) == 2
        assert service.workers == before
        assert service.metric("percore_worker_restarts_total") == 0
        assert service.call(sleep=0).status_code == 200


def test_a_client_that_closes_once_it_is_answered_costs_no_restart() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        before = service.workers
        for _ in range(200):
            assert answer_of(service.send_call(sleep=0))[0] == 200
        time.sleep(0.5)
        assert service.workers == before
        assert service.metric("percore_worker_client_disconnects_total") == 0
        assert service.metric("percore_gateway_client_disconnects_total") == 0


def test_the_setting_finish_lets_a_call_run_to_its_end_after_a_client_disconnect() -> None:
    with Service(handler=FAULTY, on_client_disconnect="finish").ready(workers=2) as service:
        connection = service.send_call(sleep=1)
        service.until(executing=1)
        before = service.workers
        connection.close()
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)
        service.until(executing=0, queued=0)
        assert service.workers == before


def test_a_call_is_finished_if_a_load_would_take_longer_than_the_rest_of_its_run_timeout() -> None:
    slow = "tests.service.handlers:SlowToLoad"
    with Service(handler=slow, on_client_disconnect="end-if-worthwhile", run_timeout=2).ready(workers=2) as service:
        before = service.workers
        connection = service.connect()
        connection.sendall(service.raw(b'{"inputs": {"sleep": 1}}'))
        service.until(executing=1)
        connection.close()
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)
        service.until(executing=0, queued=0)
        assert service.workers == before
