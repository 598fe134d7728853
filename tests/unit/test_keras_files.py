"""Keras files of any age: read by Keras 3, or by Keras 2 if Keras 3 cannot read them or would compute something else."""

from __future__ import annotations

import logging
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from percore import settings
from percore.errors import LoadError
from percore.handlers import files, tensorflow
from percore.model_metadata import ModelInfo
from percore.model_store import load_models

from tests.models import write_graphs

# Keras causes this warning when it writes a model, because it converts variables to numpy in the old way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
READ_BY_KERAS_2 = {
    "fitted_h5": None,
    "fitted_hdf5": None,
    "convolution_h5": None,
    "operators_h5": "Keras 3 does not know 'TFOpLambda'",
    "operators_keras": "Keras 3 does not know 'Functional'",
    "hard_sigmoid_h5": "Keras 2 wrote it, and Keras 3 computes hard_sigmoid by another formula",
    "subclassed_keras": "Keras 3 does not know 'Doubled'",
    "recurrent_h5": "Keras 3 cannot read it: Unrecognized keyword arguments passed to GRU: {'time_major': False}",
}
"""By kind of model, the reason why Keras 2 reads it; None if Keras 3 reads it."""
ROWS = np.ones((2, 1), np.float32)


def load(folder: Path, **options: Any) -> tensorflow.TensorFlowModel:
    return tensorflow.load(ModelInfo("mine", 1, files.platform(folder) or "", {}, ()), folder, **options)


@pytest.fixture
def without_keras_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf_keras", None)


@pytest.mark.parametrize("kind", READ_BY_KERAS_2)
def test_a_model_of_keras_2_answers_as_keras_2_does(legacy: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    if kind == "subclassed_keras":
        import tests.legacy_models  # noqa: F401, PLC0415 - as PERCORE_IMPORT does
    with caplog.at_level(logging.INFO, "percore"):
        model = load(legacy / kind)
    why = [text.split(" is read by Keras 2, because: ")[1] for text in caplog.messages if "is read by Keras 2" in text]
    assert why == [each for each in [READ_BY_KERAS_2[kind]] if each]
    with np.load(legacy / kind / "inputs.npz") as inputs, np.load(legacy / kind / "outputs.npz") as wanted:
        answer = model.predict("serving_default", dict(inputs))
        assert list(answer) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(answer[name], array, rtol=1e-5, atol=1e-6)


def test_every_kind_that_keras_2_wrote_is_tested(legacy: Path) -> None:
    assert {each.name for each in legacy.iterdir()} == {*READ_BY_KERAS_2, "code_h5", "fitted_savedmodel"}


@pytest.mark.usefixtures("without_keras_2")
@pytest.mark.parametrize("kind", ["operators_h5", "hard_sigmoid_h5"])
def test_if_keras_2_is_needed_and_missing_the_sentence_has_the_reason_and_the_package(legacy: Path, kind: str) -> None:
    with pytest.raises(LoadError) as error:
        load(legacy / kind)
    assert str(error.value) == (
        f"model 'mine' version 1 in {legacy / kind} cannot be loaded: {READ_BY_KERAS_2[kind]}; "
        "Keras 2 may read it, and is not installed: install percore[legacy]"
    )


def test_a_keras_file_that_is_hdf5_as_keras_before_2_12_wrote_it_is_read(legacy: Path, tmp_path: Path) -> None:
    shutil.copy(legacy / "fitted_h5" / "model.h5", tmp_path / "model.keras")
    with np.load(legacy / "fitted_h5" / "inputs.npz") as inputs, np.load(legacy / "fitted_h5" / "outputs.npz") as wanted:
        answer = load(tmp_path).predict("serving_default", dict(inputs))
        np.testing.assert_allclose(answer["score"], wanted["score"], rtol=1e-5)


def test_an_hdf5_file_of_keras_3_is_read_by_keras_3(tmp_path: Path) -> None:
    inputs = keras.Input((2, 1), name="x")
    model = keras.Model(inputs, keras.layers.LSTM(2, recurrent_activation="hard_sigmoid", name="y")(inputs))
    model.save(tmp_path / "mine.hdf5")
    answer = load(tmp_path).predict("serving_default", {"x": ROWS[None]})["y"]
    np.testing.assert_allclose(answer, np.asarray(model(ROWS[None])), rtol=1e-6)


def doubling() -> keras.Model:
    inputs = keras.Input((1,), name="x")
    return keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2, output_shape=(1,), name="y")(inputs))


