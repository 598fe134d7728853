import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from percore.api import openapi, openapi_stored
from percore.api.app import create_app
from percore.errors import CallError, call_errors
from percore.model_metadata import Catalog, TensorSpec
from schemathesis import Case

from tests.fakes import FakeModel, catalog_of, example_model, handler, model, spec

MODELS: list[FakeModel] = [
    model(
        [spec("x", "float32", None, 2), spec("t", "bytes", None)],
        lambda inputs: {"y": inputs["x"].sum(axis=-1), "t": np.full(len(inputs["x"]), b"a", object)},
        [spec("y", "float32", None), spec("t", "bytes", None)],
        labels=("stable",),
    ),
    model([spec("big", "float32", None, 10_000)], name="big"),
    model([TensorSpec("x", "float32", None), spec("flag", "bool", 2)], name="flags"),
    handler(),
    example_model(),
]
APP = create_app(MODELS, catalog_of(*MODELS), max_body_bytes=2**20)
DOCUMENT = openapi.document(catalog_of(*MODELS))
STORED = "/v1/calls/{callId}"
"""Stored calls are the gateway's: a worker has no such route."""


def document_of_a_worker() -> dict[str, Any]:
    """Return the document without headers that only a gateway reads: a worker accepts any value of them."""
    document: dict[str, Any] = json.loads(json.dumps(DOCUMENT))
    headers = [{"$ref": f"#/components/parameters/{name}"} for name in openapi_stored.OPTIONS]
    for _, _, operation in operations(document):
        operation["parameters"] = [each for each in operation["parameters"] if each not in headers]
    return document


def routes() -> set[tuple[str, str]]:
    found = {
        (re.sub(r"<(\w+:)?(\w+)>", r"{\2}", rule.rule), method)
        for rule in APP.url_map.iter_rules()
        for method in rule.methods or ()
    }
    return {(path, method.lower()) for path, method in found}


def operations(document: dict[str, Any] = DOCUMENT) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    stored = {(path, method) for path, method, _ in operations() if path.startswith(STORED)}
    assert {(path, method) for path, method, _ in operations()} - stored == routes()
    assert stored == {
        *((STORED, method) for method in ("get", "head", "delete")),
        *((f"{STORED}/result", method) for method in ("get", "head")),
        (f"{STORED}/cancel", "post"),
    }


def test_every_reference_leads_somewhere() -> None:
    for reference in re.findall(r'"#/components/(\w+)/([\w-]+)"', json.dumps(DOCUMENT)):
        assert reference[1] in DOCUMENT["components"][reference[0]]


def test_every_part_of_a_path_is_described_as_a_parameter() -> None:
    for path, _, operation in operations():
        named = {each["$ref"].rpartition("/")[2] for each in operation["parameters"]}
        assert set(re.findall(r"{(\w+)}", path)) == named & {"model", "version", "label", "callId"}


def test_every_code_that_can_be_answered_is_listed() -> None:
    codes = DOCUMENT["components"]["schemas"]["Error"]["properties"]["code"]["enum"]
    assert codes == sorted({CallError.code, *(each.code for each in call_errors())})


def test_calls_list_every_status_that_worker_and_gateway_give_them() -> None:
    statuses = {"200", "202", "400", "404", "408", "413", "415", "422", "429", "500", "502", "503", "504"}
    for path, method, operation in operations():
        if method == "post" and not path.startswith(STORED):
            assert set(operation["responses"]) == statuses, path


def test_the_parameter_model_lists_the_names_of_the_served_models() -> None:
    assert DOCUMENT["components"]["parameters"]["model"]["schema"]["enum"] == ["big", "examples", "flags", "handler", "m"]
    assert "enum" not in openapi.document(Catalog())["components"]["parameters"]["model"]["schema"]


def examples_of(path: str) -> dict[str, Any]:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return {name: each["value"] for name, each in content["examples"].items()}


def test_there_is_an_example_for_each_model_whose_inputs_are_small() -> None:
    assert examples_of("/v1/models/{model}:predict") == {
        "flags": {"inputs": {"x": 0, "flag": [False, False]}},
        "m": {"inputs": {"x": [[0, 0]], "t": [""]}},
        "examples": {"inputs": {"examples": [""]}},
    }


@pytest.mark.parametrize("path", ["/v1/models/{model}:predict", "/v2/models/{model}/infer"])
def test_every_example_is_accepted_by_its_model(path: str) -> None:
    for name, document in examples_of(path).items():
        response = APP.test_client().post(path.replace("{model}", name), json=document)
        assert response.status_code == 200, (name, response.data)


def test_an_example_of_each_method_is_accepted_by_its_signature() -> None:
    (classify,) = examples_of("/v1/models/{model}:classify").values()
    (regress,) = examples_of("/v1/models/{model}:regress").values()
    client = APP.test_client()
    assert client.post("/v1/models/examples:classify", json=classify).status_code == 200
    assert client.post("/v1/models/examples:regress", json=regress).status_code == 200


def test_nothing_here_needs_numpy() -> None:
    code = "import sys; import percore.api.openapi; print([name for name in ('numpy', 'flask') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


fuzzed = schemathesis.openapi.from_dict(document_of_a_worker())
fuzzed.app = APP


@fuzzed.parametrize()
@settings(max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_request_of_the_document_gets_an_answer_of_the_document(case: Case[Any]) -> None:
    case.call_and_validate(
        excluded_checks=[
            schemathesis.checks.positive_data_acceptance,  # a body that fits the generic schema may not fit the model
        ]
    )
