"""Keras files that would call functions of the machine when they are read, and harmless files that look similar."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import pytest
from percore.errors import LoadError
from percore.handlers import kerasfile

INPUT = {
    "class_name": "InputLayer",
    "config": {"batch_input_shape": [None, 4], "dtype": "float32", "sparse": False, "ragged": False, "name": "inp"},
    "name": "inp",
    "inbound_nodes": [],
}
NEEDS_KERAS_2 = {
    "class_name": "Activation",
    "config": {"name": "a", "trainable": True, "dtype": "float32", "activation": "hard_sigmoid"},
    "name": "a",
    "inbound_nodes": [[["inp", 0, 0, {}]]],
}


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def model(*layers: dict[str, Any]) -> dict[str, Any]:
    config = {"name": "m", "trainable": True, "layers": [INPUT, NEEDS_KERAS_2, *layers], "input_layers": [["inp", 0, 0]]}
    module = "keras.src.engine.functional"
    whole = {**config, "output_layers": [["a", 0, 0]]}
    return {"module": module, "class_name": "Functional", "registered_name": "Functional", "config": whole}


def layer(class_name: str, config: dict[str, Any], inbound: Any) -> dict[str, Any]:
    common = {"name": "l", "trainable": True, "dtype": "float32"}
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {**common, **config},
        "name": "l",
        "inbound_nodes": inbound,
    }


def shell(marker: Path) -> dict[str, Any]:
    named = {"function": function("os", "system"), "function_type": "function", "module": "os", "arguments": {}}
    shape = {"output_shape": None, "output_shape_type": "raw", "output_shape_module": None}
    return layer("Lambda", {**named, **shape}, [[["_CONSTANT_VALUE", -1, f"touch {marker}", {}]]])


def activation(_: Path) -> dict[str, Any]:
    return layer("Activation", {"activation": function("os", "system")}, [[["inp", 0, 0, {}]]])


def download(_: Path) -> dict[str, Any]:
    return layer("Activation", {"activation": function("keras.utils", "get_file")}, [[["inp", 0, 0, {}]]])


def foreign(_: Path) -> dict[str, Any]:
    return {**layer("Popen", {}, [[["inp", 0, 0, {}]]]), "module": "subprocess"}


def write_file(marker: Path) -> dict[str, Any]:
    return layer("TFOpLambda", {"function": "io.write_file"}, [["_CONSTANT_VALUE", -1, str(marker), {"contents": "x"}]])


def python_function(_: Path) -> dict[str, Any]:
    return layer("TFOpLambda", {"function": "py_function"}, [["inp", 0, 0, {}]])


EVIL = {
    shell: "a Lambda layer",
    activation: "the function system of the module os",
    download: "the function get_file of the module keras.utils",
    foreign: "Popen of the module subprocess",
    write_file: "the function tf.io.write_file",
    python_function: "the function tf.py_function",
}


def written(folder: Path, config: dict[str, Any], kind: str, version: str) -> Path:
    path = folder / f"model.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.attrs.update({"keras_version": version, "backend": "tensorflow", "model_config": json.dumps(config)})
            file.create_group("model_weights").attrs["layer_names"] = []
        return path
    weights = io.BytesIO()
    h5py.File(weights, "w").close()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("evil", EVIL)
def test_a_file_that_calls_foreign_functions_is_refused_before_keras_2_reads_it(tmp_path: Path, evil: Any, kind: str) -> None:
    marker = tmp_path / "MARKER"
    path = written(tmp_path, model(evil(marker)), kind, "2.15.0")
    with pytest.raises(ValueError, match=r"PERCORE_ALLOW_CODE=yes lets it run") as caught:
        kerasfile.read(path, "it", allow_code=False)
    assert str(caught.value).startswith(f"it calls {EVIL[evil]}")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("evil", [shell, activation, download, foreign, write_file])
def test_keras_3_calls_no_foreign_function(tmp_path: Path, evil: Any, kind: str) -> None:
    marker = tmp_path / "MARKER"
    path = written(tmp_path, model(evil(marker)), kind, "3.15.0")
    with pytest.raises((ValueError, TypeError, LoadError)):
        kerasfile.read(path, "it", allow_code=False)
    assert not marker.exists()


def test_the_compile_settings_of_a_model_are_not_read() -> None:
    loss = {"class_name": "__lambda__", "config": {"value": "code"}}
    of = kerasfile.KerasFile("3.15.0", {**model(), "compile_config": {"loss": loss}})
    assert not of.holds_code()
    assert kerasfile.KerasFile("3.15.0", {**model(), "build_config": {"loss": loss}}).holds_code()
