"""A SavedModel is loaded by its object graph, or else as TensorFlow Serving loads it, and answers the same both ways."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from percore.errors import BadInput, LoadError
from percore.handlers import runners, savedmodel, tensorflow
from percore.model_metadata import CLASSIFY, PREDICT, REGRESS, ModelInfo, TensorSpec
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model.loader_impl import parse_saved_model

from demo import models as demo
from tests import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
v1 = tf.compat.v1
OBJECTS, GRAPH = savedmodel.WAYS
X = np.array([[1, 1], [0, 2]], np.float32)
WORDS = np.array([b"red", b"blue", b"no such word"], object)
NUMBER = tf.TensorSpec([], tf.float32, "x")


# --- models ------------------------------------------------------------------------------------------------------------------


def write_vocabulary_tf1(folder: Path) -> None:
    """Write a table whose words are in an asset, and a variable whose value is not saved. An initializer sets both."""
    words = _words(folder)
    with tf.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(tf.string, [None], name="text")
        table = tf.lookup.StaticHashTable(_initializer(words), -1)
        with v1.variable_scope("local", use_resource=True):
            bonus = v1.get_local_variable("bonus", initializer=np.int64(100))
        saved = v1.get_variable("unit", initializer=np.int64(1), use_resource=False)
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.SERVING],
            {
                "serving_default": v1.saved_model.predict_signature_def(
                    {"text": text}, {"ids": table.lookup(text) * saved + bonus}
                )
            },
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.group(v1.tables_initializer(), v1.local_variables_initializer()),
        )
        builder.save()
    words.unlink()


def write_vocabulary_tf2(folder: Path) -> None:
    words, module = _words(folder), tf.Module()
    module.table = tf.lookup.StaticHashTable(_initializer(words), -1)
    module.bonus = tf.Variable(100, dtype=tf.int64)
    text = tf.TensorSpec([None], tf.string, "text")
    ids = tf.function(lambda text: {"ids": module.table.lookup(text) + module.bonus}, input_signature=[text])
    tf.saved_model.save(module, str(folder), signatures=ids)
    words.unlink()


def _words(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = folder.parent / "words.txt"
    words.write_text("red\ngreen\nblue\n")
    return words


def _initializer(words: Path) -> Any:
    key, line = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    return tf.lookup.TextFileInitializer(str(words), tf.string, key, tf.int64, line)


def network() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(1)])


def write_exported(folder: Path) -> None:
    network().export(folder, verbose=False)


def write_keras_variables(folder: Path) -> None:
    """Write a model of Keras 3 without `export`: only its object graph finds the variables."""
    model, module = network(), tf.Module()
    module.model = model
    serve = tf.function(lambda x: {"y": model(x)}, input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    tf.saved_model.save(module, str(folder), signatures=serve)


def write_scalars(folder: Path) -> None:
    functions = {
        "text": tf.function(lambda t: {"t": tf.strings.join([t, b"\0"])}, input_signature=[tf.TensorSpec([], tf.string, "t")]),
        "brain": tf.function(lambda b: {"b": b * 2}, input_signature=[tf.TensorSpec(None, tf.bfloat16, "b")]),
    }
    tf.saved_model.save(tf.Module(), str(folder), signatures=functions)


WRITERS: dict[str, Callable[[Path], None]] = {
    "tf1": models.write_tf1,
    "tf2": models.write_tf2,
    "vocabulary_tf1": write_vocabulary_tf1,
    "vocabulary_tf2": write_vocabulary_tf2,
    "exported": write_exported,
    "keras_variables": write_keras_variables,
    "scalars": write_scalars,
}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    for name, write in WRITERS.items():
        write(root / name / "1")
    return root


def spoil_object_graph(folder: Path) -> Path:
    """Give an object of the model a slot, as an optimizer of TensorFlow 2.0 to 2.10 does.

    Then the object graph cannot be loaded.
    """
    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    nodes = model.meta_graphs[0].object_graph_def.nodes
    nodes[0].slot_variables.add(slot_name="m", original_variable_node_id=0, slot_variable_node_id=len(nodes))
    nodes.add(variable={"dtype": tf.float32.as_datatype_enum, "shape": {}, "name": "m"})
    file.write_bytes(model.SerializeToString())
    return folder


def load(folder: Path, **options: Any) -> tensorflow.TensorFlowModel:
    return tensorflow.load(ModelInfo("mine", 1, "tensorflow_savedmodel", {}, ()), folder, **options)


def load_by(way: str, folder: Path) -> dict[str, runners.SignatureRunner]:
    return savedmodel.WAYS[way](folder, parse_saved_model(str(folder)).meta_graphs[0])


def ways(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text.split(" is loaded by its ")[1] for text in caplog.messages if " is loaded by its " in text]


# --- the same both ways ------------------------------------------------------------------------------------------------------

INPUTS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "tf1": {
        "serving_default": [{"x": X}, {"x": X[:0]}],
        "dashed": [{"my-input": X}],
    },
    "tf2": {
        "serving_default": [{"x": X}, {"x": np.frombuffer(X.tobytes(), np.float32).reshape(2, 2)}],
        "upper": [{"text": np.array([b"a\0", b"", b"\xff"], object)}, {"text": np.empty(0, object)}],
        "any_rank": [{"x": np.ones(shape, np.int32)} for shape in ((), (0,), (2, 1, 3))],
        "bfloat16": [{"x": np.array([1.5], ml_dtypes.bfloat16)}, {"x": np.array(1.5, ml_dtypes.bfloat16)}],
        "float16": [{"x": np.array(1.5, np.float16)}],
        "dashed": [{"my-input": np.array(4, np.int64)}],
        "many": [{name: np.array(index, np.int32) for index, name in enumerate(reversed(models.MANY))}],
    },
    "vocabulary_tf1": {"serving_default": [{"text": WORDS}]},
    "vocabulary_tf2": {"serving_default": [{"text": WORDS}]},
    "exported": {"serving_default": [{"x": X}]},
    "scalars": {"text": [{"t": np.array(b"a\0", object)}], "brain": [{"b": np.array(1.5, ml_dtypes.bfloat16)}]},
}


@pytest.mark.parametrize("kind", INPUTS)
def test_both_ways_tell_the_same_signatures_and_answer_the_same(written: Path, kind: str) -> None:
    by_objects, by_graph = (load_by(way, written / kind / "1") for way in (OBJECTS, GRAPH))
    assert by_objects.keys() == by_graph.keys()
    for name, runner in by_objects.items():
        assert runner.signature == by_graph[name].signature
    for name, several in INPUTS[kind].items():
        for inputs in several:
            one, other = by_objects[name](inputs), by_graph[name](inputs)
            assert list(one) == list(other)
            for output, array in one.items():
                assert isinstance(other[output], np.ndarray)
                assert (other[output].dtype, other[output].shape) == (array.dtype, array.shape)
                assert other[output].tolist() == array.tolist()


@pytest.mark.parametrize("way", savedmodel.WAYS)
@pytest.mark.parametrize("kind", ["vocabulary_tf1", "vocabulary_tf2"])
def test_words_are_looked_up_in_the_models_own_asset(written: Path, kind: str, way: str) -> None:
    assert load_by(way, written / kind / "1")["serving_default"]({"text": WORDS})["ids"].tolist() == [100, 102, 99]


@pytest.mark.parametrize("way", savedmodel.WAYS)
def test_an_exported_keras_model_answers_as_keras_does(written: Path, way: str) -> None:
    (answer,) = load_by(way, written / "exported" / "1")["serving_default"]({"x": X}).values()
    np.testing.assert_allclose(answer, np.asarray(network()(X)), rtol=1e-6)


def test_strings_keep_zero_bytes_at_their_end(written: Path) -> None:
    answer = load_by(GRAPH, written / "scalars" / "1")["text"]({"t": np.array(b"a\0", object)})["t"]
    assert (answer.shape, answer.item()) == ((), b"a\0\0")


def test_signatures_come_from_their_definition_with_methods_and_odd_names(written: Path) -> None:
    found = load_by(GRAPH, written / "tf1" / "1")
    methods = {name: each.signature.method for name, each in found.items() if name != "complex"}
    assert methods == {"serving_default": PREDICT, "dashed": PREDICT, "classify": CLASSIFY, "regress": REGRESS}
    assert found["dashed"].signature.inputs == (TensorSpec("my-input", "float32", (None, 2)),)
    assert load_by(GRAPH, written / "tf2" / "1")["any_rank"].signature.inputs == (TensorSpec("x", "int32", None),)


def test_signatures_that_tensorflow_runs_at_a_load_are_not_served(written: Path) -> None:
    names = parse_saved_model(str(written / "tf2" / "1")).meta_graphs[0].signature_def
    assert "__saved_model_init_op" in names
    assert set(load_by(GRAPH, written / "tf2" / "1")) == {*models.TF2_SIGNATURES}


# --- which way is taken ------------------------------------------------------------------------------------------------------


def test_the_object_graph_is_taken_if_it_loads(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "percore"):
        load(written / "keras_variables" / "1")
    assert ways(caplog) == ["object graph"]


def test_otherwise_the_graph_with_signatures_is_taken_and_the_log_says_why(
    written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = spoil_object_graph(shutil.copytree(written / "tf2" / "1", tmp_path / "1"))
    with caplog.at_level(logging.INFO, "percore"):
        model = load(folder)
    [way] = ways(caplog)
    assert way.startswith("graph with signatures, because its object graph fails: ")
    assert way.endswith("object has no attribute 'add_slot'")
    assert set(model.info.signatures) == {*models.TF2_SIGNATURES}
    assert model.predict("serving_default", {"x": X})["y"].tolist() == [[6.0], [7.0]]
    with pytest.raises(BadInput) as error:
        model.predict("product", {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)})
    assert str(error.value).startswith("the model refused the input: Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]")
    assert not any(part in str(error.value) for part in ("\n", "node", "Op:", "inference"))
    assert tf.executing_eagerly()


def test_if_both_ways_fail_one_line_has_both_reasons(written: Path, tmp_path: Path) -> None:
    folder = spoil_object_graph(shutil.copytree(written / "keras_variables" / "1", tmp_path / "1"))
    with pytest.raises(LoadError) as error:
        load(folder)
    pattern = (
        r"model 'mine' version 1 in \S+ cannot be loaded: its object graph fails: .* has no attribute 'add_slot'; "
        r"its graph with signatures fails: it restores no value for the variables \S+, \S+, \S+ and 1 more"
    )
    assert re.fullmatch(pattern, str(error.value)), str(error.value)


def write_without_a_value(folder: Path, *, served: bool) -> None:
    """Write a variable whose value is not saved, read by `serving_default` or by a signature that cannot be sent."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [], name="x")
        kept = v1.get_variable("kept", initializer=2.0, use_resource=True)
        lost = v1.get_variable("lost", initializer=3.0, use_resource=False)
        session.run(v1.global_variables_initializer())
        define = v1.saved_model.predict_signature_def
        signatures = {
            "serving_default": define({"x": x}, {"y": x * kept + (lost if served else 0.0)}),
            "complex": define({"x": x}, {"z": tf.complex(x, lost)}),
        }
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures, saver=v1.train.Saver([kept]))
        builder.save()


