import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from percore.api.app import create_app
from percore.api.tensors import NUMPY_DTYPES
from percore.dtypes import BY_NAME, DTYPES
from percore.model_metadata import TensorSpec

from tests.fakes import FakeModel, catalog_of, client_of, example_model, handler, model, spec

quick = settings(deadline=None, max_examples=60, derandomize=True)
PATH = "/v2/models/m/infer"
LENGTH = "Inference-Header-Content-Length"
PAIR = [spec("x", "float32", None, 2)]


def post(served: FakeModel, document: Any, data: bytes | None = None, **headers: str) -> Any:
    """Send JSON, and after it ``data`` if there is any."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    if data is not None:
        headers = {LENGTH: str(len(text)), "Content-Type": "application/octet-stream", **headers}
    return client_of(served).post(PATH, data=text + (data or b""), headers={"Content-Type": "application/json", **headers})


def tensor(
    name: str = "x", datatype: Any = "FP32", shape: Any = (1, 2), data: Any = (1, 2), **parameters: Any
) -> dict[str, Any]:
    entry = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    return entry if "binary_data_size" in parameters else {**entry, "data": data}


def refusal(served: FakeModel, document: Any, data: bytes | None = None, length: str | None = None) -> str:
    response = post(served, document, data, **({} if length is None else {LENGTH: length}))
    assert response.status_code == 400, response.data
    assert response.json["code"] == "bad-input"
    assert served.calls == []
    message: str = response.json["error"]
    return message


def tensors_of(response: Any) -> tuple[dict[str, Any], bytes]:
    """Return an answer's JSON and the bytes after it."""
    length = int(response.headers.get(LENGTH, len(response.data)))
    return json.loads(response.data[:length]), response.data[length:]


def test_json_tensors_go_in_and_out_with_id_and_version() -> None:
    response = post(model(PAIR, version=3), {"id": "7", "inputs": [tensor()]})
    assert response.status_code == 200
    assert response.content_type == "application/json"
    assert response.json == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}],
    }


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2, 2], [1, 2, 3, 4]), ([2, 2], [[1, 2], [3, 4]]), ([0, 2], []), ([2, 0], [[], []]), ([0, 2, 3], [])],
)
def test_json_data_is_flat_or_nested(shape: list[int], data: Any) -> None:
    served = handler(name="m")
    response = post(served, {"inputs": [tensor(shape=shape, data=data)]})
    assert response.status_code == 200
    assert served.calls[0][1]["x"].shape == tuple(shape)
    assert response.json["outputs"][0]["shape"] == shape


@pytest.mark.parametrize("data", [5, [5]])
def test_a_scalar_is_one_value(data: Any) -> None:
    response = post(model([spec("x", "int64")]), {"inputs": [tensor(datatype="INT64", shape=[], data=data)]})
    assert response.json["outputs"] == [{"name": "x", "datatype": "INT64", "shape": [], "data": [5]}]


def test_nan_and_infinities_are_read_and_written_as_bare_tokens() -> None:
    text = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, -Infinity]}]}'
    assert b'"data":[NaN,-Infinity]' in post(model(PAIR), text).data