REFUSED = (
    r"cannot be loaded: it has a Lambda layer, whose Python function is in the file\. PERCORE_ALLOW_CODE=yes lets it run: "
    r"set it only if you trust the file$"
)


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_file_that_holds_code_is_refused_unless_code_is_allowed(tmp_path: Path, file: str) -> None:
    doubling().save(tmp_path / file)
    with pytest.raises(LoadError, match=REFUSED):
        load(tmp_path)
    assert load(tmp_path, allow_code=True).predict("serving_default", {"x": ROWS})["y"].tolist() == [[2.0], [2.0]]


def test_the_settings_reach_the_models_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "code" / "1").mkdir(parents=True)
    doubling().save(tmp_path / "code" / "1" / "model.keras")
    environ = {"PERCORE_MODEL_REPOSITORY": str(tmp_path), "PERCORE_ALLOW_CODE": "yes"}
    [model] = load_models(settings.load(environ), threads=1)
    assert model.predict("serving_default", {"x": ROWS})["y"].tolist() == [[2.0], [2.0]]

    write_graphs(tmp_path / "tags" / "1", ["serve"], ["other"])
    [_, model] = load_models(settings.load({**environ, "PERCORE_MODEL_TAGS": "other"}), threads=1)
    assert model.predict("serving_default", {"x": np.array(0, np.float32)})["y"] == 1


def test_code_is_found_in_hdf5_that_ends_with_an_archive_without_code(legacy: Path, tmp_path: Path) -> None:
    shutil.copy(legacy / "code_h5" / "model.h5", tmp_path / "model.h5")
    with zipfile.ZipFile(tmp_path / "model.h5", "a") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
    with pytest.raises(LoadError, match=REFUSED):
        load(tmp_path)


def test_a_file_of_keras_2_that_holds_code_is_refused_unless_code_is_allowed(legacy: Path) -> None:
    """Keras 2 itself asks for no permission when it reads HDF5."""
    with pytest.raises(LoadError, match=REFUSED):
        load(legacy / "code_h5")
    with np.load(legacy / "code_h5" / "inputs.npz") as inputs, np.load(legacy / "code_h5" / "outputs.npz") as wanted:
        answer = load(legacy / "code_h5", allow_code=True).predict("serving_default", dict(inputs))
        np.testing.assert_allclose(answer["triple"], wanted["triple"])


def test_weights_without_a_model_are_refused_with_advice(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save_weights(tmp_path / "mine.weights.h5")
    with pytest.raises(LoadError, match=r"mine\.weights\.h5 has weights without a model: write it by `model\.save`"):
        load(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"no model")
    with pytest.raises(LoadError, match=r"model\.h5 is no Keras file: its content is neither a Keras archive nor HDF5"):
        load(tmp_path)


def test_a_file_with_a_usual_name_is_taken_and_any_other_must_be_the_only_one(tmp_path: Path) -> None:
    def served(*names: str) -> str:
        for name in names:
            (tmp_path / name).touch()
        found = files.keras_file(tmp_path)
        return found.name if found else ""

    assert served() == ""
    assert served("notes.txt", "2018.hdf5") == "2018.hdf5"
    with pytest.raises(
        LoadError, match=r"several Keras files, 2018\.hdf5, 2021\.h5: rename the one to serve to model\.keras or"
    ):
        served("2021.h5")
    assert served("model.hdf5") == "model.hdf5"
    assert served("model.h5") == "model.h5"
    assert served("model.keras") == "model.keras"
