import math
import time
from typing import Any

import pytest
from percore.api.jsoncodec import loads
from percore.errors import BadInput


def refusal(body: bytes | memoryview) -> str:
    with pytest.raises(BadInput) as caught:
        loads(body)
    return str(caught.value)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_is_read_from_any_buffer(kind: Any) -> None:
    assert loads(kind(b'{"a": [1, 2.5, "x"]}')) == {"a": [1, 2.5, "x"]}
    assert loads(kind(b"[Infinity, -Infinity]")) == [math.inf, -math.inf]


def test_nan_and_infinities_are_read_as_tensorflow_serving_reads_them() -> None:
    not_a_number, positive, negative = loads(b"[NaN, Infinity, -Infinity]")
    assert math.isnan(not_a_number)
    assert (positive, negative) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: expected JSON, got '': Input is a zero-length, empty document: line 1 column 1"),
        (b"[1,\n2,]", "body: expected JSON, got ',]': trailing comma is not allowed: line 2 column 2 (char 5)"),
        (b"[NaN, 1,]", "body: expected JSON, got ']': "),
        (b'["NaN" 1]', "body: expected JSON, got '1]': "),
        (b'["\xff"]', "body: expected UTF-8, got the byte 0xff at 2"),
        (b'["\xff", NaN]', "body: expected UTF-8, got the byte 0xff at 2"),
        (b'["\\ud800"]', "body: expected JSON, got "),
        (b'["\\ud800", NaN]', "body: expected JSON, got the lone surrogate '\\ud800' in a string"),
        (b"[1e400]", "number is infinity when parsed as double"),
        (
            b"[1e400, NaN]",
            "body: expected JSON with numbers that fit a double: number is infinity when parsed as double: 1e400",
        ),
        (b"[NaN, " + b"9" * 5000 + b"]", "body: expected JSON with numbers that fit a double: "),
    ],
)
def test_a_body_that_is_not_json_is_refused_with_the_position(body: bytes, message: str) -> None:
    assert message in refusal(body)
    assert message in refusal(memoryview(body))


def test_a_pair_of_surrogates_beside_nan_is_one_character() -> None:
    assert loads(b'["\\ud83d\\ude00", NaN]')[0] == "\N{GRINNING FACE}"


@pytest.mark.parametrize("tail", [b"", b"NaN"])
def test_a_hundred_megabytes_of_brackets_are_refused_quickly(tail: bytes) -> None:
    body = b"[" * 100_000_000 + tail
    began = time.process_time()
    assert "body: expected JSON, got" in refusal(body)
    assert time.process_time() - began < 5
