"""Bounds of what clients may send and how long they may take: a hostile client harms only itself."""

import concurrent.futures
import contextlib
import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import requests

from bench.machine import cpu_seconds
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
    serve,
)
from harness.service import eventually

HEAD = f"POST {PREDICT} HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def gateway(worker: Worker) -> Iterator[Gateway]:
    with Gateway(worker.endpoint, body_timeout=1, max_body_bytes=1_000_000) as gateway:
        yield gateway
        gateway.log()  # every line is JSON


def refused(connection: socket.socket) -> tuple[int, str]:
    """Read the last answer of a connection; return its status and code."""
    status, headers, body = read_answer(connection)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    assert read_to_end(connection) == b""
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert len(body) == int(headers["content-length"])
    document = json.loads(body)
    assert set(document) == {"error", "code"}
    return status, document["code"]


def idles(gateway: Gateway) -> bool:
    return gateway.queued() + gateway.executing() + int(gateway.metric("percore_gateway_uploads")) == 0


REFUSED = {
    "two framings": HEAD + "Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two framings, the other way": HEAD + "Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "headers without end": HEAD + "Host: x\r\n" + "a:b\r\n" * 100,
    "two lengths": HEAD + "Host: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": HEAD + "Host: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": HEAD + "Host: x\r\nContent-Length: 5, 5\r\n\r\nhello",
    "a negative length": HEAD + "Host: x\r\nContent-Length: -5\r\n\r\nhello",
    "a signed length": HEAD + "Host: x\r\nContent-Length: +5\r\n\r\nhello",
    "a length that is no number": HEAD + "Host: x\r\nContent-Length: 0x5\r\n\r\nhello",
    "two codings": HEAD + "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that is not last": HEAD + "Host: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + "Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a disguised coding": HEAD + "Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": f"POST {PREDICT} HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": HEAD + "Host: x\nContent-Length: 5\r\n\r\nhello",
    "bare line feeds at the end of the head": HEAD + "Host: x\r\nContent-Length: 5\n\nhello",
    "a bare carriage return": HEAD + "Host: x\rContent-Length: 5\r\n\r\nhello",
    "a folded line": HEAD + "Host: x\r\nA: b\r\n c\r\nContent-Length: 5\r\n\r\nhello",
    "a space before the colon": HEAD + "Host: x\r\nContent-Length : 5\r\n\r\nhello",
    "a NUL in a value": HEAD + "Host: x\r\nA: b\0c\r\nContent-Length: 5\r\n\r\nhello",
    "a NUL in a name": HEAD + "Host: x\r\nA\0: b\r\nContent-Length: 5\r\n\r\nhello",
    "no Host": HEAD + "Content-Length: 5\r\n\r\nhello",
    "two Hosts": HEAD + "Host: x\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "a size of a chunk that is no number": HEAD + "Host: x\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
    "a chunk that is longer than it says": HEAD + "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    "no HTTP": "hello\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": f"POST {PREDICT} HTTP/3.0\r\nHost: x\r\n\r\n",
    "CONNECT": "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is no path": "POST nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "a long target": f"POST /{'a' * 4001} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "many headers": HEAD + "Host: x\r\n" + "A: b\r\n" * 91 + "\r\n",
    "a long header": HEAD + f"Host: x\r\nA: {'b' * 8001}\r\n\r\n",
    "a long head": HEAD + "Host: x\r\n" + f"A: {'b' * 7000}\r\n" * 6,
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED.keys())
def test_a_malformed_request_is_rejected_and_reaches_no_worker(gateway: Gateway, worker: Worker, sent: str) -> None:
    connections = worker.connections
    assert refused(gateway.send(sent.encode("latin-1"))) == (400, "bad-request")
    assert worker.connections == connections
    eventually(lambda: idles(gateway), 2)


def test_a_head_that_comes_byte_by_byte_is_refused_after_ten_seconds(gateway: Gateway) -> None:
    began = time.monotonic()
    connection = gateway.send(HEAD.encode())
    with contextlib.suppress(OSError):
        for _ in range(40):
            time.sleep(0.25)
            connection.sendall(b"A")
    assert refused(connection) == (408, "body-timeout")
    assert 9 < time.monotonic() - began < 12