@pytest.mark.parametrize("way", savedmodel.WAYS)
def test_a_variable_without_a_value_is_found_before_the_model_counts_as_loaded(tmp_path: Path, way: str) -> None:
    write_without_a_value(tmp_path / "1", served=True)
    with pytest.raises(ValueError, match=r"it restores no value for the variables lost$"):
        load_by(way, tmp_path / "1")


@pytest.mark.parametrize("way", savedmodel.WAYS)
def test_a_variable_without_a_value_does_no_harm_if_no_served_signature_reads_it(tmp_path: Path, way: str) -> None:
    write_without_a_value(tmp_path / "1", served=False)
    answer = load_by(way, tmp_path / "1")["serving_default"]({"x": np.array(4, np.float32)})
    assert answer["y"] == 8


WITHOUT_KERAS_2 = """
import json, logging, sys
from pathlib import Path
sys.modules["tf_keras"] = None  # as if it were not installed
import numpy as np
from percore.model_metadata import ModelInfo
from percore.handlers import tensorflow
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("percore").addHandler(handler)
logging.getLogger("percore").setLevel("INFO")
folder = Path(sys.argv[1])
tensorflow.configure(1)
model = tensorflow.load(ModelInfo("mine", 1, "tensorflow_savedmodel", {}, ()), folder)
answer = model.predict("serving_default", dict(np.load(folder / "inputs.npz")))
tasks = [(each / "comm").read_text().strip() for each in Path("/proc/self/task").iterdir()]
threads = tasks.count("tf_Compute")
print(json.dumps({"lines": lines, "threads": threads, "score": answer["score"].tolist()}))
"""


