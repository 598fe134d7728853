"""Every kind of Keras model that is served: ``python -m tests.keras_models DIR`` writes them, their inputs and Keras's answers.

Each function makes one kind and returns the model and its inputs. The table of docs/models.md has their first sentences.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

register = keras.saving.register_keras_serializable("tests")
ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
OTHERS = ROWS[::-1].copy()
Kind = tuple[Any, Any]
"""A model, and the arguments of its call: an array, a list or a dictionary of them."""


@register
class Scaled(layers.Layer):  # type: ignore[misc]
    """A custom layer."""

    def __init__(self, factor: float = 2.0, **more: Any) -> None:
        super().__init__(**more)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@register
class Subclassed(keras.Model):  # type: ignore[misc]
    """A custom model with one input."""

    def __init__(self, units: int = 3, **more: Any) -> None:
        super().__init__(**more)
        self.units = units
        self.dense = layers.Dense(units)

    def call(self, features: Any, training: bool = False) -> Any:
        return self.dense(features) + (1 if training else 0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@register
class Mixed(keras.Model):  # type: ignore[misc]
    """A custom model with a dictionary of inputs, and one of outputs."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.dense = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return {"sum": self.dense(inputs["left"]) + self.dense(inputs["right"]), "left": inputs["left"]}


@register
class Pair(keras.Model):  # type: ignore[misc]
    """A custom model with two parameters, which knows how it was built."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.dense = layers.Dense(2)

    def build(self, left_shape: Any, right_shape: Any) -> None:
        self.dense.build(left_shape)
        self.built = left_shape == right_shape

    def call(self, left: Any, right: Any) -> Any:
        return self.dense(left) - self.dense(right)


@register
class Lookup(keras.Model):  # type: ignore[misc]
    """A custom model that takes integers, and has an ``if`` on a tensor."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.table = self.add_weight(shape=(9, 2), name="table")

    def build(self, _shape: Any) -> None:
        self.built = True

    def call(self, places: Any) -> Any:
        rows = tf.gather(self.table, places)
        if tf.reduce_sum(places) > 10:
            rows = rows * 2
        return rows


@register
class Augmented(keras.Model):  # type: ignore[misc]
    """A custom model without a parameter `training`, around a layer that augments by default."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.noise, self.flat = layers.RandomBrightness(0.5, value_range=(0, 1)), layers.Flatten()

    def call(self, images: Any) -> Any:
        return self.flat(self.noise(images))


@register
class Words(keras.Model):  # type: ignore[misc]
    """A custom model that takes text and looks it up in a vocabulary."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.lookup = layers.StringLookup(vocabulary=["a", "b"])
        self.embedding = layers.Embedding(4, 2)

    def call(self, inputs: Any) -> Any:
        return self.embedding(self.lookup(inputs))


@register
class WordsAndNumbers(keras.Model):  # type: ignore[misc]
    """A custom model that takes text, whole numbers and other numbers."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.words = Words()
        self.table = self.add_weight(shape=(5, 2), name="table")
        self.dense = layers.Dense(2)

    def build_from_config(self, config: Any) -> None:  # needed, because Keras's own attempt uses floats only
        rows = {"text": np.array([["a"]]), "ids": np.array([0]), "numbers": np.zeros((1, 4), np.float32)}
        assert config["input_shape"].keys() == rows.keys()
        self(rows)

    def call(self, inputs: Any) -> Any:
        words = keras.ops.reshape(self.words(inputs["text"]), (-1, 2))
        return words + tf.gather(self.table, inputs["ids"]) + self.dense(inputs["numbers"])


@register
class LargeIds(keras.Model):  # type: ignore[misc]
    """A custom model that takes whole numbers. A float32 cannot hold them."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.lookup = layers.IntegerLookup(vocabulary=[16777216, 16777217, 16777219])
        self.embedding = layers.Embedding(5, 2)

    def call(self, inputs: Any) -> Any:
        return self.embedding(self.lookup(inputs))


