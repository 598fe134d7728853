import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from percore.errors import BadInput, LoadError
from percore.handlers import custom
from percore.model_metadata import DEFAULT_SIGNATURE, Signature, TensorSpec

HERE = __name__
SIGNATURE = Signature((TensorSpec("x", "float32", (None,)),), (TensorSpec("y", "float32", (None,)),))


class Answers:
    """Answers with the value that the test sets."""

    answer: Any = None

    def load(self) -> None:
        self.loaded = True

    def predict(self, inputs: Any) -> Any:
        return self.answer if self.answer is not None else inputs


class Declared(Answers):
    signature = SIGNATURE


class DeclaredInLoad(Answers):
    def load(self) -> None:
        self.signature = SIGNATURE


class DeclaredWrongly(Answers):
    signature = "x -> y"


class Constructor(Answers):
    def __init__(self) -> None:
        raise OSError("no licence")


class Load(Answers):
    def load(self) -> None:
        raise FileNotFoundError("no such weights\nand a second line")


class NoPredict:
    def load(self) -> None: ...


not_a_class = Answers()


def answering(answer: Any) -> dict[str, Any]:
    model = custom.load(f"{HERE}:Answers", "mine")
    Answers.answer = answer
    try:
        return dict(model.predict(DEFAULT_SIGNATURE, {}))
    finally:
        Answers.answer = None


def test_a_handler_is_version_one_of_its_name_and_takes_any_input_unless_it_declares_some() -> None:
    model = custom.load(f"{HERE}:Answers", "mine", ("stable",))
    assert (model.info.name, model.info.version, model.info.platform) == ("mine", 1, "percore_handler")
    assert (model.info.signatures, model.info.labels) == ({}, ("stable",))
    assert model.predict(DEFAULT_SIGNATURE, {"x": np.ones(2)})["x"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["Declared", "DeclaredInLoad"])
def test_a_signature_may_be_set_by_the_class_or_by_load(name: str) -> None:
    assert custom.load(f"{HERE}:{name}", "mine").info.signatures == {DEFAULT_SIGNATURE: SIGNATURE}


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere:Handler", "there is no module 'nowhere' in "),
        ("percore.nowhere:Handler", "there is no module 'percore.nowhere' in "),
        (f"{HERE}:Missing", f"module {HERE!r} has no class 'Missing'"),
        (f"{HERE}:not_a_class", f"module {HERE!r} has no class 'not_a_class'"),
        (f"{HERE}:NoPredict", "class 'NoPredict' has no method 'predict'"),
        (f"{HERE}:Constructor", "its constructor raised OSError: no licence"),
        (f"{HERE}:Load", "load() raised FileNotFoundError: no such weights"),
        (f"{HERE}:DeclaredWrongly", "signature must be a percore.model_metadata.Signature; it is 'x -> y'"),
    ],
)
def test_a_handler_that_cannot_be_loaded_stops_the_start_with_one_sentence(target: str, sentence: str) -> None:
    with pytest.raises(LoadError) as error:
        custom.load(target, "mine")
    assert str(error.value).startswith(f"handler {target}: {sentence}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import not_installed_anywhere", "module 'user_module' imports 'not_installed_anywhere', which is not installed"),
        ("1 / 0", "importing module 'user_module' raised ZeroDivisionError: division by zero"),
        ("def broken(", "importing module 'user_module' raised SyntaxError: '(' was never closed"),
    ],
)
def test_a_module_in_the_current_folder_is_found_and_its_error_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    (tmp_path / "user_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(LoadError, match=r"handler user_module:Handler: ") as error:
        custom.load("user_module:Handler", "mine")
    assert sentence in str(error.value)


def test_answers_that_are_no_arrays_are_converted_and_strings_become_bytes() -> None:
    answer = answering({"list": [1.5], "number": 2, "text": "é", "texts": ["a", b"b\0"], "swapped": np.ones(2, ">f4")})
    assert (answer["list"].dtype, answer["number"].shape) == (np.float64, ())
    assert (answer["text"].item(), answer["texts"].tolist()) == ("é".encode(), [b"a", b"b\0"])
    assert answer["swapped"].dtype.isnative
    assert answering({"half": np.ones(1, ml_dtypes.bfloat16)})["half"].dtype == ml_dtypes.bfloat16


def test_an_array_is_answered_without_a_copy() -> None:
    array = np.ones(3)
    assert answering({"x": array})["x"] is array


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([1, 2], "predict must return a mapping of names to arrays; it returned list"),
        ({1: 2}, "predict must name its outputs by str; it used 1"),
        ({"x": [1, [2]]}, "predict returned 'x' as list, which numpy cannot convert"),
        ({"x": None}, "predict returned 'x' as strings, but one element is a NoneType"),
        ({"x": 1j}, "predict returned 'x' with dtype complex128"),
    ],
)
def test_an_answer_that_cannot_be_sent_is_a_type_error_that_names_its_kind(answer: Any, sentence: str) -> None:
    with pytest.raises(TypeError) as error:
        answering(answer)
    assert str(error.value).startswith(sentence)


def test_a_handler_takes_no_examples() -> None:
    with pytest.raises(BadInput, match="model 'mine' is a handler"):
        custom.load(f"{HERE}:Answers", "mine").encode_examples([{}])


def test_a_handler_is_loaded_without_tensorflow() -> None:
    code = (
        "import sys\nfrom percore import model_store, settings\n"
        "model_store.load_models(settings.load({'PERCORE_HANDLER': 'percore.handlers.faults:Faulty'}), 1)\n"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
