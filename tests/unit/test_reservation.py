"""Connections to a worker: a reservation and then a call, a call alone, or one of these cut off."""

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from percore.worker.receive import Reservations

from harness.gateway import RESERVED
from tests.exchanges import CONFIG, OPTIONS, Served, parts, request, until

RESET = b"\1\0\0\0\0\0\0\0"


class Application:
    """Answers with the body that it got, and counts its calls."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.environs.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read()]


@pytest.fixture
def app() -> Application:
    return Application()


CALL = request(body=b"hello")
CHUNKED = request("POST", "Transfer-Encoding: chunked") + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
EMPTY = request("POST", "Transfer-Encoding: chunked") + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("call", "body"), [(CALL, b"hello"), (CHUNKED, b"hello"), (EMPTY, b"")], ids=["sized", "chunked", "empty"]
)
@pytest.mark.parametrize("reserved", [True, False])
def test_a_call_is_answered_after_a_reservation_and_without_one(
    app: Application, call: bytes, body: bytes, reserved: bool
) -> None:
    with Served(app) as served:
        if reserved:
            served.reserve()
        served.client.sendall(call)
        status, headers, answered = parts(served.rest())
        assert (status, answered, headers["connection"]) == ("HTTP/1.1 200 OK", body, "close")
    assert served.reports.events == ["started", "finished 200"]
    assert app.environs[0]["CONTENT_LENGTH"] == str(len(body))
    assert "HTTP_TRANSFER_ENCODING" not in app.environs[0]


def test_a_reservation_that_was_parsed_once_is_known_by_its_bytes_and_any_other_is_parsed(app: Application) -> None:
    known = Reservations(CONFIG)
    for _ in range(2):
        with Served(app, known) as served:
            served.reserve()
            served.client.sendall(CALL)
            assert parts(served.rest())[2] == b"hello"
    assert list(known._known) == [OPTIONS]
    other = OPTIONS.replace(b"one", b"two\r\nX : y")
    with Served(app, known) as served:
        served.client.sendall(other)
        assert parts(served.rest())[0].startswith("HTTP/1.1 400 ")


def test_a_reservation_in_two_pieces_and_one_with_a_call_in_the_same_packet_are_served(app: Application) -> None:
    known = Reservations(CONFIG)
    with Served(app, known) as served:
        served.client.sendall(OPTIONS[:20])
        time.sleep(0.05)
        served.client.sendall(OPTIONS[20:])
        assert served.receive(len(RESERVED)) == RESERVED
        served.client.sendall(CALL)
        assert parts(served.rest())[2] == b"hello"
    with Served(app, known) as served:
        served.client.sendall(OPTIONS + CALL)
        assert served.receive(len(RESERVED)) == RESERVED
        assert parts(served.rest())[2] == b"hello"
    assert not known._known


def test_the_number_of_known_reservations_is_bounded(app: Application) -> None:
    known = Reservations(CONFIG)
    for number in range(40):
        with Served(app, known) as served:
            served.client.sendall(OPTIONS.replace(b"one", b"%d" % number))
            assert served.receive(len(RESERVED)) == RESERVED
    assert len(known._known) <= 16


def test_a_reservation_without_a_call_is_closed_after_a_tenth_of_a_second_without_an_answer(app: Application) -> None:
    with Served(app) as served:
        served.reserve()
        began = time.monotonic()
        assert served.rest() == b""
        assert 0.08 < time.monotonic() - began < 0.5
    assert served.reports.events == []
    assert app.environs == []


def test_once_its_first_byte_has_come_a_call_has_the_usual_time(app: Application) -> None:
    with Served(app) as served:
        served.reserve()
        for piece in (CALL[:1], CALL[1:30], CALL[30:-2], CALL[-2:]):
            served.client.sendall(piece)
            time.sleep(0.15)
        assert parts(served.rest())[2] == b"hello"


def test_a_second_reservation_on_one_connection_is_closed_and_is_no_call(app: Application) -> None:
    with Served(app) as served:
        served.reserve()
        served.client.sendall(OPTIONS)
        assert served.rest() == b""
    assert served.reports.events == []


def leave(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


@pytest.mark.parametrize("how", ["close", "half"])
@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize(
    "sent",
    [b"", CALL[:10], CALL[:-5], CALL[:-1], CHUNKED[:-1], CHUNKED[:-8], EMPTY[:-1], EMPTY[:-5]],
    ids=["nothing", "head", "no body", "last byte", "chunk's last byte", "chunks", "empty's last byte", "empty's head"],
)
def test_a_call_that_ends_before_its_last_byte_is_dropped_without_an_answer_and_not_counted(
    app: Application, sent: bytes, reserved: bool, how: str
) -> None:
    with Served(app) as served:
        if reserved:
            served.reserve()
        served.client.sendall(sent)
        if how == "half":
            served.client.shutdown(socket.SHUT_WR)
            assert served.rest() == b""
        else:
            served.client.close()
        served.join()
    assert served.reports.events in ([], ["started", "released"])
    assert app.environs == []


@pytest.mark.parametrize("sent", [OPTIONS[:10], OPTIONS[:-1], OPTIONS], ids=["head", "last byte", "all of it"])
def test_a_reservation_that_breaks_off_is_dropped(app: Application, sent: bytes) -> None:
    with Served(app) as served:
        served.client.sendall(sent)
        served.client.close()
        served.join()
    assert served.reports.events == []


def test_a_client_that_leaves_after_the_last_byte_is_counted_and_its_call_is_not_begun(
    app: Application,
) -> None:
    served = Served(app)
    served.client.sendall(CALL)
    served.client.close()
    with served:
        served.join()
    assert served.reports.events == ["started", "client-disconnect queued", "finished client-disconnect"]


SMUGGLED = {
    "length and chunks": request("POST", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two lengths": request("POST", "Content-Length: 5", "Content-Length: 6") + b"hello!",
    "one length twice": request("POST", "Content-Length: 5", "Content-Length: 5") + b"hello",
    "signed length": request("POST", "Content-Length: +5") + b"hello",
    "chunked twice": request("POST", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "other coding": request("POST", "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "chunked in 1.0": request("POST", "Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n",
    "bare LF": b"POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello",
    "one bare LF": b"POST / HTTP/1.1\r\nHost: x\nContent-Length: 5\r\n\r\nhello",
    "folded": request("POST", "X: a\r\n Content-Length: 5") + b"hello",
    "space before the colon": request("POST", "Content-Length : 5") + b"hello",
    "NUL": request("POST", "X: a\0b", body=b"hello"),
    "chunk size with sign": request("POST", "Transfer-Encoding: chunked") + b"+5\r\nhello\r\n0\r\n\r\n",
    "chunk without end": request("POST", "Transfer-Encoding: chunked") + b"5\r\nhelloX\r\n0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
}


@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_an_ambiguous_request_is_400_and_reaches_no_application(app: Application, sent: bytes, reserved: bool) -> None:
    with Served(app) as served:
        if reserved:
            served.reserve()
        served.client.sendall(sent)
        status, headers, body = parts(served.rest())
        assert status.startswith("HTTP/1.1 400 ")
        assert headers["connection"] == "close"
        assert b'"code":"bad-request"' in body
    assert app.environs == []


def test_bytes_after_a_call_are_never_another_call(app: Application) -> None:
    with Served(app) as served:
        served.reserve()
        served.client.sendall(CALL + CALL)
        assert served.rest().count(b"HTTP/1.1") == 1
    assert len(app.environs) == 1


def test_a_read_holds_the_worker_and_is_not_counted() -> None:
    seen: list[list[str]] = []

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(list(served.reports.events))
        start_response("200 OK", [])
        return [b"read"]

    served = Served(app)
    with served:
        served.client.sendall(request("GET"))
        assert parts(served.rest())[2] == b"read"
    assert seen == [["started"]]
    assert served.reports.events == ["started", "released"]


def test_the_worker_counts_as_taken_until_the_application_returns_though_its_client_has_left() -> None:
    left, returned = [False], [False]

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        until(lambda: left[0])
        time.sleep(0.1)
        returned[0] = served.reports.events == ["started"]
        start_response("200 OK", [])
        return [b"nobody reads this"]

    served = Served(app, on_client_disconnect="finish")
    with served:
        served.client.sendall(CALL)
        until(lambda: served.reports.events == ["started"])
        served.client.close()
        left[0] = True
        served.join()
    assert returned == [True]
    assert served.reports.events[-1].startswith("finished")
