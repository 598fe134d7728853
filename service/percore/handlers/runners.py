"""TensorFlow models: the code that all kinds share. A model has a signature runner for each of its signatures.

percore never calls Keras's ``Model.predict``: it takes 35 ms for each call, and it fails ("Model.predict in graph mode is not
supported ...") if a model is loaded in one thread and called in another. A concrete function can be called in any thread. So
can a session with its own graph.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry  # no public API tells which operations are stateful

from percore.dtypes import BY_NAME
from percore.errors import BadInput, LoadError
from percore.handlers import Array, Tensors, effects, warmup
from percore.handlers.tf_example import Feature, features
from percore.model_metadata import CLASSIFY, PREDICT, REGRESS, ModelInfo, Signature, TensorSpec

logger = logging.getLogger("percore.handlers.tensorflow")  # readers of the log know this name

CALLERS_FAULT = (tf.errors.InvalidArgumentError, tf.errors.DataLossError)
"""TensorFlow raises these for tensors that do not fit, and for bytes that are not an image or not compressed data. Every other
error is the model's fault."""
MODELS_FAULT = re.compile(
    r"No OpKernel was registered|only supports .* on device type|Cannot assign a device|Could not satisfy .*device|"
    r"You must feed a value for placeholder"
)
"""Messages of InvalidArgumentError that do not depend on the input: this machine cannot run the graph."""
CHANGES = (
    "%s: signature %r may change the model or the machine (%s). It is not warmed up, unless warmup.json names it. "
    "Its changes to the model stay in one worker, and are lost when the worker ends"
)
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
    """Takes numpy arrays and returns numpy arrays, by the names of the signature."""
    operations: frozenset[str]
    """The names of all operations that it can run."""
    owner: Any
    """The object that owns its variables. It is kept, because the variables are deleted with it."""

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Run it."""
        return self.run(inputs)

    def why_not_served(self) -> str | None:
        """Return why it cannot be served; None if it can."""
        if self.operations & effects.PYTHON:
            return "it calls a Python function, which the file does not hold"
        specs = (*self.signature.inputs, *self.signature.outputs)
        odd = [f"{spec.name} ({spec.dtype})" for spec in specs if spec.dtype not in BY_NAME]
        return f"no protocol can send the type of {', '.join(odd)}" if odd else None


Reader = Callable[[Path, str], dict[str, SignatureRunner]]
"""Takes the folder of a version, and the model's name for the log; returns the runner of each signature, by name."""


class TensorFlowModel:
    """Implements ``percore.handlers.Model`` for all kinds of TensorFlow models.

    The constructor loads and warms up, in the thread that will call the model. It raises LoadError, which names the model, the
    path and the reason.
    """

    def __init__(self, info: ModelInfo, folder: Path, read: Reader) -> None:
        began = time.perf_counter()
        self._title = f"model {info.name!r} version {info.version} in {folder}"
        try:
            runners = read(folder, self._title)
        except Exception as error:
            raise LoadError(f"{self._title} cannot be loaded: {reason(error)}") from error
        self._runners = {name: each for name, each in runners.items() if self._can_be_served(name, each)}
        if not self._runners:
            raise LoadError(f"{self._title} has no signature that can be served; it has {', '.join(runners) or 'none'}")
        self.info = replace(info, signatures={name: each.signature for name, each in self._runners.items()})
        self._warm_up(folder / warmup.FILE)
        self.info = replace(self.info, load_seconds=round(time.perf_counter() - began, 3))

    def predict(self, signature: str, inputs: Tensors) -> Tensors:
        """Run one signature; raise BadInput if TensorFlow rejects its inputs, at any operation of the graph."""
        try:
            return self._runners[signature](inputs)
        except CALLERS_FAULT as error:
            if not self._is_callers_fault(error, signature):
                raise
            raise BadInput(f"the model refused the input: {reason(error)}") from error

    def _is_callers_fault(self, error: Exception, signature: str) -> bool:
        if isinstance(error, tf.errors.DataLossError):  # if no input has bytes, a file of the model is damaged
            return any(spec.dtype == "bytes" for spec in self.info.signatures[signature].inputs)
        return not MODELS_FAULT.search(str(error))

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as ``tf.Example``, shape (len(examples),); raise BadInput naming ``examples[i].feature``."""
        serialised = np.empty(len(examples), object)
        for index, example in enumerate(features(examples)):
            serialised[index] = _example(example).SerializeToString()
        return serialised

    def _can_be_served(self, name: str, runner: SignatureRunner) -> bool:
        why = runner.why_not_served()
        if why:
            logger.warning("%s: signature %r is left out: %s", self._title, name, why)
        return why is None

    def _warm_up(self, path: Path) -> None:
        """Run the calls of ``warmup.json``, which must succeed. Without this file, call with zeros, which may fail."""
        if not path.exists():
            return self._try_zeros()
        try:
            for name, inputs in warmup.read(path, self.info.signatures):
                self.predict(name, inputs)
        except Exception as error:
            raise LoadError(f"{self._title} fails its warm-up, {path.name}: {reason(error)}") from error

    def _try_zeros(self) -> None:
        for name, signature in self.info.signatures.items():
            changing = effects.changing(self._runners[name].operations, op_def_registry.get)
            if changing:
                logger.warning(CHANGES, self._title, name, ", ".join(changing))
            if changing or signature.method != PREDICT:
                continue
            logger.debug("%s: warming up signature %r with zeros", self._title, name)
            try:
                self.predict(name, warmup.zeros(signature))
            except Exception as error:  # noqa: BLE001 (zeros may mean nothing to a model: its first caller warms it up)
                logger.warning("%s: no warm-up of signature %r, zeros fail: %s", self._title, name, reason(error))


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
    """Translate a ``TensorInfo``.

    If it is not a single tensor (for example a sparse one), it gets a dtype that is not served.
    """
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
    """Translate a ``tf.TensorSpec`` or a graph's tensor.

    Another kind, for example a sparse tensor, gets a dtype that is not served.
    """
    if not isinstance(spec, tf.TensorSpec | tf.Tensor):
        return TensorSpec(name, type(spec).__name__, None)
    return _tensor_spec(name, spec.dtype, spec.shape)


def _tensor_spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    return TensorSpec(
        name, "bytes" if dtype == tf.string else dtype.name, None if shape.rank is None else tuple(shape.as_list())
    )


def reason(error: Exception) -> str:
    """Return the first line of a TensorFlow error that says what is wrong, without the trace of nodes."""
    if isinstance(error, LoadError):  # its message has one line
        return str(error)
    lines = (NOISE.sub("", line).strip() for line in str(error).splitlines() if not line.startswith(FRAMES))
    first = next((line for line in lines if line and not line.endswith("root error(s) found.")), type(error).__name__)
    return first if len(first) <= LONGEST_REASON else first[:LONGEST_REASON] + "..."


def _example(example: Mapping[str, Feature]) -> Any:
    message = tf.train.Example()
    for name, feature in example.items():
        entry = message.features.feature[name]
        if feature is not None:
            kind, values = feature
            getattr(entry, kind).value.extend(values)
    return message
