"""The binary tensor data extension of the Open Inference Protocol: tensors as raw bytes after the JSON, without a copy.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension.
Elements are little-endian, as on every machine that TensorFlow runs on; a string is written as its length in four bytes, then
its bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from percore.api.error_format import describe, shape_text, shorten
from percore.api.flask_app import Chunk
from percore.api.jsoncodec import Body
from percore.api.tensors import NUMPY_DTYPES, as_bytes, dtype_name
from percore.dtypes import BY_NAME
from percore.errors import BadInput
from percore.handlers import Array

HEADER = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")


def split(body: Body, header: str | None) -> tuple[Body, memoryview]:
    """Return the JSON and the bytes after it; ``header`` is the value of ``Inference-Header-Content-Length``, if any."""
    if header is None:
        return body, memoryview(b"")
    view = memoryview(body)
    if not (header.isascii() and header.isdigit()) or len(header) > 19 or int(header) > len(view):
        raise BadInput(f"{HEADER}: expected a whole number from 0 to {len(view)}, the body's size, got {shorten(header)}")
    return view[: int(header)], view[int(header) :]


class Reader:
    """Reads the bytes after the JSON, in the order of the inputs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._used = 0

    def take(self, size: Any, field: str) -> memoryview:
        """Return the next ``size`` bytes; raise BadInput if there are fewer."""
        left = len(self._data) - self._used
        if type(size) is not int or not 0 <= size <= left:
            raise BadInput(
                f"{field}: binary_data_size: expected a whole number from 0 to {left}, the bytes left after the JSON "
                f"that {HEADER} delimits, got {describe(size)}"
            )
        self._used += size
        return self._data[self._used - size : self._used]

    def finish(self) -> None:
        """Raise BadInput if bytes are left that belong to no input."""
        if self._used != len(self._data):
            raise BadInput(
                f"body: expected {self._used} bytes after the JSON, the sum of all binary_data_size, got {len(self._data)}"
            )


def to_array(data: memoryview, dtype: str, shape: tuple[int, ...], field: str) -> Array:
    """Return the tensor that ``data`` holds.

    The array is writable. It is a view of ``data``, and may be unaligned. If ``data`` is read-only, it is a copy.
    """
    count = math.prod(shape)
    if dtype == "bytes":
        return _strings(data, count, field).reshape(shape)
    size = count * NUMPY_DTYPES[dtype].itemsize
    if len(data) != size:
        raise BadInput(
            f"{field}: binary_data_size: expected {size}, the size of {BY_NAME[dtype].openinference} in the shape "
            f"{shape_text(shape)}, got {len(data)}"
        )
    if dtype == "bool" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise BadInput(f"{field}: expected BOOL as bytes of 0 or 1, got {int(np.frombuffer(data, np.uint8).max())}")
    array = np.frombuffer(data, NUMPY_DTYPES[dtype]).reshape(shape)
    return array if array.flags.writeable else array.copy()


def _strings(data: memoryview, count: int, field: str) -> Array:
    if count * _LENGTH.size > len(data):
        raise _wrong_lengths(data, count, field)
    array = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(data):
            raise _wrong_lengths(data, count, field)
        at = start + _LENGTH.unpack_from(data, at)[0]
        array[index] = bytes(data[start:at])
    if at != len(data):  # bytes are left, or the last element is cut
        raise _wrong_lengths(data, count, field)
    return array


def _wrong_lengths(data: memoryview, count: int, field: str) -> BadInput:
    return BadInput(
        f"{field}: expected {count} BYTES elements, each with its length in 4 bytes before its bytes, "
        f"got {len(data)} bytes, which do not match these lengths"
    )


def to_chunk(array: Array) -> Chunk:
    """Return a tensor's bytes: a view if the array is contiguous, otherwise a copy. Strings are always copied."""
    if dtype_name(array) == "bytes":
        elements = map(as_bytes, array.reshape(-1).tolist())
        return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return native.reshape(-1).view(np.uint8).data
