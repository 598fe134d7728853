import io
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from percore.errors import BadInput, CallError, HandlerFailed, call_errors
from percore.handlers import Tensors
from percore.model_metadata import ENVIRON_KEY, CallContext
from werkzeug.exceptions import BadRequest

from tests.fakes import FakeModel, client_of, example_model, handler, model, spec

ONE = [spec("x", "float32", None, 2)]
TWO = [spec("a", "float32", None), spec("b", "int64", None)]
TEXT = [spec("t", "bytes", None)]


def post(client: FlaskClient, document: Any, path: str = "/v1/models/m:predict", **extra: Any) -> Any:
    body = document if isinstance(document, bytes | str) else json.dumps(document)
    return client.post(path, data=body, **extra)


def answer(served: FakeModel, document: Any, path: str = "/v1/models/m:predict") -> Any:
    response = post(client_of(served), document, path)
    assert response.status_code == 200, response.data
    assert response.content_type == "application/json"
    return json.loads(response.data)


def refusal(served: FakeModel, document: Any, path: str = "/v1/models/m:predict") -> str:
    response = post(client_of(served), document, path)
    assert response.status_code == 400, response.data
    assert response.json["code"] == "bad-input"
    assert served.calls == []
    message: str = response.json["error"]
    return message


@pytest.mark.parametrize(
    ("inputs", "document", "expected"),
    [
        (ONE, {"instances": [[1, 2], [3, 4]]}, {"predictions": [[1.0, 2.0], [3.0, 4.0]]}),
        (ONE, {"instances": [{"x": [1, 2]}]}, {"predictions": [[1.0, 2.0]]}),
        (ONE, {"inputs": [[1, 2]]}, {"outputs": [[1.0, 2.0]]}),
        (ONE, {"inputs": {"x": [[1, 2]]}}, {"outputs": [[1.0, 2.0]]}),
        (TWO, {"instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}, {"predictions": [{"a": 1.0, "b": 2}, {"a": 3.0, "b": 4}]}),
        (TWO, {"inputs": {"a": [1, 3], "b": [2]}}, {"outputs": {"a": [1.0, 3.0], "b": [2]}}),
        (TEXT, {"instances": ["a", {"b64": "Yg=="}]}, {"predictions": ["a", "b"]}),
        (TEXT, {"instances": [{"b64": "/w=="}]}, {"predictions": [{"b64": "/w=="}]}),
        (TEXT, {"instances": [{"t": {"b64": "Yg=="}}]}, {"predictions": ["b"]}),
        ([spec("t", "bytes")], {"inputs": {"b64": "Yg=="}}, {"outputs": "b"}),
        ([spec("n", "float64")], {"inputs": 5, "unknown": 1}, {"outputs": 5.0}),
        ([spec("b64", "int32", None)], {"inputs": {"b64": [1]}}, {"outputs": [1]}),
    ],
)
def test_both_forms_are_answered_as_tensorflow_serving_does(inputs: Any, document: Any, expected: Any) -> None:
    assert answer(model(inputs), document) == expected


def test_nan_and_infinities_go_in_and_out_as_bare_tokens() -> None:
    response = post(client_of(model(TWO)), '{"instances": [{"a": NaN, "b": 1}, {"a": -Infinity, "b": 2}]}')
    assert response.data == b'{"predictions":[{"a":NaN,"b":1},{"a":-Infinity,"b":2}]}'


def test_any_content_type_is_json_as_curl_sends_a_form_type() -> None:
    response = post(client_of(model(ONE)), {"inputs": [[1, 2]]}, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("inputs", "document", "message"),
    [
        (ONE, [1], "body: expected an object, got the list [1]"),
        (ONE, {}, "body: expected either 'instances' (row form) or 'inputs' (column form), got neither"),
        (ONE, {"instances": [], "inputs": []}, "got both"),
        (ONE, {"instances": {"x": 1}}, "instances: expected a list, got the object {'x': 1}"),
        (ONE, {"instances": None}, "instances: expected a list, got null"),
        (ONE, {"instances": []}, "instances: expected at least one, got an empty list"),
        (ONE, {"instances": [[1, 2], {"x": [1, 2]}]}, "instance 0 is of kind list, instance 1 object"),
        (ONE, {"inputs": [[1, 2]], "signature_name": "other"}, "no signature 'other'; known: 'serving_default'"),
        (ONE, {"inputs": [[1, 2]], "signature_name": 5}, "signature_name: expected a string, got the number 5"),
        (ONE, {"inputs": [[1, 2, 3]]}, "input 'x': expected shape [-1, 2], got [1, 3]"),
        (ONE, {"inputs": {"y": 1}}, "inputs: expected the inputs 'x'; missing: 'x'; unknown: 'y'"),
        (TWO, {"inputs": [1]}, "inputs: expected an object with the inputs 'a', 'b', got the list [1]"),
        (TWO, {"instances": [1]}, "instances[0]: expected an object with the inputs 'a', 'b', got the number 1"),
        (
            TWO,
            {"instances": [{"a": 1, "b": 2}, {"a": 1}]},
            "instances[1]: expected the inputs 'a', 'b'; missing: 'b'; unknown: none",
        ),
        (
            TWO,
            {"instances": [{"a": 1, "b": 2}, {"a": [1], "b": 2}]},
            "input 'a': expected rows of one length; row 1 has 1 values",
        ),
        (TEXT, {"instances": [{"b64": "a"}]}, "input 't' at 0: expected base64 in 'b64', got 'a'"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_by_field_rule_and_value(inputs: Any, document: Any, message: str) -> None:
    assert message in refusal(model(inputs), document)


def test_a_signature_without_a_batch_dimension_is_refused_in_the_row_form_before_it_runs() -> None:
    served = model(ONE, outputs=[spec("y", "float32")])
    assert "got 'y' of shape []; use 'inputs'" in refusal(served, {"instances": [[1, 2]]})
    assert served.calls == []


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": np.float32(1)}, "got 'y' of shape []; use 'inputs'"),
        ({"y": np.zeros(2), "z": np.zeros(3)}, "got 'z' of shape [3]; use 'inputs'"),
    ],
)
def test_outputs_without_one_batch_dimension_are_refused_in_the_row_form(outputs: Tensors, message: str) -> None:
    response = post(client_of(handler(lambda _: outputs, name="m")), {"instances": [[1, 2]]})
    assert response.status_code == 400
    assert message in response.json["error"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"inputs": [1, 2]}, {"inputs": np.array([1, 2])}),
        ({"inputs": {"a": [True], "b": "x"}}, {"a": np.array([True]), "b": np.array(b"x", object)}),
        ({"instances": [1.5]}, {"inputs": np.array([1.5])}),
        ({"instances": [{"a": 1}, {"a": 2}]}, {"a": np.array([1, 2])}),
        ({"inputs": [], "signature_name": "mine"}, {"inputs": np.zeros(0)}),
    ],
)
def test_a_handler_without_a_signature_gets_the_inputs_that_the_request_names(document: Any, expected: Tensors) -> None:
    served = handler(name="m")
    answer(served, document)
    name, inputs = served.calls[0]
    assert name == document.get("signature_name", "serving_default")
    assert inputs.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(inputs[key], array)
        assert inputs[key].dtype == array.dtype


