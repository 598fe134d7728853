"""The OpenAPI 3.1 document: every route, with examples for the models that are served now.

Written by hand from the two protocols. Tests compare it with the application's routes in both directions, and send requests
that the document allows. It imports no library, because the status server answers it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from percore import __version__
from percore.api.openapi_examples import example_requests, inference_examples, predict_examples
from percore.api.openapi_schemas import SCHEMAS
from percore.api.openapi_stored import CALL_ID, OPTIONS, PREFER_WAIT, RECEIPT_HEADERS, STORED_SCHEMAS
from percore.errors import CallError, call_errors
from percore.model_metadata import CLASSIFY, REGRESS, Catalog

Json = dict[str, Any]

_READ_ERRORS, _CALL_ERRORS = (404, 503), (400, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
_JSON = "application/json"
_BINARY = "application/octet-stream"
_HEADER = "Inference-Header-Content-Length"
_REQUEST_ID = "The call's name in the logs."
_STRING: Json = {"type": "string"}
_SIZE: Json = {"type": "integer", "minimum": 0}
_RESULTS = {"predict": "Predictions", "classify": "Classifications", "regress": "Regressions"}


def document(catalog: Catalog) -> Json:
    """Return the document for the models that are served now."""
    paths = {**_tensorflow_serving(catalog), **_open_inference(catalog), **_own_paths(), **_stored_call_paths()}
    components = {
        "schemas": {**SCHEMAS, **STORED_SCHEMAS, "Error": _error_schema()},
        "parameters": _parameters(catalog),
        "headers": _headers(),
    }
    info = {"title": "percore", "version": __version__, "description": "One call, one core, for slow TensorFlow models."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _tensorflow_serving(catalog: Catalog) -> Json:
    """Return TensorFlow Serving's paths."""
    paths: Json = {}
    examples = {
        "predict": predict_examples(catalog),
        "classify": example_requests(catalog, CLASSIFY),
        "regress": example_requests(catalog, REGRESS),
    }
    for place, names in (
        ("", ["model"]),
        ("/versions/{version}", ["model", "version"]),
        ("/labels/{label}", ["model", "label"]),
    ):
        path = f"/v1/models/{{model}}{place}"
        paths[path] = _get("Status of a model's versions", "ModelStatus", names)
        paths[f"{path}/metadata"] = _get("The signatures of a model", "ModelMetadata", names)
        for verb, result in _RESULTS.items():
            schema = "PredictRequest" if verb == "predict" else "ExamplesRequest"
            body = {_JSON: {"schema": _ref("schemas", schema), "examples": examples[verb]}}
            paths[f"{path}:{verb}"] = _post(f"TensorFlow Serving's {verb}", body, {_JSON: _schema(result)}, names)
    return paths


def _open_inference(catalog: Catalog) -> Json:
    """Return the Open Inference Protocol's paths."""
    paths = {
        "/v2": _get("Name, version and extensions of the server", "ServerMetadata", statuses=()),
        "/v2/health/live": _get("Whether the process answers", "Live", statuses=()),
        "/v2/health/ready": _get("Whether models are loaded; busy counts as ready", "Ready", statuses=(503,)),
    }
    body: Json = {_JSON: {"schema": _ref("schemas", "InferenceRequest"), "examples": inference_examples(catalog)}}
    body[_BINARY] = {"schema": {"type": "string", "format": "binary"}, "examples": body[_JSON]["examples"]}
    answers: Json = {_JSON: _schema("InferenceResponse"), _BINARY: {"schema": {"type": "string", "format": "binary"}}}
    for place, names in (("", ["model"]), ("/versions/{version}", ["model", "version"])):
        path = f"/v2/models/{{model}}{place}"
        paths[path] = _get("Inputs and outputs of a model", "InferenceMetadata", names)
        paths[f"{path}/ready"] = _get("Whether a model is loaded", "ModelReady", names)
        paths[f"{path}/infer"] = _post("Open Inference Protocol's infer", body, answers, [*names, "headerLength"])
        paths[f"{path}/infer"]["post"]["responses"]["200"]["headers"][_HEADER] = _ref("headers", _HEADER)
    return paths


def _own_paths() -> Json:
    return {"/openapi.json": _get("This document", "Document", statuses=(503,))}


def _stored_call_paths() -> Json:
    """Return the paths of stored calls. A gateway that stores no calls answers 404 there."""
    status = _get("The status of a stored call", "StoredCall", ("callId", "preferWait"), (400, 404, 410, 503))
    erase = _operation("Erase a stored call that has ended", {}, ("callId",), (400, 404, 409, 410, 503))
    erase["responses"]["204"] = {"description": "Erased"}
    del erase["responses"]["200"]
    cancel = _operation("Cancel a stored call", {_JSON: _schema("StoredCall")}, ("callId",), (400, 404, 410, 503))
    result = _get("The worker's answer to a stored call", "StoredCall", ("callId", "preferWait", "range"))
    for operation in result.values():
        answer = {"description": "The worker's answer: its status, its headers and its bytes, whatever they are."}
        failures = {str(status): _failure(status) for status in (404, 409, 410, 416)}
        operation["responses"] = {"default": answer, **failures}
    result["head"]["responses"] = {status: _bodiless(each) for status, each in result["head"]["responses"].items()}
    path = "/v1/calls/{callId}"
    return {path: {**status, "delete": erase}, f"{path}/result": result, f"{path}/cancel": {"post": cancel}}


