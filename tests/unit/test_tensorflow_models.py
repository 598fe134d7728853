import json
import shutil
import threading
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format  # type: ignore[import-untyped]
from percore.errors import BadInput, LoadError
from percore.handlers import runners, tensorflow, warmup
from percore.handlers.tf_example import feature
from percore.model_metadata import CLASSIFY, PREDICT, REGRESS, ModelInfo, Signature, TensorSpec
from tensorflow.core.protobuf import saved_model_pb2

from tests import models

# Keras causes this warning when it writes a model, because it converts variables to numpy in the old way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

PLATFORMS = {"tf1": "tensorflow_savedmodel", "tf2": "tensorflow_savedmodel", "keras": "keras"}
X = np.array([[1, 1], [0, 2]], np.float32)
Y = [[6.0], [7.0]]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, write in models.WRITERS.items():
        write(root / name / "1")
    return root


def load(folder: Path, platform: str = "tensorflow_savedmodel") -> tensorflow.TensorFlowModel:
    return tensorflow.load(ModelInfo("mine", 1, platform, {}, ("stable",)), folder)


@pytest.fixture(scope="session")
def loaded(written: Path) -> dict[str, tensorflow.TensorFlowModel]:
    return {name: load(written / name / "1", platform) for name, platform in PLATFORMS.items()}


@pytest.fixture
def tf2(loaded: dict[str, tensorflow.TensorFlowModel]) -> tensorflow.TensorFlowModel:
    return loaded["tf2"]


@pytest.fixture
def tf2_copy(written: Path, tmp_path: Path) -> Path:
    """A model that the test may spoil."""
    return shutil.copytree(written / "tf2" / "1", tmp_path / "1")


def save(folder: Path, **signatures: Any) -> Path:
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
    return folder


# --- the three kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLATFORMS)
def test_each_kind_of_model_computes(loaded: dict[str, tensorflow.TensorFlowModel], kind: str) -> None:
    assert loaded[kind].predict("serving_default", {"x": X})["y"].tolist() == Y


def test_models_of_all_kinds_answer_in_turns_in_one_thread_without_the_graph_mode_error(
    written: Path,
) -> None:
    def load_and_ask() -> None:
        try:
            loaded = [load(written / name / "1", platform) for name, platform in PLATFORMS.items()]
            for order in (loaded, loaded[::-1]):
                turns = (*order * 20, *(each for each in order for _ in range(20)))
                answers.extend(model.predict("serving_default", {"x": X})["y"].tolist() == Y for model in turns)
        except Exception as error:  # noqa: BLE001 (a thread's exception would not fail the test)
            answers.append(repr(error))

    answers: list[Any] = []
    load_and_ask()
    other = threading.Thread(target=load_and_ask)
    other.start()
    other.join()
    assert len(answers) == 2 * 2 * 120
    assert set(answers) == {True}


def test_a_model_written_by_this_process_in_graph_mode_does_not_change_how_others_run(
    loaded: dict[str, tensorflow.TensorFlowModel], tmp_path: Path
) -> None:
    models.write_tf1(tmp_path / "1")
    for model in loaded.values():
        assert model.predict("serving_default", {"x": X})["y"].tolist() == Y


# --- signatures --------------------------------------------------------------------------------------------------------------


def test_signatures_are_described_as_the_model_declares_them(loaded: dict[str, tensorflow.TensorFlowModel]) -> None:
    line = Signature((TensorSpec("x", "float32", (None, 2)),), (TensorSpec("y", "float32", (None, 1)),), PREDICT)
    for model in loaded.values():
        assert model.info.signatures["serving_default"] == line
        assert model.info.labels == ("stable",)
        assert model.info.load_seconds > 0
    signatures = loaded["tf2"].info.signatures
    assert signatures["any_rank"].inputs == (TensorSpec("x", "int32", None),)
    assert signatures["upper"].inputs == (TensorSpec("text", "bytes", (None,)),)
    assert signatures["bfloat16"].outputs == (TensorSpec("y", "bfloat16", None),)
    assert [spec.name for spec in signatures["product"].inputs] == ["a", "b"]


