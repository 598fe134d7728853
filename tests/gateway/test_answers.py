"""Every kind of answer reaches the client unchanged."""

import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from harness.gateway import Exchange, Gateway, Worker, call, parsed, read_answer, read_to_end, serve
from harness.service import eventually
from tests.exchanges import unchunked

LARGE = 64 << 20


def send_as_told(exchange: Exchange) -> None:
    """Send the answer that the call's body names."""
    exchange.reserve()
    match exchange.receive():
        case b"204":
            exchange.answer(b"", "204 No Content", length=False)
        case b"304":
            exchange.answer(b"", "304 Not Modified", "ETag: x", length=False)
        case b"chunked":
            exchange.answer(b"3\r\none\r\n4\r\ntwo!\r\n0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked", length=False)
        case b"until the end":
            exchange.answer(b"all of it", length=False)
        case b"interim":
            exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            exchange.answer(b"after it")
        case b"large":
            exchange.answer(bytes(LARGE))
        case b"timing":
            exchange.answer(b"", "200 OK", "Server-Timing: run;dur=1.5", "X-Request-ID: wrong", "Upgrade: h2c", "X-Kept: yes")
        case body:
            exchange.answer(body)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Worker(send_as_told) as worker, Gateway(worker.endpoint) as gateway:
        yield gateway


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_leaves_the_connection_open(gateway: Gateway, status: int) -> None:
    with gateway.send_call(b"%d" % status) as connection:
        assert read_answer(connection)[0] == status
        connection.sendall(call(b"next"))
        assert read_answer(connection)[2] == b"next"


def test_an_answer_in_chunks_comes_in_chunks(gateway: Gateway) -> None:
    status, headers, body = parsed(read_to_end(gateway.send_call(b"chunked", "Connection: close")))
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert b"".join(unchunked(body)) == b"onetwo!"


def test_an_answer_without_length_and_chunks_counts_as_cut(gateway: Gateway) -> None:
    """A lost worker would look the same, and percore's own workers never answer in this way."""
    status, headers, body = parsed(read_to_end(gateway.send_call(b"until the end", "Connection: close")))
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert not body.endswith(b"0\r\n\r\n")


def test_an_interim_answer_is_dropped(gateway: Gateway) -> None:
    assert gateway.post(b"interim").content == b"after it"


def test_a_large_answer_comes_whole(gateway: Gateway) -> None:
    answer = gateway.post(b"large")
    assert len(answer.content) == LARGE
    eventually(lambda: gateway.spooled() == 0, 5)


def test_the_gateway_adds_the_queue_time_and_the_request_id(gateway: Gateway) -> None:
    answer = gateway.post(b"timing", headers={"X-Request-ID": "mine"})
    queue, run = answer.headers["Server-Timing"].split(", ")
    assert queue.startswith("queue;dur=")
    assert run == "run;dur=1.5"
    assert answer.headers["X-Request-ID"] == "mine"
    assert answer.headers["X-Kept"] == "yes"
    assert "Upgrade" not in answer.headers


def test_a_client_of_http_1_0_gets_no_chunks(gateway: Gateway) -> None:
    status, headers, body = parsed(read_to_end(gateway.send(call(b"chunked", version="1.0"))))
    assert (status, body) == (200, b"onetwo!")
    assert "transfer-encoding" not in headers
    with gateway.send(call(b"kept", "Connection: keep-alive", version="1.0")) as connection:
        status, headers, body = read_answer(connection)
        assert (status, headers["connection"], body) == (200, "keep-alive", b"kept")
        connection.sendall(call(b"next", version="1.0"))
        assert parsed(read_to_end(connection))[2] == b"next"


def test_a_client_that_wants_to_close_is_closed(gateway: Gateway) -> None:
    status, headers, body = parsed(read_to_end(gateway.send_call(b"last", "Connection: close")))
    assert (status, headers["connection"], body) == (200, "close", b"last")


def test_an_answered_call_counts_as_answered_whichever_side_closes() -> None:
    with Worker(serve) as worker, Gateway(worker.endpoint) as gateway:
        for _ in range(20):
            with gateway.send_call(b"x", "Connection: close") as connection:
                assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")
            with gateway.send_call(b"x") as connection:
                assert read_answer(connection)[0] == 200
        eventually(lambda: len(gateway.call_log()) == 40)
        assert {line["status"] for line in gateway.call_log()} == {200}
        assert gateway.metric("percore_gateway_client_disconnects_total") == 0
        assert gateway.metric("percore_gateway_call_seconds_count", code="200") == 40


def test_a_hundred_calls_share_a_connection(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        for number in range(100):
            connection.sendall(call(b"%d" % number))
            assert read_answer(connection)[2] == b"%d" % number


def test_a_call_without_a_body_runs() -> None:
    with Worker() as worker, Gateway(worker.endpoint) as gateway:
        with gateway.send(call(b"")) as connection:
            assert read_answer(connection)[2] == b""
        assert worker.bodies == [b""]


def test_the_first_piece_of_an_answer_comes_before_the_last_is_made() -> None:
    seen = threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        exchange.answer(b"5\r\nfirst\r\n", "200 OK", "Transfer-Encoding: chunked", length=False)
        assert seen.wait(10)
        exchange.connection.sendall(b"4\r\nlast\r\n0\r\n\r\n")

    with Worker(stream) as worker, Gateway(worker.endpoint) as gateway:
        connection = gateway.send_call(b"", "Connection: close")
        data = b""
        while b"first" not in data:
            data += connection.recv(1000)
        seen.set()
        assert b"".join(unchunked(parsed(data + read_to_end(connection))[2])) == b"firstlast"


def test_a_second_request_that_does_not_wait_is_dropped_and_the_connection_closes() -> None:
    with Worker() as worker, Gateway(worker.endpoint) as gateway:
        first = call(b"first")
        answer = read_to_end(gateway.send(first + call(b"second")))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert parsed(answer)[2] == b"first"
        assert b"Connection: close" in answer
        assert worker.bodies == [b"first"]


def test_a_client_that_closes_its_half_counts_as_gone() -> None:
    with Gateway() as gateway, gateway.send_call() as connection:
        eventually(gateway.queued)
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: gateway.queued() == 0, 2)


def test_head_is_a_read_and_takes_no_worker() -> None:
    with Worker(serve) as worker, Gateway(worker.endpoint) as gateway:
        answer = requests.head(gateway.url("/v2/health/live"), timeout=5)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0
        assert requests.head(gateway.url("/nowhere"), timeout=5).status_code in (404, 503)
        assert worker.connections == 0