@register
class ManyInputs(keras.Model):  # type: ignore[misc]
    """Twelve inputs; the third holds whole numbers that a float32 cannot hold."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.lookup = layers.IntegerLookup(vocabulary=[16777216, 16777217, 16777219])

    def call(self, inputs: Any) -> Any:
        ids = keras.ops.cast(self.lookup(inputs["c"]), "float32")
        return ids + sum(each for name, each in inputs.items() if name != "c")

    def get_build_config(self) -> Any:
        return {"input_shape": dict.fromkeys("abcdefghijkl", (None, 2))}

    def build_from_config(self, config: Any) -> None:
        pass


def sequential() -> Kind:
    """`Sequential` with an `Input`."""
    return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)]), ROWS


def sequential_without_input() -> Kind:
    """`Sequential` without an `Input`, built by a call: it takes every batch size."""
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    model(ROWS[:1])
    return model, ROWS


def sequential_by_shape() -> Kind:
    """`Sequential` whose `InputLayer` has a batch shape."""
    return keras.Sequential([layers.InputLayer(batch_shape=(None, 4)), layers.Dense(2)]), ROWS


def sequential_nested() -> Kind:
    """`Sequential` in `Sequential`."""
    return keras.Sequential([keras.Input((4,)), keras.Sequential([layers.Dense(3), layers.Dense(2)]), layers.Softmax()]), ROWS


def functional() -> Kind:
    """Functional."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(3, activation="relu")(inputs))), ROWS


def functional_nested() -> Kind:
    """Functional in functional."""
    inner, outer = keras.Input((4,)), keras.Input((4,))
    return keras.Model(outer, keras.Model(inner, layers.Dense(4)(inner))(outer) + outer), ROWS


def shared_layer() -> Kind:
    """Functional with a layer that is used twice."""
    left, right, shared = keras.Input((4,), name="left"), keras.Input((4,), name="right"), layers.Dense(3)
    return keras.Model([left, right], shared(left) - shared(right)), [ROWS, OTHERS]


def list_of_inputs_and_outputs() -> Kind:
    """Functional with lists of inputs and outputs."""
    left, right = keras.Input((4,)), keras.Input((4,))
    outputs = [layers.Dense(1, name="small")(left), layers.Dense(2, name="large")(left + right)]
    return keras.Model([left, right], outputs), [ROWS, OTHERS]


def dictionary_of_inputs_and_outputs() -> Kind:
    """Functional with dictionaries of inputs and outputs: their keys are the names."""
    inputs = {"zeta": keras.Input((4,), name="zeta"), "alpha": keras.Input((4,), name="alpha")}
    outputs = {"total": layers.Dense(1)(inputs["zeta"] - inputs["alpha"]), "alpha": inputs["alpha"]}
    return keras.Model(inputs, outputs), {"zeta": ROWS, "alpha": OTHERS}


def custom_layer() -> Kind:
    """A custom layer with a config, registered by a module that `PERCORE_IMPORT` names."""
    return keras.Sequential([keras.Input((4,)), Scaled(3.0), layers.Dense(2)]), ROWS


def subclassed() -> Kind:
    """A subclassed model with a config: its input is named as the parameter of `call`."""
    model = Subclassed(2)
    model(ROWS[:1])
    return model, ROWS


def subclassed_with_a_dictionary() -> Kind:
    """A subclassed model with a dictionary of inputs."""
    model = Mixed()
    model({"left": ROWS[:1], "right": ROWS[:1]})
    return model, {"left": ROWS, "right": OTHERS}


def subclassed_with_two_parameters() -> Kind:
    """A subclassed model with two parameters, whose `build` takes both shapes."""
    model = Pair()
    model.build((None, 4), (None, 4))
    return model, {"left": ROWS, "right": OTHERS}


def subclassed_with_an_if() -> Kind:
    """A subclassed model that takes integers, and has an `if` on a tensor."""
    model = Lookup()
    model(np.array([[1, 2]]))
    return model, np.array([[4, 8], [0, 1]])


def subclassed_without_training() -> Kind:
    """A subclassed model with a layer that augments images. Its `call` has no parameter `training`."""
    model = Augmented()
    model(np.zeros((1, 2, 2, 3), np.float32))
    return model, np.full((2, 2, 2, 3), 0.5, np.float32)


def subclassed_with_text() -> Kind:
    """A subclassed model that takes text."""
    model, rows = Words(), np.array([["b"], ["nowhere"]])
    model(rows)
    return model, rows


def subclassed_with_mixed_inputs() -> Kind:
    """A subclassed model that takes text, whole numbers and others."""
    model = WordsAndNumbers()
    rows = {"text": np.array([["a"], ["b"]]), "ids": np.array([4, 0]), "numbers": ROWS[:2]}
    model(rows)
    return model, rows


def subclassed_with_large_ids() -> Kind:
    """A subclassed model that takes ids above 16777216, which a float32 does not tell apart."""
    model, rows = LargeIds(), np.array([[16777216, 16777217], [16777219, 7]])
    model(rows)
    return model, rows


