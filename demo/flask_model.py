"""Trains the model of ``demo.flask_app`` and writes it as one Keras file: ``python -m demo.flask_model FILE``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 1
BRIGHTEST = 16.0
LEAST_ACCURACY = 0.95


def build(path: Path) -> float:
    """Train a small network on scikit-learn's digits, test it, and write it to ``path``; return its accuracy."""
    keras.utils.set_random_seed(SEED)
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        images.astype(np.float32), labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    network = keras.Sequential(
        [
            keras.Input((images.shape[1],)),
            keras.layers.Rescaling(1 / BRIGHTEST),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(train, train_labels, batch_size=32, epochs=20, verbose=0)
    accuracy = float(network.evaluate(test, test_labels, verbose=0)[1])
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"{path}: accuracy {accuracy:.4f} on {len(test)} images, below {LEAST_ACCURACY}")
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return accuracy


def main() -> None:
    """Build the model."""
    parser = argparse.ArgumentParser(prog="python -m demo.flask_model", description="Build the model of the demo's Flask app.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a name that ends with .keras")
    path = parser.parse_args().file
    print(f"{path}: accuracy {build(path):.4f} on images it was not trained on")


if __name__ == "__main__":
    main()
