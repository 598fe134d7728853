"""Every kind of answer of a WSGI application, as bytes on the connection."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.exchanges import Served, parts, request, unchunked, until

StartResponse = Callable[..., Any]
Environ = dict[str, Any]
TEXT = ("Content-Type", "text/plain")


def answered(
    application: Callable[[Environ, StartResponse], Iterable[bytes]], sent: bytes = b""
) -> tuple[str, dict[str, str], bytes, list[str]]:
    with Served(application) as served:
        served.client.sendall(sent or request(body=b"x"))
        status, headers, body = parts(served.rest())
    return status, headers, body, served.reports.events


class Pieces:
    """An iterable without a length, like a streamed answer. It remembers whether it was closed."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pieces)

    def close(self) -> None:
        self.closed += 1


def app(result: Any, status: str = "200 OK", *headers: tuple[str, str]) -> Callable[[Environ, StartResponse], Any]:
    def application(_environ: Environ, start_response: StartResponse) -> Any:
        start_response(status, [TEXT, *headers])
        return result

    return application


@pytest.mark.parametrize("result", [[b"ab", b"", b"cd"], (b"abcd",), [bytearray(b"ab"), memoryview(b"cd")]])
def test_an_answer_whose_pieces_are_all_there_has_a_length(result: Any) -> None:
    status, headers, body, events = answered(app(result))
    assert (status, headers["content-length"], body) == ("HTTP/1.1 200 OK", "4", b"abcd")
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    assert events == ["started", "finished 200"]


def test_an_empty_answer_has_the_length_zero() -> None:
    for result in ([], [b""], Pieces([]), Pieces([b"", b""])):
        _, headers, body, _ = answered(app(result))
        assert (headers["content-length"], body) == ("0", b"")


def test_an_answer_of_unknown_size_is_chunked_and_closed() -> None:
    pieces = Pieces([b"ab", b"", b"cd" * 100])
    _, headers, body, events = answered(app(pieces))
    assert headers["transfer-encoding"] == "chunked"
    assert "content-length" not in headers
    assert list(unchunked(body)) == [b"ab", b"cd" * 100]
    assert pieces.closed == 1
    assert events == ["started", "finished 200"]


def test_a_piece_arrives_before_the_next_one_is_made() -> None:
    arrived = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"first"
        assert arrived.wait(5)
        yield b"second"

    with Served(app(pieces())) as served:
        served.client.sendall(request(body=b"x"))
        data = b""
        while not data.endswith(b"5\r\nfirst\r\n"):
            data += served.receive(1)
        arrived.set()
        assert served.rest() == b"6\r\nsecond\r\n0\r\n\r\n"


def test_an_answer_that_says_its_length_is_streamed_without_chunks() -> None:
    _, headers, body, _ = answered(app(Pieces([b"ab", b"cd"]), "200 OK", ("Content-Length", "4")))
    assert (headers["content-length"], body) == ("4", b"abcd")
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("result", [[b"abcd", b"ef"], Pieces([b"abcdef"]), Pieces([b"ab", b"cdef", b"gh"])])
def test_no_more_than_the_declared_length_is_sent(result: Any) -> None:
    assert answered(app(result, "200 OK", ("Content-Length", "4")))[2] == b"abcd"


def test_less_than_the_declared_length_is_an_error_or_an_answer_without_its_end() -> None:
    status, _, _, events = answered(app([b"ab"], "200 OK", ("Content-Length", "4")))
    assert status.startswith("HTTP/1.1 500 ")
    assert events[-1] == "finished 500"
    _, _, body, events = answered(app(Pieces([b"a", b"b"]), "200 OK", ("Content-Length", "4")))
    assert body == b"ab"
    assert events[-1] == "finished 500"


@pytest.mark.parametrize("result", [[b"body"], Pieces([b"bo", b"dy"]), []])
@pytest.mark.parametrize(("method", "status"), [("POST", "204 No Content"), ("POST", "304 Not Modified"), ("HEAD", "200 OK")])
def test_an_answer_without_a_body_gets_no_length_from_percore(result: Any, method: str, status: str) -> None:
    line, headers, body, _ = answered(app(result, status), request(method))
    assert line == f"HTTP/1.1 {status}"
    assert body == b""
    assert "content-length" not in headers
    assert "transfer-encoding" not in headers


def test_an_answer_to_head_keeps_its_length_and_a_204_does_not() -> None:
    said = ("Content-Length", "1234")
    assert answered(app([], "200 OK", said), request("HEAD"))[1]["content-length"] == "1234"
    assert answered(app([], "304 Not Modified", said))[1]["content-length"] == "1234"
    assert "content-length" not in answered(app([], "204 No Content", said))[1]


