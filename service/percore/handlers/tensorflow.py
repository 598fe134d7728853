"""TensorFlow models, run by concrete function: the only module that imports tensorflow or keras.

Imported in a worker, after the fork, by ``percore.repository``. ``Model.predict`` is never called: it costs 35 ms a call, and
fails ("Model.predict in graph mode is not supported ...") where a model is loaded in one mode or thread and called in another.
A concrete function knows no modes.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Both are read while the modules below are imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from percore.catalog import CLASSIFY, DEFAULT_SIGNATURE, PREDICT, REGRESS, ModelInfo, Signature, TensorSpec
from percore.dtypes import BY_NAME
from percore.errors import BadInput, LoadError
from percore.handlers import Array, Tensors, warmup
from percore.handlers.examples import Feature, features

logger = logging.getLogger(__name__)

NOISE = re.compile(r"\{\{function_node [^}]*\}\}\s*|\s*\[\[\{\{node.*|\s*\[Op:\w+\].*|^\s*\(\d+\)\s*[A-Z_ ]+:\s*")
FRAMES = ("Graph execution error", "Detected at node", "<stack traces unavailable>", "  File ", "    ")
LONGEST_REASON = 300


def configure(threads: int) -> None:
    """Let one call compute on ``threads`` cores; raise LoadError where TensorFlow runs with another number already."""
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise LoadError(f"TensorFlow cannot be set to {threads} threads: it computed in this process before") from error


@dataclass(frozen=True, slots=True)
class Callable:
    """One signature of a loaded model, ready to be called."""

    function: Any
    """A ``tf.types.experimental.ConcreteFunction`` that takes keywords and returns a dict."""
    keywords: Mapping[str, tuple[str, Any]]
    """By the name of an input: the keyword that the function has for it, and its ``tf.DType``."""
    signature: Signature

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Run it: numpy in, numpy out. Inputs are copied once, as TensorFlow wants them aligned; outputs are views."""
        tensors = {}
        for name, array in inputs.items():
            keyword, dtype = self.keywords[name]
            tensors[keyword] = tf.constant(array, dtype)
        outputs = self.function(**tensors)
        return {spec.name: _array(outputs[spec.name]) for spec in self.signature.outputs}


def _array(tensor: Any) -> Array:
    if tensor.dtype == tf.bfloat16:  # numpy takes no scalar of it from TensorFlow as it is
        return np.asarray(tensor.numpy(), tf.bfloat16.as_numpy_dtype)
    return np.asarray(tensor)


