"""TensorFlow models, run by concrete function: the only module that imports tensorflow or keras.

Imported in a worker, after the fork, by ``percore.model_store``. ``Model.predict`` is never called: it costs 35 ms a call, and
fails ("Model.predict in graph mode is not supported ...") where a model is loaded in one mode or thread and called in another.
A concrete function knows no modes.
"""

from __future__ import annotations

import inspect
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
from tensorflow.python.framework import op_def_registry  # nothing public tells which operations are stateful
from tensorflow.python.saved_model.loader_impl import parse_saved_model  # reads .pb and .pbtxt, as `tf.saved_model.load` does

from percore.dtypes import BY_NAME
from percore.errors import BadInput, LoadError
from percore.handlers import Array, Tensors, effects, warmup
from percore.handlers.tf_example import Feature, features
from percore.model_metadata import CLASSIFY, DEFAULT_SIGNATURE, PREDICT, REGRESS, ModelInfo, Signature, TensorSpec

logger = logging.getLogger(__name__)

NOISE = re.compile(r"\{\{function_node [^}]*\}\}\s*|\s*\[\[\{\{node.*|\s*\[Op:\w+\].*|^\s*\(\d+\)\s*[A-Z_ ]+:\s*")
UNKNOWN = re.compile(r"Could not locate (?:class|function) '([^']+)'")
CALLERS_FAULT = (tf.errors.InvalidArgumentError, tf.errors.DataLossError)
"""What TensorFlow raises for tensors that do not fit, or for bytes that are no image or no compressed data. All else is the
model's fault."""
FRAMES = (
    *("Graph execution error", "Exception encountered when calling", "Detected at node", "<stack traces unavailable>"),
    *("  File ", "    "),
)
LONGEST_REASON = 300
CHANGES = (
    "%s: signature %r may change the model or the machine (%s). It is not warmed up, unless warmup.json names it. "
    "What it changes in the model stays in one worker, and is lost with it"
)


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
    operations: frozenset[str]
    """The names of all operations of the graph."""

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
        self._callables = {name: each for name, each in callables.items() if self._is_usable(name, each)}
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
        except CALLERS_FAULT as error:
            raise BadInput(f"the model refused the input: {reason(error)}") from error

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as ``tf.Example``, shape (len(examples),); raise BadInput naming ``examples[i].feature``."""
        serialised = np.empty(len(examples), object)
        for index, example in enumerate(features(examples)):
            serialised[index] = _example(example).SerializeToString()
        return serialised

    def _is_usable(self, name: str, of: Callable) -> bool:
        signature = of.signature
        if of.operations & effects.PYTHON:
            logger.warning(
                "%s: signature %r is left out: it calls a Python function, which the file does not hold", self._title, name
            )
            return False
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
            changing = effects.changing(self._callables[name].operations, op_def_registry.get)
            if changing:
                logger.warning(CHANGES, self._title, name, ", ".join(changing))
            if changing or signature.method != PREDICT:
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

    An input is named as its key, if the model takes a dictionary, or else as the tensor or the parameter. An output is named as
    its key, or else after the layer that it comes from.
    """

    def _read(self, folder: Path) -> Iterator[tuple[str, Callable]]:
        self._loaded = model = _load_keras(folder / "model.keras")
        variables = len(model.variables)
        function, inputs = _traced(model, _taken(model))
        if len(model.variables) != variables:
            raise ValueError("calling it created its layers again, so its weights are lost: give it `get_build_config`")
        yield DEFAULT_SIGNATURE, _callable(function, inputs, PREDICT)


def _load_keras(path: Path) -> Any:
    # Safe mode stays on, which is the default: a file that holds code is refused.
    try:
        return keras.saving.load_model(path, compile=False)
    except TypeError as error:
        if found := UNKNOWN.search(str(error)):
            raise TypeError(
                f"it uses {found[1]!r}, which no module has registered: decorate it with "
                "`keras.saving.register_keras_serializable`, and name its module in PERCORE_IMPORT"
            ) from error
        raise


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor that a Keras model takes."""

    name: str
    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...]
    """More than one if the file does not tell it: those to try, the likely one first."""
    any_batch: bool
    """Whether the first dimension is only that of the data that the model was built with."""

    def spec(self, keyword: str, attempt: int, *, free: bool) -> Any:
        """Return a ``tf.TensorSpec``, with the dtype of an attempt, and free of the recorded batch or not."""
        shape = (None, *self.shape[1:]) if free and self.any_batch else self.shape
        return tf.TensorSpec(shape, self.dtypes[min(attempt, len(self.dtypes) - 1)], keyword)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a Keras model is called with."""

    structure: Any
    """Nested as Keras wants it; its leaves are placeholders."""
    leaves: list[Leaf]
    """As ``keras.tree.flatten`` orders them."""
    by_keyword: bool = False
    """Whether the structure is a dictionary of the parameters of ``call``, instead of its first argument."""

    def names(self) -> dict[str, str]:
        """Return the names of the leaves, by a keyword for each."""
        found = {f"input_{index}": leaf.name for index, leaf in enumerate(self.leaves)}
        if len(set(found.values())) != len(found):
            raise ValueError(f"two of its inputs have the same name: {', '.join(sorted(found.values()))}")
        return found

    def call(self, model: Any, tensors: list[Any]) -> Any:
        """Call the model with tensors in the order of the leaves."""
        packed = keras.tree.pack_sequence_as(self.structure, tensors)
        # Also if `call` has no such parameter: layers inside it may have one, and augment images by default.
        return model(**packed, training=False) if self.by_keyword else model(packed, training=False)