def test_a_client_of_http_1_0_gets_a_length_and_no_chunks() -> None:
    _, headers, body, _ = answered(app(Pieces([b"ab", b"cd"])), request(body=b"x", version="1.0"))
    assert (headers["content-length"], body) == ("4", b"abcd")
    assert "transfer-encoding" not in headers


def test_an_application_may_call_start_response_late() -> None:
    def late(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("201 Created", [TEXT])
        yield b"made"

    status, _, body, _ = answered(late)
    assert status == "HTTP/1.1 201 Created"
    assert list(unchunked(body)) == [b"made"]


def test_the_write_callable_of_wsgi_works() -> None:
    def writes(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [TEXT])
        write(b"ab")
        write(b"cd")
        return [b"ef"]

    assert list(unchunked(answered(writes)[2])) == [b"ab", b"cd", b"ef"]


def test_an_error_page_replaces_an_answer_that_has_not_left() -> None:
    def fails(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [TEXT, ("Content-Length", "99")])
        try:
            raise RuntimeError
        except RuntimeError:
            import sys  # noqa: PLC0415

            start_response("500 Oh", [TEXT], sys.exc_info())
        return [b"oh"]

    status, headers, body, _ = answered(fails)
    assert (status, headers["content-length"], body) == ("HTTP/1.1 500 Oh", "2", b"oh")


def test_an_error_in_the_middle_of_a_stream_ends_it_without_its_last_chunk_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            yield b"first"
            raise RuntimeError("secret")
        finally:
            closed.append(True)

    with caplog.at_level(logging.ERROR, "percore.worker"):
        _, _, body, events = answered(app(pieces()))
    assert body == b"5\r\nfirst\r\n"
    assert events == ["started", "finished 500"]
    assert closed == [True]
    assert "RuntimeError" in caplog.text


def _no_start(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    return [b"x"]


def _lazy_no_start(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    yield b"x"


def _exits(_environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "application",
    [
        _no_start,
        _lazy_no_start,
        _exits,
        app(["text"]),
        app(Pieces(["text"])),
        app(None),
        app([b"x"], "200 OK", ("X", "a\r\nInjected: b")),
        app([b"x"], "200 OK\r\nInjected: b"),
        app([b"x"], "200 OK", ("Content-Length", "1_0")),
    ],
)
def test_an_application_that_breaks_the_rules_is_500_in_json(application: Any) -> None:
    status, headers, body, events = answered(application)
    assert status.startswith("HTTP/1.1 500 ")
    assert "injected" not in headers
    assert b'"code":"handler-failed"' in body
    assert events == ["started", "finished 500"]


def test_headers_of_the_connection_are_ours_alone() -> None:
    _, headers, body, _ = answered(
        app([b"x"], "200 OK", ("Connection", "keep-alive"), ("Transfer-Encoding", "chunked"), ("Keep-Alive", "timeout=5"))
    )
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    assert "keep-alive" not in headers
    assert body == b"x"


def test_a_stream_that_its_client_does_not_read_is_given_up_and_closed() -> None:
    pieces = Pieces([b"x" * 1_000_000] * 100)
    with Served(app(pieces), answer_timeout=0.3) as served:
        served.client.sendall(request(body=b"x"))
        served.join()
    assert pieces.closed == 1
    assert served.reports.events[-1] == "finished undelivered"


def test_a_stream_over_the_run_timeout_is_cut_and_gets_no_second_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, exits = threading.Event(), []

    def pieces() -> Iterator[bytes]:
        yield b"first"
        assert ended.wait(5)

    def end(status: int) -> None:
        exits.append(status)
        ended.set()

    monkeypatch.setattr("percore.worker.exchange.os._exit", end)
    with Served(app(pieces()), run_timeout=0.2) as served:
        served.client.sendall(request(body=b"x"))
        assert not served.receive(12).startswith(b"HTTP/1.1 504")
        until(lambda: served.watchdog.check() or exits)  # type: ignore[func-returns-value]
        assert b"HTTP/1.1" not in served.rest(), "a second answer"
    assert exits == [0]
    assert served.reports.events[1:3] == ["finished 504", "ending run-timeout"]


def test_an_application_reads_its_input_as_any_file() -> None:
    def reads(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [TEXT])
        return [environ["wsgi.input"].readline(), environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

    assert answered(reads, request(body=b"a\nbc"))[2] == b"a\nbc"
