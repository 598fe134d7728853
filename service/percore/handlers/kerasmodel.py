"""A Keras model, of Keras 3 or 2, traced into one concrete function: one signature, ``serving_default``.

An input has the name of its key if the model takes a dictionary, and otherwise the name of the tensor or of the parameter. An
output has the name of its key, or of its layer.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import op_def_registry  # no public API tells which operations are stateful

from percore.handlers import effects, files, kerasfile, runners
from percore.handlers.runners import SignatureRunner
from percore.model_metadata import DEFAULT_SIGNATURE

ID_DTYPE = "int64"
MOST_ATTEMPTS = 81
"""Enough for four inputs with three possible dtypes each."""


def read(folder: Path, title: str, *, allow_code: bool) -> dict[str, SignatureRunner]:
    """Return the runner of the only signature, by name. Raises the errors of Keras. ``title`` names the model in the log."""
    path = files.keras_file(folder)
    if path is None:
        raise FileNotFoundError(f"there is no {' or '.join(files.KERAS_FILES)}")
    model = kerasfile.read(path, title, allow_code=allow_code)
    variables = len(model.variables)
    traced = _traced(model, _inputs(model))
    if len(model.variables) != variables:
        raise ValueError("calling it created its layers again, so its weights are lost: give it `get_build_config`")
    signature = runners.signature_of_trace(
        ((name, spec) for name, (_, spec) in traced.inputs.items()), traced.function.structured_outputs.items()
    )
    keywords = {name: (keyword, spec.dtype) for name, (keyword, spec) in traced.inputs.items()}
    return {DEFAULT_SIGNATURE: runners.runner_of(traced.function, keywords, signature, model)}


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One tensor that a Keras model takes."""

    name: str
    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...]
    """The possible dtypes, with the most likely one first. There are several if the file does not name the dtype. They are
    tried in this order."""
    any_batch: bool
    """Whether the model takes any batch size, although the file names the batch size with which the model was built."""

    def spec(self, keyword: str, dtype: str, *, free: bool) -> Any:
        """Return a ``tf.TensorSpec`` of a dtype. ``free``: without the recorded batch size."""
        shape = (None, *self.shape[1:]) if free and self.any_batch else self.shape
        return tf.TensorSpec(shape, dtype, keyword)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The inputs that a Keras model is called with."""

    structure: Any
    """The argument of the model: nested dictionaries or lists, with a placeholder for each tensor."""
    leaves: list[InputTensor]
    """In the order of ``keras.tree.flatten``."""
    by_keyword: bool = False
    """Whether the structure is a dictionary of the parameters of ``call``, instead of its first argument."""

    def names(self) -> dict[str, str]:
        """Return a dictionary from the keyword of each leaf to the name of the leaf."""
        found = {f"input_{index}": leaf.name for index, leaf in enumerate(self.leaves)}
        if len(set(found.values())) != len(found):
            raise ValueError(f"two of its inputs have the same name: {', '.join(sorted(found.values()))}")
        return found

    def call(self, model: Any, tensors: list[Any]) -> Any:
        """Call the model with tensors in the order of the leaves."""
        packed = keras.tree.pack_sequence_as(self.structure, tensors)
        # `training` is given even if `call` has no such parameter, because a layer inside may have it, and would augment images
        # without it.
        return model(**packed, training=False) if self.by_keyword else model(packed, training=False)


def _inputs(model: Any) -> ModelInputs:
    """Return the inputs of a model; raise ValueError if the file does not describe them."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError("it was never built, so its file tells no shape of its input: call it once before it is saved")
        [tensor] = model.inputs
        return ModelInputs(tensor, [InputTensor(tensor.name, tensor.shape, (_recorded_dtype(tensor),), any_batch=True)])
    if getattr(model, "inputs", None):
        structure = model.input
        flat = isinstance(structure, dict) and all(hasattr(each, "shape") for each in structure.values())
        keys = {id(tensor): key for key, tensor in structure.items()} if flat else {}
        tensors = keras.tree.flatten(structure)
        leaves = [
            InputTensor(keys.get(id(each), each.name), each.shape, (_recorded_dtype(each),), any_batch=False)
            for each in tensors
        ]
        return ModelInputs(structure, leaves)
    return _inputs_when_built(model)


def _inputs_when_built(model: Any) -> ModelInputs:
    """Return the inputs of a subclassed model. Keras saves the shapes with which the model was built."""
    config = model.get_build_config() or {}
    parameter = next(iter(inspect.signature(model.call).parameters))
    if shapes := config.get("shapes_dict"):
        structure = {key.removesuffix("_shape"): shape for key, shape in shapes.items()}
        return ModelInputs(
            dict.fromkeys(structure, 0), [_leaf(model, key, structure[key]) for key in sorted(structure)], by_keyword=True
        )
    shape: Any = config.get("input_shape")
    if _is_shape(shape):
        return ModelInputs(0, [_leaf(model, parameter, shape)])
    if isinstance(shape, dict) and shape and all(map(_is_shape, shape.values())):
        return ModelInputs(dict.fromkeys(shape, 0), [_leaf(model, key, shape[key]) for key in sorted(shape)])
    if isinstance(shape, list | tuple) and shape and all(map(_is_shape, shape)):
        return ModelInputs([0] * len(shape), [_leaf(model, f"{parameter}_{index}", each) for index, each in enumerate(shape)])
    raise ValueError(
        "its file does not tell the shapes of its inputs: call it once before it is saved, or give it `get_build_config`"
    )


def _recorded_dtype(tensor: Any) -> str:
    """Return the dtype of a symbolic input: Keras 3 keeps its name, Keras 2 a ``tf.DType``."""
    return str(tf.as_dtype(tensor.dtype).name)