def _ref(section: str, name: str) -> Json:
    return {"$ref": f"#/components/{section}/{name}"}


def _schema(name: str) -> Json:
    return {"schema": _ref("schemas", name)}


def _get(summary: str, schema: str, names: Iterable[str] = (), statuses: Iterable[int] = _READ_ERRORS) -> Json:
    operation = _operation(summary, {_JSON: _schema(schema)}, names, statuses)
    head = {**operation, "responses": {status: _bodiless(answer) for status, answer in operation["responses"].items()}}
    return {"get": operation, "head": head}


def _post(summary: str, body: Json, answer: Json, names: Iterable[str]) -> Json:
    operation = _operation(summary, answer, [*names, *OPTIONS], _CALL_ERRORS)
    operation["responses"]["202"] = {
        "description": "The receipt: the call is stored. Only with `Prefer: respond-async`, and where calls are stored.",
        "content": {_JSON: _schema("StoredCall")},
        "headers": {name: _ref("headers", name) for name in ("X-Request-ID", "Retry-After", *RECEIPT_HEADERS)},
    }
    return {"post": {**operation, "requestBody": {"required": True, "content": body}}}


def _operation(summary: str, answer: Json, names: Iterable[str], statuses: Iterable[int]) -> Json:
    succeeded = {"description": "OK", "content": answer, "headers": {"X-Request-ID": _ref("headers", "X-Request-ID")}}
    parameters = [_ref("parameters", name) for name in (*names, "requestId")]
    responses = {"200": succeeded, **{str(status): _failure(status) for status in statuses}}
    return {"summary": summary, "parameters": parameters, "responses": responses}


def _bodiless(response: Json) -> Json:
    return {name: value for name, value in response.items() if name != "content"}


def _errors() -> Sequence[type[CallError]]:
    return [CallError, *call_errors()]


def _failure(status: int) -> Json:
    """Return the response of one status, with its codes and their meanings."""
    kinds = [each for each in _errors() if each.status == status and each is not CallError]
    described = "; ".join(f"`{each.code}`: {(each.__doc__ or '').splitlines()[0]}" for each in kinds)
    headers = {"X-Request-ID": _ref("headers", "X-Request-ID")}
    if any(each.retry_after for each in kinds):
        headers["Retry-After"] = _ref("headers", "Retry-After")
    return {"description": described, "content": {_JSON: _schema("Error")}, "headers": headers}


def _error_schema() -> Json:
    codes = sorted({each.code for each in _errors()})
    properties = {
        "error": {"type": "string", "description": "What is wrong: the field, the rule and the value."},
        "code": {"type": "string", "enum": codes, "description": "The kind of error, for programs: one of a fixed list."},
    }
    return {"type": "object", "properties": properties, "required": ["error", "code"], "additionalProperties": False}


def _headers() -> Json:
    return {
        "X-Request-ID": {"description": _REQUEST_ID, "schema": _STRING},
        "Retry-After": {"description": "Seconds after which to try again.", "schema": _SIZE},
        _HEADER: {"description": "Bytes of JSON before the binary tensors.", "schema": _SIZE},
        **RECEIPT_HEADERS,
    }


def _parameters(catalog: Catalog) -> Json:
    labels = sorted({label for info in catalog for label in info.labels})
    versions = sorted({info.version for info in catalog})
    return {
        "model": _path_parameter("model", {"type": "string", **({"enum": list(catalog.by_name)} if catalog.by_name else {})}),
        "version": _path_parameter("version", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, versions),
        "label": _path_parameter("label", {"type": "string", "pattern": "^[^/:=,]+$"}, labels),
        "requestId": _header_parameter(
            "X-Request-ID", f"{_REQUEST_ID} Up to 128 visible characters; any other value is replaced.", _STRING
        ),
        "headerLength": _header_parameter(_HEADER, "Bytes of JSON before the binary tensors, if there are any.", _SIZE),
        **{name: _header_parameter(*each) for name, each in OPTIONS.items()},
        "preferWait": _header_parameter("Prefer", *PREFER_WAIT),
        "range": _header_parameter("Range", "One range of the result's bytes.", _STRING),
        "callId": _path_parameter("callId", CALL_ID),
    }


def _header_parameter(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _path_parameter(name: str, schema: Json, known: Sequence[Any] = ()) -> Json:
    examples = {"examples": {str(each): {"value": each} for each in known}} if known else {}
    return {"name": name, "in": "path", "required": True, "schema": schema, **examples}
