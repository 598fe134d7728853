"""The gateway's rules for the head of a request, and the headers of an answer that it passes on."""

from __future__ import annotations

from typing import cast

import pytest
from percore.errors import BadRequest
from percore.gateway.dispatch import answer_headers
from percore.http.connection import Connection
from percore.http.request import Header, Request

HOST: Header = (b"Host", b"a")


def request(*headers: Header, target: bytes = b"/", version: str = "1.1") -> Request:
    found = Request(cast("Connection", None), "client")
    found.method, found.target, found.version, found.headers = b"POST", target, version, list(headers)
    found.finish_head()
    return found


@pytest.mark.parametrize(
    ("headers", "version", "reason"),
    [
        ([], "1.1", "Host: expected exactly one such header, got 0"),
        ([HOST, HOST], "1.1", "Host: expected exactly one such header, got 2"),
        ([HOST], "2.0", "HTTP version: expected 1.1 or 1.0, got 2.0"),
        ([HOST], "0.9", "HTTP version"),
        ([HOST, (b"Transfer-Encoding", b"gzip, chunked")], "1.1", "Transfer-Encoding: expected chunked, got 'gzip, chunked'"),
        ([HOST, (b"Transfer-Encoding", b"chunked")], "1.0", "Transfer-Encoding: HTTP/1.0 does not have it"),
        ([HOST, (b"X", b"y" * 8000)], "1.1", "header 'X': expected at most 8000 bytes"),
    ],
)
def test_a_head_that_breaks_a_rule_is_refused_with_the_rule(headers: list[Header], version: str, reason: str) -> None:
    with pytest.raises(BadRequest) as error:
        request(*headers, version=version)
    assert str(error.value).startswith(reason)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a/b?c=d", b"/a/b?c=d"),
        (b"http://host/a?b", b"/a?b"),
        (b"HTTPS://host", b"/"),
        (b"/a#fragment", b"/a"),
        (b"/a?next=http://b/c", b"/a?next=http://b/c"),
    ],
)
def test_a_target_becomes_a_path(target: bytes, expected: bytes) -> None:
    assert request(HOST, target=target).target == expected


@pytest.mark.parametrize("target", [b"a:1", b"ftp://a/b", b"/" + b"a" * 4000])
def test_a_target_that_is_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest, match="request target: expected"):
        request(HOST, target=target)


def test_the_body_s_size_comes_from_the_head() -> None:
    assert request(HOST).content_length == 0
    assert request(HOST, (b"content-length", b"17")).content_length == 17
    assert request(HOST, (b"transfer-encoding", b"Chunked")).content_length is None
    assert request(HOST, (b"Expect", b"100-Continue")).expects_continue
    assert not request(HOST, (b"Expect", b"100-continue"), version="1.0").expects_continue


def test_an_answer_loses_headers_of_the_worker_s_connection_and_gains_the_queue_time() -> None:
    given = [
        (b"Content-Type", b"text/plain"),
        (b"Connection", b"close, X-Mine"),
        (b"X-Mine", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Keep-Alive", b"timeout=5"),
        (b"X-Request-ID", b"other"),
        (b"Server-Timing", b"run;dur=2.000"),
        (b"Content-Length", b"3"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
    ]
    headers, length = answer_headers(given, "id-1", 0.0015)
    assert length == 3
    assert headers == [
        (b"Content-Type", b"text/plain"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Request-ID", b"id-1"),
        (b"Server-Timing", b"queue;dur=1.500, run;dur=2.000"),
    ]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://h.example/a?b=c", b"/a?b=c"),
        (b"http://h.example", b"/"),
        (b"http://h.example?a=/q/x", b"/?a=/q/x"),
        (b"HTTP://h.example#/q", b"/"),
        (b"/a?b=http://h/x", b"/a?b=http://h/x"),
    ],
)
def test_the_path_of_an_absolute_target_begins_after_its_authority(target: bytes, path: bytes) -> None:
    assert request(HOST, target=target).target == path


@pytest.mark.parametrize("target", [b"/-/ready", b"/%2D/ready?a", b"/-%2fready", b"http://h/-/re%61dy?b=%20"])
def test_every_spelling_of_a_path_is_one_decoded_path(target: bytes) -> None:
    assert request(HOST, target=target).decoded_path == "/-/ready"


def test_a_path_is_decoded_once() -> None:
    assert request(HOST, target=b"/%252D/ready").decoded_path == "/%2D/ready"