def test_instances_of_a_handler_without_a_signature_all_have_the_names_of_the_first() -> None:
    message = refusal(handler(name="m"), {"instances": [{"a": 1}, {"b": 1}]})
    assert message == "instances[1]: expected the inputs 'a'; missing: 'a'; unknown: 'b'"


def test_a_version_or_a_label_chooses_the_model_and_the_newest_is_the_default() -> None:
    old, new = model(ONE, version=1, labels=("stable",)), model(ONE, version=2)
    client = client_of(old, new)
    for path, expected in (("", new), ("/versions/1", old), ("/labels/stable", old)):
        facts = CallContext()
        post(client, {"inputs": [[1, 2]]}, f"/v1/models/m{path}:predict", environ_base={ENVIRON_KEY: facts})
        assert expected.calls
        assert facts == CallContext("m", expected.info.version)
        expected.calls.clear()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models/other:predict", "model 'other' is not served; served: m"),
        ("/v1/models/m/versions/7:predict", "model 'm' has no version 7; versions: 1"),
        ("/v1/models/m/labels/x:predict", "model 'm' has no version with the label 'x'; labels: none"),
        ("/v1/models/m:explain", "no route '/v1/models/m:explain'; GET /openapi.json lists them"),
        ("/v1/models/m/versions/1.5:predict", "no route '/v1/models/m/versions/1.5:predict'"),
    ],
)
def test_an_unknown_model_is_404_and_never_becomes_a_metric_label(path: str, message: str) -> None:
    facts = CallContext()
    response = post(client_of(model(ONE)), b"", path, environ_base={ENVIRON_KEY: facts})
    assert response.status_code == 404
    assert response.json["code"] == "not-found"
    assert message in response.json["error"]
    assert facts == CallContext()