def test_a_body_that_comes_too_slowly_is_refused(gateway: Gateway, worker: Worker) -> None:
    runs = len(worker.runs)
    began = time.monotonic()
    assert refused(gateway.send(call(bytes(1000))[:-1])) == (408, "body-timeout")
    assert 0.9 < time.monotonic() - began < 3
    assert refused(gateway.send(chunked(bytes(1000))[:-5])) == (408, "body-timeout")
    assert len(worker.runs) == runs


def test_a_body_that_is_announced_too_large_is_refused_without_100_continue(gateway: Gateway) -> None:
    lines = f"{HEAD}Host: x\r\nContent-Length: 1000001\r\nExpect: 100-continue\r\n\r\n"
    answer = read_to_end(gateway.send(lines.encode()))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(parsed(answer)[2])["code"] == "body-too-large"


def test_a_body_that_grows_too_large_in_chunks_is_refused(gateway: Gateway) -> None:
    assert outcome(gateway.send(chunked(bytes(600_000), bytes(400_001)))) == (413, "body-too-large")
    assert outcome(gateway.send(chunked(bytes(600_000), bytes(400_000)))) == (200, "")


def test_a_client_that_waits_for_100_continue_gets_it(gateway: Gateway) -> None:
    connection = gateway.send(call(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"hello")
    with connection:
        assert read_answer(connection)[2] == b"hello"


def test_a_client_that_is_rejected_while_it_sends_can_read_the_reason(gateway: Gateway) -> None:
    """Closing at once would reset the connection, and the answer would be lost."""
    connection = gateway.send(call(b"").replace(b"Length: 0", b"Length: 1000001") + bytes(500_000))
    assert refused(connection) == (413, "body-too-large")


@pytest.mark.parametrize("framed", [call(b"hello"), chunked(b"hel", b"lo")], ids=["length", "chunks"])
@pytest.mark.parametrize(
    "other",
    [
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA",
        "Upgrade: websocket\r\nConnection: upgrade",
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_upgrade_is_ignored_and_the_body_reaches_the_worker(
    gateway: Gateway, worker: Worker, framed: bytes, other: str, at_once: bool
) -> None:
    sent = framed.replace(b"Host: x", b"Host: x\r\n" + other.encode())
    split = len(sent) if at_once else sent.index(b"\r\n\r\n") + 4
    with gateway.send(sent[:split]) as connection:
        time.sleep(0 if at_once else 0.05)
        connection.sendall(sent[split:])
        status, _, body = read_answer(connection)
    assert (status, body) == (200, b"hello")
    head, body = worker.runs[-1]
    assert body == b"hello"
    assert b"upgrade" not in head.lower()
    assert b"http2-settings" not in head.lower()


def test_headers_of_clients_with_our_prefix_never_reach_a_worker(gateway: Gateway, worker: Worker) -> None:
    sent = chunked(b"hello", trailer="Percore-Gateway: evil", headers=["percore-gateway: evil", "PERCORE-Client: evil"])
    assert outcome(gateway.send(sent)) == (200, "")
    assert outcome(gateway.send_call(b"hello", "Connection: x-mine", "X-Mine: evil")) == (200, "")
    for head, body in worker.runs[-2:]:
        assert body == b"hello"
        assert b"evil" not in head
        assert [line for line in head.split(b"\r\n") if line.lower().startswith(b"percore")] == [b"Percore-Client: 127.0.0.1"]
        assert b"x-mine" not in head.lower()
    assert b"evil" not in worker.reservations[-1]
    assert b"Percore-Gateway: " in worker.reservations[-1]


def test_reads_side_by_side_do_not_delay_probes(gateway: Gateway) -> None:
    ends = time.monotonic() + 2
    slowest = 0.0

    def read(_: int) -> int:
        count = 0
        with requests.Session() as session:
            while not count or time.monotonic() < ends:
                assert session.get(gateway.url("/v2/health/live"), timeout=10).status_code == 200
                count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(500) as pool:
        counts = pool.map(read, range(500))
        while time.monotonic() < ends:
            began = time.monotonic()
            assert gateway.get_status("/livez").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert sum(counts) >= 500
    assert slowest < 1.5  # most of this time is spent in this process, which sends all the requests


def test_at_the_bound_of_connections_the_one_that_was_idle_longest_is_closed() -> None:
    with Gateway(queue_length=1, gateway_uploads=1, gateway_connections=998) as gateway, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(gateway.connect()) for _ in range(1001)]
        assert gateway.metric("percore_gateway_connections_limit") == 1000
        eventually(lambda: gateway.metric("percore_gateway_connections") == 999, 5)
        closed = [each for each in connections if is_closed(each)]
        assert closed == connections[:2]
        connections[2].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(connections[2])[0] == 200
        stack.enter_context(gateway.connect())
        eventually(lambda: is_closed(connections[3]), 2)
        assert not is_closed(connections[2])


def answers_probes_at_little_cost(gateway: Gateway) -> None:
    """Check for a second that probes are answered, and that the gateway does not use half of a core."""
    before = cpu_seconds(gateway.pid)
    for _ in range(20):
        assert gateway.get_status("/livez").status_code == gateway.get_status("/readyz").status_code == 200
        time.sleep(0.05)
    assert cpu_seconds(gateway.pid) - before < 0.5


def test_four_thousand_idle_connections_cost_nothing() -> None:
    release = threading.Event()
    with Worker(holding(release), serve) as worker, Gateway(worker.endpoint) as gateway, contextlib.ExitStack() as all_:
        for _ in range(4000):
            all_.enter_context(gateway.connect())
        calls = [all_.enter_context(gateway.send_call(b"%d" % number)) for number in range(20)]
        eventually(lambda: gateway.queued() == 19)
        answers_probes_at_little_cost(gateway)
        release.set()
        assert [outcome(connection) for connection in calls] == [(200, "")] * 20
        assert gateway.metric("percore_gateway_connections") >= 4000


def test_with_all_connections_used_and_a_full_queue_calls_are_rejected_and_probes_are_answered() -> None:
    release = threading.Event()
    with (
        Worker(holding(release), serve) as worker,
        Gateway(worker.endpoint, queue_length=1100, gateway_uploads=1, gateway_connections=100) as gateway,
        contextlib.ExitStack() as all_,
    ):
        calls = [all_.enter_context(gateway.send_call(b"%d" % number)) for number in range(1250)]
        most = int(gateway.metric("percore_gateway_connections_limit"))
        assert most == 1201
        eventually(lambda: gateway.metric("percore_gateway_connections") >= most - 1, 10)
        answers_probes_at_little_cost(gateway)
        release.set()
        answers = [outcome(connection) for connection in calls]
        assert Counter(answers) == {(200, ""): 1101, (429, "queue-full"): 149}
        assert gateway.post(b"after").content == b"after"


def test_without_free_descriptors_new_connections_are_closed_and_queued_calls_run() -> None:
    release = threading.Event()
    with Worker(holding(release), serve) as worker, Gateway(worker.endpoint) as gateway, contextlib.ExitStack() as all_:
        calls = [all_.enter_context(gateway.send_call(b"%d" % number)) for number in range(20)]
        eventually(lambda: gateway.queued() == 19)
        least, most = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (gateway.descriptors(), most))
        others = [all_.enter_context(gateway.send_call(b"other", "Connection: close")) for _ in range(20)]
        before = cpu_seconds(gateway.pid)
        time.sleep(1)  # a gateway that tried to accept without a pause would use a second of CPU
        assert cpu_seconds(gateway.pid) - before < 0.5
        release.set()
        assert [outcome(connection) for connection in calls] == [(200, "")] * 20
        assert {read_to_end(each)[9:12] for each in others} in ({b""}, {b"", b"200"})
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (least, most))
        assert gateway.post(b"after").content == b"after"


