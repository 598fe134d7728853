"""JSON values to numpy arrays, and arrays to JSON: strict, and fast for numbers.

To arrays: numpy's own conversion accepts too much. It reads "1" and true as numbers, and it stores strings in an array as wide
as the longest one. So this module flattens lists level by level, with iterators in C, and checks the kinds of the values before
numpy gets them.

To JSON: orjson writes native C-contiguous arrays of the standard types, at the speed of memory. This module converts everything
else for it: strings, bfloat16, other layouts, and the bare tokens ``NaN``, ``Infinity`` and ``-Infinity``, which TensorFlow
Serving writes.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import orjson

from percore.api.error_format import describe, kind, shape_text, shorten
from percore.dtypes import DTYPES
from percore.errors import BadInput
from percore.handlers import Array
from percore.model_metadata import TensorSpec

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    dtype.name: np.dtype(dtype.name) for dtype in DTYPES if dtype.name not in {"bfloat16", "bytes"}
}
"""numpy's type by the names of ``percore.dtypes``; strings are objects."""
NUMPY_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
NUMPY_DTYPES["bytes"] = np.dtype(object)

DTYPE_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
"""The names of numpy's types. A dictionary, because ``dtype.name`` is slow: Python computes it each time."""

MAX_DIMENSIONS = 64
"""numpy's limit."""

_BOOLEANS, _INTEGERS, _NUMBERS, _STRINGS = {bool}, {int}, {int, float}, {str, dict}
_ACCEPTED = {
    name: _BOOLEANS if name == "bool" else _STRINGS if name == "bytes" else _NUMBERS if "float" in name else _INTEGERS
    for name in NUMPY_DTYPES
}

_TOKENS = (b"NaN", b"Infinity", b"-Infinity")
_BYTES_SUFFIX = "_bytes"
"""If the name of an output ends in this, its strings are always sent as base64. This is TensorFlow Serving's rule."""


def decode(value: Any, spec: TensorSpec, field: str) -> Array:
    """Return a JSON value as the array that ``spec`` describes, C-contiguous.

    ``field`` is its name in messages. Raises BadInput if kind, shape or range do not fit the spec.
    """
    values = flatten(value, field)
    shape = check_shape(values.shape, spec, field)
    return from_values(values, spec.dtype, field).reshape(shape)


def infer_array(value: Any, field: str) -> Array:
    """Return a JSON value as an array.

    Its type follows from the values: bool, int64 (uint64 if int64 is too small), float64 or bytes.
    """
    values = flatten(value, field)
    if not values.flat:
        return np.zeros(values.shape)
    dtype = next((name for name in ("int64", "float64", "bool", "bytes") if values.kinds <= _ACCEPTED[name]), None)
    if dtype is None:
        found = ", ".join(sorted(set(map(kind, values.flat))))
        raise BadInput(f"{field}: expected numbers alone, booleans alone or strings alone, got values of the kinds {found}")
    if dtype == "int64" and max(values.flat) > np.iinfo(np.int64).max:
        dtype = "uint64"
    return from_values(values, dtype, field).reshape(values.shape)


class Values(NamedTuple):
    """The values of nested lists."""

    flat: list[Any]
    shape: tuple[int, ...]
    kinds: set[type]
    """The types of the values."""


def flatten(value: Any, field: str) -> Values:
    """Return the values of nested lists in one list, with their shape; raise BadInput if rows differ in length."""
    level: list[Any] = [value]
    shape: tuple[int, ...] = ()
    while True:
        kinds = set(map(type, level))
        if list not in kinds:
            return Values(level, shape, kinds)
        if len(shape) == MAX_DIMENSIONS:
            raise BadInput(f"{field}: expected at most {MAX_DIMENSIONS} dimensions, got lists nested deeper")
        if len(kinds) > 1 or len(set(map(len, level))) > 1:
            raise _ragged(level, shape, field)
        shape = (*shape, len(level[0]))
        level = list(chain.from_iterable(level))


def _ragged(level: Sequence[Any], shape: tuple[int, ...], field: str) -> BadInput:
    """Return an error that names the first row that differs from row 0."""
    wanted = _size(level[0])
    first, found = next((index, _size(row)) for index, row in enumerate(level) if _size(row) != wanted)
    return BadInput(
        f"{field}: expected rows of one length; row {_index_text(first, shape)} {found}, row {_index_text(0, shape)} {wanted}"
    )


def _size(row: Any) -> str:
    return f"has {len(row)} values" if isinstance(row, list) else f"is {describe(row)}"


def _index_text(index: int, shape: tuple[int, ...]) -> str:
    """Return an element's index: ``1`` in a flat list, ``[0, 3]`` in nested lists."""
    if len(shape) < 2:
        return str(index)
    return str([int(each) for each in np.unravel_index(index, shape)])


def check_shape(shape: tuple[int, ...], spec: TensorSpec, field: str) -> tuple[int, ...]:
    """Return the shape of a value, completed by ``spec``; raise BadInput if it does not fit.

    An empty list has no inner dimensions. They are taken from the spec; a dimension that is unknown there is 0.
    """
    expected = spec.shape
    if expected is None:
        return shape
    whole = shape
    if 0 in shape and len(shape) < len(expected):
        whole = (*shape, *(size or 0 for size in expected[len(shape) :]))
    if len(whole) != len(expected) or any(want not in (None, got) for want, got in zip(expected, whole, strict=True)):
        raise BadInput(f"{field}: expected shape {shape_text(expected)}, got {shape_text(shape)}")
    return whole


