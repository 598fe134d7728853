"""Side effects of a model: none happens during the load, unless the author asks for it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from percore.errors import BadInput, LoadError
from percore.handlers import tensorflow
from percore.model_metadata import ModelInfo

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBER = tf.TensorSpec([], tf.float32, "x")


def save(folder: Path, module: tf.Module, **bodies: Any) -> Path:
    signatures = {name: tf.function(body, input_signature=[NUMBER], autograph=False) for name, body in bodies.items()}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def load(folder: Path) -> tensorflow.TensorFlowModel:
    return tensorflow.load(ModelInfo("mine", 1, "tensorflow_savedmodel", {}, ()), folder)


def ask(model: tensorflow.TensorFlowModel, signature: str, x: float = 0.0) -> float:
    (answer,) = model.predict(signature, {"x": np.array(x, np.float32)}).values()
    return float(answer)


@pytest.fixture
def module() -> tf.Module:
    found = tf.Module()
    found.weight, found.count = tf.Variable(5.0), tf.Variable(0.0)
    keys, values = tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), tf.constant(0.0)
    found.fixed = tf.lookup.StaticHashTable(keys, -1.0)
    found.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, values)
    return found


def test_a_warm_up_changes_nothing_in_the_model_or_on_the_machine(
    module: tf.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touched = tmp_path / "touched"

    def train(x: Any) -> dict[str, Any]:
        return {"y": module.weight.assign(module.weight - 0.1 * (module.weight - x))}

    def in_a_loop(x: Any) -> dict[str, Any]:
        def body(step: Any) -> Any:
            module.count.assign_add(1.0)
            return step + 1

        return {"y": x + tf.cast(tf.while_loop(lambda step: step < 3, body, [tf.constant(0)])[0], tf.float32)}

    def in_a_branch(x: Any) -> dict[str, Any]:
        return {"y": tf.cond(x > 1, lambda: module.count.assign_add(x), lambda: x)}

    def remember(x: Any) -> dict[str, Any]:
        module.table.insert(tf.constant(["b"]), x[None])
        return {"y": x}

    def write(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.io.write_file(str(touched), "x")]):
            return {"y": tf.identity(x)}

    folder = save(
        tmp_path / "model",
        module,
        weight=lambda x: {"y": module.weight + x},
        count=lambda x: {"y": module.count + x},
        fixed=lambda x: {"y": module.fixed.lookup(tf.constant("a")) + x + tf.random.uniform([]) * 0},
        remembered=lambda x: {"y": module.table.lookup(tf.constant("b")) + x},
        train=train,
        in_a_loop=in_a_loop,
        in_a_branch=in_a_branch,
        remember=remember,
        write=write,
    )
    with caplog.at_level(logging.DEBUG, "percore"):
        model = load(folder)
    warmed = {
        each for each in model.info.signatures if any(f"warming up signature {each!r}" in text for text in caplog.messages)
    }
    assert warmed == {"weight", "count", "fixed", "remembered"}
    for name, operation in (("train", "AssignVariableOp"), ("remember", "LookupTableInsertV2"), ("write", "WriteFile")):
        [line] = [text for text in caplog.messages if f"signature {name!r} may change" in text]
        assert f"({operation})" in line
        assert "stay in one worker, and are lost when the worker ends" in line
    assert not touched.exists()
    assert [ask(model, name) for name in ("weight", "count", "fixed", "remembered")] == [5, 0, 1, 0]
    assert ask(model, "in_a_loop") == 3
    assert ask(model, "count") == 3, "it is called like every other"


def test_an_author_may_ask_for_a_warm_up_that_changes_the_model(module: tf.Module, tmp_path: Path) -> None:
    folder = save(
        tmp_path / "model",
        module,
        weight=lambda x: {"y": module.weight + x},
        add=lambda x: {"y": module.weight.assign_add(x)},
    )
    (folder / "warmup.json").write_text(json.dumps({"signature_name": "add", "inputs": {"x": 2.0}}))
    assert ask(load(folder), "weight") == 7


def test_a_signature_that_needs_a_python_function_is_left_out_and_a_model_without_others_is_refused(
    module: tf.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def python(x: Any) -> dict[str, Any]:
        y = tf.py_function(lambda value: value + 1, [x], tf.float32)
        return {"y": tf.ensure_shape(y, [])}

    def numpy(x: Any) -> dict[str, Any]:
        return {"y": tf.cond(x > 0, lambda: tf.numpy_function(np.sin, [x], tf.float32), lambda: x)}

    model = load(save(tmp_path / "some", module, python=python, numpy=numpy, weight=lambda x: {"y": module.weight + x}))
    assert set(model.info.signatures) == {"weight"}
    assert [text for text in caplog.messages if "calls a Python function, which the file does not hold" in text]
    with pytest.raises(LoadError, match="has no signature that can be served; it has python"):
        load(save(tmp_path / "all", module, python=python))


def test_an_error_of_tensorflow_is_the_callers_fault_only_if_the_tensors_are_wrong(tmp_path: Path) -> None:
    text = tf.TensorSpec([], tf.string, "x")

    def function(body: Any, spec: Any = text) -> Any:
        return tf.function(body, input_signature=[spec], autograph=False)

    missing = tf.raw_ops.VarHandleOp
    signatures = {
        "image": function(lambda x: {"y": tf.io.decode_jpeg(x)}),
        "compressed": function(lambda x: {"y": tf.io.decode_compressed(x, "ZLIB")}),
        "number": function(lambda x: {"y": tf.strings.to_number(x)}),
        "place": function(lambda x: {"y": tf.gather([1, 2, 3], x)}, tf.TensorSpec([], tf.int32, "x")),
        "divide": function(lambda x: {"y": 1 // x}, tf.TensorSpec([], tf.int32, "x")),
        "file": function(lambda x: {"y": tf.io.read_file("/no/such/file" + x)}),
        "never_set": function(
            lambda x: {
                "y": tf.raw_ops.ReadVariableOp(
                    resource=missing(dtype=tf.float32, shape=[], shared_name="none"), dtype=tf.float32
                )
                + tf.cast(tf.strings.length(x), tf.float32)
            }
        ),
    }
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=signatures)
    model = load(tmp_path)
    given = {"place": np.array(7, np.int32), "divide": np.array(0, np.int32)}
    for name in ("image", "compressed", "number", "place", "divide"):
        with pytest.raises(BadInput, match="the model refused the input"):
            model.predict(name, {"x": given.get(name, np.array(b"junk", object))})
    for name, error in (("file", tf.errors.NotFoundError), ("never_set", tf.errors.FailedPreconditionError)):
        with pytest.raises(error):
            model.predict(name, {"x": np.array(b"", object)})