def test_a_model_fitted_with_an_old_optimizer_loads_where_keras_2_is_not_installed(legacy: Path) -> None:
    folder = legacy / "fitted_savedmodel"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS_2, str(folder)], check=True, capture_output=True, text=True, timeout=300
    )
    answer = json.loads(done.stdout)
    assert answer["lines"][0].endswith("'_UserObject' object has no attribute 'add_slot'")
    np.testing.assert_allclose(answer["score"], np.load(folder / "outputs.npz")["score"], rtol=1e-5)
    assert answer["threads"] in (1, 2), "each of the two ways has one thread that computes, as configured"


def test_a_model_fitted_with_an_old_optimizer_loads_where_keras_2_is_installed(legacy: Path) -> None:
    folder = legacy / "fitted_savedmodel"
    answer = load(folder).predict("serving_default", dict(np.load(folder / "inputs.npz")))
    np.testing.assert_allclose(answer["score"], np.load(folder / "outputs.npz")["score"], rtol=1e-5)


def test_the_demo_models_are_written_for_both_ways(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((demo.PIXELS,)), keras.layers.Dense(10, "softmax")])
    demo.save(demo.digits(network), tmp_path / "1", network)
    by_objects, by_graph = (load_by(way, tmp_path / "1")["serving_default"] for way in savedmodel.WAYS)
    assert by_objects.signature == by_graph.signature
    pixels = {"pixels": np.arange(2 * demo.PIXELS, dtype=np.float32).reshape(2, -1)}
    one, other = by_objects(pixels), by_graph(pixels)
    assert {name: array.tolist() for name, array in one.items()} == {name: array.tolist() for name, array in other.items()}


