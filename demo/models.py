"""Builds the demo models: ``python -m demo.models OUTPUT_DIR [--force]``.

``digits`` reads handwritten digits and answers in a millisecond; ``burn`` keeps one core busy for as many steps as it is asked.
Both are the same on every build. A model that is newer than this file is not built again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 1
PIXELS = 64
BRIGHTEST = 16.0
LEAST_ACCURACY = 0.97
SIDE = 160
GAIN = 1.5
TRIAL = 5000

Tensor = Any
Function = Any
"""TensorFlow has no types that mypy could read."""


def digits(network: keras.Model) -> Function:
    """Return a function that reads handwritten digits: 8 x 8 pixels, 0 to 16 each, as in scikit-learn's ``load_digits``.

    ``pixels``, shape (images, 64), become ``digit``, shape (images,), and ``probabilities``, shape (images, 10).
    """

    def serve(pixels: Tensor) -> dict[str, Tensor]:
        probabilities = network(pixels, training=False)
        return {"digit": tf.argmax(probabilities, axis=1), "probabilities": probabilities}

    return tf.function(serve, input_signature=[tf.TensorSpec([None, PIXELS], tf.float32, name="pixels")])


def burn() -> Function:
    """Return a function that is work for one core: a matrix that fits its cache, multiplied again and again.

    It takes as many steps as the largest of ``steps``, shape (any,). It returns ``steps``, and ``checksum`` of the same shape:
    the mean of the matrix after each number of steps.
    """
    random = np.random.default_rng(SEED)
    rotation, _ = np.linalg.qr(random.normal(size=(SIDE, SIDE)))
    # A rotation with a gain above 1 neither dies away nor saturates: every step's numbers are new and none is denormal.
    weights = tf.constant(GAIN * rotation, tf.float32)
    start = tf.constant(random.normal(size=(SIDE, SIDE)), tf.float32)

    def serve(steps: Tensor) -> dict[str, Tensor]:
        most = tf.reduce_max(tf.concat([steps, [0]], axis=0))

        def step(done: Tensor, state: Tensor, checksum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            state = tf.tanh(tf.matmul(state, weights))
            return done + 1, state, tf.where(steps > done, tf.reduce_mean(state), checksum)

        before = (tf.constant(0, tf.int64), start, tf.zeros_like(steps, tf.float32))
        shapes = (tf.TensorShape([]), start.shape, tf.TensorShape([None]))
        # One iteration at a time, and no limit known in advance: the memory is the same after a billion steps.
        after = tf.while_loop(lambda done, *_: done < most, step, before, shape_invariants=shapes, parallel_iterations=1)
        return {"checksum": after[2], "steps": steps}

    return tf.function(serve, input_signature=[tf.TensorSpec([None], tf.int64, name="steps")])


def build_digits(folder: Path) -> str:
    """Train, test and save the network; return what was measured."""
    keras.utils.set_random_seed(SEED)
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images.astype(np.float32), labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    network = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Rescaling(1 / BRIGHTEST),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(train, train_labels, batch_size=32, epochs=30, verbose=0)
    function = digits(network)
    accuracy = float(np.mean(function(tf.constant(test))["digit"].numpy() == test_labels))
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"digits: accuracy {accuracy:.4f} on {len(test)} images, below {LEAST_ACCURACY}")
    save(function, folder, network)
    return f"accuracy {accuracy:.4f} on {len(test)} images it was not trained on"


def build_burn(folder: Path) -> str:
    """Save the model with a warm-up of one step; return how fast it is here."""
    function = burn()
    function(tf.constant([1], tf.int64))
    began = time.perf_counter()
    function(tf.constant([TRIAL], tf.int64))
    speed = TRIAL / (time.perf_counter() - began)
    save(function, folder)
    (folder / "warmup.json").write_text(json.dumps({"inputs": {"steps": [1]}}) + "\n")
    return f"{speed:.0f} steps a second"


def save(function: Function, folder: Path, *networks: keras.Model) -> None:
    """Write a SavedModel that TensorFlow and TensorFlow Serving both load; ``networks`` hold the function's variables.

    Not by ``tf.saved_model.save``: TensorFlow Serving would find no variable of Keras in it.
    """
    archive = keras.export.ExportArchive()
    for network in networks:
        archive.track(network)
    archive.add_endpoint("serving_default", function)
    archive.write_out(folder, verbose=False)


MODELS: dict[str, Callable[[Path], str]] = {"digits": build_digits, "burn": build_burn}


def build(output: Path, name: str) -> str:
    """Build one model as version 1; it appears whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{name}-") as scratch:
        made = Path(scratch) / "1"
        measured = MODELS[name](made)
        target = output / name / "1"
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    return measured


def is_current(output: Path, name: str) -> bool:
    """Tell whether the model is there and newer than this file."""
    made = output / name / "1" / "saved_model.pb"
    return made.is_file() and made.stat().st_mtime >= Path(__file__).stat().st_mtime


def main() -> None:
    """Build the models that are missing or old; with ``--force`` build all."""
    parser = argparse.ArgumentParser(prog="python -m demo.models", description="Build the demo models.")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--force", action="store_true", help="also build models that are there already")
    arguments = parser.parse_args()
    # The last bits of a sum depend on how many cores add it up.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    for name in MODELS:
        path = arguments.output / name / "1"
        done = "is current" if not arguments.force and is_current(arguments.output, name) else build(arguments.output, name)
        sys.stdout.write(f"{path}: {done}\n")


if __name__ == "__main__":
    main()