def test_methods_of_signatures_survive_the_load(loaded: dict[str, tensorflow.TensorFlowModel]) -> None:
    methods = {name: signature.method for name, signature in loaded["tf1"].info.signatures.items()}
    assert methods == {"serving_default": PREDICT, "dashed": PREDICT, "classify": CLASSIFY, "regress": REGRESS}


def test_a_signature_of_a_type_that_cannot_be_sent_is_left_out_with_one_warning(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "complex" not in load(written / "tf1" / "1").info.signatures
    (record,) = (record for record in caplog.records if "left out" in record.message)
    assert record.levelname == "WARNING"
    assert "model 'mine' version 1 in" in record.message
    assert "signature 'complex' is left out: no protocol can send the type of z (complex64)" in record.message


@pytest.mark.parametrize("kind", ["tf1", "tf2"])
def test_an_input_whose_name_is_no_identifier_is_called_as_its_author_named_it(
    loaded: dict[str, tensorflow.TensorFlowModel], kind: str
) -> None:
    (spec,) = loaded[kind].info.signatures["dashed"].inputs
    value = X if kind == "tf1" else np.int64(4)
    answer = loaded[kind].predict("dashed", {"my-input": np.asarray(value)})
    assert (spec.name, answer["my-output"].tolist()) == ("my-input", Y if kind == "tf1" else 5)


def test_many_inputs_reach_the_model_each_under_its_own_name(tf2: tensorflow.TensorFlowModel) -> None:
    # TensorFlow has the names of a signature's inputs in two places. Their orders differ, also from process to process.
    inputs = {name: np.array(index, np.int32) for index, name in enumerate(models.MANY)}
    assert tf2.predict("many", dict(reversed(inputs.items())))["y"].tolist() == list(range(8))


def test_a_keras_model_with_several_inputs_and_outputs_names_them(tmp_path: Path) -> None:
    z, a = keras.Input((1,), name="z-2"), keras.Input((1,), name="a")
    model = keras.Model({"z-2": z, "a": a}, {"total": keras.layers.Add()([z, a]), "gap": keras.layers.Subtract()([z, a])})
    model.save(tmp_path / "model.keras")
    answer = load(tmp_path, "keras").predict("serving_default", {"a": X[:1, :1], "z-2": X[1:, 1:]})
    assert {name: array.tolist() for name, array in answer.items()} == {"total": [[3.0]], "gap": [[1.0]]}


def test_of_several_graphs_the_one_for_serving_is_served(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(tmp_path / "1"))
    for index, tags in enumerate((["train"], ["serve"])):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [], name="x")
            signatures = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": x + index})}
            if index:
                builder.add_meta_graph(tags, signatures)
            else:
                builder.add_meta_graph_and_variables(session, tags, signatures)
    builder.save()
    assert load(tmp_path / "1").predict("serving_default", {"x": np.float32(1)})["y"] == 2  # type: ignore[dict-item]


def test_a_saved_model_as_text_is_read(written: Path, tmp_path: Path) -> None:
    for name in ("tf1", "tf2"):
        folder = shutil.copytree(written / name / "1", tmp_path / name)
        model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(model))
        (folder / "saved_model.pb").unlink()
        assert load(folder).predict("serving_default", {"x": X})["y"].tolist() == Y


# --- values ------------------------------------------------------------------------------------------------------------------


def test_strings_are_objects_of_bytes_both_ways_zero_bytes_included(tf2: tensorflow.TensorFlowModel) -> None:
    answer = tf2.predict("upper", {"text": np.array([b"a\0", b"", b"\xff"], object)})["text"]
    assert answer.dtype == object
    assert answer.tolist() == [b"A\0", b"", b"\xff"]
    assert tf2.predict("upper", {"text": np.empty(0, object)})["text"].shape == (0,)


