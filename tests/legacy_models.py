"""Models of Keras 2 for tests: ``python -m tests.legacy_models DIR`` writes them, and beside each what Keras 2 answers.

A process of its own writes them, because importing ``tf_keras`` changes which models a process can load. ``DIR/KIND`` has the
model, ``inputs.npz`` and ``outputs.npz``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tf_keras
from tf_keras import layers

RANDOM = np.random.default_rng(1)
ROWS = RANDOM.normal(size=(5, 4)).astype(np.float32)
STEPS = RANDOM.normal(size=(2, 6, 4)).astype(np.float32)


def fitted() -> tuple[Any, dict[str, Any]]:
    """Compiled with an optimizer of TensorFlow 2.0 to 2.10, and fitted.

    Its optimizer has slot variables, so Keras 3 cannot load its object graph.
    """
    model = tf_keras.Sequential(
        [tf_keras.Input((4,), name="row"), layers.Dense(3, activation="relu"), layers.Dense(2, name="score")]
    )
    model.compile(tf_keras.optimizers.legacy.Adam(), "mse")
    model.fit(ROWS, ROWS[:, :2], verbose=0)
    return model, {"row": ROWS}


def operators() -> tuple[Any, dict[str, Any]]:
    """With operators on tensors, which Keras 2 writes as layers that Keras 3 does not have."""
    left, right = tf_keras.Input((4,), name="left"), tf_keras.Input((4,), name="right")
    return tf_keras.Model([left, right], layers.Dense(2, name="score")(left * 2.0 - right)), {"left": ROWS, "right": ROWS[::-1]}


def hard_sigmoid() -> tuple[Any, dict[str, Any]]:
    """With an activation whose name Keras 3 kept, and whose formula it changed."""
    inputs = tf_keras.Input((6, 4), name="steps")
    states = layers.LSTM(3, recurrent_activation="hard_sigmoid", return_sequences=True, name="states")(inputs)
    return tf_keras.Model(inputs, states), {"steps": STEPS * 4}


def convolution() -> tuple[Any, dict[str, Any]]:
    """A model that Keras 3 can read: a convolution, and a normalisation that has seen data."""
    inputs = tf_keras.Input((6, 4), name="steps")
    normal = layers.BatchNormalization()
    hidden = normal(layers.Conv1D(5, 3, activation="relu")(inputs))
    normal.set_weights([RANDOM.uniform(0.5, 1, each.shape) for each in normal.get_weights()])
    return tf_keras.Model(inputs, layers.Dense(2, name="score")(layers.Flatten()(hidden))), {"steps": STEPS}


def recurrent() -> tuple[Any, dict[str, Any]]:
    """With parameters that Keras 3 does not know."""
    inputs = tf_keras.Input((6, 4), name="steps")
    return tf_keras.Model(inputs, layers.Bidirectional(layers.GRU(3), name="states")(inputs)), {"steps": STEPS}


@tf_keras.saving.register_keras_serializable("mine")
class Doubled(tf_keras.Model):  # type: ignore[misc]
    """A custom model, which `PERCORE_IMPORT` registers."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.dense = layers.Dense(2)

    def call(self, features: Any, training: bool = False) -> Any:
        return self.dense(features) * (-2 if training else 2)


def subclassed() -> tuple[Any, dict[str, Any]]:
    """With a custom model."""
    model = Doubled()
    model(ROWS)
    return model, {"features": ROWS}


def code() -> tuple[Any, dict[str, Any]]:
    """With a function of Python in the file."""
    inputs = tf_keras.Input((4,), name="row")
    return tf_keras.Model(inputs, layers.Lambda(lambda row: row * 3, name="triple")(inputs)), {"row": ROWS}


KINDS: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any]]], str]] = {
    "fitted_savedmodel": (fitted, ""),
    "fitted_h5": (fitted, "model.h5"),
    "fitted_hdf5": (fitted, "saved.hdf5"),
    "operators_h5": (operators, "model.h5"),
    "operators_keras": (operators, "model.keras"),
    "hard_sigmoid_h5": (hard_sigmoid, "model.h5"),
    "convolution_h5": (convolution, "genomics.h5"),
    "subclassed_keras": (subclassed, "model.keras"),
    "recurrent_h5": (recurrent, "model.h5"),
    "code_h5": (code, "model.h5"),
}
"""For each kind, the function that makes it, and the name of its file; empty: it is written as a SavedModel."""


def write(folder: Path) -> None:
    """Write all kinds."""
    for number, (name, (kind, file)) in enumerate(KINDS.items()):
        tf_keras.utils.set_random_seed(number)
        model, inputs = kind()
        path = folder / name
        path.mkdir(parents=True)
        if file:
            model.save(path / file)
        else:
            model.save(path, save_format="tf")
        answer = model(list(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values())), training=False)
        np.savez(path / "inputs.npz", **inputs)
        np.savez(path / "outputs.npz", **dict(zip(model.output_names or ["output_0"], [np.asarray(answer)], strict=True)))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