def _taken(model: Any) -> Taken:
    """Return what a model is called with; raise ValueError if the file does not tell."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError("it was never built, so its file tells no shape of its input: call it once before it is saved")
        [tensor] = model.inputs
        return Taken(tensor, [Leaf(tensor.name, tensor.shape, (tensor.dtype,), any_batch=True)])
    if getattr(model, "inputs", None):
        structure = model.input
        flat = isinstance(structure, dict) and all(hasattr(each, "shape") for each in structure.values())
        keys = {id(tensor): key for key, tensor in structure.items()} if flat else {}
        tensors = keras.tree.flatten(structure)
        return Taken(
            structure, [Leaf(keys.get(id(each), each.name), each.shape, (each.dtype,), any_batch=False) for each in tensors]
        )
    return _taken_when_built(model)


def _taken_when_built(model: Any) -> Taken:
    """Return what a subclassed model is called with: Keras keeps the shapes that it was built with."""
    config = model.get_build_config() or {}
    parameter = next(iter(inspect.signature(model.call).parameters))
    if shapes := config.get("shapes_dict"):
        structure = {key.removesuffix("_shape"): shape for key, shape in shapes.items()}
        return Taken(
            dict.fromkeys(structure, 0), [_leaf(model, key, structure[key]) for key in sorted(structure)], by_keyword=True
        )
    shape: Any = config.get("input_shape")
    if _is_shape(shape):
        return Taken(0, [_leaf(model, parameter, shape)])
    if isinstance(shape, dict) and shape and all(map(_is_shape, shape.values())):
        return Taken(dict.fromkeys(shape, 0), [_leaf(model, key, shape[key]) for key in sorted(shape)])
    if isinstance(shape, list | tuple) and shape and all(map(_is_shape, shape)):
        return Taken([0] * len(shape), [_leaf(model, f"{parameter}_{index}", each) for index, each in enumerate(shape)])
    raise ValueError(
        "its file does not tell the shapes of its inputs: call it once before it is saved, or give it `get_build_config`"
    )


def _leaf(model: Any, name: str, shape: Sequence[int | None]) -> Leaf:
    return Leaf(name, tuple(shape), (model.input_dtype, "int64", "string"), any_batch=True)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(each is None or isinstance(each, int) for each in value) and value != []


def _traced(model: Any, taken: Taken) -> tuple[Any, dict[str, Any]]:
    """Return the concrete function, and its inputs by name: keyword and ``tf.TensorSpec``.

    If the file does not tell a dtype, several are tried. If none works, the first error is raised.
    """
    names = taken.names()

    def serve(**inputs: Any) -> dict[str, Any]:
        return _named_outputs(model, taken.call(model, [inputs[keyword] for keyword in names]))

    free = not any(getattr(layer, "stateful", False) for layer in model._flatten_layers())  # whose state is for one batch size
    failure: Exception | None = None
    for converted in (False, True):
        if converted:
            _convert(model)
        for attempt in range(max(len(leaf.dtypes) for leaf in taken.leaves)):
            specs = {key: leaf.spec(key, attempt, free=free) for key, leaf in zip(names, taken.leaves, strict=True)}
            try:
                function = tf.function(serve, autograph=False).get_concrete_function(**specs)
            except Exception as error:  # noqa: BLE001 - Keras raises of every kind
                failure = failure or error
            else:
                return function, {names[keyword]: (keyword, spec) for keyword, spec in specs.items()}
    raise failure or ValueError("it takes no input")


def _convert(model: Any) -> None:
    """Let an author's own classes have an ``if`` or a loop on a tensor, which Keras's own do without."""
    autograph = tf.__internal__.autograph
    for layer in model._flatten_layers():
        if not type(layer).__module__.startswith("keras."):
            layer.call = autograph.tf_convert(layer.call, autograph.control_status_ctx())


LOADERS: dict[str, type[TensorFlowModel]] = {"tensorflow_savedmodel": SavedModel, "keras": KerasModel}
"""By platform, as in ``ModelInfo``."""


def load(info: ModelInfo, folder: Path) -> TensorFlowModel:
    """Load one version of a model; ``info`` has no signatures yet. Raises LoadError."""
    return LOADERS[info.platform](info, folder)


def _serving_graph(folder: Path) -> tuple[Any, list[str] | None]:
    """Return the graph to serve, a ``MetaGraphDef``, and the tags to load it by, None where it is the only one.

    Read from the file, because TensorFlow 2 forgets the signatures' method names when it loads a model.
    """
    model = parse_saved_model(str(folder))
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
    operations = frozenset(effects.operations(function.graph.as_graph_def()))
    return Callable(function, {name: (keyword, spec.dtype) for name, (keyword, spec) in inputs.items()}, signature, operations)


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
    names = getattr(model, "output_names", None)
    if names is None and isinstance(model, keras.Sequential):
        names = [model.layers[-1].name]
    if names is None or len(set(names)) != len(flat):
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