@pytest.mark.parametrize("shape", [(), (0,), (2, 1, 3)])
def test_an_input_of_unknown_rank_takes_any(tf2: tensorflow.TensorFlowModel, shape: tuple[int, ...]) -> None:
    answer = tf2.predict("any_rank", {"x": np.ones(shape, np.int32)})["y"]
    assert answer.dtype == np.int32
    assert answer.tolist() == np.full(shape, 2).tolist()


def test_half_precision_of_both_kinds_goes_through(tf2: tensorflow.TensorFlowModel) -> None:
    brain = tf2.predict("bfloat16", {"x": np.array([1.5], ml_dtypes.bfloat16)})["y"]
    assert brain.dtype == ml_dtypes.bfloat16
    assert brain.tolist() == [3.0]
    assert tf2.predict("bfloat16", {"x": np.array(1.5, ml_dtypes.bfloat16)})["y"].shape == ()
    half = tf2.predict("float16", {"x": np.array(1.5, np.float16)})["y"]
    assert half.dtype == np.float16
    assert (half.shape, half.item()) == ((), 3.0)


def test_inputs_may_be_read_only_and_outputs_are_views_of_tensorflow_s_memory(tf2: tensorflow.TensorFlowModel) -> None:
    x = np.frombuffer(X.tobytes(), np.float32).reshape(2, 2)
    answer = tf2.predict("serving_default", {"x": x})["y"]
    assert answer.tolist() == Y
    assert not answer.flags.owndata


# --- examples ----------------------------------------------------------------------------------------------------------------


def test_examples_are_classified_and_regressed(loaded: dict[str, tensorflow.TensorFlowModel]) -> None:
    model = loaded["tf1"]
    examples = model.encode_examples([{"x": [1, 1.0]}, {"x": [0.0, 2.0]}])
    assert examples.dtype == object
    assert examples.shape == (2,)
    classified = model.predict("classify", {"inputs": examples})
    assert classified["classes"].tolist() == [[b"up", b"down"]] * 2
    assert classified["scores"].tolist() == [[6.0, -6.0], [7.0, -7.0]]
    assert model.predict("regress", {"inputs": examples})["outputs"].tolist() == Y


def test_each_feature_is_written_to_the_list_of_its_kind(tf2: tensorflow.TensorFlowModel) -> None:
    features = {"int": 1, "bool": True, "mixed": [1, 2.5], "bytes": b"a\0", "none": [], "least": -(2**63)}
    message = tf.train.Example.FromString(tf2.encode_examples([features])[0]).features.feature
    assert (list(message["int"].int64_list.value), list(message["bool"].int64_list.value)) == ([1], [1])
    assert (list(message["mixed"].float_list.value), list(message["bytes"].bytes_list.value)) == ([1.0, 2.5], [b"a\0"])
    assert (message["none"].WhichOneof("kind"), list(message["least"].int64_list.value)) == (None, [-(2**63)])


@pytest.mark.parametrize("value", [None, [1, b"a"], [[1]], 2**63, [1.0, 2**63], "text"])
def test_a_feature_of_no_kind_is_refused_by_its_name(tf2: tensorflow.TensorFlowModel, value: Any) -> None:
    with pytest.raises(BadInput, match=r"^examples\[1\]\.x: "):
        tf2.encode_examples([{"x": 1}, {"x": value}])
    with pytest.raises(BadInput, match=r"^here: "):
        feature(value, "here")


# --- errors ------------------------------------------------------------------------------------------------------------------


def test_an_error_deep_in_the_graph_is_one_line_without_a_trace(
    tf2: tensorflow.TensorFlowModel,
) -> None:
    with pytest.raises(BadInput) as error:
        tf2.predict("product", {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
    assert str(error.value).startswith("the model refused the input: Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]")
    assert not any(part in str(error.value) for part in ("\n", "node", "Op:", "inference"))
    with pytest.raises(BadInput, match=r"the model refused the input: .*PNG"):
        tf2.predict("decode", {"image": np.array(b"no image", object)})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("{{function_node __wrapped__X_device_/job:a}} Input is not invertible. [Op:X]", "Input is not invertible."),
        ("2 root error(s) found.\n  (0) INVALID_ARGUMENT: too wide\n\t [[{{node x}}]]\n0 successful operations.", "too wide"),
        ("", "ValueError"),
        ("x" * 1000, "x" * 300 + "..."),
    ],
)
def test_the_reason_of_an_error_is_its_first_meaningful_line(message: str, reason: str) -> None:
    assert runners.reason(ValueError(message)) == reason


