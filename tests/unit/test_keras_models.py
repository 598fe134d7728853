"""Every kind of Keras model answers as Keras does, in another process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from percore.errors import LoadError
from percore.handlers import tensorflow
from percore.model_metadata import ModelInfo

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "tests/keras_models.py"
KINDS = [
    each.name
    for each in ast.parse(SOURCE.read_text()).body
    if isinstance(each, ast.FunctionDef) and ast.unparse(each.returns or each) == "Kind"
]


def load(folder: Path) -> tensorflow.TensorFlowModel:
    return tensorflow.load(ModelInfo("mine", 1, "keras", {}, ()), folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run([sys.executable, "-m", "tests.keras_models", str(folder)], cwd=ROOT, env=os.environ, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def registered() -> None:
    import tests.keras_models  # noqa: F401, PLC0415 - as PERCORE_IMPORT does


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_keras_model_answers_as_keras_does(written: Path, kind: str) -> None:
    model = load(written / kind)
    with np.load(written / kind / "inputs.npz", allow_pickle=True) as given, np.load(written / kind / "outputs.npz") as wanted:
        names = [spec.name for spec in model.info.signatures["serving_default"].inputs]
        inputs = {name if name in names else names[index]: array for index, (name, array) in enumerate(given.items())}
        answers = model.predict("serving_default", inputs)
        # If outputs are in a list, Keras gives them no names, and the names of the layers have another order.
        if wanted.keys() != answers.keys():
            answers = dict(zip(wanted.keys(), sorted(answers.values(), key=lambda each: each.shape), strict=True))
        for name, array in wanted.items():
            np.testing.assert_allclose(answers[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("registered")
def test_inputs_and_outputs_have_the_names_that_an_author_gave(written: Path) -> None:
    def names(kind: str) -> tuple[list[str], list[str]]:
        signature = load(written / kind).info.signatures["serving_default"]
        return [each.name for each in signature.inputs], [each.name for each in signature.outputs]

    assert names("dictionary_of_inputs_and_outputs") == (["alpha", "zeta"], ["alpha", "total"])
    assert names("list_of_inputs_and_outputs")[1] == ["large", "small"]
    assert names("subclassed") == (["features"], ["output_0"])
    assert names("subclassed_with_two_parameters") == (["left", "right"], ["output_0"])


CUSTOM = """
import sys, keras, numpy as np
@keras.saving.register_keras_serializable("elsewhere")
class Elsewhere(keras.Model):
    def __init__(self, **more):
        super().__init__(**more)
        self.dense = keras.layers.Dense(2)
    def call(self, inputs):
        return self.dense(inputs)
    def get_build_config(self):
        return {"input_shape": (None, 4)}
    def build_from_config(self, config):
        pass
model = Elsewhere()
model(np.zeros((1, 4), np.float32))
"""
SAVE = CUSTOM + "model.save(sys.argv[1])"


def test_a_custom_class_that_is_not_registered_is_named_with_advice(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "model.keras")], check=True, capture_output=True, timeout=60)
    with pytest.raises(
        LoadError, match=r"it uses 'Elsewhere', which no module has registered: .* name its module in PERCORE_IMPORT"
    ):
        load(tmp_path)


def test_a_model_that_would_lose_its_weights_is_refused(tmp_path: Path) -> None:
    """Keras loads it, and makes new layers with random weights at its first call."""
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "model.keras")], check=True, capture_output=True, timeout=60)
    exec(CUSTOM, {"__name__": "elsewhere"})
    with pytest.raises(
        LoadError, match="calling it created its layers again, so its weights are lost: give it `get_build_config`"
    ):
        load(tmp_path)


def test_a_model_that_was_never_built_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.warns(UserWarning, match="not yet been built"):
        model.save(tmp_path / "model.keras")
    with pytest.raises(LoadError, match="it was never built, so its file tells no shape of its input"):
        load(tmp_path)
