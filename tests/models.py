"""Tiny models of every kind, for tests: ``python -m tests.models DIR`` writes ``DIR/{tf1,tf2,keras}/1``.

Each answers ``y = 2 * x[0] + 3 * x[1] + 1`` for ``x`` of shape (any, 2), and more by other signatures.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

WEIGHTS = np.array([[2.0], [3.0]], np.float32)
BIAS = 1.0
MANY = "abcdefgh"
TF2_SIGNATURES = ("serving_default", "upper", "any_rank", "bfloat16", "float16", "product", "decode", "file", "dashed", "many")


def write_tf1(path: Path) -> None:
    """Write a model of TensorFlow 1: a session's graph, with variables of the old kind.

    Signatures: ``serving_default``, ``classify``, ``regress``, ``dashed`` (input ``my-input``), ``complex`` (not served).
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], name="x")
        weights = v1.get_variable("weights", initializer=WEIGHTS, use_resource=False)

        def line(values: Any) -> Any:
            return tf.matmul(values, weights) + BIAS

        serialised = v1.placeholder(tf.string, [None], name="examples")
        parsed = v1.parse_example(serialised, {"x": v1.FixedLenFeature([2], tf.float32)})["x"]
        score = line(parsed)
        scores = tf.concat([score, -score], axis=1)
        classes = tf.tile(tf.constant([["up", "down"]]), [tf.shape(score)[0], 1])
        build = v1.saved_model
        signatures = {
            "serving_default": build.predict_signature_def({"x": x}, {"y": line(x)}),
            "classify": build.classification_signature_def(serialised, classes, scores),
            "regress": build.regression_signature_def(serialised, score),
            "dashed": build.predict_signature_def({"my-input": x}, {"my-output": line(x)}),
            "complex": build.predict_signature_def({"x": x}, {"z": tf.complex(x, x)}),
        }
        session.run(v1.global_variables_initializer())
        builder = build.Builder(str(path))
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], signatures)
        builder.save()


def write_tf2(path: Path) -> None:
    """Write a model of TensorFlow 2.

    Signatures: ``serving_default``, ``upper`` (strings), ``any_rank``, ``bfloat16``, ``float16``, ``product`` (fails if the
    matrices do not fit), ``decode`` (fails if the bytes are not an image), ``file`` (fails if the file is missing), ``dashed``
    (input ``my-input``), ``many`` (inputs ``a`` to ``h``, answered in this order).
    """
    module = tf.Module()
    module.weights = tf.Variable(WEIGHTS)
    scalars: dict[str, tuple[Any, ...]] = dict.fromkeys(MANY, ([], tf.int32))
    functions = {
        "serving_default": _function(lambda x: {"y": tf.matmul(x, module.weights) + BIAS}, x=([None, 2], tf.float32)),
        "upper": _function(lambda text: {"text": tf.strings.upper(text)}, text=([None], tf.string)),
        "any_rank": _function(lambda x: {"y": x * 2}, x=(None, tf.int32)),
        "bfloat16": _function(lambda x: {"y": x * 2}, x=(None, tf.bfloat16)),
        "float16": _function(lambda x: {"y": x * 2}, x=([], tf.float16)),
        "product": _function(lambda a, b: {"y": tf.matmul(a, b)}, a=([None, None], tf.float32), b=([None, None], tf.float32)),
        "decode": _function(lambda image: {"pixels": tf.io.decode_png(image)}, image=([], tf.string)),
        "file": _function(lambda name: {"content": tf.io.read_file(name)}, name=([], tf.string)),
        "dashed": _function(lambda value: {"my-output": value + 1}, value=([], tf.int64, "my-input")),
        "many": _function(lambda a, b, c, d, e, f, g, h: {"y": tf.stack([a, b, c, d, e, f, g, h])}, **scalars),
    }
    tf.saved_model.save(module, str(path), signatures=functions)


def write_graphs(folder: Path, *sets: list[str]) -> Path:
    """Write one graph for each set of tags. Each graph adds the index of its set to the input."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder))
    for index, tags in enumerate(sets):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [], name="x")
            offset = v1.get_variable("offset", initializer=float(0), use_resource=True)
            session.run(v1.global_variables_initializer())
            signatures = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": x + index + offset})}
            if index:
                builder.add_meta_graph(tags, signatures)
            else:
                builder.add_meta_graph_and_variables(session, tags, signatures)
    builder.save()
    return folder


def write_keras(path: Path) -> None:
    """Write ``model.keras``: input ``x``, output ``y``."""
    layer = keras.layers.Dense(1, name="y")
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([WEIGHTS, np.array([BIAS], np.float32)])
    path.mkdir(parents=True, exist_ok=True)
    model.save(path / "model.keras")


def _function(body: Any, **inputs: tuple[Any, ...]) -> Any:
    specs = [tf.TensorSpec(shape, dtype, *name or [key]) for key, (shape, dtype, *name) in inputs.items()]
    return tf.function(body, input_signature=specs)


WRITERS = {"tf1": write_tf1, "tf2": write_tf2, "keras": write_keras}

if __name__ == "__main__":
    for each, write in WRITERS.items():
        write(Path(sys.argv[1]) / each / "1")