# --- what a session must share with the other way ----------------------------------------------------------------------------


def test_a_signature_that_assigns_is_not_warmed_up_and_changes_its_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = tf.Module()
    module.sum = tf.Variable(0.0)
    add = tf.function(lambda x: {"y": module.sum.assign_add(x)}, input_signature=[NUMBER])
    python = tf.function(lambda x: {"y": tf.numpy_function(np.sin, [x], tf.float32)}, input_signature=[NUMBER])
    tf.saved_model.save(module, str(tmp_path), signatures={"add": add, "python": python})
    model = load(spoil_object_graph(tmp_path))
    assert [text for text in caplog.messages if "signature 'add' may change" in text and "(AssignAddVariableOp)" in text]
    assert [text for text in caplog.messages if "'python' is left out: it calls a Python function" in text]
    assert [float(model.predict("add", {"x": np.array(2, np.float32)})["y"]) for _ in range(2)] == [2, 4]


def test_only_the_operations_of_the_signature_count(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [], name="x")
        sum_ = v1.get_variable("sum", initializer=0.0, use_resource=True)
        sparse = v1.sparse_placeholder(tf.float32, [None, 2], name="sparse")
        session.run(v1.global_variables_initializer())
        define = v1.saved_model.predict_signature_def
        # The input is in the middle of the graph: the operations before it are not computed.
        middle = tf.identity(v1.assign_add(sum_, x), name="middle")
        signatures = {
            "serving_default": define({"x": x}, {"y": x + 1}),
            "add": define({"x": x}, {"y": tf.identity(v1.assign_add(sum_, x))}),
            "middle": define({"x": middle}, {"y": middle * 2}),
            "sparse": define({"x": sparse}, {"y": tf.sparse.reduce_sum(sparse)}),
        }
        builder = v1.saved_model.Builder(str(tmp_path / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    found = load_by(GRAPH, tmp_path / "1")
    assert {name for name, each in found.items() if "AssignAddVariableOp" in each.operations} == {"add"}
    assert found["middle"]({"x": np.array(3, np.float32)})["y"] == 6
    assert found["sparse"].why_not_served() == "no protocol can send the type of x (coo_sparse)"


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_graph_that_this_machine_cannot_run_is_not_the_callers_fault(tmp_path: Path, spoilt: bool) -> None:
    number = [tf.TensorSpec([], tf.int32, "x")]

    def only_on_a_gpu(x: Any) -> dict[str, Any]:
        return {"y": tf.raw_ops.CudnnRNNParamsSize(num_layers=x, num_units=x, input_size=x, T=tf.float32, S=tf.int32)}

    def only_in_this_order(x: Any) -> dict[str, Any]:
        pixels = tf.ones([1, 4, 2, 2]) * tf.cast(x, tf.float32)
        return {"y": tf.nn.depth_to_space(pixels, 2, data_format="NCHW")}

    def damaged(x: Any) -> dict[str, Any]:
        return {"y": tf.io.decode_compressed(tf.strings.join(["junk", tf.strings.as_string(x)]), "ZLIB")}

    functions = {
        each.__name__: tf.function(each, input_signature=number) for each in (only_on_a_gpu, only_in_this_order, damaged)
    }
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=functions)
    model = load(spoil_object_graph(tmp_path) if spoilt else tmp_path)
    for name, error in zip(functions, (tf.errors.InvalidArgumentError,) * 2 + (tf.errors.DataLossError,), strict=True):
        with pytest.raises(error):
            model.predict(name, {"x": np.array(1, np.int32)})


# --- tags --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "wanted", "served"),
    [
        ([["custom"]], "serve", 0),
        ([["serve", "tpu"]], "serve", 0),
        ([["train"], ["serve"]], "serve", 1),
        ([["serve", "tpu"], ["serve"]], "serve", 1),
        ([["train"], ["serve", "tpu"]], "serve", 1),
        ([["serve"], ["custom", "tpu"]], "custom,tpu", 1),
    ],
)
def test_the_graph_with_the_tags_of_the_setting_is_served_or_else_the_only_graph(
    tmp_path: Path, sets: list[list[str]], wanted: str, served: int
) -> None:
    model = load(models.write_graphs(tmp_path / "1", *sets), tags=wanted.split(","))
    assert model.predict("serving_default", {"x": np.array(0, np.float32)})["y"] == served


@pytest.mark.parametrize("sets", [[["a"], ["b", "c"]], [["serve", "gpu"], ["serve", "tpu"]]])
def test_if_no_single_graph_has_the_tags_the_error_lists_all_tags_and_the_setting(
    tmp_path: Path, sets: list[list[str]]
) -> None:
    there = "; ".join(",".join(each) for each in sets)
    with pytest.raises(LoadError, match=f"it has 2 graphs, with the tags {there}: PERCORE_MODEL_TAGS="):
        load(models.write_graphs(tmp_path / "1", *sets))


@pytest.mark.parametrize("way", savedmodel.WAYS)
def test_both_ways_load_a_graph_whose_tags_are_not_serve(tmp_path: Path, way: str) -> None:
    assert (
        load_by(way, models.write_graphs(tmp_path / "1", ["custom", "tpu"]))["serving_default"]({"x": np.array(1, np.float32)})[
            "y"
        ]
        == 1
    )
