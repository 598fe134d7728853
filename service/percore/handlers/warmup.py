"""Makes the inputs for a model's first call, which runs during the load: from the author's ``warmup.json``, or zeros.

The first call of a TensorFlow function is slower than all others, so no caller should wait for it. This module does not import
TensorFlow, so that it can be tested without it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from percore.handlers import Array, Tensors
from percore.model_metadata import DEFAULT_SIGNATURE, Signature, TensorSpec

FILE = "warmup.json"

Request = tuple[str, Tensors]
"""The name of a signature, and its inputs."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's type for a name of ``percore.dtypes``: ``object`` for bytes."""
    kinds: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "bytes": object}
    dtype: np.dtype[Any] = np.dtype(kinds.get(name, name))
    return dtype


def zeros(signature: Signature) -> dict[str, Array]:
    """Return zeros, or empty strings, for every input. An unknown size becomes 1, and an unknown shape becomes (1,)."""
    return {spec.name: _filled(spec) for spec in signature.inputs}


def _filled(spec: TensorSpec) -> Array:
    shape = (1,) if spec.shape is None else tuple(1 if size is None else size for size in spec.shape)
    return np.full(shape, b"" if spec.dtype == "bytes" else 0, numpy_dtype(spec.dtype))


def read(path: Path, signatures: Mapping[str, Signature]) -> list[Request]:
    """Read one request, or a list of them, in TensorFlow Serving's column form.

    Each is ``{"signature_name": optional, "inputs": {name: values}}``; if a signature has one input, its values may be given
    without the name. Raises OSError, ValueError, TypeError or OverflowError if the file has another form.
    """
    document = json.loads(path.read_bytes())
    return [_request(each, signatures) for each in (document if isinstance(document, list) else [document])]


def _request(document: Any, signatures: Mapping[str, Signature]) -> Request:
    if not isinstance(document, dict) or "inputs" not in document:
        raise ValueError('each request must be {"signature_name": optional, "inputs": {name: values}}')
    name, given = document.get("signature_name", DEFAULT_SIGNATURE), document["inputs"]
    if name not in signatures:
        raise ValueError(f"no signature {name!r}; signatures: {', '.join(sorted(signatures))}")
    specs = signatures[name].inputs
    if not isinstance(given, dict) and len(specs) == 1:
        given = {specs[0].name: given}
    if not isinstance(given, dict) or given.keys() != {spec.name for spec in specs}:
        raise ValueError(f"inputs of {name!r} must be {', '.join(spec.name for spec in specs)}")
    return name, {spec.name: np.array(_decoded(given[spec.name]), numpy_dtype(spec.dtype)) for spec in specs}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    return value.encode() if isinstance(value, str) else value
