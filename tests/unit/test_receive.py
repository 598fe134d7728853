"""A worker receives one request over a real socket, with Gunicorn's real parser."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from gunicorn.config import Config
from percore.errors import BadRequest, BodyTimeout, BodyTooLarge
from percore.worker import receive


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, served = socket.socketpair()
    with client, served:
        yield client, served


Pair = tuple[socket.socket, socket.socket]


def read(served: socket.socket, seconds: float = 5.0, largest: int = 1000) -> receive.Buffer | None:
    source = receive.TimedSource(served, seconds)
    head = receive.read_head(receive.parser(Config(), source, ("127.0.0.1", 1)), source)
    return None if head is None else receive.read_body(head, served, source, largest)


def request(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body


def test_a_body_that_came_with_the_head_is_whole(pair: Pair) -> None:
    pair[0].sendall(request("Content-Length: 5", body=b"hello"))
    assert read(pair[1]) == b"hello"


def test_a_body_that_comes_in_pieces_is_whole(pair: Pair) -> None:
    def send() -> None:
        for piece in (request("Content-Length: 300000", body=b"a" * 10), b"b" * 199_990, b"c" * 100_000):
            pair[0].sendall(piece)

    sender = threading.Thread(target=send)
    sender.start()
    assert read(pair[1], largest=300_000) == b"a" * 10 + b"b" * 199_990 + b"c" * 100_000
    sender.join()


def test_bytes_after_the_body_are_not_part_of_it(pair: Pair) -> None:
    pair[0].sendall(request("Content-Length: 5", body=b"helloGET / HTTP/1.1\r\n"))
    assert read(pair[1]) == b"hello"


def test_a_chunked_body_is_joined(pair: Pair) -> None:
    pair[0].sendall(request("Transfer-Encoding: chunked", body=b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"))
    assert read(pair[1]) == b"hello"


def test_a_body_of_the_limit_passes_and_one_byte_more_is_refused_unread(pair: Pair) -> None:
    pair[0].sendall(request("Content-Length: 1000", body=b"x" * 1000))
    assert read(pair[1]) == b"x" * 1000
    pair[0].sendall(request("Content-Length: 1001"))
    with pytest.raises(BodyTooLarge, match="at most 1000 bytes, and Content-Length is 1001"):
        read(pair[1])


def test_a_chunked_body_over_the_limit_is_refused(pair: Pair) -> None:
    pair[0].sendall(request("Transfer-Encoding: chunked", body=b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"))
    with pytest.raises(BodyTooLarge, match="at most 1000 bytes"):
        read(pair[1])


@pytest.mark.parametrize(
    "sent",
    [
        request("Transfer-Encoding: chunked", body=b"zz\r\nhel\r\n"),
        request("Transfer-Encoding: chunked", body=b"2\r\nhel\r\n0\r\n\r\n"),
        request("Content-Length: -1"),
        request("Content-Length: 5", "Content-Length: 5", body=b"hello"),
        request("Content-Length: 5", "Content-Length: 6", body=b"hello"),
        request("X: a\r\n b", "Content-Length: 5", body=b"hello"),
        request("X: a\0b"),
        b"POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello",
        b"POST / HTTP/1.1\r\nHost: x\nContent-Length: 5\r\n\r\nhello",
        request("Content-Length: 5", "Transfer-Encoding: chunked", body=b"hello"),
        b"what is this\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
)
def test_a_malformed_request_is_refused(pair: Pair, sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BadRequest):
        read(pair[1])


@pytest.mark.parametrize(
    "sent",
    [
        request("Content-Length: 10", body=b"short"),
        request("Content-Length: 10"),
        request("Transfer-Encoding: chunked"),
        request("Transfer-Encoding: chunked", body=b"5\r\nhel"),
        request("Transfer-Encoding: chunked", body=b"3\r\nhel"),
        request("Transfer-Encoding: chunked", body=b"3\r\nhel\r\n"),
        request("Transfer-Encoding: chunked", body=b"3\r\nhel\r\n0\r\n"),
    ],
)
def test_a_body_that_ends_before_its_last_byte_is_no_bad_request_but_a_client_that_left(pair: Pair, sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(receive.EndedEarly):
        read(pair[1])


def test_a_chunked_request_without_a_body_is_empty(pair: Pair) -> None:
    pair[0].sendall(request("Transfer-Encoding: chunked", body=b"0\r\n\r\n"))
    assert read(pair[1]) == b""


def test_a_client_that_sends_nothing_is_no_request(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "SILENT_SECONDS", 0.1)
    began = time.monotonic()
    assert read(pair[1]) is None
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("sent", [b"", b"POST / HT"])
def test_a_client_that_leaves_before_the_head_is_complete_is_no_request(pair: Pair, sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    assert read(pair[1]) is None


@pytest.mark.parametrize(
    "start", [b"", b"POST / HTTP/1.1\r\n", request("Content-Length: 100000"), request("Transfer-Encoding: chunked")]
)
def test_a_client_that_sends_byte_by_byte_is_cut_off_by_one_deadline(pair: Pair, start: bytes) -> None:
    stop = threading.Event()

    def trickle() -> None:
        pair[0].sendall(start)
        while not stop.wait(0.05):
            pair[0].sendall(b"A")

    trickler = threading.Thread(target=trickle)
    trickler.start()
    began = time.monotonic()
    with pytest.raises(BodyTimeout, match=r"was not complete within 0\.3 s"):
        read(pair[1], seconds=0.3, largest=100_000)
    assert 0.25 < time.monotonic() - began < 2.0
    stop.set()
    trickler.join()


def test_the_client_gets_100_continue_before_its_body_is_read(pair: Pair) -> None:
    def client() -> None:
        pair[0].sendall(request("Content-Length: 5", "Expect: 100-continue"))
        assert pair[0].recv(100).startswith(b"HTTP/1.1 100 ")
        pair[0].sendall(b"hello")

    speaker = threading.Thread(target=client)
    speaker.start()
    assert read(pair[1]) == b"hello"
    speaker.join()


def test_bytes_that_are_not_http_are_refused_at_the_first_byte(pair: Pair) -> None:
    pair[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # a TLS client's hello
    with pytest.raises(BadRequest, match=r"0x16 first; there is no TLS on this port"):
        read(pair[1])


def test_a_transfer_coding_other_than_chunked_is_refused(pair: Pair) -> None:
    pair[0].sendall(request("Transfer-Encoding: gzip, chunked", body=b"1\r\nx\r\n0\r\n\r\n"))
    with pytest.raises(BadRequest, match="expected chunked, got 'gzip, chunked'"):
        read(pair[1])


def test_a_head_has_five_seconds_even_if_the_body_timeout_is_longer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "HEAD_SECONDS", 0.2)
    pair[0].sendall(b"POST")
    with pytest.raises(BodyTimeout, match=r"the head of the request was not complete within 0\.2 s"):
        read(pair[1], seconds=60)


def test_a_body_returns_its_own_buffer_and_no_byte_twice() -> None:
    buffer = bytearray(b"hello")
    body = receive.WholeBody(buffer)
    assert body.take() is buffer
    assert body.take() == b""
    assert body.read() == b""


def test_a_body_is_read_as_any_file_of_bytes() -> None:
    partial = receive.WholeBody(memoryview(b"hello"))
    assert [partial.read(2), partial.read(), partial.read()] == [b"he", b"llo", b""]
    assert type(receive.WholeBody(memoryview(b"hello")).read()) is bytes
    lines = receive.WholeBody(bytearray(b"a\nb\nc\nd"))
    assert (lines.readline(), next(iter(lines)), lines.readlines()) == (b"a\n", b"b\n", [b"c\n", b"d"])
    started = receive.WholeBody(b"hello")
    assert started.read(2) + bytes(started.take()) == b"hello"