@quick
@given(
    data=st.data(),
    dtype=st.sampled_from([dtype.name for dtype in DTYPES if dtype.size]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
def test_every_tensor_goes_in_and_out_in_binary_as_it_is(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    bits = np.dtype(np.uint16) if dtype == "bfloat16" else NUMPY_DTYPES[dtype]
    array = data.draw(hnp.arrays(bits, shape)).view(NUMPY_DTYPES[dtype])
    sent = tensor(datatype=BY_NAME[dtype].openinference, shape=shape, binary_data_size=array.nbytes)
    served = model([TensorSpec("x", dtype, shape)])
    response = post(served, {"inputs": [sent], "parameters": {"binary_data_output": True}}, array.tobytes())
    document, raw = tensors_of(response)
    assert response.content_type == "application/octet-stream"
    assert document["outputs"] == [{**sent, "shape": list(shape)}]
    assert raw == array.tobytes()
    (_, inputs) = served.calls[0]
    assert inputs["x"].dtype == NUMPY_DTYPES[dtype]
    assert inputs["x"].flags.c_contiguous


@quick
@given(st.lists(st.binary(), max_size=5))
def test_every_string_goes_in_and_out_in_binary_as_it_is(values: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    served = model([spec("t", "bytes", None)])
    sent = tensor("t", "BYTES", [len(values)], binary_data_size=len(raw))
    document, back = tensors_of(
        post(served, {"inputs": [sent], "outputs": [{"name": "t", "parameters": {"binary_data": True}}]}, raw)
    )
    assert served.calls[0][1]["t"].tolist() == values
    assert document["outputs"] == [sent]
    assert back == raw


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_numbers_in_json(datatype: str) -> None:
    dtype = "float16" if datatype == "FP16" else "bfloat16"
    response = post(model([spec("x", dtype, 2)]), {"inputs": [tensor(datatype=datatype, shape=[2], data=[1.5, -2])]})
    assert response.json["outputs"] == [{"name": "x", "datatype": datatype, "shape": [2], "data": [1.5, -2.0]}]


def test_strings_are_text_in_json_and_base64_if_they_are_not_utf8() -> None:
    served = model([spec("a_bytes", "bytes", 2)])
    response = post(served, {"inputs": [tensor("a_bytes", "BYTES", [2], ["é", {"b64": "/w=="}])]})
    assert response.json["outputs"][0]["data"] == ["é", {"b64": "/w=="}]


def test_binary_and_json_tensors_mix_and_outputs_are_chosen_one_by_one() -> None:
    served = model([spec("a", "int8", 2), spec("b", "float32", 1), spec("c", "int16", 1)])
    inputs = [
        tensor("a", "INT8", [2], binary_data_size=2),
        tensor("b", "FP32", [1], [0.5]),
        tensor("c", "INT16", [1], binary_data_size=2),
    ]
    wanted = [{"name": "c", "parameters": {"binary_data": True}}, {"name": "b"}]
    document, raw = tensors_of(post(served, {"inputs": inputs, "outputs": wanted}, b"\1\2\3\0"))
    assert document["outputs"] == [
        {"name": "c", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
        {"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]},
    ]
    assert raw == b"\3\0"


def test_one_output_can_stay_json_although_the_request_asks_for_binary() -> None:
    wanted = [{"name": "x", "parameters": {"binary_data": False}}]
    response = post(model(PAIR), {"inputs": [tensor()], "outputs": wanted, "parameters": {"binary_data_output": True}})
    assert response.json["outputs"][0]["data"] == [1.0, 2.0]
    assert LENGTH not in response.headers


def test_binary_tensors_are_views_of_the_body_on_the_way_in_and_of_the_array_on_the_way_out() -> None:
    raw = np.arange(4, dtype=np.float32).tobytes()
    document = {"inputs": [tensor(shape=[2, 2], binary_data_size=len(raw))], "parameters": {"binary_data_output": True}}
    text = json.dumps(document).encode()
    body = bytearray(text + raw)
    served = model(PAIR)

    class WholeBody:
        def read(self) -> memoryview:
            return memoryview(body)

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": PATH,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": WholeBody(),
        "HTTP_INFERENCE_HEADER_CONTENT_LENGTH": str(len(text)),
    }
    chunks = list(create_app([served], catalog_of(served), max_body_bytes=1000)(environ, lambda *_: lambda _: None))
    assert [type(chunk) for chunk in chunks] == [bytes, memoryview]
    assert [len(chunk) for chunk in chunks][1] == len(raw)
    body[-4:] = struct.pack("<f", 9)
    assert served.calls[0][1]["x"][1, 1] == 9
    assert bytes(chunks[1]) == bytes(body[len(text) :])


def test_outputs_of_any_layout_leave_in_row_major_order_and_little_endian() -> None:
    outputs = {"t": np.arange(4, dtype=">i2").reshape(2, 2).T, "s": np.array([b"a", "é"], object)}
    response = post(handler(lambda _: outputs, "m"), {"inputs": [], "parameters": {"binary_data_output": True}})
    document, raw = tensors_of(response)
    assert [output["datatype"] for output in document["outputs"]] == ["INT16", "BYTES"]
    assert raw == np.array([0, 2, 1, 3], "<i2").tobytes() + b"\1\0\0\0a\2\0\0\0" + "é".encode()


def test_the_signature_is_chosen_by_a_parameter() -> None:
    served = example_model()
    document = {"parameters": {"signature_name": "plain"}, "inputs": [tensor(shape=[1], data=[1])]}
    response = client_of(served).post("/v2/models/examples/infer", json=document)
    assert response.status_code == 200
    assert served.calls[0][0] == "plain"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "body: expected an object, got the list []"),
        ({}, "inputs: expected a list, got null"),
        ({"inputs": [1]}, "inputs[0]: expected an object, got the number 1"),
        ({"inputs": [{}]}, "inputs[0].name: expected a string, got null"),
        ({"inputs": [tensor(), tensor()]}, "inputs[1].name: expected each input once, got 'x' again"),
        ({"inputs": []}, "inputs: expected the inputs 'x'; missing: 'x'; unknown: none"),
        ({"inputs": [tensor(), tensor("y")]}, "inputs: expected the inputs 'x'; missing: none; unknown: 'y'"),
        ({"inputs": [tensor()], "id": 5}, "id: expected a string, got the number 5"),
        ({"inputs": [tensor()], "parameters": 5}, "parameters: expected an object, got the number 5"),
        (
            {"inputs": [tensor()], "parameters": {"binary_data_output": 1}},
            "parameters.binary_data_output: expected a boolean, got the number 1",
        ),
        (
            {"inputs": [tensor()], "parameters": {"signature_name": 1}},
            "parameters.signature_name: expected a string, got the number 1",
        ),
        ({"inputs": [tensor()], "parameters": {"signature_name": "y"}}, "no signature 'y'; known: 'serving_default'"),
        ({"inputs": [tensor()], "outputs": 1}, "outputs: expected a list, got the number 1"),
        ({"inputs": [tensor()], "outputs": [{"name": "y"}]}, "outputs: expected some of 'x', got 'y'"),
        (
            {"inputs": [tensor()], "outputs": [{"name": "x", "parameters": {"binary_data": 1}}]},
            "binary_data: expected a boolean, got the number 1",
        ),
        ({"inputs": [tensor(datatype="FP64")]}, "input 'x': expected the datatype FP32, got FP64"),
        ({"inputs": [tensor(datatype="FLOAT")]}, "input 'x': datatype: expected one of BOOL, UINT8"),
        ({"inputs": [tensor(datatype=[])]}, "BYTES, got the list []"),
        ({"inputs": [tensor(shape=[1, 3])]}, "input 'x': expected shape [-1, 2], got [1, 3]"),
        (
            {"inputs": [tensor(shape=[-1, 2])]},
            "input 'x': shape: expected a list of at most 64 whole numbers from 0 up, got the list [-1, 2]",
        ),
        ({"inputs": [tensor(shape=[1.0, 2])]}, "from 0 up, got the list [1.0, 2]"),
        ({"inputs": [tensor(shape=[True, 2])]}, "from 0 up, got the list [True, 2]"),
        ({"inputs": [tensor(shape=[1] * 65)]}, "at most 64 whole numbers from 0 up, got the list [1, 1, 1, ...]"),
        (
            {"inputs": [tensor(shape=[2**62, 2])]},
            "input 'x': shape: expected fewer than 2**63 bytes, got [4611686018427387904, 2]",
        ),
        (
            {"inputs": [tensor(shape=[0, 2**63])]},
            "input 'x': shape: expected fewer than 2**63 bytes, got [0, 9223372036854775808]",
        ),
        (
            {"inputs": [tensor(data=[1, 2, 3])]},
            "input 'x': data: expected 2 values, flat or nested as the shape [1, 2], got lists of shape [3]",
        ),
        ({"inputs": [tensor(data=[[1], [2]])]}, "got lists of shape [2, 1]"),
        ({"inputs": [tensor(data=[1, "2"])]}, "input 'x': data at 1: expected float32, got the string '2'"),
        (
            {"inputs": [tensor(data=None)]},
            "input 'x': data: expected 2 values, flat or nested as the shape [1, 2], got lists of shape []",
        ),
        ({"inputs": [{**tensor(), "parameters": []}]}, "input 'x': parameters: expected an object, got the list []"),
        (
            {"inputs": [{**tensor(), "parameters": {"binary_data_size": 8}}]},
            "expected either 'data' or the parameter 'binary_data_size', got both",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}]}, "'binary_data_size', got neither"),
        (
            {"inputs": [tensor(binary_data_size=8)]},
            "binary_data_size: expected a whole number from 0 to 0, the bytes left after the JSON",
        ),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_by_field_rule_and_value(document: Any, message: str) -> None:
    assert message in refusal(model(PAIR), document)


@pytest.mark.parametrize(
    ("size", "data", "message"),
    [
        (8, b"\0" * 9, "body: expected 8 bytes after the JSON, the sum of all binary_data_size, got 9"),
        (8, b"\0" * 7, "input 'x': binary_data_size: expected a whole number from 0 to 7, the bytes left after the JSON"),
        (
            -1,
            b"\0" * 8,
            "from 0 to 8, the bytes left after the JSON that Inference-Header-Content-Length delimits, got the number -1",
        ),
        ("8", b"\0" * 8, "delimits, got the string '8'"),
        (12, b"\0" * 12, "input 'x': binary_data_size: expected 8, the size of FP32 in the shape [1, 2], got 12"),
    ],
)
def test_binary_sizes_that_do_not_add_up_are_refused(size: Any, data: bytes, message: str) -> None:
    assert message in refusal(model(PAIR), {"inputs": [tensor(binary_data_size=size)]}, data)


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "99999", "9" * 5000, "²"])
def test_a_header_length_that_is_not_within_the_body_is_refused(length: str) -> None:
    message = refusal(model(PAIR), {"inputs": [tensor()]}, length=length)
    assert "Inference-Header-Content-Length: expected a whole number from 0 to " in message


