"""One connection with several requests, and other bytes between them: no answer goes to the wrong request, and none is cut."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.gateway import (
    PREDICT,
    Exchange,
    Gateway,
    Worker,
    call,
    chunked,
    holding,
    outcome,
    parsed,
    read_answer,
    read_to_end,
)
from harness.service import eventually

LIVE = "/v2/health/live"
BODY_TIMEOUT = 1.0
"""The body timeout in seconds. A client that reads nothing of an answer for this time is cut off, too."""
LARGE = 40 << 20


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def gateway(worker: Worker) -> Iterator[Gateway]:
    with Gateway(worker.endpoint, body_timeout=BODY_TIMEOUT) as gateway:
        yield gateway
        gateway.log()  # every line is JSON


def nothing_comes(connection: socket.socket, seconds: float) -> bool:
    """Return whether no byte comes within ``seconds``; the connection may end."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return True
    finally:
        connection.settimeout(30)


@pytest.mark.parametrize("length", [5, 40_000])
def test_a_read_whose_body_comes_later_ends_its_connection(gateway: Gateway, length: int) -> None:
    with gateway.send(f"GET {LIVE} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()) as connection:
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        connection.sendall(bytes(length))
        assert nothing_comes(connection, 3)


def test_a_read_with_a_whole_body_leaves_its_connection_open(gateway: Gateway) -> None:
    with gateway.send(f"GET {LIVE} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab".encode()) as connection:
        assert read_answer(connection)[0] == 200
        connection.sendall(call(b"next"))
        assert read_answer(connection)[2] == b"next"


def test_an_empty_line_after_a_request_is_no_request(gateway: Gateway) -> None:
    with gateway.send(call(b"one")) as connection:
        assert read_answer(connection)[2] == b"one"
        connection.sendall(b"\r\n")
        assert nothing_comes(connection, 1)
        connection.sendall(call(b"two"))
        assert read_answer(connection)[2] == b"two"


@pytest.mark.parametrize("more", [b"\x00\x01 garbage", b"GET / HTTP/9.9\r\n\r\n", call(b"pipelined"), b"POST"])
@pytest.mark.parametrize("later", [False, True])
def test_bytes_after_a_complete_call_do_not_harm_it(more: bytes, later: bool) -> None:
    body = b"x" * 300_000
    release = threading.Event()
    with Worker(holding(release)) as worker, Gateway(worker.endpoint) as gateway, gateway.connect() as connection:
        connection.sendall(call(body) + (b"" if later else more))
        eventually(gateway.executing)
        if later:
            connection.sendall(more)
        release.set()
        status, _, rest = parsed(read_to_end(connection))
        assert (status, rest) == (200, body)
        assert worker.bodies == [body]


def test_bytes_after_a_request_for_another_protocol_close_the_connection(gateway: Gateway) -> None:
    first = f"GET {LIVE} HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n".encode()
    with gateway.send(first + call(b"lost")) as connection:
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert read_to_end(connection) == b""
    with gateway.send(first) as connection:
        assert read_answer(connection)[0] == 200
        connection.sendall(call(b"next"))
        assert read_answer(connection)[2] == b"next"


def test_a_malformed_chunk_is_answered_counted_and_logged_once(gateway: Gateway) -> None:
    left = gateway.metric("percore_gateway_client_disconnects_total")
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nX-Request-ID: malformed\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert outcome(gateway.send(head.encode() + b"5\r\nhello\r\nnonsense")) == (400, "bad-request")
    time.sleep(0.2)
    assert [line["status"] for line in gateway.call_log() if line["request_id"] == "malformed"] == [400]
    assert gateway.metric("percore_gateway_client_disconnects_total") == left
    assert gateway.spooled() == 0


def test_a_trailer_without_end_is_refused(gateway: Gateway) -> None:
    endless = chunked(b"body")[:-2] + b"X: "
    with gateway.send(endless) as connection:
        sent = 0
        try:
            while sent < 64 << 20:
                sent += connection.send(b"a" * 65536)
        except OSError:
            pass
        assert sent < 16 << 20  # the gateway drops some bytes, so that the client reads the answer; the kernel holds others
        assert gateway.metric("percore_gateway_loop_lag_seconds") < 1
    eventually(lambda: gateway.spooled() == 0, 3)


def test_a_trailer_of_bounded_size_is_dropped(gateway: Gateway, worker: Worker) -> None:
    with gateway.send(chunked(b"body", trailer="X: " + "a" * 1000)) as connection:
        assert read_answer(connection)[2] == b"body"
    assert b"aaaa" not in worker.runs[-1][0]


def test_a_second_answer_is_not_bound_by_the_timer_of_the_first() -> None:
    """The first answer is large and is read late. The second is read without a pause, for longer than the timer."""
    with (
        Worker(answer_5_mb) as worker,
        Gateway(worker.endpoint, body_timeout=BODY_TIMEOUT, max_body_bytes=LARGE) as gateway,
        gateway.connect() as connection,
    ):
        connection.sendall(call(b"first"))
        time.sleep(BODY_TIMEOUT * 0.6)
        assert len(read_answer(connection)[2]) == LARGE // 8
        connection.sendall(call(b"second"))
        assert read_slowly(connection, LARGE // 8, seconds=BODY_TIMEOUT * 2) == LARGE // 8


def answer_5_mb(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.answer(bytes(LARGE // 8))
    exchange.finish()


def read_slowly(connection: socket.socket, size: int, seconds: float) -> int:
    """Read an answer of ``size`` bytes evenly over ``seconds``; return how much of its body came."""
    data, began = bytearray(), time.monotonic()
    while len(data) < size:
        time.sleep(0.01)
        while len(data) < size * min(1.0, (time.monotonic() - began) / seconds):
            more = connection.recv(min(1 << 16, size))
            if not more:
                return len(data)
            data += more
    body = data.partition(b"\r\n\r\n")[2]
    while len(body) < size:
        more = connection.recv(1 << 16)
        if not more:
            break
        body += more
    return len(body)


def test_a_reader_that_is_slow_but_steady_gets_its_whole_answer() -> None:
    """5 MB in 4 s; the bound is 1 s without progress."""
    with (
        Worker(answer_5_mb) as worker,
        Gateway(worker.endpoint, body_timeout=BODY_TIMEOUT) as gateway,
        gateway.send_call() as connection,
    ):
        assert read_slowly(connection, LARGE // 8, seconds=4) == LARGE // 8


def test_a_client_that_reads_nothing_costs_one_answer_and_no_more(gateway: Gateway) -> None:
    """Uses the port of metrics, which has long answers. Both ports have the same front."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateway.status_port))
        before = resident(gateway)
        sent = 0
        while sent < 2000:
            try:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            except OSError:
                break
            sent += 1
            time.sleep(0.001)
        assert resident(gateway) - before < 8 << 20


def resident(gateway: Gateway) -> int:
    return int(Path(f"/proc/{gateway.pid}/statm").read_text().split()[1]) * 4096


def test_silent_uploads_do_not_prevent_small_calls() -> None:
    """An incomplete head counts as a connection; a head that announces 32 MB counts as an upload."""
    silent = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {32 << 20}\r\n\r\n".encode()
    with Worker() as worker, Gateway(worker.endpoint, gateway_uploads=4) as gateway:
        uploads = [gateway.send(silent) for _ in range(4)]
        eventually(lambda: gateway.metric("percore_gateway_uploads") == 4)
        assert outcome(gateway.send(silent)) == (503, "overloaded")
        with gateway.send(call(b"small")[:-5]) as connection:
            time.sleep(0.1)
            connection.sendall(b"small")
            assert read_answer(connection)[2] == b"small"
        for each in uploads:
            each.close()
        eventually(lambda: gateway.spooled() == 0)


def test_an_answer_of_http_1_0_that_is_cut_ends_with_a_reset() -> None:
    cut = threading.Event()

    def dies(exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        exchange.answer(b"5\r\nhello\r\n", "200 OK", "Transfer-Encoding: chunked", length=False)
        cut.wait(30)
        exchange.reset()

    with Worker(dies) as worker, Gateway(worker.endpoint) as gateway, gateway.send(call(version="1.0")) as connection:
        data = b""
        while not data.endswith(b"hello"):
            data += connection.recv(1000)
        cut.set()
        with pytest.raises(ConnectionResetError):
            connection.recv(1000)


def test_the_header_connection_cannot_remove_the_host(gateway: Gateway, worker: Worker) -> None:
    with gateway.send_call(b"{}", "Connection: host, x-mine", "X-Mine: 1") as connection:
        assert read_answer(connection)[0] == 200
    head = worker.runs[-1][0].lower()
    assert b"host: x\r\n" in head
    assert b"x-mine" not in head
