"""JSON bodies to Python values. NaN and infinities are read as TensorFlow Serving reads them.

orjson is fast, but it does not read ``NaN``, ``Infinity`` and ``-Infinity``. Python's own parser reads them, ten times slower.
So it is used only if a body has one of these words.
"""

from __future__ import annotations

import gc
import json
import math
import re
from typing import Any

import orjson

from percore.errors import BadInput

Body = bytes | bytearray | memoryview

SMALL_BYTES = 1 << 20
"""In bodies up to this size, empty lists and objects are not counted."""
MOST_EMPTY = 100_000

_NON_FINITE = re.compile(rb"NaN|Infinity")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(body: Body) -> Any:
    """Return the JSON value in ``body``; raise BadInput, with the position, if it is not JSON in UTF-8.

    It takes up to 40 times the memory of the body, because each list, object and number becomes a Python object. Empty lists
    and objects would take even more, and hold no values. So a large body may have only few of them.
    """
    if len(body) > SMALL_BYTES:
        text = bytes(body)
        empty = text.count(b"[]") + text.count(b"{}")
        del text
        if empty > MOST_EMPTY:
            raise BadInput(f"body: expected at most {MOST_EMPTY} empty lists and objects, got {empty}")
    # Parsing creates no reference cycles, so the garbage collector would find nothing. For nested lists, its search would take
    # half of the time.
    gc.disable()
    try:
        return _parsed(body)
    finally:
        gc.enable()


def _parsed(body: Body) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = _decoded(body)
        if _NON_FINITE.search(body) is None:
            raise _not_json(text, error) from None
    return _lenient(text, body)


def _decoded(body: Body) -> str:
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"body: expected UTF-8, got the byte {body[error.start]:#04x} at {error.start}") from None


def _not_json(text: str, error: json.JSONDecodeError) -> BadInput:
    return BadInput(f"body: expected JSON, got {text[error.pos : error.pos + 20]!r}: {error}")


def _lenient(text: str, body: Body) -> Any:
    try:
        value = json.loads(text, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise _not_json(text, error) from None
    except RecursionError:
        raise BadInput("body: expected JSON, got lists or objects nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits, or a float beyond a double
        raise BadInput(f"body: expected JSON with numbers that fit a double: {error}") from None
    if _SURROGATE.search(body) is not None:
        _refuse_surrogates(value)
    return value


def _finite(text: str) -> float:
    """Read a number as orjson does: refuse one that is too large for a double, instead of making it an infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number is infinity when parsed as double: {text[:40]}")
    return value


def _refuse_surrogates(value: Any) -> None:
    """Refuse half a surrogate pair, as orjson does: such a string cannot be written back as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"body: expected JSON, got the lone surrogate {error.object[error.start]!r} in a string") from None