def is_closed(connection: socket.socket) -> bool:
    timeout = connection.gettimeout()
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        connection.settimeout(timeout)


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with Gateway(gateway_idle_timeout=1) as gateway, gateway.connect() as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 4


def test_a_full_spool_rejects_calls_and_empties_again() -> None:
    with Gateway(gateway_spool_memory_bytes=0, gateway_spool_bytes=100_000) as gateway:
        with gateway.send_call(bytes(80_000)):
            eventually(gateway.queued)
            for sent in (call(bytes(80_000)), chunked(bytes(80_000))):
                with gateway.send(sent) as connection:
                    status, headers, body = read_answer(connection)
                assert (status, json.loads(body)["code"]) == (503, "overloaded")
                assert int(headers["retry-after"]) > 0
            eventually(lambda: gateway.spooled() == 80_000, 2)
            eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="overloaded") == 2, 2)
        eventually(lambda: gateway.spooled() == 0, 2)


def test_too_many_uploads_reject_the_next_one_and_fill_no_queue() -> None:
    large = b"slow" * 20_000
    with (
        Worker() as worker,
        Gateway(worker.endpoint, gateway_uploads=2) as gateway,
        gateway.send(call(large)[:-1]) as first,
        gateway.send(call(large)[:-1]),
    ):
        eventually(lambda: gateway.metric("percore_gateway_uploads") == 2)
        with gateway.send(call(large)[:-1]) as connection:
            status, headers, body = read_answer(connection)
        assert (status, json.loads(body)["code"]) == (503, "overloaded")
        assert int(headers["retry-after"]) > 0
        assert gateway.post(b"small").status_code == 200
        first.sendall(large[-1:])
        assert read_answer(first)[2] == large
        assert gateway.post().status_code == 200