def test_a_header_length_that_cuts_the_json_is_refused() -> None:
    assert "body: expected JSON" in refusal(model(PAIR), {"inputs": [tensor()]}, length="5")


@pytest.mark.parametrize(
    "raw", [b"\1\0\0\0a", b"\1\0\0\0a\1\0\0\0", b"\1\0\0\0a\1\0\0\0bc", b"\xff\xff\xff\xffa\0\0\0\0", b"\5\0\0\0abcde\0\0"]
)
def test_strings_in_binary_that_do_not_match_their_lengths_are_refused(raw: bytes) -> None:
    message = refusal(
        model([spec("t", "bytes", None)]), {"inputs": [tensor("t", "BYTES", [2], binary_data_size=len(raw))]}, raw
    )
    assert (
        f"input 't': expected 2 BYTES elements, each with its length in 4 bytes before its bytes, got {len(raw)} bytes"
        in message
    )


def test_a_huge_count_of_strings_in_a_small_body_is_refused_before_any_memory_is_taken() -> None:
    sent = tensor("t", "BYTES", [2**50], binary_data_size=4)
    assert f"expected {2**50} BYTES elements" in refusal(model([spec("t", "bytes", None)]), {"inputs": [sent]}, b"\0" * 4)


def test_a_boolean_in_binary_that_is_neither_0_nor_1_is_refused() -> None:
    sent = tensor("b", "BOOL", [3], binary_data_size=3)
    assert "input 'b': expected BOOL as bytes of 0 or 1, got 2" in refusal(
        model([spec("b", "bool", 3)]), {"inputs": [sent]}, b"\0\1\2"
    )


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/merge-patch+json", "application/octet-stream", ""],
)
def test_json_octets_and_nothing_are_content_types_that_are_read(content_type: str) -> None:
    body = json.dumps({"inputs": [tensor()]})
    assert client_of(model(PAIR)).post(PATH, data=body, content_type=content_type).status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "application/jsonx"])
