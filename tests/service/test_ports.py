"""The same faults on every port of every process: errors are percore's JSON, heads are bounded, and a connection that holds a
worker is logged.
"""

import json
import ssl
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from harness.gateway import parsed, read_answer, read_to_end
from harness.service import FAULTY, Service, answer_of, eventually

LONG = "9" * 5000
PREDICT = "/v1/models/default:predict"


class Port(NamedTuple):
    service: Service
    number: int
    is_status: bool
    """Whether it is the port of a status server."""


@pytest.fixture(scope="module")
def pod() -> Iterator[Service]:
    with Service(pod=True, handler=FAULTY, body_timeout=30).ready() as service:
        yield service


@pytest.fixture(scope="module")
def machine() -> Iterator[Service]:
    with Service(handler=FAULTY, body_timeout=30).ready() as service:
        yield service


@pytest.fixture(params=["worker", "status of a pod", "gateway", "status of a machine"])
def port(request: pytest.FixtureRequest, pod: Service, machine: Service) -> Port:
    return {
        "worker": Port(pod, pod.port, is_status=False),
        "status of a pod": Port(pod, pod.status_port, is_status=True),
        "gateway": Port(machine, machine.port, is_status=False),
        "status of a machine": Port(machine, machine.status_port, is_status=True),
    }[request.param]


def hello() -> bytes:
    """Return the first bytes of a TLS client."""
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="x").do_handshake()
    return sent.read()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(f"POST {PREDICT} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}", id="no Host"),
        pytest.param("GET /v1/models/default HTTP/1.1\r\n\r\n", id="a read, no Host"),
        pytest.param("OPTIONS * HTTP/1.1\r\nPercore-Gateway: a\r\n\r\n", id="a reservation, no Host"),
        pytest.param(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}", id="two Hosts"),
        pytest.param(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {LONG}\r\n\r\n", id="5,000 digits"),
        pytest.param(f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {LONG}\r\n\r\n", id="a read, 5,000 digits"),
        pytest.param(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + LONG * 20, id="an endless chunk size"
        ),
        pytest.param("GET / HTTP/1.1\r\nHost: x\r\n" + "a:b\r\n" * 200_000, id="endless short headers"),
        pytest.param("GET / HTTP/1.1\r\nHost: x\r\na: " + "b" * 2_000_000, id="an endless header"),
        pytest.param("GET / HTTP/1.1\r\nHost: x\r\n" + "b" * 2_000_000, id="an endless name"),
        pytest.param("GET /" + "b" * 2_000_000, id="an endless target"),
        pytest.param("G" * 2_000_000, id="an endless method"),
        pytest.param("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="CONNECT"),
        pytest.param("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param("\0", id="NUL"),
        pytest.param("hello\r\n\r\n", id="no HTTP"),
    ],
)
def test_bytes_that_are_not_http_are_400_in_our_json_on_every_port(port: Port, sent: str) -> None:
    began = time.monotonic()
    with port.service.connect_to(port.number) as connection:
        try:
            connection.sendall(sent.encode("latin-1"))
        except ConnectionError:
            pass  # it was refused long before its end
        else:
            connection.settimeout(5)
        status, headers, body = parsed(read_to_end(connection))
    if port.is_status and "chunked" in sent:  # it is refused before its body
        assert (status, json.loads(body)["code"], headers["allow"]) == (405, "method-not-allowed", "GET, HEAD")
    else:
        assert (status, json.loads(body)["code"]) == (400, "bad-request")
    assert headers["content-type"] == "application/json"
    assert time.monotonic() - began < 3
    assert not [line for line in port.service.log() if "trace" in line]


def test_a_tls_client_can_read_why_it_is_refused(port: Port) -> None:
    with port.service.connect_to(port.number) as connection:
        connection.sendall(hello())
        status, _, body = parsed(read_to_end(connection))
    assert (status, json.loads(body)["code"]) == (400, "bad-request")


@pytest.mark.parametrize("body", ["Content-Length: 100", "Transfer-Encoding: chunked", "Content-Length: 99999999999"])
def test_a_read_whose_announced_body_never_comes_is_answered_at_once_on_every_port(port: Port, body: str) -> None:
    for method in ("GET", "HEAD"):
        began = time.monotonic()
        with port.service.connect_to(port.number) as connection:
            connection.sendall(f"{method} /v1/models/default HTTP/1.1\r\nHost: x\r\n{body}\r\n\r\n".encode())
            status, headers, _ = parsed(read_to_end(connection))
        assert (status, headers["content-type"]) == (200, "application/json")
        assert time.monotonic() - began < 3


def test_a_read_with_a_body_is_answered_and_the_answer_is_not_reset(port: Port) -> None:
    with port.service.connect_to(port.number) as connection:
        connection.sendall(b"GET /v1/models/default HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
        time.sleep(0.1)
        connection.sendall(bytes(300_000))
        status, _, body = read_answer(connection)
    assert status == 200
    assert json.loads(body)["model_version_status"]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(f"POST {PREDICT} HTTP/1.1\r\nHo".encode(), id="half a head"),
        pytest.param(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode(), id="half a body"),
    ],
)
def test_a_connection_that_holds_a_pod_s_worker_without_a_call_is_counted_and_logged(pod: Service, sent: bytes) -> None:
    counted, logged = pod.metric("percore_calls_total", code="incomplete"), len(pod.runs())
    with pod.connect() as connection:
        connection.sendall(sent)
        time.sleep(1.5)
        behind = pod.send_call(sleep=0)
        began = time.monotonic()
        if not sent:
            assert connection.recv(1) == b""
    assert answer_of(behind)[0] == 200
    eventually(lambda: pod.metric("percore_calls_total", code="incomplete") == counted + 1)
    eventually(lambda: len(pod.runs()) == logged + 2)
    line = pod.runs()[logged]
    assert (line["status"], line["run_seconds"]) == ("incomplete", None)
    assert 1.4 < line["held_seconds"] < 3 + time.monotonic() - began


def test_a_connection_that_holds_a_pod_s_worker_for_a_moment_is_not_counted(pod: Service) -> None:
    before = pod.metric("percore_calls_total"), len(pod.runs())
    for sent in (b"", b"POST", b"GET /v1/models/default HTTP/1.1\r\nHost: x\r\n\r\n"):
        with pod.connect() as connection:
            connection.sendall(sent)
    eventually(lambda: pod.metric("percore_workers", state="free") == 1)
    assert (pod.metric("percore_calls_total"), len(pod.runs())) == before
