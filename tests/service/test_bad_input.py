"""Bad input, one test each: 4xx JSON that names the field, the rule and the value, and the same workers alive after it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from demo.try_it import SEVEN
from harness.service import Service, answer_of

DIGITS = "/v1/models/digits:predict"
ROW = [0.0] * 64
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32"}


@pytest.fixture(autouse=True)
def _same_workers(served: Service) -> Iterator[None]:
    served.ready(workers=2)
    before = served.workers
    yield
    assert served.workers == before
    assert served.post(DIGITS, {"instances": [SEVEN]}).status_code == 200


def refused(answer: Any, *words: str, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"error", "code"}
    assert all(word in document["error"] for word in words), document


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        pytest.param(DIGITS, b"{not json", ["body", "expected JSON", "not json"], id="not JSON"),
        pytest.param(DIGITS, b"", ["body", "expected JSON"], id="no body"),
        pytest.param(DIGITS, b"\xff\xfe{}", ["body", "UTF-8", "0xff"], id="not UTF-8"),
        pytest.param(DIGITS, b"[1]", ["body", "expected an object"], id="not an object"),
        pytest.param(DIGITS, {"instances": [ROW[:63]]}, ["'pixels'", "[-1, 64]", "[1, 63]"], id="wrong shape"),
        pytest.param(DIGITS, {"instances": [["a"] * 64]}, ["'pixels'", "float32", "'a'"], id="wrong dtype"),
        pytest.param(DIGITS, {"instances": [[True] * 64]}, ["'pixels'", "float32", "true"], id="booleans for numbers"),
        pytest.param(DIGITS, {"instances": [[None] * 64]}, ["'pixels'", "float32", "null"], id="null"),
        pytest.param(DIGITS, {"instances": [ROW, ROW[:63]]}, ["'pixels'", "row 1", "63", "row 0", "64"], id="ragged rows"),
        pytest.param(DIGITS, {"instances": [{"image": ROW}]}, ["instances[0]", "'pixels'", "'image'"], id="unknown input"),
        pytest.param(DIGITS, {"inputs": {}}, ["inputs", "missing", "'pixels'"], id="missing input"),
        pytest.param(DIGITS, {"instances": [ROW], "inputs": [ROW]}, ["'instances'", "'inputs'", "both"], id="both forms"),
        pytest.param(DIGITS, {}, ["'instances'", "'inputs'", "neither"], id="neither form"),
        pytest.param(DIGITS, {"instances": []}, ["instances", "empty"], id="no instances"),
        pytest.param(DIGITS, {"instances": 7}, ["instances", "list", "7"], id="instances no list"),
        pytest.param(DIGITS, {"instances": [[1e39] * 64]}, ["'pixels'", "float32", "1e+39"], id="too big for float32"),
        pytest.param("/v1/models/burn:predict", {"inputs": [2**63]}, ["'steps'", "int64", str(2**63)], id="too big for int64"),
        pytest.param("/v1/models/burn:predict", {"inputs": [1.5]}, ["'steps'", "int64", "1.5"], id="fraction for an integer"),
        pytest.param(
            DIGITS, {"signature_name": "nope", "inputs": [ROW]}, ["signature_name", "'nope'", "serving_default"], id="signature"
        ),
        pytest.param(
            "/v1/models/tf2:predict",
            {"signature_name": "upper", "inputs": [{"b64": "%%%"}]},
            ["'text'", "base64", "%%%"],
            id="bad base64",
        ),
        pytest.param(
            "/v1/models/tf2:predict",
            {"signature_name": "product", "inputs": {"a": [[1, 2]], "b": [[1, 2]]}},
            ["Matrix size-incompatible"],
            id="shapes that only the model knows to be wrong",
        ),
        pytest.param("/v1/models/tf1:classify", {"examples": [{"x": ["a", "b"]}]}, ["classify"], id="wrong method"),
        pytest.param(
            "/v2/models/keras/infer",
            {"inputs": [{**TENSOR, "datatype": "FP64", "data": [1, 1]}]},
            ["'x'", "FP32", "FP64"],
            id="v2 datatype",
        ),
        pytest.param("/v2/models/keras/infer", {"inputs": [{**TENSOR, "data": [1]}]}, ["'x'", "[1, 2]"], id="v2 data size"),
        pytest.param("/v2/models/keras/infer", {"inputs": []}, ["'x'"], id="v2 no inputs"),
    ],
)
def test_bad_input_is_refused(served: Service, path: str, body: Any, words: list[str]) -> None:
    more = {"data": body} if isinstance(body, bytes) else {"json": body}
    refused(served.post(path, **more), *words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models/nobody:predict", ["'nobody'", "digits"]),
        ("/v1/models/digits/versions/9:predict", ["version 9", "2, 1"]),
        ("/v1/models/digits/labels/best:predict", ["'best'", "canary, stable"]),
        ("/v2/models/nobody/infer", ["'nobody'"]),
        ("/v1/models/digits:explain", ["no route"]),
    ],
)
def test_a_model_that_is_not_served_is_404(served: Service, path: str, words: list[str]) -> None:
    refused(served.post(path, {"instances": [ROW]}), *words, status=404)


@pytest.mark.parametrize(
    ("size", "length", "words"),
    [
        (16, 8, ["'x'", "8", "16"]),
        (8, 16, ["8", "16"]),
        (-8, 8, ["'x'", "binary_data_size", "-8"]),
        (4, 4, ["'x'", "4", "8"]),
    ],
)
def test_binary_tensors_of_wrong_sizes_are_refused(served: Service, size: int, length: int, words: list[str]) -> None:
    head = json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": size}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    refused(served.post("/v2/models/keras/infer", data=head + bytes(length), headers=headers), *words)


@pytest.mark.parametrize("length", ["100000", "-1", "many"])
def test_a_binary_header_longer_than_the_body_is_refused(served: Service, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length, "Content-Type": "application/octet-stream"}
    refused(served.post("/v2/models/keras/infer", data=b"{}", headers=headers), "Inference-Header-Content-Length", length)


def test_a_form_type_is_415_on_a_route_that_reads_binary(served: Service) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = served.post("/v2/models/keras/infer", data=b"{}", headers=headers)
    refused(answer, "Content-Type", "application/json", status=415)


def test_a_method_that_a_route_does_not_have_is_405(served: Service) -> None:
    refused(served.post("/v1/models/digits", {}), "POST", "GET", status=405)


def test_a_body_over_the_limit_is_413_before_it_is_sent(served: Service) -> None:
    connection = served.connect()
    connection.sendall(b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n")
    status, _, body = answer_of(connection)
    assert status == 413
    assert json.loads(body)["error"] == "the body must be at most 1000000 bytes, and Content-Length is 1000001"


def test_a_body_over_the_limit_is_413_even_if_all_of_it_is_sent(served: Service) -> None:
    refused(served.post(DIGITS, data=b"x" * 20_000_000), "1000000", "20000000", status=413)


def test_a_chunked_body_over_the_limit_is_413(served: Service) -> None:
    refused(served.post(DIGITS, data=iter([b"x" * 400_000] * 50)), "1000000", status=413)


def test_a_truncated_body_is_dropped_without_an_answer_and_is_not_counted(served: Service) -> None:
    before = served.metric("percore_calls_total"), served.metric("percore_worker_client_disconnects_total")
    connection = served.connect()
    connection.sendall(b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    connection.shutdown(1)
    with connection:
        assert connection.recv(100) == b""
    served.until(executing=0, queued=0)
    assert (served.metric("percore_calls_total"), served.metric("percore_worker_client_disconnects_total")) == before


@pytest.mark.parametrize("sent", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_bytes_that_are_not_http_are_400_json(served: Service, sent: bytes) -> None:
    connection = served.connect()
    connection.sendall(sent)
    status, headers, body = answer_of(connection)
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["code"] == "bad-request"


@pytest.mark.parametrize(
    "header", ["SCRIPT_NAME: /x", "Script-Name: /x", "X-Forwarded-Proto: gopher", "Host: \xff", "Expect: 7"]
)
def test_odd_headers_do_no_harm(served: Service, header: str) -> None:
    connection = served.connect()
    body = json.dumps({"instances": [SEVEN]})
    request = f"POST {DIGITS} HTTP/1.1\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    connection.sendall(request.encode("latin-1"))
    assert answer_of(connection)[0] in (200, 400)


def test_a_header_over_the_bound_is_400(served: Service) -> None:
    connection = served.connect()
    connection.sendall(b"POST / HTTP/1.1\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n")
    assert answer_of(connection)[0] == 400


def test_a_hundred_megabytes_of_nested_brackets_are_refused_at_once(repository: Any) -> None:
    with Service(handler="percore.handlers.echo:Echo", max_body_bytes=200_000_000).ready(workers=2) as service:
        before = service.workers
        for body in (b"[" * 100_000_000, b'{"inputs": NaN, "x": ' + b"[" * 100_000_000):
            began = time.monotonic()
            refused(service.post("/v1/models/default:predict", data=body), "body")
            assert time.monotonic() - began < 10
        assert service.workers == before