def test_another_content_type_is_refused_with_the_types_to_send(content_type: str) -> None:
    response = client_of(model(PAIR)).post(PATH, data=b"{}", content_type=content_type)
    assert response.status_code == 415
    assert response.json == {
        "error": f"Content-Type: expected application/json or application/octet-stream, got {content_type!r}; "
        "with curl add -H 'Content-Type: application/json'",
        "code": "unsupported-media-type",
    }


def test_an_unknown_output_of_a_handler_without_a_signature_is_refused() -> None:
    response: Any = post(handler(name="m"), {"inputs": [tensor()], "outputs": [{"name": "y"}]})
    assert response.status_code == 400
    assert response.json["error"] == "outputs: expected some of 'x', got 'y'"


def test_a_version_is_called_by_its_number() -> None:
    client = client_of(model(PAIR, version=1), model(PAIR, version=2))
    for path, version in (("/v2/models/m/versions/1/infer", "1"), (PATH, "2")):
        answered: Any = client.post(path, json={"inputs": [tensor()]}).json
        assert answered["model_version"] == version
    assert client.post("/v2/models/m/versions/3/infer", json={}).status_code == 404


def test_bfloat16_values_are_those_of_the_raw_bits() -> None:
    raw = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    served = model([spec("x", "bfloat16", 2)])
    response = post(served, {"inputs": [tensor(datatype="BF16", shape=[2], binary_data_size=4)]}, raw)
    assert response.json["outputs"][0]["data"] == [1.5, -2.0]