def _leaf(model: Any, name: str, shape: Sequence[int | None]) -> InputTensor:
    return InputTensor(name, tuple(shape), (model.compute_dtype, "int64", "string"), any_batch=True)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(each is None or isinstance(each, int) for each in value) and value != []


@dataclass(slots=True)
class Traced:
    """A concrete function of a model, and its inputs."""

    function: Any
    inputs: dict[str, Any]
    """By name: the keyword of the function, and a ``tf.TensorSpec``."""
    dtypes: tuple[str, ...]
    """In the order of the leaves."""


class Tracer:
    """Traces a model; each choice of dtypes is one attempt."""

    def __init__(self, model: Any, model_inputs: ModelInputs) -> None:
        self._model = model
        self._inputs = model_inputs
        self._names = model_inputs.names()
        # A stateful layer has a state for one batch size only.
        self._free = not any(getattr(layer, "stateful", False) for layer in model._flatten_layers())
        self.failure: Exception | None = None
        """The first reason why a choice cannot be traced."""

    def trace(self, dtypes: tuple[str, ...]) -> Traced:
        """Return the function for these dtypes; raise whatever Keras raises."""
        leaves = zip(self._names, self._inputs.leaves, dtypes, strict=True)
        specs = {key: leaf.spec(key, dtype, free=self._free) for key, leaf, dtype in leaves}
        function = tf.function(self._serve, autograph=False).get_concrete_function(**specs)
        return Traced(function, {self._names[keyword]: (keyword, spec) for keyword, spec in specs.items()}, dtypes)

    def traceable(self) -> Iterator[Traced]:
        """Yield the function of each choice that can be traced."""
        for dtypes in _attempts(self._inputs.leaves):
            try:
                yield self.trace(dtypes)
            except Exception as error:  # noqa: BLE001 - Keras raises of every kind
                self.failure = self.failure or error

    def _serve(self, **inputs: Any) -> dict[str, Any]:
        return _named_outputs(self._model, self._inputs.call(self._model, [inputs[keyword] for keyword in self._names]))


def _traced(model: Any, model_inputs: ModelInputs) -> Traced:
    """Return the concrete function.

    If the file does not tell a dtype, several are tried, until the model computes with them. If none works, the first error is
    raised.
    """
    tracer = Tracer(model, model_inputs)
    is_certain = all(len(leaf.dtypes) == 1 for leaf in model_inputs.leaves)
    for converted in (False, True):
        if converted:
            _apply_autograph(model)
        found = list[Traced]()
        for each in tracer.traceable():
            if is_certain or _computes(each):
                exact = _exact_dtypes(each, model_inputs.leaves)
                return each if exact == each.dtypes else tracer.trace(exact)
            found.append(each)
        if found:  # perhaps the model only fails for zeros
            return found[0]
    raise tracer.failure or ValueError("it takes no input")


def _attempts(leaves: list[InputTensor]) -> list[tuple[str, ...]]:
    """Return the choices of dtypes to try, one dtype for each leaf. Choices with more likely dtypes come first."""
    ranks = itertools.islice(itertools.product(*(range(len(leaf.dtypes)) for leaf in leaves)), MOST_ATTEMPTS)
    ordered = sorted(ranks, key=lambda chosen: (sum(map(bool, chosen)), chosen))
    return [tuple(leaf.dtypes[rank] for leaf, rank in zip(leaves, chosen, strict=True)) for chosen in ordered]


def _computes(traced: Traced) -> bool:
    """Return whether the model computes with zeros. A model that may change something is not run, and counts as computing."""
    if effects.changing(effects.operations(traced.function.graph.as_graph_def()), op_def_registry.get):
        return True
    try:
        traced.function(**{keyword: _zeros(spec) for keyword, spec in traced.inputs.values()})
    except Exception:  # noqa: BLE001 - another dtype may work
        return False
    return True


def _zeros(spec: Any) -> Any:
    return tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype)


def _exact_dtypes(traced: Traced, leaves: list[InputTensor]) -> tuple[str, ...]:
    """Return the dtypes, with int64 instead of float for each input that the model converts to whole numbers at once.

    Layers such as ``Embedding`` do so. A float32 is exact only up to 2**24, so a larger id would become a different id.
    """
    # The function orders its inputs by their keywords as text ("input_10" before "input_2"), and adds the variables.
    placeholders = {tensor.op.name: tensor for tensor in traced.function.inputs}
    found = []
    for (keyword, _), leaf, dtype in zip(traced.inputs.values(), leaves, traced.dtypes, strict=True):
        is_id = dtype.startswith("float") and ID_DTYPE in leaf.dtypes and _becomes_whole(placeholders[keyword])
        found.append(ID_DTYPE if is_id else dtype)
    return tuple(found)


def _becomes_whole(tensor: Any) -> bool:
    consumers, waiting = [], [tensor]
    while waiting:
        for operation in waiting.pop().consumers():
            if operation.type == "Identity":
                waiting += operation.outputs
            else:
                consumers.append(operation)
    return bool(consumers) and all(each.type == "Cast" and each.outputs[0].dtype.is_integer for each in consumers)


def _apply_autograph(model: Any) -> None:
    """Convert classes that are not Keras's own, so that they may have an ``if`` or a loop on a tensor."""
    autograph = tf.__internal__.autograph
    for layer in model._flatten_layers():
        if not type(layer).__module__.startswith(("keras.", "tf_keras.")):
            layer.call = autograph.tf_convert(layer.call, autograph.control_status_ctx())


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