class TensorFlowModel:
    """What both kinds of model share: ``percore.handlers.Model``.

    The constructor loads and warms up, in the thread that will predict. It raises LoadError naming the model, the path and why.
    """

    def __init__(self, info: ModelInfo, folder: Path) -> None:
        began = time.perf_counter()
        self._title = f"model {info.name!r} version {info.version} in {folder}"
        try:
            callables = dict(self._read(folder))
        except Exception as error:
            raise LoadError(f"{self._title} cannot be loaded: {reason(error)}") from error
        self._callables = {name: each for name, each in callables.items() if self._is_usable(name, each.signature)}
        if not self._callables:
            raise LoadError(f"{self._title} has no signature that can be served; it has {', '.join(callables) or 'none'}")
        self.info = replace(info, signatures={name: each.signature for name, each in self._callables.items()})
        self._warm_up(folder / warmup.FILE)
        self.info = replace(self.info, load_seconds=round(time.perf_counter() - began, 3))

    def _read(self, folder: Path) -> Iterator[tuple[str, Callable]]:
        """Yield the name of each signature, and what runs it; raise whatever TensorFlow raises."""
        raise NotImplementedError

    def predict(self, signature: str, inputs: Tensors) -> Tensors:
        """Run one signature; raise BadInput where TensorFlow finds its arguments invalid, however deep in the graph."""
        try:
            return self._callables[signature](inputs)
        except tf.errors.InvalidArgumentError as error:
            raise BadInput(f"the model refused the input: {reason(error)}") from error

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as ``tf.Example``, shape (len(examples),); raise BadInput naming ``examples[i].feature``."""
        serialised = np.empty(len(examples), object)
        for index, example in enumerate(features(examples)):
            serialised[index] = _example(example).SerializeToString()
        return serialised

    def _is_usable(self, name: str, signature: Signature) -> bool:
        odd = [f"{spec.name} ({spec.dtype})" for spec in (*signature.inputs, *signature.outputs) if spec.dtype not in BY_NAME]
        if odd:
            logger.warning("%s: signature %r is left out: its %s cannot be sent", self._title, name, ", ".join(odd))
        return not odd

    def _warm_up(self, path: Path) -> None:
        """Ask what ``warmup.json`` says, which must succeed; without it, zeros, which a model may refuse."""
        if not path.exists():
            return self._try_zeros()
        try:
            for name, inputs in warmup.read(path, self.info.signatures):
                self.predict(name, inputs)
        except Exception as error:
            raise LoadError(f"{self._title} fails its warm-up, {path.name}: {reason(error)}") from error

    def _try_zeros(self) -> None:
        for name, signature in self.info.signatures.items():
            if signature.method != PREDICT:
                continue
            logger.debug("%s: warming up signature %r with zeros", self._title, name)
            try:
                self.predict(name, warmup.zeros(signature))
            except Exception as error:  # noqa: BLE001 (zeros may mean nothing to a model: its first caller warms it up)
                logger.warning("%s: no warm-up of signature %r, zeros fail: %s", self._title, name, reason(error))


class SavedModel(TensorFlowModel):
    """A SavedModel, of TensorFlow 1 or 2."""

    def _read(self, folder: Path) -> Iterator[tuple[str, Callable]]:
        graph, tags = _serving_graph(folder)
        self._loaded = tf.saved_model.load(str(folder), tags)  # kept: it owns the variables
        for name, function in self._loaded.signatures.items():
            yield name, _signature_callable(function, graph.signature_def[name])


class KerasModel(TensorFlowModel):
    """A ``model.keras`` file, traced into one concrete function.

    Inputs are named as the model's input tensors; outputs as the keys of its output, or else after the layers they come from.
    """

    def _read(self, folder: Path) -> Iterator[tuple[str, Callable]]:
        # Safe mode stays on, which is the default: a file that holds code is refused.
        self._loaded = model = keras.saving.load_model(folder / "model.keras", compile=False)
        names = {f"input_{index}": tensor.name for index, tensor in enumerate(model.inputs)}

        def serve(**inputs: Any) -> dict[str, Any]:
            outputs = model(keras.tree.pack_sequence_as(model.input, [inputs[keyword] for keyword in names]), training=False)
            return _named_outputs(model, outputs)

        specs = {
            keyword: tf.TensorSpec(tensor.shape, tensor.dtype, keyword)
            for keyword, tensor in zip(names, model.inputs, strict=True)
        }
        function = tf.function(serve, autograph=False).get_concrete_function(**specs)
        inputs = {names[keyword]: (keyword, spec) for keyword, spec in specs.items()}
        yield DEFAULT_SIGNATURE, _callable(function, inputs, PREDICT)


LOADERS: dict[str, type[TensorFlowModel]] = {"tensorflow_savedmodel": SavedModel, "keras": KerasModel}
"""By platform, as in ``ModelInfo``."""


def load(info: ModelInfo, folder: Path) -> TensorFlowModel:
    """Load one version of a model; ``info`` has no signatures yet. Raises LoadError."""
    return LOADERS[info.platform](info, folder)


def _serving_graph(folder: Path) -> tuple[Any, list[str] | None]:
    """Return the graph to serve, a ``MetaGraphDef``, and the tags to load it by, None where it is the only one.

    Read from the file, because TensorFlow 2 forgets the signatures' method names when it loads a model.
    """
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    if len(model.meta_graphs) == 1:
        return model.meta_graphs[0], None
    for graph in model.meta_graphs:
        if list(graph.meta_info_def.tags) == [tf.saved_model.SERVING]:
            return graph, [tf.saved_model.SERVING]
    raise ValueError(f"none of its {len(model.meta_graphs)} graphs has the tag {tf.saved_model.SERVING!r} alone")


def _signature_callable(function: Any, definition: Any) -> Callable:
    """Return what runs one signature of a SavedModel; ``definition`` is its ``SignatureDef``."""
    inputs = {}
    for key, spec in function.structured_input_signature[1].items():
        # A name that is no identifier, as "my-input", stands in one of the two, and what TensorFlow made of it in the other;
        # which is which differs between TensorFlow 1 and 2. The two lists' orders differ too: pair by name, never by place.
        keyword = key if key in function.function_type.parameters else spec.name
        inputs[key if key in definition.inputs else spec.name or key] = (keyword, spec)
    method = definition.method_name if definition.method_name in (CLASSIFY, REGRESS) else PREDICT
    return _callable(function, inputs, method)


def _callable(function: Any, inputs: Mapping[str, tuple[str, Any]], method: str) -> Callable:
    signature = Signature(
        inputs=tuple(_spec(name, spec) for name, (_, spec) in sorted(inputs.items())),
        outputs=tuple(_spec(name, spec) for name, spec in sorted(function.structured_outputs.items())),
        method=method,
    )
    return Callable(function, {name: (keyword, spec.dtype) for name, (keyword, spec) in inputs.items()}, signature)


def _spec(name: str, spec: Any) -> TensorSpec:
    """Translate a ``tf.TensorSpec`` or a graph's tensor; what is neither, as a sparse one, gets a dtype that is not served."""
    if not isinstance(spec, tf.TensorSpec | tf.Tensor):
        return TensorSpec(name, type(spec).__name__, None)
    dtype = "bytes" if spec.dtype == tf.string else spec.dtype.name
    return TensorSpec(name, dtype, None if spec.shape.rank is None else tuple(spec.shape.as_list()))


def _named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, dict):
        return outputs
    flat = keras.tree.flatten(outputs)
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    if len(set(names)) != len(flat):
        names = [f"output_{index}" for index in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def _example(example: Mapping[str, Feature]) -> Any:
    message = tf.train.Example()
    for name, feature in example.items():
        entry = message.features.feature[name]
        if feature is not None:
            kind, values = feature
            getattr(entry, kind).value.extend(values)
    return message


def reason(error: Exception) -> str:
    """Return the first line of a TensorFlow error that says what is wrong, without the trace of nodes."""
    lines = (NOISE.sub("", line).strip() for line in str(error).splitlines() if not line.startswith(FRAMES))
    first = next((line for line in lines if line and not line.endswith("root error(s) found.")), type(error).__name__)
    return first if len(first) <= LONGEST_REASON else first[:LONGEST_REASON] + "..."
