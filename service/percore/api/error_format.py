"""How values, kinds and shapes are named in messages to callers.

Every message names the field, the rule and the value. A long value is cut.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_LITERALS = {None: "null", True: "true", False: "false"}
_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", dict: "object", list: "list", type(None): "null"}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 40
_short.maxlist = _short.maxdict = 3
_short.maxlevel = 3


def shorten(value: Any) -> str:
    """Return a JSON value as text of a bounded length."""
    if value is None or isinstance(value, bool):
        return _LITERALS[value]
    return _short.repr(value)


def kind(value: Any) -> str:
    """Return JSON's name for the kind of a value: boolean, number, string, object, list or null."""
    return _KINDS[type(value)]


def describe(value: Any) -> str:
    """Return kind and value: ``the string 'abc'``, ``the list [1, 2, 3, ...]``, ``null``."""
    return "null" if value is None else f"the {kind(value)} {shorten(value)}"


def names(given: Iterable[str]) -> str:
    """Return names in a list with quotes: ``'a', 'b'``; at most ten of them, each cut short."""
    quoted = [_short.repr(name) for name in sorted(given)]
    more = [f"and {len(quoted) - 10} more"] if len(quoted) > 10 else []
    return ", ".join(quoted[:10] + more) or "none"


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as ``[-1, 64]``, -1 for an unknown dimension."""
    return "[" + ", ".join("-1" if size is None else str(size) for size in shape) + "]"