def test_a_fault_of_the_model_is_not_reported_as_bad_input(tf2: tensorflow.TensorFlowModel) -> None:
    with pytest.raises(tf.errors.NotFoundError):
        tf2.predict("file", {"name": np.array(b"/nowhere", object)})


# --- loading -----------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_model_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    (tmp_path / "model.keras").write_bytes(b"no model")
    for platform in ("tensorflow_savedmodel", "keras"):
        with pytest.raises(LoadError, match=f"^model 'mine' version 1 in {tmp_path} cannot be loaded: ") as error:
            load(tmp_path, platform)
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is not None


def test_a_keras_file_that_holds_code_stops_the_start(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "model.keras")
    with pytest.raises(LoadError, match=r"cannot be loaded: .*[Ll]ambda"):
        load(tmp_path, "keras")


def test_a_model_without_a_signature_that_can_be_served_stops_the_start(tmp_path: Path) -> None:
    function = tf.function(lambda z: {"z": z}, input_signature=[tf.TensorSpec([], tf.complex64, name="z")])
    with pytest.raises(LoadError, match="has no signature that can be served; it has serving_default"):
        load(save(tmp_path / "one", serving_default=function))
    with pytest.raises(LoadError, match="has no signature that can be served; it has none"):
        load(save(tmp_path / "none"))


def test_the_number_of_threads_cannot_be_changed_after_tensorflow_has_computed() -> None:
    tf.constant(1)
    with pytest.raises(LoadError, match="TensorFlow cannot be set to 7 threads"):
        tensorflow.configure(7)
    tensorflow.configure(1)


# --- warm-up -----------------------------------------------------------------------------------------------------------------


def test_each_predict_signature_is_warmed_up_with_zeros_and_a_failure_only_warns(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "percore.handlers.tensorflow"):
        load(written / "tf2" / "1")
    tried = {record.message.split("'")[3] for record in caplog.records if "with zeros" in record.message}
    assert tried == {*models.TF2_SIGNATURES}
    warned = {record.message.split("'")[3] for record in caplog.records if record.levelname == "WARNING"}
    assert warned == {"decode", "file"}


def test_a_warm_up_file_is_sent_instead_and_its_failure_stops_the_start(
    tf2_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"inputs": {"x": [[1, 2]]}}, {"signature_name": "upper", "inputs": [{"b64": "AAA="}, "text"]}]
    (tf2_copy / "warmup.json").write_text(json.dumps(good))
    load(tf2_copy)
    assert not caplog.records
    spoilt: tuple[Any, ...] = (
        {"signature_name": "product", "inputs": {"a": [[1.0, 2.0]], "b": [[1.0]] * 3}},
        {"signature_name": "missing", "inputs": {}},
        {"inputs": {"y": 1}},
        {"inputs": {"x": "text"}},
        {"instances": []},
        [7],
    )
    for bad in spoilt:
        (tf2_copy / "warmup.json").write_text(json.dumps(bad))
        with pytest.raises(LoadError, match=r"^model 'mine' version 1 in .* fails its warm-up, warmup\.json: "):
            load(tf2_copy)


def test_zeros_have_one_for_an_unknown_size_and_empty_strings() -> None:
    specs = (TensorSpec("a", "float16", (None, 3)), TensorSpec("b", "bytes", ()), TensorSpec("c", "bfloat16", None))
    zeros = warmup.zeros(Signature(specs, ()))
    assert {name: (array.shape, array.ravel()[0]) for name, array in zeros.items()} == {
        "a": ((1, 3), 0),
        "b": ((), b""),
        "c": ((1,), 0),
    }
