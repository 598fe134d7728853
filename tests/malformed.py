"""Makes malformed requests: random mutations of valid ones, the same for the same seed. Checks the answers to them."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator, Sequence

SLOW_SECONDS = 3.0
PATIENCE_SECONDS = 0.1
"""If a request has no answer by then, it is probably incomplete, and its sender closes the connection."""
JSON_BODY = b'{"inputs": {"x": [1.5, 2, -3e4], "y": "text"}}'
V2_BODY = b'{"id": "a", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
BINARY_HEAD = (
    b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],'
    b' "parameters": {"binary_data_output": true}}'
)


def _request(line: bytes, *headers: bytes, body: bytes = b"", length: bool = True) -> bytes:
    sized = [b"Content-Length: %d" % len(body)] if body and length else []
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: x", *sized, *headers, b"", b""]) + body


def _chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CALL_ID = b"0123456789abcdef" * 2
STORED = (
    _request(
        b"POST /v1/models/default:predict",
        *(b"Prefer: respond-async, wait=1", b"Idempotency-Key: one", b"Percore-Start-Within: 1", b"Percore-Max-Runs: 1"),
        body=JSON_BODY,
    ),
    _request(b"GET /v1/calls/" + CALL_ID, b"Prefer: wait=1"),
    _request(b"GET /v1/calls/" + CALL_ID + b"/result", b"Range: bytes=0-9"),
    _request(b"POST /v1/calls/" + CALL_ID + b"/cancel"),
    _request(b"DELETE /v1/calls/" + CALL_ID),
    _request(b"GET /v1/calls?state=queued&limit=1&after=5"),
)
"""Requests about stored calls; there is no call with this id."""
VALID = (
    _request(b"POST /v1/models/default:predict", b"Content-Type: application/json", body=JSON_BODY),
    _request(b"POST /v1/models/default:predict", b"Content-Type: application/json", body=b'{"instances": [[1, 2], [3, 4]]}'),
    _request(
        b"POST /v1/models/default/versions/1:predict",
        b"Transfer-Encoding: chunked",
        b"Trailer: X-Sum",
        body=_chunked(JSON_BODY[:20], JSON_BODY[20:]),
        length=False,
    ),
    _request(b"POST /v2/models/default/infer", b"X-Request-ID: a-1", b"Priority: 3", body=V2_BODY),
    _request(
        b"POST /v2/models/default/infer",
        b"Content-Type: application/octet-stream",
        b"Inference-Header-Content-Length: %d" % len(BINARY_HEAD),
        body=BINARY_HEAD + bytes(8),
    ),
    _request(b"POST /v1/models/default:predict", b"Expect: 100-continue", b"Connection: close", body=JSON_BODY),
    _request(b"POST /v1/models/default:predict", b"Upgrade: h2c", b"Connection: Upgrade", body=JSON_BODY),
    *STORED,
    _request(b"GET /v1/models/default"),
    _request(b"GET /v2/models/default/versions/1", b"Accept: */*"),
    _request(b"GET /v2/health/ready"),
    _request(b"HEAD /openapi.json"),
    _request(b"GET /livez"),
    _request(b"GET /metrics"),
    _request(b"OPTIONS *", b"Percore-Gateway: one"),
    _request(b"DELETE http://x/v1/models/default?a=b#c"),
)
PIECES = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
        b" ",
        b"\t",
        b"\xff",
        b"\xc2\xb2",
        b"%",
        b"%00",
        b"%2e%2e/",
        b"//",
        b"*",
    ),
    *(b"?", b"#", b";a=b", b"0\r\n\r\n", b"-1", b"NaN", b"1e999", b"null", b"[" * 50, b"{", b'"', b"\\u0000", b"\\ud800"),
    *(b"9" * 20, b"9" * 5000, b"x" * 9000, b"x" * 70_000, b"Content-Length: 5\r\n", b"Content-Length: -5\r\n"),
    *(b"Content-Length: " + b"9" * 5000 + b"\r\n", b"Content-Length: \xb2\r\n", b"Content-Length: 99999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: chunked, chunked\r\n"),
    *(b"Host: y\r\n", b"Host: \r\n", b" folded\r\n", b"Expect: 100-continue\r\n", b"Expect: 7\r\n"),
    *(b"Connection: x, host\r\n",),
    *(
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/0.9",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT ",
        b"TRACE ",
        b"\x16\x03\x01\x02\x00",
    ),
    *(b"Content-Encoding: gzip\r\n", b"Content-Type: text/html; charset=nobody\r\n", b"X-Request-ID: \xff\r\n"),
    *(b"Inference-Header-Content-Length: " + b"9" * 5000 + b"\r\n", b"Script-Name: /x\r\n", b"Script_Name: /x\r\n"),
    *(b"".join(b"h%d: v\r\n" % number for number in range(200)), b"X-Forwarded-Proto: gopher\r\n", b"Priority: \xff\r\n"),
)


def requests(count: int, seed: int, of: Sequence[bytes] = VALID) -> Iterator[bytes]:
    """Yield so many requests, most of them malformed."""
    chance = random.Random(seed)
    for _ in range(count):
        data = chance.choice(of)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
            data = _mutated(data, chance)
        yield data


def _mutated(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data) + 1)
    end = min(len(data), begin + chance.choice((1, 1, 2, 5, 20, 100)))
    lines = data.split(b"\r\n")
    line = chance.randrange(len(lines))
    return chance.choice(
        (
            data[:begin] + chance.randbytes(end - begin) + data[end:],
            data[:begin] + data[end:],
            data[:begin] + data[begin:end] * chance.choice((2, 3, 300)) + data[end:],
            data[:begin] + chance.choice(PIECES) + data[begin:],
            data[:begin],
            data[:begin] + chance.choice(VALID)[chance.randrange(40) :],
            b"\r\n".join([*lines[:line], chance.choice(lines), *lines[line:]]),
            b"\r\n".join([*lines[:line], chance.choice(PIECES).strip(b"\r\n"), *lines[line + 1 :]]),
        )
    )


def trouble_with(port: int, data: bytes, hidden: bytes = b"") -> str:
    """Send a request; return the fault of its answer, empty if there is none.

    If the request is incomplete, an empty answer is right too. An answer that contains ``hidden`` is wrong.
    """
    began = time.monotonic()
    try:
        answer = _ask(port, data)
    except TimeoutError:
        return f"nothing for {SLOW_SECONDS} s"
    took = time.monotonic() - began
    if hidden and hidden in answer:
        return f"it has what is hidden: {answer[:300]!r}"
    return f"it took {took:.1f} s" if took > SLOW_SECONDS else _trouble_in(answer, head_only=data.lstrip()[:4] == b"HEAD")


def _ask(port: int, data: bytes) -> bytes:
    """Read until the answer is complete, or the connection ends."""
    answer = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=SLOW_SECONDS) as connection:
        with contextlib.suppress(ConnectionError):  # answered and closed before all of it was sent
            connection.sendall(data)
        connection.settimeout(PATIENCE_SECONDS)
        with contextlib.suppress(ConnectionError):
            while not _is_complete(answer):
                try:
                    more = connection.recv(1 << 16)
                except TimeoutError:
                    if connection.gettimeout() == SLOW_SECONDS:
                        raise
                    connection.settimeout(SLOW_SECONDS)
                    connection.shutdown(socket.SHUT_WR)
                    continue
                if not more:
                    break
                answer += more
    return bytes(answer)


def _split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers in lower case and the body of the final answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1])
    if status < 200:
        return _split(body)
    return status, {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}, body


def _is_complete(answer: bytes | bytearray) -> bool:
    if b"\r\n\r\n" not in answer:
        return False
    try:
        _, headers, body = _split(bytes(answer))
    except (ValueError, IndexError):
        return False
    return len(body) >= int(headers.get("content-length", "0"))


def _trouble_in(answer: bytes, *, head_only: bool) -> str:
    if not answer or answer == b"HTTP/1.1 100 Continue\r\n\r\n":
        return ""
    try:
        status, headers, body = _split(answer)
        if status < 400:
            return ""
        is_ours = headers["content-type"] == "application/json" and (
            (head_only and not body) or set(json.loads(body)) == {"error", "code"}
        )
    except (ValueError, LookupError) as error:
        return f"{error!r}: {answer[:300]!r}"
    return "" if is_ours and status < 500 else f"{status} {headers}: {body[:300]!r}"