def from_values(values: Values, dtype: str, field: str) -> Array:
    """Return values as a one-dimensional array; raise BadInput if one is of another kind, or out of range."""
    flat, shape, kinds = values
    accepted = _ACCEPTED[dtype]
    if not kinds <= accepted:
        raise _wrong_kind(flat, dtype, shape, field)
    if accepted is _STRINGS:
        return _strings(flat, shape, field)
    try:
        if accepted is _NUMBERS:
            return _floats(flat, NUMPY_DTYPES[dtype])
        return np.fromiter(flat, NUMPY_DTYPES[dtype], len(flat))
    except OverflowError:
        raise _out_of_range(flat, dtype, shape, field) from None


def _floats(flat: list[Any], dtype: np.dtype[Any]) -> Array:
    array = np.fromiter(flat, np.float64, len(flat))
    if dtype == np.float64:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow).all() and np.isinf(narrow).sum() != np.isinf(array).sum():
        raise OverflowError
    return narrow


def _strings(flat: list[Any], shape: tuple[int, ...], field: str) -> Array:
    array = np.empty(len(flat), object)
    array[:] = [
        each.encode() if type(each) is str else from_base64(each, _at(index, shape, field)) for index, each in enumerate(flat)
    ]
    return array


def is_base64(value: Any) -> bool:
    """Return whether this is ``{"b64": "..."}``, TensorFlow Serving's form of bytes."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def from_base64(value: Any, field: str) -> bytes:
    """Return the bytes that ``{"b64": "..."}`` holds; raise BadInput if it is another object, or not base64."""
    if not is_base64(value):
        raise BadInput(f'{field}: expected a string or {{"b64": "..."}}, got {describe(value)}')
    try:
        return binascii.a2b_base64(value["b64"], strict_mode=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise BadInput(f"{field}: expected base64 in 'b64', got {shorten(value['b64'])}: {error}") from None


def _at(index: int, shape: tuple[int, ...], field: str) -> str:
    return f"{field} at {_index_text(index, shape)}" if shape else field


def _wrong_kind(flat: list[Any], dtype: str, shape: tuple[int, ...], field: str) -> BadInput:
    accepted = _ACCEPTED[dtype]
    index = next(index for index, each in enumerate(flat) if type(each) not in accepted)
    value = flat[index]
    if accepted is _INTEGERS and type(value) is float and value.is_integer() and abs(value) >= 2**63:
        return _out_of_range([*flat[:index], int(value)], dtype, shape, field)  # orjson reads such integers as floats
    return BadInput(f"{_at(index, shape, field)}: expected {dtype}, got {describe(value)}")


def _out_of_range(flat: list[Any], dtype: str, shape: tuple[int, ...], field: str) -> BadInput:
    low, high = _range(dtype)
    index = next(index for index, each in enumerate(flat) if abs(each) != float("inf") and not low <= each <= high)
    return BadInput(
        f"{_at(index, shape, field)}: expected {dtype}, from {low} to {high}, got {shorten(flat[index])}, which is out of range"
    )


def _range(dtype: str) -> tuple[float, float]:
    if _ACCEPTED[dtype] is _INTEGERS:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    info: Any = ml_dtypes.finfo(NUMPY_DTYPES[dtype])  # type: ignore[no-untyped-call]
    return float(info.min), float(info.max)


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
    """Return a whole output in a form that ``dumps`` can write: nested lists, or a bare value for a scalar."""
    dtype = dtype_name(array)
    if dtype == "bytes":
        return _texts(array, name)
    array = _for_orjson(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return orjson.Fragment(_dump_not_finite(array))
    return array if array.ndim else array[()]


def rows(array: Array, name: str) -> list[Any]:
    """Return the rows of an output, along its first dimension, each in a form that ``dumps`` can write."""
    dtype = dtype_name(array)
    if dtype == "bytes":
        return list(_texts(array, name))
    array = _for_orjson(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [to_json(np.asarray(row), name) for row in array]
    return list(array)


def _for_orjson(array: Array, dtype: str) -> Array:
    """Return the array as orjson reads it: a type it knows, this machine's byte order, contiguous, aligned."""
    if dtype == "bfloat16":
        return array.astype(np.float32, "C")
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _dump_not_finite(array: Array) -> bytes:
    """Write a float array that is not all finite.

    orjson writes ``null`` for each value that is not finite, and for no other value. So this function replaces each ``null``.
    """
    text = orjson.dumps(array if array.ndim else array[()], option=orjson.OPT_SERIALIZE_NUMPY)
    flat = array.reshape(-1)
    special = flat[~np.isfinite(flat)]
    codes = np.where(np.isnan(special), 0, np.where(special > 0, 1, 2))
    if (codes == codes[0]).all():
        return text.replace(b"null", _TOKENS[codes[0]])
    pieces = text.split(b"null")
    joined = [b""] * (2 * len(pieces) - 1)
    joined[::2] = pieces
    joined[1::2] = [_TOKENS[code] for code in codes.tolist()]
    return b"".join(joined)


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
