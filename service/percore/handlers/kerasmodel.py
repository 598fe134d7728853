"""A Keras model, of Keras 3 or 2, traced into one concrete function: one signature, ``serving_default``.

An input is named as its key, if the model takes a dictionary, or else as the tensor or the parameter. An output is named as its
key, or else after the layer that it comes from.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from percore.handlers import files, kerasfile, runners
from percore.handlers.runners import Callable
from percore.model_metadata import DEFAULT_SIGNATURE


def read(folder: Path, title: str, *, allow_code: bool) -> dict[str, Callable]:
    """Return what runs the one signature, by name; raise whatever Keras raises. ``title`` names the model in the log."""
    path = files.keras_file(folder)
    if path is None:
        raise FileNotFoundError(f"there is no {' or '.join(files.KERAS_FILES)}")
    model = kerasfile.read(path, title, allow_code=allow_code)
    variables = len(model.variables)
    function, inputs = _traced(model, _taken(model))
    if len(model.variables) != variables:
        raise ValueError("calling it created its layers again, so its weights are lost: give it `get_build_config`")
    signature = runners.traced(((name, spec) for name, (_, spec) in inputs.items()), function.structured_outputs.items())
    keywords = {name: (keyword, spec.dtype) for name, (keyword, spec) in inputs.items()}
    return {DEFAULT_SIGNATURE: runners.of_function(function, keywords, signature, model)}


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
    return Leaf(name, tuple(shape), (model.compute_dtype, "int64", "string"), any_batch=True)


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
