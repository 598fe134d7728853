"""Names of element types: one row for each type, with its name in numpy, in TensorFlow and in the Open Inference Protocol.

Plain strings, so that processes which never compute (status server, arbiter) need neither numpy nor TensorFlow.
Sources: TensorFlow's ``types.proto`` and the "Tensor Data Types" table of the Open Inference Protocol, version 2.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type."""

    name: str
    """numpy's name. TensorFlow has the same, except ``string`` for ``bytes`` and ``half`` for ``float16``."""
    tensorflow: str
    """The name in TensorFlow Serving's metadata, e.g. ``DT_FLOAT``."""
    openinference: str
    """The datatype of the Open Inference Protocol, e.g. ``FP32``."""
    size: int
    """Bytes of one element; 0 for ``bytes``, whose elements differ in size."""


DTYPES = (
    DType("bool", "DT_BOOL", "BOOL", 1),
    DType("uint8", "DT_UINT8", "UINT8", 1),
    DType("uint16", "DT_UINT16", "UINT16", 2),
    DType("uint32", "DT_UINT32", "UINT32", 4),
    DType("uint64", "DT_UINT64", "UINT64", 8),
    DType("int8", "DT_INT8", "INT8", 1),
    DType("int16", "DT_INT16", "INT16", 2),
    DType("int32", "DT_INT32", "INT32", 4),
    DType("int64", "DT_INT64", "INT64", 8),
    DType("float16", "DT_HALF", "FP16", 2),
    DType("bfloat16", "DT_BFLOAT16", "BF16", 2),
    DType("float32", "DT_FLOAT", "FP32", 4),
    DType("float64", "DT_DOUBLE", "FP64", 8),
    DType("bytes", "DT_STRING", "BYTES", 0),
)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_OPENINFERENCE = {dtype.openinference: dtype for dtype in DTYPES}
