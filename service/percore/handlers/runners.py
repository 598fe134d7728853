"""Signature runners: one signature of a loaded model, ready to be called. Every kind of model is loaded as these."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from percore.dtypes import BY_NAME
from percore.errors import LoadError
from percore.handlers import Array, Tensors, effects
from percore.model_metadata import CLASSIFY, PREDICT, REGRESS, Signature, TensorSpec

NOISE = re.compile(r"\{\{function_node [^}]*\}\}\s*|\s*\[\[\{\{node.*|\s*\[Op:\w+\].*|^\s*\(\d+\)\s*[A-Z_ ]+:\s*")
FRAMES = (
    *("Graph execution error", "Exception encountered when calling", "Detected at node", "<stack traces unavailable>"),
    *("  File ", "    "),
)
LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class SignatureRunner:
    """One signature of a loaded model, ready to be called."""

    signature: Signature
    run: Callable[[Tensors], dict[str, Array]]
    """Numpy in, numpy out, by the names of the signature."""
    operations: frozenset[str]
    """The names of all operations that it can run."""
    owner: Any
    """The object that owns its variables, kept so that they stay while it may be called."""

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Run it."""
        return self.run(inputs)

    def why_not_served(self) -> str | None:
        """Return why it cannot be served; None if it can."""
        if self.operations & effects.PYTHON:
            return "it calls a Python function, which the file does not hold"
        specs = (*self.signature.inputs, *self.signature.outputs)
        odd = [f"{spec.name} ({spec.dtype})" for spec in specs if spec.dtype not in BY_NAME]
        return f"its {', '.join(odd)} cannot be sent" if odd else None


def runner_of(function: Any, keywords: Mapping[str, tuple[str, Any]], signature: Signature, owner: Any) -> SignatureRunner:
    """Return the runner of a ``tf.types.experimental.ConcreteFunction`` that takes keywords and returns a dictionary.

    ``keywords`` has for each name of an input its keyword in the function and its ``tf.DType``. Inputs are copied once, because
    TensorFlow needs them aligned; outputs are views.
    """

    def run(inputs: Tensors) -> dict[str, Array]:
        tensors = {}
        for name, array in inputs.items():
            keyword, dtype = keywords[name]
            tensors[keyword] = tf.constant(array, dtype)
        outputs = function(**tensors)
        return {spec.name: _array(outputs[spec.name]) for spec in signature.outputs}

    return SignatureRunner(signature, run, frozenset(effects.operations(function.graph.as_graph_def())), owner)


def _array(tensor: Any) -> Array:
    if tensor.dtype == tf.bfloat16:  # numpy cannot convert a bfloat16 scalar of TensorFlow directly
        return np.asarray(tensor.numpy(), tf.bfloat16.as_numpy_dtype)
    return np.asarray(tensor)


def signature_of_definition(definition: Any) -> Signature:
    """Translate a ``SignatureDef``, which TensorFlow 1 and 2 both write."""
    method = definition.method_name if definition.method_name in (CLASSIFY, REGRESS) else PREDICT
    return Signature(_described(definition.inputs), _described(definition.outputs), method)


def _described(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(_info_spec(name, info) for name, info in sorted(tensors.items()))


def _info_spec(name: str, info: Any) -> TensorSpec:
    """Translate a ``TensorInfo``. One that is not a single tensor, such as a sparse one, gets a dtype that is not served."""
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        return TensorSpec(name, encoding or "no tensor", None)
    shape = tf.TensorShape(info.tensor_shape) if info.HasField("tensor_shape") else tf.TensorShape(None)
    return _tensor_spec(name, tf.as_dtype(info.dtype).base_dtype, shape)


def signature_of_trace(inputs: Iterable[tuple[str, Any]], outputs: Iterable[tuple[str, Any]]) -> Signature:
    """Return the signature of a function that percore traced, from its inputs and outputs by name."""
    read, written = (tuple(_spec(name, each) for name, each in sorted(specs)) for specs in (inputs, outputs))
    return Signature(read, written, PREDICT)


def _spec(name: str, spec: Any) -> TensorSpec:
    """Translate a ``tf.TensorSpec`` or a graph's tensor. A sparse one, for example, gets a dtype that is not served."""
    if not isinstance(spec, tf.TensorSpec | tf.Tensor):
        return TensorSpec(name, type(spec).__name__, None)
    return _tensor_spec(name, spec.dtype, spec.shape)


def _tensor_spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    return TensorSpec(
        name, "bytes" if dtype == tf.string else dtype.name, None if shape.rank is None else tuple(shape.as_list())
    )


def reason(error: Exception) -> str:
    """Return the first line of a TensorFlow error that says what is wrong, without the trace of nodes."""
    if isinstance(error, LoadError):  # one line already
        return str(error)
    lines = (NOISE.sub("", line).strip() for line in str(error).splitlines() if not line.startswith(FRAMES))
    first = next((line for line in lines if line and not line.endswith("root error(s) found.")), type(error).__name__)
    return first if len(first) <= LONGEST_REASON else first[:LONGEST_REASON] + "..."