def test_too_many_bytes_of_uploads_reject_the_next_one() -> None:
    with Worker() as worker, Gateway(worker.endpoint, gateway_upload_bytes=100_000) as gateway:
        with gateway.send(call(bytes(90_000))[:-1]):
            eventually(lambda: gateway.metric("percore_gateway_uploads") == 1)
            assert outcome(gateway.send_call(bytes(70_000))) == (503, "overloaded")
            assert outcome(gateway.send(chunked(bytes(60_000)))) == (503, "overloaded")
            assert gateway.post(bytes(20_000)).status_code == 200
        eventually(lambda: gateway.metric("percore_gateway_uploads") == 0, 2)
        assert gateway.post(bytes(200_000)).status_code == 200


def test_a_full_queue_rejects_the_next_call_before_its_body_is_read() -> None:
    with Gateway(queue_length=2) as gateway, gateway.send_call(), gateway.send_call():
        eventually(lambda: gateway.queued() == 2)
        assert refused(gateway.send(call(bytes(1000))[:-500])) == (429, "queue-full")
        answer = gateway.post()
        assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
        assert int(answer.headers["Retry-After"]) > 0
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="queue-full") == 2, 2)
        eventually(lambda: gateway.queued() == 2, 2)


def test_a_call_that_is_queued_too_long_is_answered_and_never_runs() -> None:
    release = threading.Event()
    with Worker(holding(release), serve) as worker, Gateway(worker.endpoint, queue_timeout=1) as gateway:
        running = gateway.send_call(b"running")
        eventually(gateway.executing)
        began = time.monotonic()
        answer = gateway.post(b"late")
        assert (answer.status_code, answer.json()["code"]) == (503, "queue-timeout")
        assert 0.9 < time.monotonic() - began < 2
        release.set()
        assert outcome(running) == (200, "")
        assert gateway.post(b"next").status_code == 200
        assert worker.bodies == [b"running", b"next"]


LARGE = 32 << 20


def large(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.receive()
    exchange.answer(bytes(LARGE))


def test_a_slow_reader_holds_no_worker_and_is_cut_after_the_answer_timeout() -> None:
    with Worker(large, serve) as worker, Gateway(worker.endpoint, answer_timeout=4) as gateway:
        slow = gateway.send_call(b"slow")
        assert gateway.post(b"next").content == b"next"
        assert gateway.spooled() > LARGE // 2  # most of the answer still waits for the slow reader
        eventually(lambda: gateway.spooled() == 0, 10)
        assert len(read_to_end(slow)) < LARGE
        assert [line["status"] for line in gateway.call_log()][-1] == "disconnected"
        assert worker.bodies == [b"slow", b"next"]


def test_a_reader_that_is_slow_but_goes_on_gets_all_of_a_large_answer() -> None:
    with Worker(large) as worker, Gateway(worker.endpoint, answer_timeout=1) as gateway:
        with gateway.send_call(b"slow") as connection:
            data = bytearray()
            while len(data) < LARGE:
                more = connection.recv(8 << 20)
                assert more, f"cut after {len(data)} bytes"
                data += more
                if len(data) % 7 == 0:
                    time.sleep(0.05)
        assert len(worker.runs) == 1
        eventually(lambda: gateway.spooled() == 0, 3)
