"""The headers with which a request asks to be stored, and the documents about a stored call."""

from __future__ import annotations

from typing import cast

import pytest
from percore.gateway.store.documents import Preferences, byte_range, model_of, preferences, rfc3339
from percore.http.connection import Connection
from percore.http.request import Request


def request(*headers: tuple[bytes, bytes]) -> Request:
    made = Request(cast("Connection", None), "client")
    made.headers = list(headers)
    return made


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((), Preferences()),
        ((b"respond-async",), Preferences(True)),
        ((b"Respond-Async, wait=20",), Preferences(True, 20.0)),
        ((b"wait=5", b"respond-async"), Preferences(True, 5.0)),
        ((b'respond-async; foo="bar", wait="7"; x',), Preferences(True, 7.0)),
        ((b"wait=1, wait=2",), Preferences(False, 1.0)),
        ((b"wait=99999",), Preferences(False, 600.0)),
        ((b"wait=-1, wait=x, wait, return=minimal",), Preferences()),
        ((b"respond-asynchronously",), Preferences()),
        ((b'x="a,respond-async,b"',), Preferences()),
        ((b'x="a\\",respond-async", wait=3',), Preferences(False, 3.0)),
        ((b'x="not closed, respond-async',), Preferences()),
    ],
)
def test_prefer_is_read_as_its_rfc_says(values: tuple[bytes, ...], wanted: Preferences) -> None:
    assert preferences(request(*((b"Prefer", value) for value in values))) == wanted


def test_the_answer_names_the_preferences_that_were_applied() -> None:
    assert Preferences(True, 20.0).applied() == b"respond-async, wait=20"
    assert Preferences(True).applied() == b"respond-async"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        (b"bytes=0-9", (0, 10)),
        (b"bytes=5-", (5, 100)),
        (b"bytes=-5", (95, 100)),
        (b"bytes=-500", (0, 100)),
        (b"bytes=90-500", (90, 100)),
        (b"bytes=9-5", None),
        (b"bytes=-", None),
        (b"bytes=0-1,5-6", None),
        (b"items=0-1", None),
        (b"bytes=a-b", None),
    ],
)
def test_a_range_is_read_as_its_rfc_says(value: bytes | None, wanted: tuple[int, int] | None) -> None:
    assert byte_range(value, 100) == wanted


@pytest.mark.parametrize(("value", "size"), [(b"bytes=100-", 100), (b"bytes=-0", 100), (b"bytes=0-", 0), (b"bytes=-5", 0)])
def test_a_range_without_a_byte_is_refused(value: bytes, size: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it has no words
        byte_range(value, size)


def test_the_model_of_a_path() -> None:
    assert model_of("/v1/models/digits:predict") == "digits"
    assert model_of("/v2/models/digits/versions/1/infer") == "digits"
    assert model_of("/score") == "/score"


def test_times_are_rfc_3339() -> None:
    assert rfc3339(0.5) == "1970-01-01T00:00:00.500Z"
    assert rfc3339(None) is None
