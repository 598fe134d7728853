"""numpy arrays to JSON, by orjson.

orjson writes native C-contiguous arrays of the standard types, at the speed of memory. This module converts everything else for
it: strings, bfloat16, other layouts, and the bare tokens ``NaN``, ``Infinity`` and ``-Infinity``, which TensorFlow Serving
writes.
"""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
import orjson

from percore.api.tensors import DTYPE_NAMES
from percore.handlers import Array

_TOKENS = (b"NaN", b"Infinity", b"-Infinity")
_BYTES_SUFFIX = "_bytes"
"""If the name of an output ends so, its strings are sent as base64, always: TensorFlow Serving's rule."""


def dumps(document: Any) -> bytes:
    """Return a document as JSON. Arrays in it must be results of ``to_json``."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def dtype_name(array: Array) -> str:
    """Return the name of an array's type in ``percore.dtypes``; raise TypeError if it has none."""
    dtype = array.dtype
    if dtype.kind in "SUO":
        return "bytes"
    name = DTYPE_NAMES.get(dtype) or DTYPE_NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise TypeError(f"the model's output is an array of {dtype}, which no protocol has")
    return name


def to_json(array: Array, name: str) -> Any:
    """Return what ``dumps`` writes for a whole output: nested lists, or a bare value for a scalar."""
    dtype = dtype_name(array)
    if dtype == "bytes":
        return _texts(array, name)
    array = _plain(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return orjson.Fragment(_with_tokens(array))
    return array if array.ndim else array[()]


def rows(array: Array, name: str) -> list[Any]:
    """Return what ``dumps`` writes for each row of an output, along its first dimension."""
    dtype = dtype_name(array)
    if dtype == "bytes":
        return list(_texts(array, name))
    array = _plain(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [to_json(np.asarray(row), name) for row in array]
    return list(array)


def _plain(array: Array, dtype: str) -> Array:
    """Return the array as orjson reads it: a type it knows, this machine's byte order, contiguous, aligned."""
    if dtype == "bfloat16":
        return array.astype(np.float32, "C")
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _with_tokens(array: Array) -> bytes:
    """Write a float array that is not all finite.

    orjson writes ``null`` for each value that is not finite, and for no other value. So each ``null`` is replaced.
    """
    text = orjson.dumps(array if array.ndim else array[()], option=orjson.OPT_SERIALIZE_NUMPY)
    flat = array.reshape(-1)
    odd = flat[~np.isfinite(flat)]
    codes = np.where(np.isnan(odd), 0, np.where(odd > 0, 1, 2))
    if (codes == codes[0]).all():
        return text.replace(b"null", _TOKENS[codes[0]])
    pieces = text.split(b"null")
    woven = [b""] * (2 * len(pieces) - 1)
    woven[::2] = pieces
    woven[1::2] = [_TOKENS[code] for code in codes.tolist()]
    return b"".join(woven)


def _texts(array: Array, name: str) -> Any:
    binary = name.endswith(_BYTES_SUFFIX)
    texts = np.empty(array.size, object)
    texts[:] = [_text(each, binary) for each in array.reshape(-1).tolist()]
    return texts.reshape(array.shape).tolist()


def _text(value: Any, binary: bool) -> Any:
    data = as_bytes(value)
    if not binary:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": binascii.b2a_base64(data, newline=False).decode()}


def as_bytes(value: Any) -> bytes:
    """Return one element of an output of strings as bytes; raise TypeError if it is neither bytes nor str."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"the model's output holds {type(value).__name__}, where bytes are expected")
    return value