def test_the_answer_to_a_wrong_method_lists_the_allowed_ones() -> None:
    response = client_of(model(ONE)).get("/v1/models/m:predict")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.json == {
        "error": "GET is not allowed on '/v1/models/m:predict'; allowed: POST",
        "code": "method-not-allowed",
    }


def fail(error: BaseException) -> Callable[[Tensors], Tensors]:
    def predict(_inputs: Tensors) -> Tensors:
        raise error

    return predict


@pytest.mark.parametrize("error", [ValueError("secret"), MemoryError("secret"), KeyError("secret"), BadRequest("secret")])
def test_a_failing_model_is_logged_once_and_its_reason_stays_inside(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    response = post(client_of(model(ONE, fail(error))), {"inputs": [[1, 2]]})
    assert response.status_code == 500
    assert response.json == HandlerFailed().document()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("percore.api", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_an_output_that_no_protocol_can_carry_is_the_models_failure(caplog: pytest.LogCaptureFixture) -> None:
    response = post(client_of(model(ONE, lambda _: {"y": np.array([1j])})), {"inputs": [[1, 2]]})
    assert response.json == HandlerFailed().document()
    assert len(caplog.records) == 1


def test_bad_input_passes_from_a_model_to_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    refused = post(client_of(model(ONE, fail(BadInput("x: expected a cat, got a dog")))), {"inputs": [[1, 2]]})
    assert (refused.status_code, refused.json["error"]) == (400, "x: expected a cat, got a dog")
    assert caplog.records == []


@pytest.mark.parametrize("kind", [each for each in call_errors() if not issubclass(each, BadInput)])
def test_any_other_error_of_ours_that_a_model_raises_is_the_models_failure(
    kind: type[CallError], caplog: pytest.LogCaptureFixture
) -> None:
    error = kind.__new__(kind, "as asked")  # whatever its constructor wants
    response = post(client_of(model(ONE, fail(error))), {"inputs": [[1, 2]]})
    assert (response.status_code, response.json) == (500, HandlerFailed().document())
    assert "Retry-After" not in response.headers
    assert len(caplog.records) == 1


def test_a_users_own_kind_of_bad_input_is_plain_bad_input() -> None:
    class NeverRan(BadInput):
        status = 503
        code = "not-ready"
        retry_after = 1

    response = post(client_of(model(ONE, fail(NeverRan("as asked")))), {"inputs": [[1, 2]]})
    assert (response.status_code, response.json) == (400, {"error": "as asked", "code": "bad-input"})
    assert "Retry-After" not in response.headers


def test_a_failing_serialisation_of_examples_is_the_models_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeModel):
        def encode_examples(self, examples: Any) -> Any:
            raise OSError("secret")

    response = post(client_of(Failing(example_model().info)), {"examples": [{}]}, "/v1/models/examples:classify")
    assert response.json == HandlerFailed().document()
    assert len(caplog.records) == 1


def test_the_body_is_read_once_and_whole_from_whatever_buffer_the_worker_has() -> None:
    class Once(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> Any:
            self.reads += 1
            return memoryview(super().read(size))

    stream = Once(b'{"inputs": [[1, NaN]]}')
    response = client_of(model(ONE)).post("/v1/models/m:predict", environ_overrides={"wsgi.input": stream})
    assert response.data == b'{"outputs":[[1.0,NaN]]}'
    assert stream.reads == 1


def test_a_compressed_body_is_refused_by_name() -> None:
    response = post(client_of(model(ONE)), b"", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert response.json == {
        "error": "Content-Encoding: expected identity, got 'gzip'; send the body as it is",
        "code": "unsupported-media-type",
    }
    assert post(client_of(model(ONE)), {"inputs": [[1, 2]]}, headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_body_over_the_limit_is_refused_with_both_sizes() -> None:
    response = post(client_of(model(ONE), max_body_bytes=10), b"x" * 11)
    assert response.status_code == 413
    assert response.json == {"error": "body: expected at most 10 bytes, got 11", "code": "body-too-large"}


CLASSIFY = "/v1/models/examples:classify"
REGRESS = "/v1/models/examples:regress"


def test_classify_answers_labels_and_scores_for_each_example() -> None:
    served = example_model()
    examples = [{"n": 1, "t": "é"}, {"n": [2, 3], "t": {"b64": "/w=="}}]
    assert answer(served, {"context": {"c": [1.5]}, "examples": examples}, CLASSIFY) == {
        "results": [[["no", 0.25], ["yes", 0.75]], [["no", 0.25], ["yes", 0.75]]]
    }
    sent = [json.loads(each) for each in served.calls[0][1]["examples"]]
    assert sent == [{"c": [1.5], "n": 1, "t": [0xC3, 0xA9]}, {"c": [1.5], "n": [2, 3], "t": [0xFF]}]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [("scores", [[["", 0.25], ["", 0.75]]]), ("classes", [[["no", 0.0], ["yes", 0.0]]])],
)
def test_classify_fills_in_outputs_that_the_model_leaves_out(kept: str, expected: Any) -> None:
    whole = example_model()
    served = FakeModel(whole.info, lambda inputs: {kept: whole.predict("", inputs)[kept]})
    assert answer(served, {"examples": [{}]}, CLASSIFY) == {"results": expected}


def test_regress_answers_a_number_for_each_example() -> None:
    document = {"signature_name": "regression", "examples": [{}, {}]}
    assert answer(example_model(), document, REGRESS) == {"results": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        (
            {"examples": [{}]},
            REGRESS,
            "'serving_default' has the method 'tensorflow/serving/classify', expected 'tensorflow/serving/regress'",
        ),
        ({"examples": [{}], "signature_name": "plain"}, CLASSIFY, "has the method 'tensorflow/serving/predict'"),
        (
            {"examples": [{}], "signature_name": "x"},
            CLASSIFY,
            "no signature 'x'; known: 'plain', 'regression', 'serving_default'",
        ),
        ({}, CLASSIFY, "examples: expected a list of at least one object, got null"),
        ({"examples": []}, CLASSIFY, "examples: expected a list of at least one object, got the list []"),
        ({"examples": [1]}, CLASSIFY, "examples[0]: expected an object of features, got the number 1"),
        ({"examples": [{}], "context": []}, CLASSIFY, "context: expected an object of features, got the list []"),
        (
            {"examples": [{"a": 1}], "context": {"a": 1}},
            CLASSIFY,
            "examples[0]: expected no feature that 'context' has too, got 'a'",
        ),
        (
            {"examples": [{"a": None}]},
            CLASSIFY,
            "examples[0]: feature 'a': expected a number, a boolean, a string or a list of these, got null",
        ),
        (
            {"examples": [{"a": [[1]]}]},
            CLASSIFY,
            "feature 'a': expected a number, a boolean, a string or a list of these, got the list [1]",
        ),
        ({"examples": [{"a": {"b64": "x"}}]}, CLASSIFY, "feature 'a': expected base64 in 'b64', got 'x'"),
        (
            {"examples": [{"a": 2**63}]},
            CLASSIFY,
            "feature 'a': expected signed 64-bit integers, got the number 9223372036854775808",
        ),
        ({"examples": [{"refused": 1}]}, CLASSIFY, "feature 'refused': expected anything else"),
    ],
)
def test_examples_that_break_a_rule_are_refused_by_field_rule_and_value(document: Any, path: str, message: str) -> None:
    assert message in refusal(example_model(), document, path)


def test_classify_of_a_handler_without_a_signature_is_refused() -> None:
    assert "has the method 'none'" in refusal(handler(name="m"), {"examples": [{}]}, "/v1/models/m:classify")


def test_a_context_that_unfolds_beyond_the_body_limit_is_refused() -> None:
    document = {"context": {"a": "x" * 1000}, "examples": [{}] * 1000}
    response = post(client_of(example_model(), max_body_bytes=100_000), document, CLASSIFY)
    assert response.status_code == 413
    assert "context: its copies in 1000 examples take about 1009000 bytes, over the limit of 100000" in response.json["error"]


@pytest.mark.parametrize("path", [CLASSIFY, REGRESS])
def test_outputs_that_do_not_fit_the_method_are_the_models_failure(path: str, caplog: pytest.LogCaptureFixture) -> None:
    served = FakeModel(example_model().info, lambda _: {"scores": np.zeros(3), "outputs": np.zeros((3, 3))})
    name = "regression" if path == REGRESS else "serving_default"
    response = post(client_of(served), {"signature_name": name, "examples": [{}]}, path)
    assert response.json == HandlerFailed().document()
    assert "expected the model's outputs" in caplog.text


json_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800") | st.just({"b64": "YQ=="})
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "b64"]), inner, max_size=2),
)
ANYTHING = client_of(model(TWO), handler(), model(TEXT, name="text"), example_model())


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.sampled_from(["m:predict", "handler:predict", "text:predict", "examples:classify"]),
    st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), json_values, max_size=2),
)
def test_whatever_json_comes_is_answered_or_refused_but_never_a_failure(path: str, document: Any) -> None:
    response = post(ANYTHING, document, f"/v1/models/{path}")
    assert response.status_code in {200, 400}, response.data