def subclassed_with_many_inputs() -> Kind:
    """A subclassed model that takes twelve inputs, one of them ids above 16777216."""
    ids = np.array([[16777216, 16777217], [16777219, 7]])
    model, rows = ManyInputs(), {name: ids if name == "c" else ROWS[:2, :2] for name in "abcdefghijkl"}
    model(rows)
    return model, rows


def stateful() -> Kind:
    """A recurrent layer that keeps its state, and so its batch size."""
    return keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), layers.LSTM(2, stateful=True)]), np.stack([ROWS[:3], ROWS[2:]])


def text() -> Kind:
    """Preprocessing of text: `TextVectorization` and `Embedding`."""
    vectors = layers.TextVectorization(output_sequence_length=4)
    vectors.adapt(["one two", "two three four"])
    return keras.Sequential([keras.Input((1,), dtype="string"), vectors, layers.Embedding(10, 3)]), np.array(
        [[b"two five"]], object
    )


def categories() -> Kind:
    """Preprocessing of categories: `StringLookup` and `CategoryEncoding`."""
    lookup = layers.StringLookup(vocabulary=["a", "b", "c"])
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, layers.CategoryEncoding(4, output_mode="one_hot")(lookup(inputs))), np.array(
        [[b"b"], [b"z"]], object
    )


def numbers() -> Kind:
    """Preprocessing of numbers: `Normalization` and `Discretization`."""
    scale, bins = layers.Normalization(), layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0])
    scale.adapt(ROWS)
    inputs = keras.Input((4,))
    return keras.Model(inputs, bins(scale(inputs))), ROWS


def images() -> Kind:
    """Images: convolution, batch normalisation, dropout, and augmentation that has no effect when a call is served."""
    chain = [
        *(keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.RandomFlip(), layers.Conv2D(4, 3)),
        *(layers.BatchNormalization(), layers.Dropout(0.5), layers.GlobalAveragePooling2D(), layers.Dense(2)),
    ]
    return keras.Sequential(chain), np.random.default_rng(2).integers(0, 255, (2, 8, 8, 3)).astype(np.float32)


def recurrent() -> Kind:
    """Recurrent: `Embedding`, `LSTM` and a bidirectional `GRU`, with inputs of integers."""
    inputs = keras.Input((6,), dtype="int32")
    states = layers.LSTM(4, return_sequences=True)(layers.Embedding(20, 3)(inputs))
    return keras.Model(inputs, layers.Bidirectional(layers.GRU(2))(states)), np.arange(12, dtype=np.int32).reshape(2, 6)


def attention() -> Kind:
    """Attention: `MultiHeadAttention` and `LayerNormalization`."""
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layers.LayerNormalization()(layers.MultiHeadAttention(2, 2)(inputs, inputs))), ROWS[:3][None]


KINDS = (
    *(
        sequential,
        sequential_without_input,
        sequential_by_shape,
        sequential_nested,
        functional,
        functional_nested,
        shared_layer,
    ),
    *(list_of_inputs_and_outputs, dictionary_of_inputs_and_outputs, custom_layer, subclassed, subclassed_with_a_dictionary),
    *(
        subclassed_with_two_parameters,
        subclassed_with_an_if,
        subclassed_without_training,
        subclassed_with_text,
        subclassed_with_mixed_inputs,
        subclassed_with_large_ids,
        subclassed_with_many_inputs,
        stateful,
        text,
        categories,
        numbers,
        images,
        recurrent,
        attention,
    ),
)


def flat(value: Any, name: str = "0") -> dict[str, Any]:
    """Return arrays by name: a list's by their places, a dictionary's by their keys."""
    if isinstance(value, dict):
        return dict(value)
    return {str(index): each for index, each in enumerate(value)} if isinstance(value, list | tuple) else {name: value}


def write(folder: Path) -> None:
    """Write each model, and beside it what Keras answers, in this process and from the model in memory."""
    for number, kind in enumerate(KINDS):
        keras.utils.set_random_seed(number)
        model, inputs = kind()
        path = folder / kind.__name__
        path.mkdir(parents=True)
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        named = kind is subclassed_with_two_parameters
        answer = model(**tensors, training=False) if named else model(tensors, training=False)
        if kind is stateful:
            model.layers[0].reset_states()
        model.save(path / "model.keras")
        np.savez(path / "inputs.npz", **flat(inputs))
        np.savez(path / "outputs.npz", **flat(keras.tree.map_structure(np.asarray, answer)))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
